"""One tree out of an image's layers: the root file system that a container would see, without a mount.

The rules are overlayfs' own (Documentation/filesystems/overlayfs.rst, "Merging directories", "whiteouts and opaque
directories"), so that the tree is what `overlay` shows of the same layers; its marks are not in the result. Layers are
the store's: verified, and never changed, unless they are the caller's own and are to be moved.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from reconciler.engine.limits import Limits
from reconciler.engine.lowers import is_opaque, is_whiteout
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.engine.tree import Metadata, Tree, shown
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_LEFT: Final = ("trusted.overlay.", "security.selinux")  # the store's marks, and this machine's labels
_CHUNK: Final = 1 << 20

Moved = Callable[[int], object]


def merge(
    layers: Sequence[Path], target: Path, *, move: bool, limits: Limits, told: Moved = lambda _: None
) -> None:
    """Make in the empty directory `target` what overlayfs would show of `layers`, lowest first.

    With `move`, files are taken out of the layers, which have to be on the file system of `target`; else copied, with
    their holes. `told` hears of every number of bytes copied. Raises OSError, and leaves a half then.
    """
    with ExitStack() as stack:
        roots = [_opened(stack, path) for path in reversed(layers)]
        root = _opened(stack, target)
        # One tree of what were several: what is too much for one layer need not be for all of them
        count = max(1, len(layers))
        together = replace(
            limits,
            directories=limits.directories * count,
            directory_names=limits.directory_names * count,
        )
        tree = Tree(root, root, together)
        stack.callback(tree.close)
        _Merge(roots, tree, move, told).run()


def _opened(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, _DIRECTORY)
    stack.callback(os.close, fd)
    return fd


@dataclass(slots=True)
class _Merged:
    """What one directory of the result is made of: names that are decided, and directories still to be merged."""

    hidden: set[bytes] = field(default_factory=set)
    below: dict[bytes, list[int]] = field(default_factory=dict)  # name -> layers, topmost first
    closed: set[bytes] = field(default_factory=set)  # of these, the ones that lower layers add nothing to


class _Merge:
    """`roots` are descriptors of the layers, topmost first."""

    def __init__(self, roots: Sequence[int], tree: Tree, move: bool, told: Moved) -> None:
        self._roots = roots
        self._tree = tree
        self._move = move
        self._told = told
        self._links: dict[tuple[int, int], bytes] = {}  # (layer, inode) -> its first name in the result

    def run(self) -> None:
        todo: list[tuple[bytes, list[int]]] = [(b"", list(range(len(self._roots))))]
        while todo:
            path, layers = todo.pop()
            todo += self._directory(path, layers)
        for path, metadata in self._tree.directories():
            if metadata is not None:
                self._tree.settle(path, metadata, extra={})

    def _directory(self, path: bytes, layers: Sequence[int]) -> Iterator[tuple[bytes, list[int]]]:
        """Merge one directory, and yield those in it."""
        merged = _Merged()
        for number in layers:
            fd = openat2(self._roots[number], path or b".", _DIRECTORY, resolve=_RESOLVE)
            try:
                if number == layers[0]:  # read before anything is moved out of it: that changes its time
                    self._tree.describe(path, _of_directory(fd))
                for name in sorted(map(os.fsencode, os.listdir(fd))):
                    if name not in merged.hidden:
                        self._entry(merged, path, name, number, fd)
            finally:
                os.close(fd)
        for name, inside in merged.below.items():
            yield self._tree.mkdir(path, name), inside

    def _entry(self, merged: _Merged, path: bytes, name: bytes, number: int, fd: int) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if name not in merged.closed:
                merged.below.setdefault(name, []).append(number)
                if is_opaque(_place(fd, name)):
                    merged.closed.add(name)
        elif name in merged.below:
            merged.closed.add(name)  # a file, or a removal, below a directory: what is under it is not seen
        else:
            merged.hidden.add(name)
            if not is_whiteout(status):
                self._file(path, name, number, fd, status)

    def _file(self, path: bytes, name: bytes, number: int, fd: int, status: os.stat_result) -> None:
        tree = self._tree
        if self._move:
            os.rename(name, name, src_dir_fd=fd, dst_dir_fd=tree.fd(path))
            return
        if status.st_nlink > 1:
            here = path + b"/" + name if path else name
            first = self._links.setdefault((number, status.st_ino), here)
            if here != first:
                tree.link(first, path, name)
                return
        metadata = _metadata(_place(fd, name), status)
        if stat.S_ISREG(status.st_mode):
            self._copy(path, name, fd, metadata)
        elif stat.S_ISLNK(status.st_mode):
            tree.symlink(path, name, os.readlink(name, dir_fd=fd), metadata)
        elif stat.S_ISFIFO(status.st_mode):
            tree.fifo(path, name, metadata)
        else:
            raise InvalidLayerError(f"{shown(path + b'/' + name)}: of a kind that no layer here can have")

    def _copy(self, path: bytes, name: bytes, fd: int, metadata: Metadata) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            copy = self._tree.create(path, name)
            try:
                self._content(source, copy)
                self._tree.finish_file(copy, metadata, name)
            finally:
                os.close(copy)
        finally:
            os.close(source)

    def _content(self, source: int, copy: int) -> None:
        size = os.fstat(source).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
                end = os.lseek(source, at, os.SEEK_HOLE)
            except OSError:  # ENXIO: nothing but a hole is left
                break
            os.lseek(source, at, os.SEEK_SET)
            os.lseek(copy, at, os.SEEK_SET)
            while at < end:
                count = os.sendfile(copy, source, None, min(_CHUNK, end - at))
                if not count:
                    return
                at += count
                self._told(count)
        os.ftruncate(copy, size)


def _place(directory: int, name: bytes) -> bytes:
    return f"/proc/self/fd/{directory}/".encode() + name


def _of_directory(fd: int) -> Metadata:
    return _metadata(fd, os.fstat(fd))


def _metadata(place: bytes | int, status: os.stat_result) -> Metadata:
    follow = isinstance(place, int)
    names = os.listxattr(place, follow_symlinks=follow)
    xattrs = {
        os.fsencode(key): os.getxattr(place, key, follow_symlinks=follow)
        for key in names
        if not key.startswith(_LEFT)
    }
    return Metadata(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)
