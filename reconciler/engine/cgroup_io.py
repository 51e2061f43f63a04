"""Limits of I/O: throttles of one disk, and the weight against others. On version 2, or by the blkio of version 1.

What nobody asked for is not read in every turn; it is reset when limits are written.
"""

from pathlib import Path
from typing import Final

from reconciler.engine import disk
from reconciler.engine.hierarchies import Cgroup, read
from reconciler.errors import ReconcilerError, UnsupportedError
from reconciler.state.desired import Io

_V1: Final = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_V2: Final = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
_BFQ_MOST: Final = 1000  # BFQ_MAX_WEIGHT; up to it both scales mean the same, and 100 is the default of both
_DEFAULT: Final = 100


def set_io(group: Cgroup, io: Io | None, where: Path) -> None:
    """Throttle the disk that `io` names, or that `where` is on; take every other throttle away.

    UnsupportedError where there is no controller, no such file, or no disk.
    """
    wanted = _numbers(io, where) if io is not None else ""
    if group.v2 is not None and "io" in group.controllers:
        file = group.v2 / "io.max"
        for number in _disks(file) - {wanted}:
            _write(file, f"{number} rbps=max wbps=max riops=max wiops=max")
        if io is not None:
            values = (f"{key}={getattr(io, name) or 'max'}" for name, key in _V2.items())
            _write(file, f"{wanted} {' '.join(values)}")
    elif "blkio" in group.v1:
        for name, leaf in _V1.items():
            file = group.v1["blkio"] / leaf
            for number in _disks(file) - {wanted}:
                _write(file, f"{number} 0")
            value = getattr(io, name) if io is not None else None
            if io is not None and (value or wanted in _disks(file)):
                _write(file, f"{wanted} {value or 0}")
    elif io is not None:
        raise _no_controller("limits.io")


def read_io(group: Cgroup, wanted: Io | None, where: Path) -> Io | None:
    """Return the throttles in force on the disk that `wanted` names, None without `wanted`."""
    if wanted is None:
        return None
    number = _numbers(wanted, where)
    found: dict[str, int] = {}
    if group.v2 is not None and "io" in group.controllers:
        for line in read(group.v2 / "io.max").splitlines():
            device, *pairs = line.split()
            values = dict(pair.split("=", 1) for pair in pairs)
            if device == number:
                found = {
                    name: int(values[key]) for name, key in _V2.items() if values.get(key, "max") != "max"
                }
    elif "blkio" in group.v1:
        for name, leaf in _V1.items():
            for line in read(group.v1["blkio"] / leaf).splitlines():
                device, _, value = line.partition(" ")
                if device == number:
                    found[name] = int(value)
    return Io(device=wanted.device, **found)


def set_io_weight(group: Cgroup, weight: int | None, where: Path) -> None:
    """Set the weight; UnsupportedError where the disk that `where` is on does not go by weights."""
    file = _weight_file(group)
    if file is None or not file.exists():
        if weight is not None:
            raise _no_controller("limits.io_weight")
        return
    if weight is None:
        if _weight(file) not in (None, _DEFAULT):
            _write(file, str(_DEFAULT))
        return
    found = disk.whole_disk(where)
    if file.name == "io.weight":
        if not _has_cost(group, found):
            raise UnsupportedError(
                f"limits.io_weight: the disk {disk.name(found)} goes by no weights",
                hint=f"echo '{found[0]}:{found[1]} enable=1' >/sys/fs/cgroup/io.cost.qos",
            )
    elif disk.scheduler(found) != "bfq":
        used = disk.scheduler(found) or "none"
        raise UnsupportedError(
            f"limits.io_weight: the disk {disk.name(found)} goes by no weights: its scheduler is {used}",
            hint=f"echo bfq >/sys/block/{disk.name(found)}/queue/scheduler",
        )
    _write(file, str(min(weight, _BFQ_MOST) if "bfq" in file.name else weight))


def read_io_weight(group: Cgroup, wanted: int | None) -> int | None:
    """Return the weight in force, None without `wanted`; what the kernel can only keep less finely reads as wanted."""
    if wanted is None:
        return None
    file = _weight_file(group)
    found = _weight(file) if file is not None else None
    if file is not None and "bfq" in file.name and found == min(wanted, _BFQ_MOST):
        return wanted
    return found


def _weight_file(group: Cgroup) -> Path | None:
    if group.v2 is not None and "io" in group.controllers:
        # Where both are there, bfq is what the disk's own scheduler goes by
        bfq = group.v2 / "io.bfq.weight"
        return bfq if bfq.exists() else group.v2 / "io.weight"
    return group.v1["blkio"] / "blkio.bfq.weight" if "blkio" in group.v1 else None


def _has_cost(group: Cgroup, found: tuple[int, int]) -> bool:
    """Whether io.cost is turned on for the disk, which is said in the hierarchy's root only."""
    root = group.v2
    while root is not None and (root.parent / "cgroup.controllers").exists():
        root = root.parent
    lines = read(root / "io.cost.qos").splitlines() if root is not None else []
    return any(line.startswith(f"{found[0]}:{found[1]} ") and "enable=1" in line for line in lines)


def _weight(file: Path) -> int | None:
    for line in read(file).splitlines():
        words = line.split()
        if words[0] == "default" or len(words) == 1:
            return int(words[-1])
    return None


def _numbers(io: Io, where: Path) -> str:
    try:
        major, minor = disk.whole_disk(io.device or where)
    except UnsupportedError as error:
        raise UnsupportedError(f"limits.io: {error}", hint=error.hint) from error
    return f"{major}:{minor}"


def _disks(file: Path) -> set[str]:
    return {line.partition(" ")[0] for line in read(file).splitlines() if line}


def _write(file: Path, text: str) -> None:
    name = "limits.io_weight" if file.name.endswith("weight") else "limits.io"
    try:
        file.write_text(text)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"{name}: this kernel cannot enforce it ({file.name} is missing)", hint="see: reconciler doctor"
        ) from error
    except OSError as error:
        raise ReconcilerError(f"{name}: {file}: {text}: {error.strerror}") from error


def _no_controller(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name}: this machine cannot enforce it: the cgroup controller io (blkio) can't do it here",
        hint="see: reconciler doctor",
    )
