"""What is kept for a container: memory that is taken from others first, and its part of busy CPUs.

memory.low of version 2 counts only as far as every cgroup above has it too, so those get the sum of what is below. The
sum is kept in the kernel, not here: what our own parent has is what we gave to those above it.
"""

import os
from pathlib import Path
from typing import Final

from reconciler.engine.hierarchies import Cgroup, read
from reconciler.errors import ReconcilerError, UnsupportedError

_WEIGHT: Final = 100  # the kernel's own: what containers have that reserve nothing
_MOST: Final = 10_000  # the weight of a whole device
_SHARES: Final = 1024  # of version 1, where the weight is 100
_UNLIMITED_V1: Final = 1 << 60


def set_memory(group: Cgroup, memory: int) -> None:
    """Keep so many bytes for the group, 0 for none."""
    if group.v2 is not None and "memory" in group.controllers:
        file = group.v2 / "memory.low"
        if not memory and read(file).strip() in ("0", ""):
            return
        _write(file, str(memory), "reserve.memory")
        protect(group.v2.parent)
    elif "memory" in group.v1:
        file = group.v1["memory"] / "memory.soft_limit_in_bytes"
        if memory or int(read(file).strip() or _UNLIMITED_V1) < _UNLIMITED_V1:
            _write(file, str(memory or -1), "reserve.memory")
    elif memory:
        raise UnsupportedError(
            "reserve.memory: this machine cannot enforce it: the cgroup controller memory is in no mounted hierarchy",
            hint="boot with cgroup_enable=memory",
        )


def protect(parent: Path) -> None:
    """Give our own parent, and those above it, the sum of what its groups keep; what others gave them stays."""
    before = int(read(parent / "memory.low").strip() or 0)
    total = sum(
        int(read(Path(entry.path) / "memory.low").strip() or 0)
        for entry in os.scandir(parent)
        if entry.is_dir()
    )
    if total == before:
        return
    above = parent
    while (above / "memory.low").exists():
        had = read(above / "memory.low").strip()
        if had != "max" and (int(had or 0) < total or int(had or 0) == before):
            _write(above / "memory.low", str(total), "reserve.memory")
        above = above.parent


def read_memory(group: Cgroup, wanted: int) -> int:
    """Return what is kept, 0 without `wanted`; whole pages read as wanted."""
    file = group.file("memory", "memory.low", "memory.soft_limit_in_bytes")
    if not wanted or file is None:
        return 0
    text = read(file).strip() or "0"
    found = _UNLIMITED_V1 if text == "max" else int(text)
    page = os.sysconf("SC_PAGE_SIZE")
    return wanted if found == wanted // page * page else 0 if found >= _UNLIMITED_V1 else found


def set_cpus(group: Cgroup, cpus: int) -> None:
    """Give the group so many thousandths of a CPU when all are wanted, 0 for as much as anybody."""
    file = group.file("cpu", "cpu.weight", "cpu.shares")
    if file is None:
        if cpus:
            raise UnsupportedError(
                "reserve.cpus: this machine cannot enforce it: the cgroup controller cpu is in no mounted hierarchy",
                hint="boot with cgroup_enable=cpu",
            )
        return
    value = str(_weight(cpus) if file.name == "cpu.weight" else _weight(cpus) * _SHARES // _WEIGHT)
    if cpus or read(file).strip() not in (value, ""):
        _write(file, value, "reserve.cpus")


def read_cpus(group: Cgroup, wanted: int) -> int:
    """Return what is kept, 0 without `wanted`: the same number where the weight is right, else what it comes to."""
    file = group.file("cpu", "cpu.weight", "cpu.shares")
    if not wanted or file is None:
        return 0
    found = int(read(file).strip() or 0)
    weight = found if file.name == "cpu.weight" else found * _WEIGHT // _SHARES
    return wanted if weight == _weight(wanted) else weight * _cpus() // (_MOST // 1000)


def _weight(cpus: int) -> int:
    """The part of the device, of 10,000: never less than what those have that reserve nothing.

    They count 1 % of the device each, so what is kept is had but for them.
    """
    return min(_MOST, max(_WEIGHT, cpus * _MOST // (_cpus() * 1000)))


def _cpus() -> int:
    return os.cpu_count() or 1


def _write(file: Path, text: str, name: str) -> None:
    try:
        file.write_text(text)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"{name}: this kernel cannot enforce it ({file.name} is missing)", hint="see: reconciler doctor"
        ) from error
    except OSError as error:
        raise ReconcilerError(f"{name}: {file}: {text}: {error.strerror}") from error
