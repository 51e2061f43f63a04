"""Limits of huge pages, by their size, on version 2 or by the hugetlb of version 1.

The controller costs every cgroup a little, and few containers have such pages: on version 2 it is switched on for the
first that is limited. What nobody asked for is not read in every turn; it is reset when limits are written.
"""

import errno
from pathlib import Path
from typing import Final

from reconciler.engine.hierarchies import Cgroup, read
from reconciler.errors import ReconcilerError, UnsupportedError

Pages = tuple[tuple[int, int], ...]  # size of a page, and bytes

_SIZES: Final = Path("/sys/kernel/mm/hugepages")
_UNITS: Final = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))
_UNLIMITED: Final = 1 << 60  # version 1 shows "no limit" as whole pages just below 2^63 bytes


def set_hugepages(group: Cgroup, wanted: Pages) -> None:
    """Limit what the container has of each size, and nothing of the others; UnsupportedError where that can't be.

    Of what is reserved too (Linux 5.7): a program is then told by mmap(2), and not killed by SIGBUS when it uses it.
    """
    if wanted and group.v2 is not None and "hugetlb" in group.controllers:
        _enable(group.v2)
    directory, suffix = _place(group)
    limits = dict(wanted)
    known = sizes()
    for page in limits:
        if page not in known:
            there = ", ".join(name(size) for size in known) or "none"
            raise UnsupportedError(
                f"limits.hugepages: this device has no pages of {name(page)}", hint=f"it has: {there}"
            )
    if directory is None:
        if wanted:
            raise UnsupportedError(
                "limits.hugepages: this machine cannot enforce it: "
                "the cgroup controller hugetlb is in no mounted hierarchy",
                hint="boot a kernel with CONFIG_CGROUP_HUGETLB, or mount it: "
                "mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb",
            )
        return
    for page in known:
        text = str(limits[page]) if page in limits else "max" if suffix == "max" else "-1"
        for kind in ("", "rsvd."):
            file = directory / f"hugetlb.{name(page)}.{kind}{suffix}"
            if file.exists():
                if page in limits or read(file).strip() != text:  # a new one has no limit
                    _write(file, text)
            elif page in limits and not kind:
                text = f"limits.hugepages: this kernel cannot enforce it ({file.name} is missing)"
                raise UnsupportedError(text)


def read_hugepages(group: Cgroup, wanted: Pages) -> Pages:
    """Return the limits in force on the sizes that `wanted` names, without those that have none."""
    directory, suffix = _place(group)
    found = []
    for page, _ in wanted:
        text = read(directory / f"hugetlb.{name(page)}.{suffix}").strip() if directory is not None else ""
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append((page, int(text)))
    return tuple(found)


def sizes() -> list[int]:
    """The sizes of huge pages that this kernel has, in bytes, smallest first."""
    try:
        names = [entry.name for entry in _SIZES.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(entry.removeprefix("hugepages-").removesuffix("kB")) << 10 for entry in names)


def name(page: int) -> str:
    """A size as the kernel has it in the names of files: 2MB (mm/hugetlb_cgroup.c, mem_fmt)."""
    unit, letters = next(((unit, letters) for unit, letters in _UNITS if page >= unit), _UNITS[-1])
    return f"{page // unit}{letters}"


def _place(group: Cgroup) -> tuple[Path | None, str]:
    if group.v2 is not None and "hugetlb" in group.controllers:
        return group.v2, "max"
    return group.v1.get("hugetlb"), "limit_in_bytes"


def _enable(directory: Path) -> None:
    """Hand the controller on in every cgroup above, from the root of the hierarchy down."""
    above = [path for path in directory.parents if (path / "cgroup.subtree_control").exists()]
    for path in reversed(above):
        control = path / "cgroup.subtree_control"
        if "hugetlb" not in read(control).split():
            _write(control, "+hugetlb")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
        raise ReconcilerError(f"limits.hugepages: {file}: {text}: {error.strerror}") from error
