"""The cgroups of a container that somebody else manages: linux.cgroupsPath in every hierarchy that there is.

The engine's own (engine.cgroup) know one parent and one set of limits; here any path may come, and the directories are
remembered in the container's state, so that they are found again whatever is mounted by then.
"""

import errno
import os
import posixpath
import select
import signal
import time

from reconciler.shim import oci_state
from reconciler.shim.oci_state import OciError

DEFAULT_PARENT = "reconciler-oci"
_V1 = (
    *("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb", "net_cls"),
    *("net_prio", "perf_event", "rdma", "misc"),
)
_V2 = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH)
_PATIENCE = 10.0  # seconds for the kernel to freeze or to empty a cgroup


class Hierarchies:
    """Where cgroups are: the mount point of v2, the controllers there, and the mount point of each v1 controller."""

    __slots__ = ("controllers", "v1", "v2")

    def __init__(self) -> None:
        self.v2 = ""
        self.v1: dict[str, str] = {}
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                kind, _, rest = right.partition(" ")
                point = left.split(" ")[4]
                if kind == "cgroup2":
                    self.v2 = self.v2 or point
                elif kind == "cgroup":
                    for option in rest.split()[-1].split(","):
                        if option in _V1:
                            self.v1.setdefault(option, point)
        self.controllers = (
            frozenset(read(f"{self.v2}/cgroup.controllers").split()) if self.v2 else frozenset()
        )


class Cgroup:
    """The directories of one container: `v2`, or "" without that hierarchy, and `v1` by controller.

    `controllers` are those that v2 has. `made` are directories above that were missing, `own` those of its own that
    were: what was there before stays (runtime.md, Delete). `unit` and `slice` are systemd's names for it, where it
    makes the directory (`oci_scope`).
    """

    __slots__ = ("controllers", "made", "own", "slice", "unit", "v1", "v2")

    def __init__(self, v2: str, v1: dict[str, str], controllers: frozenset[str]) -> None:
        self.v2 = v2
        self.v1 = v1
        self.controllers = controllers
        self.made: list[str] = []
        self.own: list[str] = []
        self.unit = self.slice = ""

    def v1_directories(self) -> tuple[str, ...]:
        """Each v1 directory once: controllers that are mounted together share theirs."""
        return tuple(sorted(set(self.v1.values())))

    def directories(self) -> tuple[str, ...]:
        return (*((self.v2,) if self.v2 else ()), *self.v1_directories())

    def kept(self) -> dict[str, object]:
        """What state.json keeps of it."""
        return {
            "v2": self.v2,
            "v1": self.v1,
            "controllers": sorted(self.controllers),
            "made": self.made,
            "own": self.own,
            "unit": self.unit,
        }


def of(container: oci_state.Container) -> Cgroup:
    """Give the cgroup that the container's state names."""
    kept = container.values.get("cgroup")
    if not isinstance(kept, dict):
        return Cgroup("", {}, frozenset())
    group = Cgroup(str(kept["v2"]), dict(kept["v1"]), frozenset(kept["controllers"]))
    group.made, group.own, group.unit = list(kept["made"]), list(kept["own"]), str(kept.get("unit", ""))
    return group


def place(path: str, name: str) -> Cgroup:
    """Find the directories for linux.cgroupsPath `path`, by default one of our own for the container `name`.

    A relative path is below our own parent (config-linux.md, Cgroups Path: a place that the runtime determines).
    """
    if ":" in path and not path.startswith("/"):
        raise OciError(
            f"linux.cgroupsPath: {path}: a slice of systemd, which needs --systemd-cgroup; or use the manager cgroupfs "
            "(podman: --cgroup-manager cgroupfs; containerd: SystemdCgroup = false)"
        )
    clean = posixpath.normpath("/" + path.lstrip("/")) if path.startswith("/") else ""
    clean = clean or posixpath.normpath(
        f"/{DEFAULT_PARENT}/" + posixpath.normpath("/" + (path or name)).lstrip("/")
    )
    if clean == "/":
        raise OciError(f"linux.cgroupsPath: {path}: the root of the hierarchy can't be a container's")
    found = Hierarchies()
    if not found.v2 and not found.v1:
        raise OciError("cgroups: no hierarchy is mounted; try: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    v1 = {key: point + clean for key, point in found.v1.items() if key not in found.controllers}
    return Cgroup(found.v2 + clean if found.v2 else "", v1, found.controllers)


def claim(group: Cgroup) -> None:
    """Find out which directories are to be made; raise OciError where one is in use, and leave it to who uses it."""
    busy = pids(group)
    if busy:
        used = next(directory for directory in group.directories() if os.path.isdir(directory))
        raise OciError(f"container's cgroup is not empty: {len(busy)} process(es) found in {used}")
    group.own = [directory for directory in group.directories() if not os.path.isdir(directory)]


def create(group: Cgroup) -> None:
    """Make the directories, or leave nothing."""
    try:
        _make_all(group)
    except BaseException:
        remove(group, above=True)
        raise


def _make_all(group: Cgroup) -> None:
    for directory in group.directories():
        for _ in range(10):
            try:
                _make(directory, group, is_v2=directory == group.v2)
                break
            except FileNotFoundError:
                continue  # the removal of another container took a parent along
        else:
            raise OciError(f"{directory}: its parent keeps vanishing")


def _make(directory: str, group: Cgroup, *, is_v2: bool) -> None:
    missing = []
    above = os.path.dirname(directory)
    while not os.path.isdir(above):
        missing.append(above)
        above = os.path.dirname(above)
    for parent in reversed(missing):
        if _mkdir(parent):
            group.made.append(parent)
            _inherit(parent)
    if is_v2:
        _delegate(directory)
    _mkdir(directory)
    _inherit(directory)


def _mkdir(directory: str) -> bool:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    return True


def _delegate(directory: str) -> None:
    """Enable the controllers in every cgroup above; one that can't be is missed where a limit needs its file."""
    above = os.path.dirname(directory)
    chain = []
    while os.path.exists(f"{above}/cgroup.controllers"):
        chain.append(above)
        above = os.path.dirname(above)
    for parent in reversed(chain):
        enabled = read(f"{parent}/cgroup.subtree_control").split()
        for controller in read(f"{parent}/cgroup.controllers").split():
            if controller in _V2 and controller not in enabled:
                try:
                    write(f"{parent}/cgroup.subtree_control", f"+{controller}")
                except OSError as error:
                    if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP):
                        raise


def _inherit(directory: str) -> None:
    """A new cpuset of version 1 is empty, and an empty one takes no process."""
    for leaf in ("cpuset.cpus", "cpuset.mems"):
        file = f"{directory}/{leaf}"
        if os.path.exists(f"{directory}/cpuset.memory_migrate") and not read(file).strip():
            write(file, read(f"{os.path.dirname(directory)}/{leaf}").strip())


def join(group: Cgroup, pid: int) -> None:
    """Move the process `pid` into every directory."""
    for directory in group.directories():
        write(f"{directory}/cgroup.procs", str(pid))


def pids(group: Cgroup) -> list[int]:
    """List the processes in it and below it, as numbers that may be somebody else's a moment later."""
    found: set[int] = set()
    for directory in group.directories():
        for inner, _, _ in os.walk(directory):
            found.update(int(pid) for pid in read(f"{inner}/cgroup.procs").split())
    return sorted(found - {0})


def kill(group: Cgroup, number: int = signal.SIGKILL) -> None:
    """Send a signal to everything in it; SIGKILL reaches also what forks meanwhile."""
    if number == signal.SIGKILL and group.v2 and os.path.exists(f"{group.v2}/cgroup.kill"):
        try:
            write(f"{group.v2}/cgroup.kill", "1")  # since 5.14
        except OSError as error:
            if error.errno not in _GONE:
                raise
    done: set[int] = set()
    while new := [pid for pid in pids(group) if pid not in done]:
        for pid in new:
            _kill_one(group, pid, number)
        done.update(new)
        if number != signal.SIGKILL:
            break


def _kill_one(group: Cgroup, pid: int, number: int) -> None:
    """Signal `pid` if, now that a descriptor pins the process, it still is in the cgroup."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid in pids(group):
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def freeze(group: Cgroup, wanted: bool) -> None:
    """Freeze everything in it, or let it go on; raise OciError where that can't be done."""
    if group.v2:
        write(f"{group.v2}/cgroup.freeze", "1" if wanted else "0")
    elif "freezer" in group.v1:
        write(f"{group.v1['freezer']}/freezer.state", "FROZEN" if wanted else "THAWED")
    else:
        raise OciError("cgroups: there is no freezer, so nothing can be paused")
    deadline = time.monotonic() + _PATIENCE
    while wanted and not frozen(group):
        if time.monotonic() > deadline:
            freeze(group, False)
            raise OciError("a process does not come to rest (hanging storage or network mounts?)")
        select.select([], [], [], 0.005)


def frozen(group: Cgroup) -> bool:
    """Say whether everything in it is stopped."""
    if group.v2:
        return "frozen 1" in read(f"{group.v2}/cgroup.events")
    return "freezer" in group.v1 and read(f"{group.v1['freezer']}/freezer.state").strip() == "FROZEN"


def status(container: oci_state.Container) -> str:
    """Give the state's status, paused among them."""
    found = container.status()
    if found in ("created", "running") and frozen(of(container)):
        return "paused"
    return found


def remove(group: Cgroup, *, above: bool = False) -> None:
    """End all that is in it and take the directories away, with `above` those that were made for it too."""
    deadline = time.monotonic() + _PATIENCE
    if pids(group):
        kill(group)
        if frozen(group):
            freeze(group, False)
    for directory in group.directories():
        for inner, _, _ in os.walk(directory, topdown=False):
            while inner != directory or directory in group.own:
                try:
                    os.rmdir(inner)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    # What has just been killed may still be on its way out (cgroup_release)
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise OciError(f"{inner}: {os.strerror(error.errno or 0).lower()}") from error
                    select.select([], [], [], 0.005)
                    continue
                break
    for directory in reversed(group.made):
        # Our own parent goes with the last container in it; what a caller wanted stays the caller's
        if above or os.path.basename(directory) == DEFAULT_PARENT:
            try:
                os.rmdir(directory)
            except OSError:
                pass


def read(file: str) -> str:
    """Read a control file; an empty text where it is not there, or its cgroup went meanwhile."""
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise


def write(file: str, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
