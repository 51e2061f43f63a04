"""What a container has changed in its file system: its writable layer beside the layers below it.

The directories are read as they lie there, never mounted: a second overlay over an upper directory that is in use
corrupts it (overlayfs documentation, "Sharing and copying layers"). A container writes in there while this looks: no
link is followed, and what lies deeper than a path can name (PATH_MAX) is not seen.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

ADDED: Final = "A"
CHANGED: Final = "C"
DELETED: Final = "D"

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE: Final = "trusted.overlay.opaque"
# A directory was removed, or replaced, or is too deep for a path.
_AT_WORK: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.ESTALE)


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path of the container (`/etc/x`), what became of it, and how many bytes a file there has now."""

    path: str
    kind: str
    size: int = 0


def changes(upper: Path, lowers: Sequence[Path], mounted: Sequence[str] = ()) -> list[Change]:
    """List what differs from `lowers` (topmost first), by path, parents before what is in them.

    Places where something is `mounted` are left out, as are directories that were made only to hold one. A directory
    counts as changed where something in it has, or where its own owner or mode has.
    """
    with ExitStack() as stack:
        roots = []
        for path in (upper, *lowers):
            root = os.open(path, _DIRECTORY)
            stack.callback(os.close, root)
            roots.append(root)
        look = _Look(roots[0], roots[1:], frozenset(mounted))
        look.walk()
    found = look.found
    for changed in list(found):
        parent = changed.rpartition("/")[0]
        while parent and parent not in found:
            found[parent] = Change(parent, CHANGED)
            parent = parent.rpartition("/")[0]
    return sorted(found.values())


class _Look:
    def __init__(self, upper: int, lowers: Sequence[int], mounted: frozenset[str]) -> None:
        self._upper = upper
        self._lowers = lowers
        self._mounted = mounted
        self.found: dict[str, Change] = {}

    def walk(self) -> None:
        """Fill `found`."""
        pending: list[tuple[str, tuple[int, ...]]] = [("", tuple(range(len(self._lowers))))]
        while pending:
            where, below = pending.pop()
            try:
                self._directory(where, below, pending)
            except OSError as error:
                if error.errno not in _AT_WORK:
                    raise
        holders = {parent for path in self._mounted for parent in _parents(path)}
        for path in sorted(holders & self.found.keys(), reverse=True):
            if self.found[path].kind == ADDED and not any(
                other.startswith(f"{path}/") for other in self.found
            ):
                del self.found[path]

    def _directory(
        self, where: str, below: tuple[int, ...], pending: list[tuple[str, tuple[int, ...]]]
    ) -> None:
        """Look at one directory of the upper layer; `below` are the lower layers that have it, too."""
        with ExitStack() as stack:
            upper = _open(stack, self._upper, where)
            lowers = [(number, _open(stack, self._lowers[number], where)) for number in below]
            names = set()
            with os.scandir(upper) as entries:
                for entry in entries:
                    names.add(entry.name)
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    self._entry(f"{where}/{entry.name}", entry.name, status, lowers, pending)
            if _is_opaque(upper):
                for name in _names(lowers) - names:
                    self._add(f"{where}/{name}", DELETED)

    def _entry(
        self,
        path: str,
        name: str,
        status: os.stat_result,
        lowers: Sequence[tuple[int, int]],
        pending: list[tuple[str, tuple[int, ...]]],
    ) -> None:
        before, below = _beneath(name, lowers)
        if _is_whiteout(status):
            if before is not None:
                self._add(path, DELETED)
        elif stat.S_ISDIR(status.st_mode):
            pending.append((path, below))
            if before is None:
                self._add(path, ADDED)
            elif (before.st_mode, before.st_uid, before.st_gid) != (
                status.st_mode,
                status.st_uid,
                status.st_gid,
            ):
                self._add(path, CHANGED)
        else:
            self._add(path, ADDED if before is None else CHANGED, status.st_size)

    def _add(self, path: str, kind: str, size: int = 0) -> None:
        if path not in self._mounted:
            self.found[path] = Change(path, kind, size)


def _open(stack: ExitStack, root: int, where: str) -> int:
    """A descriptor of a directory below `root` that is closed with `stack`."""
    fd = openat2(root, f".{where}", _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    stack.callback(os.close, fd)
    return fd


def _beneath(name: str, lowers: Sequence[tuple[int, int]]) -> tuple[os.stat_result | None, tuple[int, ...]]:
    """What `name` was before the upper layer, None for nothing, and which lower layers have a part of that directory.

    As overlayfs reads them: a whiteout or a file hides all below it, and so does an opaque directory.
    """
    found: os.stat_result | None = None
    parts: list[int] = []
    for number, directory in lowers:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if _is_whiteout(status):
            break
        if not stat.S_ISDIR(status.st_mode):
            return (found or status), tuple(parts)
        found = found or status
        parts.append(number)
        if _hides(directory, name):
            break
    return found, tuple(parts)


def _names(lowers: Sequence[tuple[int, int]]) -> set[str]:
    """The names in a directory as the lower layers together show it."""
    found: set[str] = set()
    hidden: set[str] = set()
    for _, directory in lowers:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name in found or entry.name in hidden:
                    continue
                whiteout = _is_whiteout(entry.stat(follow_symlinks=False))
                (hidden if whiteout else found).add(entry.name)
        if _is_opaque(directory):
            break
    return found


def _hides(directory: int, name: str) -> bool:
    """Whether the directory `name` hides what the layers below have in it."""
    with ExitStack() as stack:
        return _is_opaque(_open(stack, directory, f"/{name}"))


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:  # ENODATA; ENOTSUP, EPERM where nobody could have set it
        return False


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
