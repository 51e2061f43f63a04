"""Which CPUs a cgroup may use. A cpuset of version 1 takes no process before it has CPUs and memory nodes."""

import os
from typing import Final

from reconciler.engine.hierarchies import Cgroup, read
from reconciler.errors import ReconcilerError, UnsupportedError

_NAMES: Final = ("cpuset.mems", "cpuset.cpus")


def prepare(directory: str) -> None:
    """Give a version 1 cpuset, and those of ours above it, what their parents have, where they have nothing yet."""
    above = os.path.dirname(directory)
    if not _text(f"{above}/{_NAMES[0]}") and os.path.exists(f"{above}/{_NAMES[0]}"):
        prepare(above)
    for name in _NAMES:
        if not _text(f"{directory}/{name}"):
            _write(f"{directory}/{name}", _text(f"{above}/{name}"))


def _text(file: str) -> bytes:
    """A list of CPUs or nodes, of a thousand at most; nothing where there is none."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 8192).strip()
    finally:
        os.close(fd)


def _write(file: str, data: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def set_cpuset(group: Cgroup, cpus: str) -> None:
    """Let the group use these CPUs only, or all that its parent may with ""; UnsupportedError where that can't be."""
    file = group.file("cpuset", "cpuset.cpus", "cpuset.cpus")
    if file is None or not file.exists():
        if cpus:
            raise UnsupportedError(
                "cpuset: this machine cannot enforce it: the cgroup controller cpuset is in no mounted hierarchy",
                hint="boot with cgroup_enable=cpuset, or mount it: "
                "mount -t cgroup -o cpuset cgroup /sys/fs/cgroup/cpuset",
            )
        return
    v1 = "cpuset" in group.v1 and file.parent == group.v1["cpuset"]
    if not cpus:
        if v1:
            file.write_text(read(file.parent.parent / "cpuset.cpus").strip())
        elif read(file).strip():
            # Not "": with processes in it a cpuset that has CPUs can't be emptied (ENOSPC, kernel/cgroup/cpuset.c,
            # validate_change)
            file.write_text(read(file.parent.parent / "cpuset.cpus.effective").strip())
        return
    there = read(file.parent.parent / ("cpuset.cpus" if v1 else "cpuset.cpus.effective")).strip()
    if there and not numbers(cpus) <= numbers(there):
        # Version 2 would take it and let the group use whatever there is
        raise ReconcilerError(f"cpuset: {cpus}: this machine has the CPUs {there} for containers")
    try:
        file.write_text(cpus)
    except OSError as error:
        raise ReconcilerError(f"cpuset: {file}: {cpus}: {error.strerror}") from error


def read_cpuset(group: Cgroup, wanted: str) -> str:
    """Return the CPUs that the group was told, "" without `wanted`."""
    file = group.file("cpuset", "cpuset.cpus", "cpuset.cpus")
    return read(file).strip() if file is not None and wanted else ""


def numbers(cpus: str) -> frozenset[int]:
    """Return the CPUs of a list such as 0-2,4."""
    found: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
