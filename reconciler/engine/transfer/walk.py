"""A tree, read into items, while whoever owns it may change it, or means harm.

No link is followed below the top, and none that takes a directory's place while this looks (RESOLVE_NO_SYMLINKS);
every file is opened as a place first and read only once it is known to be a plain file, so that no FIFO holds us up and
no device is touched. What vanishes meanwhile was not there.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from reconciler.engine.transfer.item import CHUNK, Data, Item, Path, kept
from reconciler.engine.transfer.place import explained, is_kernels
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_BELOW: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOBODY: Final = 65534  # fs.overflowuid
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Warn = Callable[[str], None]


def renumbered(items: Iterator[Item], first: int) -> Iterator[Item]:
    """The same, with the ids that they have where the device's `first` is 0; nobody's become the kernel's nobody."""

    def inside(number: int) -> int:
        return number - first if number >= first else _NOBODY

    for item in items:
        yield replace(item, uid=inside(item.uid), gid=inside(item.gid)) if first else item


def walk(top: int, where: str, warn: Warn, *, attributes: bool = False) -> Iterator[Item]:
    """Yield what the O_PATH descriptor `top` is, and all below it; `where` names it in messages.

    With `attributes` the extended ones are read too. `warn` hears of what is left out: what the kernel makes up.
    """
    info = os.fstat(top)
    yield _item(top, (), info, None, attributes)
    if not stat.S_ISDIR(info.st_mode):
        return
    links: dict[tuple[int, int], Path] = {}
    pending: list[Path] = [()]
    while pending:
        at = pending.pop()
        said = "/".join((where.rstrip("/"), *at))
        try:
            opened = openat2(
                top, "/".join(at) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK, resolve=_BELOW
            )
        except OSError as error:
            if error.errno in _GONE and at:
                continue
            raise explained(error, said) from error
        try:
            directories = []
            if at and is_kernels(opened):
                warn(f"{said}: its content is left out: it is the kernel's own, no files")
                continue
            for name in sorted(os.listdir(opened)):
                for item in _entry(opened, name, (*at, name), links, attributes):
                    yield item
                    if item.is_directory:
                        directories.append(item.path)
        finally:
            os.close(opened)
        pending += reversed(directories)


def _entry(
    directory: int, name: str, path: Path, links: dict[tuple[int, int], Path], attributes: bool
) -> Iterator[Item]:
    try:
        fd = os.open(name, _PLACE, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        info = os.fstat(fd)
        first = None
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            first = links.setdefault((info.st_dev, info.st_ino), path)
        yield _item(fd, path, info, first if first != path else None, attributes)
    finally:
        os.close(fd)


def _item(fd: int, path: Path, info: os.stat_result, link: Path | None, attributes: bool) -> Item:
    kind = stat.S_IFMT(info.st_mode)
    plain = kind == stat.S_IFREG
    return Item(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime=info.st_mtime_ns,
        size=info.st_size if plain else 0,
        target=os.readlink("", dir_fd=fd) if kind == stat.S_IFLNK else "",
        device=info.st_rdev,
        link=link,
        xattrs=_attributes(fd) if attributes and (plain or kind == stat.S_IFDIR) else (),
        data=lambda: _data(fd, info.st_size) if plain else iter(()),
    )


def _attributes(fd: int) -> tuple[tuple[str, bytes], ...]:
    place = f"/proc/self/fd/{fd}"
    try:
        return tuple((name, os.getxattr(place, name)) for name in os.listxattr(place) if kept(name))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return ()
        raise


def _data(place: int, size: int) -> Data:
    """The content up to the size that it had: a file that grows as it is read would have no end."""
    # The very file that `place` was seen to be; O_NONBLOCK: one with a lease (fcntl F_SETLEASE) makes nobody wait
    fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        offset = 0
        while offset < size:
            start, end = _extent(fd, offset, size)
            os.lseek(fd, start, os.SEEK_SET)
            while start < end:
                data = os.read(fd, min(CHUNK, end - start))
                if not data:
                    return
                yield start, data
                start += len(data)
            offset = end
    finally:
        os.close(fd)


def _extent(fd: int, offset: int, size: int) -> tuple[int, int]:
    """The next piece that holds data, empty at the end of the file where only a hole is left."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno == errno.EINVAL:  # a file system that knows no holes
            return offset, size
        raise
