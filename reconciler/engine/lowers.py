"""What the layers below a layer look like through overlayfs: needed to unpack the layer, before anything is mounted.

A layer's archive may name `a/b` without `a`, hard-link to a file of a lower layer, or remove a file of one. Reading it
by overlayfs' own rules (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories") keeps the result
the same as if the layers had been unpacked one over the other. Reads only; committed layers never change.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reconciler.engine.tarfields import InvalidLayerError

OPAQUE: Final = "trusted.overlay.opaque"
_MAX_CACHED: Final = 20_000


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
        self._merged: dict[bytes, tuple[bytes, ...]] = {b"": tuple(self._roots)}

    def directories(self, path: bytes) -> tuple[bytes, ...]:
        """Return the absolute paths that overlayfs merges into the directory `path`, topmost first; () if none."""
        if (known := self._merged.get(path)) is not None:
            return known
        if len(self._merged) > _MAX_CACHED:
            self._merged = {b"": tuple(self._roots)}
        merged = self._merged[b""]
        end = 0
        while end < len(path) and merged:  # not recursive: a path may have two thousand components
            start, end = end + (end > 0), path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            prefix = path[:end]
            if prefix not in self._merged:
                self._merged[prefix] = _merge(merged, path[start:end])
            merged = self._merged[prefix]
        return merged

    def find(self, path: bytes) -> tuple[bytes, os.stat_result] | None:
        """Return the absolute path and status of what is visible at `path`, of whatever kind, or None."""
        parent, _, name = path.rpartition(b"/")
        for directory in self.directories(parent):
            candidate = directory + b"/" + name
            status = _lstat(candidate)
            if status is not None:
                return None if is_whiteout(status) else (candidate, status)
        return None

    def names(self) -> set[bytes]:
        """Return what is visible in the root directory."""
        found: set[bytes] = set()
        hidden: set[bytes] = set()
        for root in self._roots:
            here = set(os.listdir(root))
            for name in here - found - hidden:
                status = _lstat(root + b"/" + name)
                (hidden if status is None or is_whiteout(status) else found).add(name)
        return found


def _merge(parents: tuple[bytes, ...], name: bytes) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for directory in parents:
        candidate = directory + b"/" + name
        status = _lstat(candidate)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            break  # a whiteout or another file hides whatever is below it
        found.append(candidate)
        if is_opaque(candidate):
            break
    return tuple(found)


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
