"""What this host offers and what it lacks, each found by trying it, with the remedy. Reads only, and leaves
nothing behind.

Trials that need a mount namespace run in a thread of their own, which takes everything away when it ends
(unshare(2) works on the calling thread). A check that fails is a value: `doctor` prints it, `agent` refuses
to start for a missing one.
"""

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import forward_blockers
from reconciler.engine.snapshot import file_system_type
from reconciler.errors import ReconcilerError
from reconciler.linux import capability, mount, namespace

FLOOR: Final = (5, 15)
_BUILT: Final = 1_767_225_600  # 2026-01-01: no clock that is right shows less
_NEEDED: Final = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_ADMIN",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_CHROOT",
)
_ELSEWHERE: Final = "run it on the host, or in a container with --privileged"
_NAMESPACES: Final = (
    namespace.CLONE_NEWNS
    | namespace.CLONE_NEWPID
    | namespace.CLONE_NEWNET
    | namespace.CLONE_NEWUTS
    | namespace.CLONE_NEWIPC
    | namespace.CLONE_NEWCGROUP
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `ok` is False for what containers can't do without, None for a warning."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def checks(layout: Layout, *, quick: bool = False) -> tuple[Check, ...]:
    """Everything, or with `quick` only what an agent can't do without. Takes well under a second."""
    found = [_kernel(), _root()]
    if found[-1].ok:
        found += [_capabilities(), _namespaces(), _overlay(layout), *_cgroups(), _nftables()]
    if quick:
        return tuple(found)
    if found[1].ok:
        found += _foreign_firewalls()
    return (*found, _git(), _seccomp(), _room(layout), _clock(), _inotify(), _descriptors(), _resources())


# --- required ----------------------------------------------------------------------------------------------------


def _kernel() -> Check:
    release = os.uname().release
    numbers = release.split("-", 1)[0].split(".")
    version = tuple(int(part) for part in numbers[:2] if part.isdigit())
    ok = version >= FLOOR
    return Check("kernel", ok, f"Linux {release}", "" if ok else "boot Linux 5.15 or newer")


def _root() -> Check:
    uid = os.geteuid()
    return Check(
        "root", uid == 0, f"running as uid {uid}", "" if uid == 0 else "run it as root, for example with sudo"
    )


def _capabilities() -> Check:
    effective = capability.capget()[0]
    missing = [name for name in _NEEDED if not effective >> capability.NUMBERS[f"CAP_{name}"] & 1]
    if missing:
        return Check("capabilities", False, f"missing: {', '.join(missing)}", _ELSEWHERE)
    return Check("capabilities", True, "all that are needed")


def _namespaces() -> Check:
    error = _tried(lambda: namespace.unshare(_NAMESPACES))
    return Check(
        "namespaces", not error, error or "pid, net, mount, uts, ipc, cgroup", _ELSEWHERE if error else ""
    )


def _overlay(layout: Layout) -> Check:
    error = _tried(_mount_overlay)
    if error:
        return Check("overlay", False, error, _ELSEWHERE)
    state = _existing(layout.state)
    kind = file_system_type(state, _mountinfo())
    if kind == "overlay":
        detail = f"{state} is itself on overlay: writable layers go to {layout.run}, and are lost at a reboot"
        return Check("overlay", None, detail, "put --state on another file system")
    return Check("overlay", True, f"works; {state} is on {kind or 'an unknown file system'}")


def _mount_overlay() -> None:
    namespace.unshare(namespace.CLONE_NEWNS)
    mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)
    base = "/tmp" if Path("/tmp").is_dir() else "/"
    mount.mount("doctor", base, "tmpfs")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{base}/{name}")
    mount.mount(
        "doctor",
        f"{base}/merged",
        "overlay",
        0,
        f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work",
    )


def _cgroups() -> list[Check]:
    try:
        found = Hierarchies.detect()
    except ReconcilerError as error:
        return [Check("cgroup", False, str(error), error.hint)]
    versions = {name: found.version(name) for name in ("cpu", "memory", "pids")}
    missing = [name for name, version in versions.items() if version == 0]
    where = ", ".join(f"{name} v{version}" for name, version in versions.items() if version)
    root = found.v2 if found.v2 is not None and not found.v1 else found.v1.get("pids", found.v2)
    trial = root / f"doctor-{os.getpid()}-{threading.get_ident()}" if root is not None else None
    if trial is not None:
        try:
            trial.mkdir()
            trial.rmdir()
        except OSError as error:
            return [Check("cgroup", False, f"{trial.parent}: {error.strerror}", _ELSEWHERE)]
    listing = [Check("cgroup", True, f"{found}: {where or 'no controller'}")]
    if missing:
        remedy = f"boot with {' '.join(f'cgroup_enable={name}' for name in missing)}"
        listing.append(Check("limits", None, f"can't be enforced: {', '.join(missing)}", remedy))
    return listing


def _nftables() -> Check:
    try:
        Firewall("0" * 16).observe()
    except ReconcilerError as error:
        return Check("nftables", False, str(error), error.hint)
    return Check("nftables", True, "libnftables works")


# --- good to know -------------------------------------------------------------------------------------------------


def _foreign_firewalls() -> list[Check]:
    try:
        blockers = forward_blockers(Firewall("0" * 16))
    except ReconcilerError as error:
        return [Check("forwarding", None, str(error), error.hint)]
    if not blockers:
        return [Check("forwarding", True, "nobody else's firewall drops forwarded traffic")]
    return [Check("forwarding", None, str(blocker), blocker.hint) for blocker in blockers]


def _git() -> Check:
    path = shutil.which("git")
    return Check("git", True if path else None, path or "not found", "" if path else "apt-get install git")


def _seccomp() -> Check:
    return Check(
        "seccomp",
        None,
        "containers run without a seccomp filter in this release",
        "don't run programs you would not trust with your kernel",
    )


def _room(layout: Layout) -> Check:
    state = _existing(layout.state)
    room = os.statvfs(state)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    detail = f"{free >> 20} MiB of {total >> 20} MiB free at {state}"
    low = free < 512 << 20
    return Check(
        "disk", None if low else True, detail, "make room, or use another --state directory" if low else ""
    )


def _clock() -> Check:
    now = time.time()
    wrong = now < _BUILT
    detail = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return Check(
        "clock", None if wrong else True, detail, "set the clock: certificates look invalid" if wrong else ""
    )


def _inotify() -> Check:
    watches = _number(Path("/proc/sys/fs/inotify/max_user_watches"))
    low = watches < 8192
    return Check(
        "inotify",
        None if low else True,
        f"{watches} watches",
        "raise fs.inotify.max_user_watches, or changes are found by polling" if low else "",
    )


def _descriptors() -> Check:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= 65536:
        return Check("descriptors", True, "the hard limit is high enough")
    return Check(
        "descriptors",
        None,
        f"the hard limit on open files is {hard}: containers get that instead of 65536:1048576",
        "raise LimitNOFILE of the service",
    )


def _resources() -> Check:
    if capability.capget()[0] >> capability.NUMBERS["CAP_SYS_RESOURCE"] & 1:
        return Check("resources", True, "CAP_SYS_RESOURCE is there")
    return Check("resources", None, "CAP_SYS_RESOURCE is missing: hard limits can't be raised", _ELSEWHERE)


# --- trying -----------------------------------------------------------------------------------------------------


def _tried(trial: Callable[[], None]) -> str:
    """Run `trial` in a thread of its own, whose namespaces end with it; return the error, or ""."""
    said: list[str] = []

    def run() -> None:
        try:
            trial()
        except OSError as error:
            said.append(str(error.strerror or error))

    thread = threading.Thread(target=run, name="doctor")
    thread.start()
    thread.join()
    return said[0] if said else ""


def _existing(path: Path) -> Path:
    """The nearest existing ancestor, which is where a directory would be made."""
    while not path.exists():
        path = path.parent
    return path.resolve()


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
