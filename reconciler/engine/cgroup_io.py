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
_BFQ, _COST = "bfq", "io.cost"
_ELSEWHERE: Final = "have the state directory on a disk, or leave limits.io_weight out"


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
    """Set the weight; UnsupportedError where the disk that `where` is on does not go by weights.

    What it goes by is a matter of the whole device, and left as it is.
    """
    files = _weight_files(group)
    if weight is None:
        for file in files.values():
            if _weight(file) not in (None, _DEFAULT):
                _write(file, str(_DEFAULT))
        return
    if not files:
        raise _no_controller("limits.io_weight")
    try:
        found = disk.whole_disk(where)
    except UnsupportedError as error:
        raise UnsupportedError(f"limits.io_weight: {error}", hint=_ELSEWHERE) from error
    kind = _kind(group, found)
    if kind not in files:
        used = disk.scheduler(found) or "none"
        why, hint = f"its scheduler is {used}", f"echo bfq >/sys/block/{disk.name(found)}/queue/scheduler"
        if _COST in files:
            why += ", and io.cost is off"
            hint = f"echo '{found[0]}:{found[1]} enable=1' >{_root(group)}/io.cost.qos"
        message = f"limits.io_weight: the disk {disk.name(found)} goes by no weights: {why}"
        raise UnsupportedError(message, hint=hint)
    _write(files[kind], str(min(weight, _BFQ_MOST) if kind == _BFQ else weight))


def read_io_weight(group: Cgroup, wanted: int | None, where: Path) -> int | None:
    """Return the weight in force on the disk that `where` is on, None without `wanted`, or where none is in force.

    What the kernel can only keep less finely reads as wanted.
    """
    if wanted is None:
        return None
    try:
        kind = _kind(group, disk.whole_disk(where))
    except UnsupportedError:
        return None
    file = _weight_files(group).get(kind)
    found = _weight(file) if file is not None else None
    return wanted if kind == _BFQ and found == min(wanted, _BFQ_MOST) else found


def _weight_files(group: Cgroup) -> dict[str, Path]:
    """The files that hold a weight, by what goes by them."""
    if group.v2 is not None and "io" in group.controllers:
        files = {_BFQ: group.v2 / "io.bfq.weight", _COST: group.v2 / "io.weight"}
    elif "blkio" in group.v1:
        files = {_BFQ: group.v1["blkio"] / "blkio.bfq.weight"}
    else:
        files = {}
    return {kind: file for kind, file in files.items() if file.exists()}


def _kind(group: Cgroup, found: tuple[int, int]) -> str:
    """What the disk goes by: its scheduler, whichever that is, unless io.cost is on for it."""
    used = disk.scheduler(found)
    return _COST if used != _BFQ and _has_cost(group, found) else used


def _root(group: Cgroup) -> Path | None:
    """The root of the hierarchy of version 2: io.cost is there and nowhere else."""
    root = group.v2
    while root is not None and (root.parent / "cgroup.controllers").exists():
        root = root.parent
    return root


def _has_cost(group: Cgroup, found: tuple[int, int]) -> bool:
    root = _root(group)
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
