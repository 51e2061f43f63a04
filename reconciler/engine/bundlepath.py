"""An entry of `bundles` in device.yaml: a directory that may come and go, or a pattern of such.

The beginning of a pattern, up to the first part with a wildcard, is the operator's, and links in it are followed. The
rest may be on a stranger's stick: no link is followed there, and what is looked at is bounded. Reads only, and keeps
nothing open.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Final

from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
_MOST: Final = 32  # directories of one pattern
_NAMES: Final = 4096  # looked at in one directory


@dataclass(frozen=True, slots=True)
class BundlePath:
    """The directories that an absolute path with `*`, `?` and `[...]` in its parts means now: none, one, or several."""

    pattern: str

    @property
    def base(self) -> str:
        """The beginning without wildcards; the whole path where it has none."""
        return self._split()[0]

    def _split(self) -> tuple[str, tuple[str, ...]]:
        parts = self.pattern.strip("/").split("/")
        fixed = next((n for n, part in enumerate(parts) if _is_wild(part)), len(parts))
        return "/" + "/".join(parts[:fixed]), tuple(parts[fixed:])

    def directories(self) -> Iterator[tuple[str, int]]:
        """Open each directory, by its path, in the order of their names; it is closed when the next one is asked for.

        At most 32 of them. What can't be opened is left out.
        """
        base, rest = self._split()
        try:
            root = os.open(base, _DIRECTORY)
        except OSError:  # not there, or (EIO, ESTALE) not any more
            return
        try:
            yield from islice(_below(root, base.rstrip("/"), rest), _MOST)
        finally:
            os.close(root)

    def waypoints(self) -> Iterator[int]:
        """Open the directories in which something has to appear for there to be more matches; closed as above.

        Those are the ones that are there on the way to a match, and where the way ends the nearest one above.
        """
        base, rest = self._split()
        yield from BundlePath(os.path.dirname(_nearest(base)))._opened()
        yield from BundlePath(_nearest(base))._opened()
        for count in range(1, len(rest)):
            yield from BundlePath("/".join([base.rstrip("/"), *rest[:count]]))._opened()

    def _opened(self) -> Iterator[int]:
        yield from (fd for _, fd in self.directories())


def _nearest(path: str) -> str:
    """`path` where it is a directory, else the nearest one above it."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def opened(root: int, name: str) -> int:
    """Open the directory `name` within the open one `root`, by no link; raises OSError."""
    return openat2(root, name, _DIRECTORY, resolve=_RESOLVE)


def _is_wild(part: str) -> bool:
    return any(letter in part for letter in "*?[")


def _below(root: int, path: str, parts: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if not parts:
        yield path or "/", root
        return
    for name in _matching(root, parts[0]):
        try:
            fd = opened(root, name)
        except OSError:
            continue
        try:
            yield from _below(fd, f"{path}/{name}", parts[1:])
        finally:
            os.close(fd)


def _matching(root: int, part: str) -> list[str]:
    """The names in a directory that `part` stands for; as in a shell, a wildcard at the beginning means no dot."""
    if not _is_wild(part):
        return [part]
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in islice(entries, _NAMES)]
    except OSError:
        return []
    hidden = part.startswith(".")
    return sorted(name for name in names if fnmatchcase(name, part) and (hidden or not name.startswith(".")))
