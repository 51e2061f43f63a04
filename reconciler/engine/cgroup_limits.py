"""The limits of a cgroup: written, read back, compared with what was wanted.

For engine.cgroup, which makes the directories. What this kernel can't enforce is an UnsupportedError that names the
limit, the file and the remedy.
"""

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from reconciler.engine import cgroup_cpuset, cgroup_hugetlb, cgroup_io, cgroup_reserve
from reconciler.engine.hierarchies import Cgroup, read, read_value
from reconciler.errors import BlockedError, ReconcilerError, UnsupportedError
from reconciler.state.desired import Limits

_PERIOD: Final = (
    100_000  # microseconds; quota below 1000 is EINVAL (kernel/sched/core.c, min_cfs_quota_period)
)
_UNLIMITED_V1: Final = 1 << 60  # v1 shows "no limit" as some number of pages just below 2^63 bytes
_ROOT: Final = Path("/")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def update(group: Cgroup, limits: Limits, where: Path = _ROOT, *, fresh: bool = False) -> None:
    """Set `limits`, of a running container too; raise UnsupportedError for one that cannot be enforced.

    The disk that `where` is on is the one that limits of I/O mean where they name none. A `fresh` group has been made
    just now: nothing is taken away from it, since a new cgroup has no limits (a start waits for this).
    """
    if limits.cpus is not None or not fresh:
        _set_cpus(group, limits.cpus)
    if limits.memory is not None or not fresh:
        _set_memory(group, limits.memory, limits.swap, fresh=fresh)
    elif group.v2 is not None and "memory" in group.controllers:
        _end_together(group.v2)
    if limits.pids is not None or not fresh:
        _set_pids(group, limits.pids)
    if limits.cpuset or not fresh:
        cgroup_cpuset.set_cpuset(group, limits.cpuset)
    if limits.io is not None or not fresh:
        cgroup_io.set_io(group, limits.io, where)
    if limits.io_weight is not None or not fresh:
        cgroup_io.set_io_weight(group, limits.io_weight, where)
    if limits.hugepages or not fresh:
        cgroup_hugetlb.set_hugepages(group, limits.hugepages)
    if limits.reserve_cpus or not fresh:
        cgroup_reserve.set_cpus(group, limits.reserve_cpus)
    if limits.reserve_memory or not fresh:
        cgroup_reserve.set_memory(group, limits.reserve_memory)


def _set_cpus(group: Cgroup, cpus: int | None) -> None:
    quota = None if cpus is None else cpus * _PERIOD // 1000
    if group.v2 is not None and "cpu" in group.controllers:
        _set(group.v2 / "cpu.max", f"{'max' if quota is None else quota} {_PERIOD}", "limits.cpus", cpus)
    elif "cpu" in group.v1:
        directory = group.v1["cpu"]
        if quota is not None:
            _set(directory / "cpu.cfs_period_us", str(_PERIOD), "limits.cpus", cpus)
        _set(directory / "cpu.cfs_quota_us", str(-1 if quota is None else quota), "limits.cpus", cpus)
    elif cpus is not None:
        raise _no_controller("limits.cpus", "cpu")


def _set_memory(group: Cgroup, memory: int | None, swap: int, *, fresh: bool) -> None:
    if group.v2 is not None and "memory" in group.controllers:
        directory = group.v2
        _end_together(directory)
        _set(directory / "memory.max", "max" if memory is None else str(memory), "limits.memory", memory)
        file, value = directory / "memory.swap.max", "max" if memory is None else str(swap)
    elif "memory" in group.v1:
        directory = group.v1["memory"]
        file = directory / "memory.memsw.limit_in_bytes"
        if not fresh and file.exists():
            file.write_text("-1")  # memsw may never be below memory, so it goes out of the way first
        limit = directory / "memory.limit_in_bytes"
        try:
            _set(limit, str(-1 if memory is None else memory), "limits.memory", memory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            used = read(directory / "memory.usage_in_bytes").strip()
            raise BlockedError(
                f"{limit}: {memory} bytes are less than the {used} in use", transient=True
            ) from error
        value = "-1" if memory is None else str(memory + swap)
    elif memory is None:
        return
    else:
        raise _no_controller("limits.memory", "memory")
    if file.exists():
        _set(file, value, "limits.swap", swap)
    elif memory is not None and _host_has_swap():
        raise UnsupportedError(
            f"limits.swap: this kernel cannot limit swap ({file.name} is missing)",
            hint="boot with swapaccount=1, or turn the device's swap off (swapoff -a)",
        )


def _end_together(directory: Path) -> None:
    """Have the kernel kill all of the container where memory runs out, not one process and leave the rest half dead.

    Since Linux 4.19, and so wherever our shims run (clone3 into a cgroup is 5.7). On version 1 the shim does it.
    """
    with contextlib.suppress(FileNotFoundError):
        (directory / "memory.oom.group").write_text("1")


def _set_pids(group: Cgroup, pids: int | None) -> None:
    file = group.file("pids", "pids.max", "pids.max")
    if file is not None:
        _set(file, "max" if pids is None else str(pids), "limits.pids", pids)
    elif pids is not None:
        raise _no_controller("limits.pids", "pids")


def _set(file: Path, value: str, name: str, wanted: int | None) -> None:
    """Write a limit. One that nobody asked for may be missing its file: then it is not in force anyway."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if wanted is None:
            return
        raise UnsupportedError(
            f"{name}: this kernel cannot enforce it ({file.name} is missing)",
            hint="see: reconciler doctor",
        ) from error
    try:
        os.write(fd, value.encode())
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
        raise ReconcilerError(f"{name}: {file}: {value}: {error.strerror}") from error
    finally:
        os.close(fd)


def _no_controller(name: str, controller: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name}: this machine cannot enforce it: the cgroup controller {controller} is in no mounted hierarchy",
        hint=f"boot with cgroup_enable={controller}, or mount it: "
        f"mount -t cgroup -o {controller} cgroup /sys/fs/cgroup/{controller}",
    )


def read_limits(group: Cgroup, wanted: Limits | None = None, where: Path = _ROOT) -> Limits:
    """Read the limits in force, as `LimitFiles.read` does, once."""
    return LimitFiles(group, where).read(wanted)


class LimitFiles:
    """The files that say what a cgroup enforces, for reading them again and again."""

    __slots__ = ("_directories", "_files", "_group", "_last", "_swap_is_total", "_where")

    def __init__(self, group: Cgroup, where: Path = _ROOT) -> None:
        """`where` as in `update`."""
        self._group = group
        self._where = where
        cpu_in_v2 = group.v2 is not None and "cpu" in group.controllers
        files = (
            group.file("cpu", "cpu.max", "cpu.cfs_quota_us"),
            None if cpu_in_v2 else group.file("cpu", "", "cpu.cfs_period_us"),
            group.file("memory", "memory.max", "memory.limit_in_bytes"),
            group.file("memory", "memory.swap.max", "memory.memsw.limit_in_bytes"),
            group.file("pids", "pids.max", "pids.max"),
        )
        self._files = tuple("" if file is None else str(file) for file in files)
        self._swap_is_total = not (group.v2 is not None and "memory" in group.controllers)
        self._directories = group.directories()
        self._last: tuple[tuple[object, ...], Limits | None, Limits] | None = None

    def there(self) -> bool:
        """Say whether the cgroup is there, in any hierarchy."""
        return any(directory.is_dir() for directory in self._directories)

    def read(self, wanted: Limits | None = None) -> Limits:
        """Read the limits in force.

        With `wanted`, a value that differs from it only by what the kernel keeps (whole pages) or cannot tell (swap
        where nothing counts it, or where memory has no limit) reads as wanted, so that comparing the two finds drift
        only. Those of I/O, CPUs to run on and what is reserved are read only where they are wanted. What reads as last
        time is the same object.
        """
        quota, period, memory, swap, pids = self._files
        share = _read(quota)
        # Version 1 says -1 where there is no quota, and then nothing depends on the period
        said = (
            share,
            b"" if share.startswith(b"-1") else _read(period),
            _read(memory),
            _read(swap),
            _read(pids),
        )
        more = self._more(wanted) if wanted is not None else None
        last = self._last
        if last is not None and last[0] == (*said, more) and last[1] is wanted:
            return last[2]
        found = self._understand(said, wanted)
        if more is not None:
            found = replace(found, **more)
        self._last = (*said, more), wanted, found
        return found

    def _more(self, wanted: Limits) -> dict[str, Any] | None:
        """What few containers have: None for one that wants nothing of it, which costs a turn nothing."""
        if not (
            wanted.io
            or wanted.io_weight
            or wanted.cpuset
            or wanted.reserve_cpus
            or wanted.reserve_memory
            or wanted.hugepages
        ):
            return None
        group = self._group
        return {
            "io": cgroup_io.read_io(group, wanted.io, self._where),
            "io_weight": cgroup_io.read_io_weight(group, wanted.io_weight, self._where),
            "hugepages": cgroup_hugetlb.read_hugepages(group, wanted.hugepages),
            "cpuset": cgroup_cpuset.read_cpuset(group, wanted.cpuset),
            "reserve_cpus": cgroup_reserve.read_cpus(group, wanted.reserve_cpus),
            "reserve_memory": cgroup_reserve.read_memory(group, wanted.reserve_memory),
        }

    def _understand(self, said: tuple[bytes, ...], wanted: Limits | None) -> Limits:
        cpus = _cpus(said[0], said[1])
        memory, swap, pids = map(_number, said[2:])
        if swap is not None and self._swap_is_total:
            swap = None if memory is None else swap - memory
        if memory is None:
            swap = None
        if wanted is None:
            return Limits(cpus=cpus, memory=memory, swap=swap or 0, pids=pids)
        if wanted.memory is not None and memory == wanted.memory // _PAGE * _PAGE:
            total = (wanted.memory + wanted.swap) // _PAGE * _PAGE
            if swap is not None and swap in (total - memory, wanted.swap // _PAGE * _PAGE):
                swap = wanted.swap
            memory = wanted.memory
        return Limits(
            cpus=cpus,
            memory=memory,
            swap=wanted.swap if swap is None or memory is None else swap,
            pids=pids,
        )


def _read(file: str) -> bytes:
    return read_value(file) if file else b""


def _cpus(quota: bytes, period: bytes) -> int | None:
    """Thousandths of a CPU from a quota and its period, which version 2 has both in the first."""
    parts = quota.split() + period.split()
    if len(parts) < 2 or parts[0] in (b"max", b"-1"):
        return None
    return int(parts[0]) * 1000 // int(parts[1])


def _number(text: bytes) -> int | None:
    text = text.strip()
    if text in (b"", b"max"):
        return None
    value = int(text)
    return None if value >= _UNLIMITED_V1 else value


def _host_has_swap() -> bool:
    return len(read(Path("/proc/swaps")).splitlines()) > 1
