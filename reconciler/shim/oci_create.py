"""Making a container of somebody else's bundle, up to the moment before its program; and letting that run.

The first process is a child of the caller's of this program in all but name: it keeps the caller's descriptors 0 to 2,
has no death signal, and once this program has ended belongs to whoever reaps for the caller (conmon, containerd's
shim). It waits at a FIFO in the container's directory for `start`. Either the container is complete or nothing of it is
left: no process, cgroup, mount or file.
"""

import errno
import os
import select
import signal
import socket
import time

from reconciler.linux import capability, mount, namespace
from reconciler.shim import (
    child,
    document,
    mounts,
    oci_cgroup,
    oci_child,
    oci_config,
    oci_filter,
    oci_hooks,
    oci_log,
    oci_resources,
    oci_scope,
    oci_state,
    record,
    start,
    users,
)
from reconciler.shim.config import Mount
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.oci_birth import Arguments, help_out
from reconciler.shim.oci_config import Bundle
from reconciler.shim.oci_state import Container, OciError
from reconciler.shim.step import Step, StepError, problem
from reconciler.shim.users import Mapping

_KINDS = {
    "ipc": namespace.CLONE_NEWIPC,
    "net": namespace.CLONE_NEWNET,
    "uts": namespace.CLONE_NEWUTS,
}


class Order:
    """What a caller wants besides the bundle. `console` is the path of a socket for the terminal, or its descriptor.

    `activated` is how many of the `preserved` descriptors are of socket activation, which the program is told. With
    `systemd` that makes the cgroup.
    """

    __slots__ = (
        "activated",
        "bundle",
        "console",
        "console_fd",
        "fresh_keyring",
        "id",
        "pid_file",
        "preserved",
        "root",
        "systemd",
    )

    def __init__(self, root: str, name: str, bundle: str) -> None:
        self.root = root
        self.id = name
        self.bundle = bundle
        self.pid_file = ""
        self.console = ""
        self.console_fd = -1
        self.preserved = 0
        self.activated = ""
        self.fresh_keyring = True
        self.systemd = False


def create(order: Order) -> Container:
    """Make the container that `order` asks for; raise ConfigError, StepError or OciError, and leave nothing then."""
    oci_state.check_id(order.id)
    path = os.path.realpath(order.bundle or ".")
    with Step("bundle", path):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    config = document.read_config(directory, f"{path}/config.json")
    bundle = oci_config.read(config, path, capability.capget()[1])
    if bundle.dropped:
        oci_log.warn(f"capabilities that can't be given are left out: {', '.join(bundle.dropped)}")
    made = Creation(order, path, config, bundle)
    try:
        made.run()
    except BaseException:
        made.undo()
        raise
    finally:
        os.close(directory)
    return made.container


class Creation:
    """One container in the making."""

    def __init__(self, order: Order, path: str, config: dict[str, object], bundle: Bundle) -> None:
        self._order = order
        self._path = path
        self._config = config
        self._bundle = bundle
        self._group: oci_cgroup.Cgroup | None = None
        self._holder: oci_scope.Holder | None = None
        self._pidfd = -1
        self._ran_hooks = False
        self._fds: list[int] = []
        self.container = oci_state.make(order.root, order.id)

    def run(self) -> None:
        """Do it all."""
        bundle, prepared, container = self._bundle, self._bundle.prepared, self.container
        annotations = Section(self._config, "annotations").values
        container.values = {
            "version": 1,
            "ociVersion": self._config.get("ociVersion"),
            "bundle": self._path,
            "annotations": annotations,
            "rootfs": os.path.realpath(prepared.rootfs),
            "pid": 0,
            "boot": record.boot_id(),
            "time": _now(),
            "own_pids": bool(prepared.clone_flags & namespace.CLONE_NEWPID),
        }
        record.replace(container.directory, oci_state.CONFIG, document.text(self._config))
        _check_own(prepared)
        if self._order.activated.isdigit():  # sd_listen_fds(3)
            told = {b"LISTEN_FDS": self._order.activated.encode(), b"LISTEN_PID": b"1"}
            prepared.process.environment.update(told)
        oci_filter.prepare(prepared.process, self._config)
        prepared.name = prepared.name or container.id
        prepared.rootfs = os.path.realpath(prepared.rootfs)
        group = (oci_scope if self._order.systemd else oci_cgroup).place(bundle.cgroups_path, container.id)
        oci_cgroup.claim(group)
        if group.unit:
            group.own = []  # the scope is systemd's
        container.values["cgroup"] = group.kept()
        container.save()
        self._group = group
        if group.unit:
            known = oci_scope.properties(oci_resources.plan(bundle.resources, group))
            self._holder = oci_scope.Holder(group, known)
        else:
            oci_cgroup.create(group)
        container.values["cgroup"] = group.kept()
        oci_resources.apply(bundle.resources, group)
        oci_resources.restrict(group, oci_resources.rules(bundle.resources))
        prepared.cgroup_v2, prepared.cgroup_v1 = group.v2 or None, group.v1_directories()
        self._spawn()
        if self._holder is not None:
            self._holder.end()
            self._holder = None
        container.values["created"] = True
        container.save()
        if self._order.pid_file:
            write_pid(self._order.pid_file, container.pid)

    def undo(self) -> None:
        """Take back what has been done so far."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        if self._holder is not None:
            self._holder.end()
        if self._group is not None:
            try:
                oci_cgroup.remove(self._group, above=True)
            except OSError:
                pass  # the first error is the one to tell
        state = self.container.state("stopped")
        self.container.remove()
        if (
            self._ran_hooks
        ):  # runtime.md, Lifecycle: what fails from the hooks on goes on with the destruction
            try:
                oci_hooks.run_all(self._bundle.hooks, "poststop", state)
            except StepError:
                pass

    def _spawn(self) -> None:
        container, order = self.container, self._order
        with Step("fifo", container.path):
            for name in (oci_state.START, oci_state.SAID):
                os.mkfifo(name, 0o600, dir_fd=container.directory)
            flags = os.O_RDWR | os.O_CLOEXEC
            go = os.open(oci_state.START, flags, dir_fd=container.directory)
            said = os.open(
                oci_state.SAID, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=container.directory
            )
            error = os.open(oci_state.SAID, flags, dir_fd=container.directory)
            sync, sync_write = os.pipe2(os.O_CLOEXEC)
            talk, talk_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        console = self._console()
        sources = self._sources()
        tree = self._tree()
        state = container.state("creating")
        extras = oci_child.Extras(
            self._bundle, self._config, state, talk_child, sources, tree, order.preserved, order.fresh_keyring
        )
        arguments = Arguments(go, sync_write, error, console, extras)
        with talk, talk_child:
            pid = self._clone(arguments)
            for fd in (go, sync_write, error, tree, *sources.values(), *((console,) if console >= 0 else ())):
                os.close(fd)
            talk_child.close()
            container.values["pid"], container.values["started"] = pid, record.started(pid)
            container.save()
            self._settle(pid)
            try:
                talk.send(oci_child.READY)
            except BrokenPipeError:
                pass  # it has failed already, and says why
            self._await(talk, sync, said)
        for fd in (sync, said):
            os.close(fd)

    def _console(self) -> int:
        terminal = self._bundle.prepared.process.terminal
        order = self._order
        if not terminal:
            if order.console:
                raise OciError("cannot use console socket if runc will not detach or allocate tty")
            return -1
        if order.console_fd >= 0:
            return order.console_fd
        if not order.console:
            raise OciError("cannot allocate tty if runc will detach without setting console socket")
        return connect_console(order.console)

    def _sources(self) -> dict[Mount, int]:
        """Make every bind's mount here, where the host is seen as the caller sees it and ids can be mapped."""
        found: dict[Mount, int] = {}
        for entry in self._bundle.prepared.mounts:
            if entry.kind == "bind":
                with Step("mount", entry.destination):
                    try:
                        source = os.open(entry.source, os.O_PATH | os.O_CLOEXEC)
                    except OSError as error:
                        text = f"bind source {entry.source}: {os.strerror(error.errno or 0)}"
                        raise OSError(error.errno, text) from error
                    found[entry] = mounts.detached(entry, source)
                    if entry in self._bundle.id_mapped:
                        self._map_ids(found[entry], *self._bundle.id_mapped[entry])
        return found

    def _map_ids(self, tree: int, uids: Mapping, gids: Mapping, deep: bool) -> None:
        userns = users.make(uids, gids)
        try:
            mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_IDMAP, recursive=deep, userns=userns)
        finally:
            os.close(userns)

    def _tree(self) -> int:
        prepared = self._bundle.prepared
        with Step("rootfs", prepared.rootfs):
            source = os.open(prepared.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            tree = mount.open_tree(source, flags=mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE)
            os.close(source)
            # A peer of the host's mount would show the host what is mounted inside
            mount.mount_setattr(tree, propagation=prepared.root_propagation, recursive=True)
            return tree

    def _clone(self, arguments: Arguments) -> int:
        """Clone the first process, by a helper where it is to be born in namespaces that others have made."""
        bundle, prepared = self._bundle, self._bundle.prepared
        helped = bool(bundle.joined_user or bundle.joined_pid or bundle.new_time)
        helped = helped or (bundle.new_user and bool(prepared.joins))
        if not helped:
            group = None
            with Step("cgroup", prepared.cgroup_v2 or ""):
                if prepared.cgroup_v2:
                    group = os.open(prepared.cgroup_v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with Step("clone", self.container.id):
                pid, self._pidfd = namespace.clone3(prepared.clone_flags, cgroup=group)
            if pid == 0:
                arguments.run(prepared)
            if group is not None:
                os.close(group)
            return pid
        reader, writer = os.pipe2(os.O_CLOEXEC)
        helper = os.fork()
        if helper == 0:
            help_out(bundle, arguments, writer)
        os.close(writer)
        with open(reader, "rb") as file:
            said = file.read()
        os.waitpid(helper, 0)
        if not said.isdigit():
            raise problem(said)
        pid = int(said)
        self._pidfd = os.pidfd_open(pid)  # ours, so the number is nobody else's before we reap it
        return pid

    def _settle(self, pid: int) -> None:
        """Give the process what only this one may: its ids, its cgroups, its importance."""
        bundle = self._bundle
        if bundle.new_user:
            with Step("user", "gid_map"):
                users.write(f"/proc/{pid}/gid_map", users.lines(bundle.gid_map))
            with Step("user", "uid_map"):
                users.write(f"/proc/{pid}/uid_map", users.lines(bundle.uid_map))
        assert self._group is not None
        with Step("cgroup", self._group.directories()[0]):
            oci_cgroup.join(self._group, pid)
        adjust = bundle.prepared.process.oom_score_adj
        if adjust is not None:
            with Step("oom_score_adj", str(adjust)):
                users.write(f"/proc/{pid}/oom_score_adj", str(adjust))
        if not (bundle.new_user or bundle.joined_user):
            return
        uid = oci_config.host_id(bundle.uid_map, bundle.prepared.process.uid)
        if uid is not None:
            own_stdio(uid)

    def _await(self, talk: socket.socket, sync: int, said: int) -> None:
        """Wait until the container is created, and run the runtime's hooks when it asks for them."""
        poll = select.poll()
        poll.register(talk, select.POLLIN)
        poll.register(sync, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if sync in ready:
                break
            if talk.recv(1) == oci_child.HOOKS:
                self._ran_hooks = True
                state = self.container.state("creating")
                oci_hooks.run_all(self._bundle.hooks, "prestart", state)
                oci_hooks.run_all(self._bundle.hooks, "createRuntime", state)
                talk.send(oci_child.DONE)
            else:
                poll.unregister(talk)
        if os.read(sync, 1):
            return
        hooks = self._bundle.hooks
        self._ran_hooks = self._ran_hooks or bool(hooks["createContainer"])
        raise failed(said)


def own_stdio(uid: int) -> None:
    """Make pipes, sockets and terminals among the descriptors 0 to 2 the user's, who is to be able to open them."""
    for fd in (0, 1, 2):
        info = os.fstat(fd)
        if start.passes_hands(info.st_mode, fd) and info.st_uid != uid:
            try:
                os.fchown(fd, uid, -1)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EROFS):
                    raise


def _check_own(prepared: child.Prepared) -> None:
    """Refuse to change the runtime's own namespaces by the path of one: its sysctls, its host name."""
    joined = {flag: name for flag, name in prepared.joins}
    for kind, flag in _KINDS.items():
        name = joined.get(flag)
        if name is None:
            continue
        with Step("namespace", name):
            same = os.path.samestat(os.stat(name), os.stat(f"/proc/self/ns/{kind}"))
        if same and kind == "uts" and (prepared.hostname or prepared.domainname):
            raise ConfigError("hostname: the uts namespace is the host's own")
        if same and any(child_of(sysctl) == kind for sysctl, _ in prepared.sysctl):
            raise ConfigError(f"linux.sysctl: the {kind} namespace is the host's own")


def child_of(sysctl: str) -> str:
    """The kind of namespace that a sysctl is in (shim.config lets no other pass)."""
    if sysctl.startswith("net/"):
        return "net"
    return "uts" if sysctl in ("kernel/hostname", "kernel/domainname") else "ipc"


def connect_console(path: str) -> int:
    """Connect to the socket that takes a terminal's master; give the descriptor."""
    with Step("console", path):
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.connect(path)
        return channel.detach()


def failed(said: int) -> StepError:
    """Read why init did not get on, from its FIFO, which does not wait."""
    line = b""
    try:
        while chunk := os.read(said, 65536):
            line += chunk
    except BlockingIOError:
        pass
    return problem(line)


def write_pid(file: str, pid: int) -> None:
    """Write a pid file, so that a reader sees the whole number or no file."""
    partial = os.path.join(os.path.dirname(file), f".{os.path.basename(file)}")
    with Step("pid file", file):
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(fd, str(pid).encode())
        os.close(fd)
        os.rename(partial, file)


def _now() -> str:
    now = time.time_ns()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
    return f"{whole}.{now % 1_000_000_000:09}Z"
