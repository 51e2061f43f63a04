"""A container's cgroup: limits that hold before its first instruction, and the sure way to end all that runs in it.

On version 2 a container has one directory, on version 1 one per controller, on a hybrid both: the v2 one then carries
no limit, but cgroup.kill and cgroup.events work there as well. Directories are `<hierarchy>/<parent>/<id>`; where
systemd has made the scope `<parent>.scope` for us (engine.scope) they are in that instead. A limit that cannot be
enforced is an error, never a warning.
"""

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine import cgroup_cpuset, cgroup_reserve
from reconciler.engine.cgroup_devices import restrict
from reconciler.engine.cgroup_limits import read_limits, update
from reconciler.engine.devices import Rule
from reconciler.engine.hierarchies import Cgroup, Hierarchies, read
from reconciler.errors import BlockedError, ReconcilerError, TimedOutError, UnsupportedError
from reconciler.state.desired import Limits

__all__ = [
    "Cgroup",
    "Hierarchies",
    "Place",
    "create",
    "freeze",
    "frozen",
    "kill",
    "oom_kills",
    "open_existing",
    "place",
    "populated",
    "processes",
    "read_limits",
    "remove",
    "update",
    "wait_empty",
]

_V1: Final = ("cpu", "cpuacct", "memory", "cpuset", "pids", "blkio", "devices", "hugetlb")
_V2: Final = ("cpu", "cpuset", "memory", "pids", "io")
_LEAF: Final = "reconciler-leaf"


def create(
    hierarchies: Hierarchies,
    parent: str,
    id: str,
    limits: Limits,
    *,
    where: Path = Path("/"),
    devices: Sequence[Rule] | None = None,
    devices_needed: bool = False,
) -> Cgroup:
    """Make the cgroup with its limits set, or leave nothing and raise; one that is already there is brought in line.

    `where` as in `update`; `devices` as in cgroup_devices.restrict, None for every device. UnsupportedError names the
    limit that this machine cannot enforce, the file that is missing and the remedy.
    """
    group = _locate(hierarchies, parent, id)
    try:
        made = [
            _make(directory, hierarchies, is_v2=directory == group.v2) for directory in group.directories()
        ]
        if "cpuset" in group.v1:
            cgroup_cpuset.prepare(str(group.v1["cpuset"]))
        update(group, limits, where, fresh=all(made))
        if devices is not None:
            restrict(group, devices, needed=devices_needed)
    except BaseException:
        with contextlib.suppress(ReconcilerError, OSError):
            remove(group)
        raise
    return group


def open_existing(hierarchies: Hierarchies, parent: str, id: str) -> Cgroup | None:
    """Give the container's cgroup, or None if it has no directory in any hierarchy any more."""
    group = _locate(hierarchies, parent, id)
    return group if any(directory.is_dir() for directory in group.directories()) else None


def _locate(hierarchies: Hierarchies, parent: str, id: str) -> Cgroup:
    return place(hierarchies, parent).group(id)


@dataclass(frozen=True)
class Place:
    """Where the containers of one instance have their cgroups: the directories that theirs are in."""

    path: str
    v2: Path | None
    v1: Mapping[str, Path]
    controllers: frozenset[str]

    def group(self, id: str) -> Cgroup:
        """The container's cgroup, which need not be there."""
        return Cgroup(
            path=f"/{self.path}/{id}",
            v2=self.v2 / id if self.v2 is not None else None,
            v1={name: directory / id for name, directory in self.v1.items()},
            controllers=self.controllers,
        )


def place(hierarchies: Hierarchies, parent: str) -> Place:
    """Find where `parent` is now: in the scope that systemd has made for it, or else right below each root."""
    path = parent
    v2 = hierarchies.v2
    if v2 is not None:
        scope = v2 / "system.slice" / f"{parent}.scope"
        if scope.is_dir():
            path = f"system.slice/{parent}.scope"
    names = [name for name in _V1 if name in hierarchies.v1 and name not in hierarchies.v2_controllers]
    if v2 is None and "freezer" in hierarchies.v1:
        names.append("freezer")  # without cgroup.kill, a fork bomb must be frozen before it can be ended
    return Place(
        path=path,
        v2=v2 / path if v2 is not None else None,
        v1={name: hierarchies.v1[name] / parent for name in names},
        controllers=hierarchies.v2_controllers,
    )


def _make(directory: Path, hierarchies: Hierarchies, *, is_v2: bool) -> bool:
    """Make one directory of a cgroup; False if it was there."""
    for _ in range(10):
        if is_v2 and hierarchies.v2_controllers:
            directory.parent.mkdir(exist_ok=True)
            _delegate(directory, hierarchies)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the first; or `remove` of the last other container took the parent away
            directory.parent.mkdir(exist_ok=True)
            continue
        return True
    raise BlockedError(f"{directory}: the parent directory keeps vanishing", transient=True)


def _delegate(directory: Path, hierarchies: Hierarchies) -> None:
    """Enable our controllers in every cgroup from the hierarchy's root down to the parent of `directory`."""
    root = hierarchies.v2
    if root is None:
        return
    for above in [*reversed([p for p in directory.parents if p.is_relative_to(root)])]:
        control = above / "cgroup.subtree_control"
        enabled = read(control).split()
        available = read(above / "cgroup.controllers").split()
        for controller in _V2:
            if controller in available and controller not in enabled:
                _enable(above, controller)


def _enable(directory: Path, controller: str) -> None:
    control = directory / "cgroup.subtree_control"
    try:
        control.write_text(f"+{controller}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise ReconcilerError(f"{control}: enabling {controller}: {error.strerror}") from error
        # "No internal processes": below the root, a cgroup with processes can't hand controllers on. They go to a
        # leaf, where they have the same resources as before.
        leaf = directory / _LEAF
        leaf.mkdir(exist_ok=True)
        for pid in read(directory / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
        control.write_text(f"+{controller}")


# --- the freezer -----------------------------------------------------------------------------------------------------

_FREEZE_TIMEOUT: Final = 10.0


def _told_to_freeze(group: Cgroup) -> bool:
    if group.v2 is not None:
        return read(group.v2 / "cgroup.freeze") == "1\n"
    freezer = group.v1.get("freezer")
    return freezer is not None and read(freezer / "freezer.state") in ("FROZEN\n", "FREEZING\n")


def freeze(group: Cgroup, wanted: bool) -> None:
    """Freeze everything in the cgroup, or let it go on; returns once that is so.

    UnsupportedError where there is no freezer (version 1 without that controller), TimedOutError where a process does
    not come to rest (uninterruptible sleep); it is let go on then.
    """
    if _told_to_freeze(group) == wanted:
        return
    try:
        if group.v2 is not None:
            (group.v2 / "cgroup.freeze").write_text("1" if wanted else "0")  # since 5.2
        elif "freezer" in group.v1:
            (group.v1["freezer"] / "freezer.state").write_text("FROZEN" if wanted else "THAWED")
        else:
            raise UnsupportedError(
                "cgroups: there is no freezer, so nothing can be paused",
                hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
            )
    except FileNotFoundError:
        return  # it has just gone
    if wanted and not _rests(group):
        freeze(group, False)
        raise TimedOutError("cgroups: a process does not come to rest (hanging storage or network mounts?)")


def _rests(group: Cgroup) -> bool:
    """Wait until the kernel says that everything is frozen; version 1 says so only when asked."""
    deadline = time.monotonic() + _FREEZE_TIMEOUT
    if group.v2 is None:
        state = group.v1["freezer"] / "freezer.state"
        while read(state) == "FREEZING\n" and time.monotonic() < deadline:
            time.sleep(0.01)
        return read(state) != "FREEZING\n"
    with open(group.v2 / "cgroup.events", encoding="ascii") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "frozen 1" not in (text := events.read()) and "populated 1" in text:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
            events.seek(0)
    return True


# --- the end ---------------------------------------------------------------------------------------------------------


def populated(group: Cgroup) -> bool:
    """Say whether any process is in the cgroup, in whichever hierarchy."""
    if group.v2 is not None and "populated 1" in read(group.v2 / "cgroup.events"):
        return True
    return bool(_v1_pids(group))


def oom_kills(group: Cgroup) -> int:
    """Count the processes that the kernel has killed at the memory limit since the cgroup was made."""
    file = group.file("memory", "memory.events", "memory.oom_control")
    for line in read(file).splitlines() if file is not None else ():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def kill(group: Cgroup) -> None:
    """Send SIGKILL to everything in the cgroup, also to what forks meanwhile; returns before all of it has ended."""
    if group.v2 is not None:
        with contextlib.suppress(FileNotFoundError):
            (group.v2 / "cgroup.kill").write_text("1")  # since 5.14, atomic against fork
    freezer = group.v1.get("freezer")
    _freeze(freezer, "FROZEN")
    try:
        done: set[int] = set()
        while new := [pid for pid in _v1_pids(group) if pid not in done]:
            for pid in new:
                _kill_one(group, pid)
            done.update(new)
    finally:
        _freeze(freezer, "THAWED")


def _freeze(directory: Path | None, state: str) -> None:
    if directory is not None:
        with contextlib.suppress(FileNotFoundError):
            (directory / "freezer.state").write_text(state)


def _kill_one(group: Cgroup, pid: int) -> None:
    """SIGKILL `pid` if, now that a descriptor pins the process, it still is in one of the group's v1 directories."""
    with _pidfd(pid) as pidfd:
        if pidfd is None:
            return
        directory = next(iter(group.v1.values()))
        tail = f"/{directory.parent.name}/{directory.name}"
        lines = read(Path(f"/proc/{pid}/cgroup")).splitlines()
        if any(line.endswith(tail) or f"{tail}/" in line for line in lines):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _v1_pids(group: Cgroup) -> list[int]:
    """List the processes in the v1 directories and everything below them."""
    found: set[int] = set()
    for directory in set(group.v1.values()):
        for inner, _, _ in os.walk(directory):
            found.update(int(pid) for pid in read(Path(inner) / "cgroup.procs").split())
    return sorted(found - {0})  # 0 is a process of a PID namespace that we can't see into


def frozen(group: Cgroup) -> bool:
    """Whether everything in the cgroup is stopped by the freezer."""
    if group.v2 is not None and "frozen 1" in read(group.v2 / "cgroup.events"):
        return True
    freezer = group.v1.get("freezer")
    return freezer is not None and read(freezer / "freezer.state").strip() == "FROZEN"


def processes(group: Cgroup) -> list[int]:
    """The processes in the cgroup and below it, as numbers that may be somebody else's a moment later."""
    found = set(_v1_pids(group))
    if group.v2 is not None:
        for inner, _, _ in os.walk(group.v2):
            found.update(int(pid) for pid in read(Path(inner) / "cgroup.procs").split())
    return sorted(found - {0})


def wait_empty(group: Cgroup, timeout: float) -> bool:
    """Wait until nothing runs in the cgroup, for at most `timeout` seconds; say whether that is so."""
    deadline = time.monotonic() + timeout
    while populated(group):
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        _await_change(group, left)
    return True


def _await_change(group: Cgroup, timeout: float) -> None:
    """Sleep until a process of the cgroup ends, or the kernel says that the v2 cgroup has become empty."""
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        waited = 0
        if group.v2 is not None:
            with contextlib.suppress(FileNotFoundError):
                events = os.open(group.v2 / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, events)
                # kernfs: POLLPRI comes for a change after the last read, so read first and then look once more
                if "populated 1" in os.read(events, 4096).decode():
                    poll.register(events, select.POLLPRI)
                    waited += 1
        for pid in _v1_pids(group)[:64]:
            pidfd = stack.enter_context(_pidfd(pid))
            if pidfd is not None:
                poll.register(pidfd, select.POLLIN)
                waited += 1
        if waited:
            poll.poll(min(timeout, 1.0) * 1000)


def remove(group: Cgroup) -> None:
    """Remove the directories; succeed where they are gone; raise BlockedError where something still runs inside."""
    for directory in group.directories():
        for inner, _, _ in os.walk(directory, topdown=False):
            _rmdir(Path(inner), lambda: wait_empty(group, 1.0))
        if directory == group.v2 and read(directory.parent / "memory.low").strip() not in ("", "0"):
            cgroup_reserve.protect(directory.parent)
        # The last container takes the common parent along; a scope of systemd's is not ours to remove
        if directory.parent.suffix != ".scope":
            with contextlib.suppress(OSError):
                directory.parent.rmdir()


def _rmdir(directory: Path, wait: Callable[[], bool]) -> None:
    for attempt in range(20):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if not wait():
                break
            # A process that has just been reaped may still be on its way out of the cgroup (cgroup_release)
            time.sleep(0.001 * 2 ** min(attempt, 6))
        else:
            return
    raise BlockedError(f"{directory}: processes still run in it", transient=True)
