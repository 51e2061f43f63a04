"""What the layers below a layer look like through overlayfs: needed to unpack the layer, before anything is mounted.

A layer's archive may name `a/b` without `a`, hard-link to a file of a lower layer, or remove a file of one. Reading it
by overlayfs' own rules (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories") keeps the result
the same as if the layers had been unpacked one over the other. Reads only; committed layers never change.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from reconciler.engine.tarfields import InvalidLayerError

OPAQUE: Final = "trusted.overlay.opaque"
_MAX_CACHED: Final = 4 << 20  # bytes of paths that are remembered


def is_whiteout(found: os.stat_result) -> bool:
    """Tell overlayfs' mark for "removed here": a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class Lowers:
    """The committed layers below one that is being unpacked, `roots` from the top down.

    Paths are canonical: relative, no `.`, `..` or doubled slash; b"" is the root. A symlink in the middle of a path is
    never followed: for overlayfs, which is asked component by component, it simply isn't a directory.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [os.fsencode(root) for root in roots]
        self._top = tuple(range(len(self._roots)))
        self._merged: OrderedDict[bytes, tuple[int, ...]] = (
            OrderedDict()
        )  # what was asked for last is the last
        self._cached = 0

    def directory(self, path: bytes) -> bytes | None:
        """Return the absolute path of the topmost of what overlayfs merges into the directory `path`; None if none."""
        found = self._layers(path)
        return _in(self._roots[found[0]], path) if found else None

    def _layers(self, path: bytes) -> tuple[int, ...]:
        """The layers that overlayfs merges into the directory `path`, topmost first."""
        merged = self._top
        end = 0
        while end < len(path) and merged:  # not recursive: a path may have two thousand components
            end = path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            prefix = path[:end]
            known = self._merged.get(prefix)
            if known is None:
                known = self._merged[prefix] = self._merge(merged, prefix)
                self._cached += _cost(prefix, known)
                while self._cached > _MAX_CACHED:
                    self._cached -= _cost(*self._merged.popitem(last=False))
            else:
                self._merged.move_to_end(prefix)
            merged = known
        return merged

    def _merge(self, parents: tuple[int, ...], path: bytes) -> tuple[int, ...]:
        found: list[int] = []
        for layer in parents:
            candidate = _in(self._roots[layer], path)
            status = _lstat(candidate)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break  # a whiteout or another file hides whatever is below it
            found.append(layer)
            if is_opaque(candidate):
                break
        return tuple(found)

    def find(self, path: bytes) -> tuple[bytes, os.stat_result] | None:
        """Return the absolute path and status of what is visible at `path`, of whatever kind, or None."""
        for layer in self._layers(path.rpartition(b"/")[0]):
            candidate = _in(self._roots[layer], path)
            status = _lstat(candidate)
            if status is not None:
                return None if is_whiteout(status) else (candidate, status)
        return None

    def names(self) -> Iterator[bytes]:
        """Yield what is visible in the root directory."""
        for number, root in enumerate(self._roots):
            with os.scandir(root) as entries:
                for entry in entries:
                    path = b"/" + entry.name
                    if any(_lstat(upper + path) is not None for upper in self._roots[:number]):
                        continue
                    status = _lstat(root + path)
                    if status is not None and not is_whiteout(status):
                        yield entry.name


def _in(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root


def _cost(path: bytes, found: tuple[int, ...]) -> int:
    return 250 + len(path) + 8 * len(found)


def is_opaque(directory: bytes) -> bool:
    """Tell whether overlayfs stops merging at `directory`."""
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidLayerError("layer: a path too long to be looked up in the layers below") from error
        raise
