"""What a container of somebody else's has done to it on its way from clone to exec, beyond what the engine's have.

Every method runs in the container's first process, at the point that shim.child.Extras names for it. Through `talk` it
waits for its parent: for ids and cgroups, which only that one may give, and for hooks that run outside.
"""

import os
import socket

from reconciler.linux import mount, namespace, path, process, scheduling
from reconciler.shim import child, mounts, oci_filter, oci_hooks, rootfs
from reconciler.shim.config import Mount, Prepared
from reconciler.shim.oci_config import Bundle, Confinement
from reconciler.shim.step import Step

READY = b"r"  # from the parent: ids are mapped and the process is in its cgroups
HOOKS = b"h"  # from the child: the runtime's hooks, please
DONE = b"d"  # from the parent: they have run
_LSM = "/sys/module/apparmor/parameters/enabled"
_SELINUX = "/sys/fs/selinux/enforce"


class Extras(child.Extras):
    """The ways of one bundle. `label` is a descriptor kept free for /proc/PID/attr/exec, -1 where there is no label."""

    def __init__(
        self,
        bundle: Bundle,
        config: dict[str, object],
        state: dict[str, object],
        talk: socket.socket,
        sources: dict[Mount, int],
        tree: int,
        preserved: int,
        fresh_keyring: bool,
    ) -> None:
        self._bundle = bundle
        self._config = config
        self._state = state
        self._talk = talk
        # Made by the root of its own, as whose /dev/mqueue then is; the clone makes all others
        self._late_ipc = bundle.new_user and bool(bundle.prepared.clone_flags & namespace.CLONE_NEWIPC)
        if self._late_ipc:
            bundle.prepared.clone_flags &= ~namespace.CLONE_NEWIPC
        self._label = label_place(bundle.confinement)
        self.sources = sources
        self.tree = tree
        self.preserved = preserved
        self.fresh_keyring = fresh_keyring
        self.placed = True
        self.own_stdio = not (bundle.new_user or bundle.joined_user)
        self.keep = (talk.fileno(), tree, *sources.values())
        label = (self._label,) if self._label >= 0 else ()
        self.late = (*range(3, 3 + preserved), *label, *oci_filter.kept(bundle.prepared.process))

    def enter(self, prepared: Prepared) -> None:
        """Wait for ids and cgroups, and become the root of the user namespace."""
        self._await(READY)
        oci_filter.introduce(prepared.process, self._config, self._state)
        if self._bundle.new_user or self._bundle.joined_user:
            become_root()
        if self._late_ipc:
            with Step("namespace", "ipc"):
                namespace.unshare(namespace.CLONE_NEWIPC)

    def write_proc(self, prepared: Prepared, proc: int) -> bool:
        """Open what the label goes to; oom_score_adj was the parent's, who alone may lower it in a user namespace."""
        if self._label >= 0:
            with Step("label", "/proc"):
                made = proc if proc >= 0 else mounts.create("proc", (), 0)
            open_label(made, self._bundle.confinement, self._label)
        return True

    def mounted(self, root: rootfs.Root) -> None:
        """Have the runtime's hooks run outside, and then those inside that still see the runtime's root."""
        hooks = self._bundle.hooks
        if hooks["prestart"] or hooks["createRuntime"]:
            self._talk.send(HOOKS)
            self._await(DONE)
        oci_hooks.run_all(hooks, "createContainer", self._told("creating"))

    def entered(self) -> None:
        """Give the root the propagation that is asked for; up to here nothing may reach the host's mounts."""
        if self._bundle.propagation is not None:
            kind, deep = self._bundle.propagation
            with Step("propagation", "/"):
                mount.mount_setattr(path.AT_FDCWD, "/", propagation=kind, recursive=deep)

    def tune(self) -> None:
        tune(self._bundle.confinement)

    def confine(self) -> None:
        if self._label >= 0:
            write_label(self._label, self._bundle.confinement)

    def start(self, keep: tuple[int, ...]) -> None:
        """Run the hooks of the container itself: its root, its user, its privileges."""
        oci_hooks.run_all(self._bundle.hooks, "startContainer", self._told("created"))

    def _told(self, status: str) -> dict[str, object]:
        return {**self._state, "status": status, "pid": os.getpid()}

    def _await(self, wanted: bytes) -> None:
        if self._talk.recv(1) != wanted:
            raise SystemExit  # the parent is gone, or has given up


def become_root() -> None:
    """Become user and group 0 of the user namespace that this process is in, without further groups."""
    with Step("user", "0"):
        process.setgroups(())
        process.setresgid(0)
        process.setresuid(0)


def tune(wanted: Confinement) -> None:
    """Set what needs capabilities that are about to go: how this process is scheduled, and its personality."""
    if wanted.scheduler is not None:
        asked = wanted.scheduler
        with Step("scheduler"):
            scheduling.set_scheduler(
                asked.policy,
                flags=asked.flags,
                nice=asked.nice,
                priority=asked.priority,
                runtime=asked.runtime,
                deadline=asked.deadline,
                period=asked.period,
            )
    if wanted.io_priority is not None:
        with Step("ioPriority"):
            scheduling.set_io_priority(*wanted.io_priority)
    if wanted.personality is not None:
        with Step("personality"):
            scheduling.set_personality(wanted.personality)


# --- AppArmor and SELinux: a word in /proc/PID/attr/exec, which the exec takes -------------------------------------


def label_place(wanted: Confinement) -> int:
    """Keep a descriptor free for the label's file; -1 where no label is wanted. Raise StepError on a kernel without."""
    if not (wanted.apparmor or wanted.selinux):
        return -1
    if wanted.apparmor and _first(_LSM) != b"Y":
        raise child.ConfigError("process.apparmorProfile: this kernel has no AppArmor")
    if wanted.selinux and not _first(_SELINUX):
        raise child.ConfigError("process.selinuxLabel: this kernel has no SELinux")
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _first(file: str) -> bytes:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


def open_label(proc: int, wanted: Confinement, place: int) -> None:
    """Put this process's attr/exec, of the procfs `proc`, which is fresh from the kernel, on the descriptor `place`."""
    with Step("label", wanted.apparmor or wanted.selinux):
        name = f"{os.getpid()}/attr/{'apparmor/' if wanted.apparmor else ''}exec"
        resolve = path.RESOLVE_BENEATH | path.RESOLVE_NO_SYMLINKS | path.RESOLVE_NO_XDEV
        fd = path.openat2(proc, name, os.O_WRONLY, resolve=resolve)
        os.dup2(fd, place, inheritable=False)
        os.close(fd)


def write_label(place: int, wanted: Confinement) -> None:
    """Have the next exec take the label."""
    with Step("label", wanted.apparmor or wanted.selinux):
        os.write(place, f"exec {wanted.apparmor}".encode() if wanted.apparmor else wanted.selinux.encode())
        os.close(place)
