"""Items as a tar archive, both ways: what `cp` reads from standard input and writes to standard output.

Written as pax, as Docker does; read by the reader that image layers go through. Owners are numbers: names would be
looked up in somebody's passwd, the host's or the container's (CVE-2019-14271).
"""

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from reconciler.engine import tar
from reconciler.engine.limits import Limits
from reconciler.engine.transfer.item import CHUNK, Item, Path, kept
from reconciler.errors import ReconcilerError

_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK  # GNU tar complains of archives that do not end with a whole one
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
_KINDS: Final = {
    tar.REGULAR: stat.S_IFREG,
    tar.HARD_LINK: stat.S_IFREG,
    tar.SYMLINK: stat.S_IFLNK,
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.DIRECTORY: stat.S_IFDIR,
    tar.FIFO: stat.S_IFIFO,
}


def write(items: Iterable[Item], name: str, out: Callable[[bytes], object]) -> None:
    """Write `items` to `out` as an archive in which the thing itself is called `name`."""
    total = 0
    for item in items:
        kind = _TYPES.get(item.kind)
        if kind is None:
            continue  # a socket: tar has no word for it
        for chunk in _member(item, kind, name):
            out(chunk)
            total += len(chunk)
    out(bytes(2 * _BLOCK + -(total + 2 * _BLOCK) % _RECORD))


def _member(item: Item, kind: bytes, name: str) -> Iterator[bytes]:
    info = tarfile.TarInfo("/".join((name, *item.path)))
    info.type = kind
    info.mode, info.uid, info.gid = item.mode, item.uid, item.gid
    info.mtime = item.mtime // 1_000_000_000
    info.linkname = item.target
    if item.link is not None:
        info.type = tarfile.LNKTYPE
        info.linkname = "/".join((name, *item.link))
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(item.device), os.minor(item.device)
    elif kind == tarfile.REGTYPE:
        info.size = item.size
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in item.xattrs
    }
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if info.size:
        yield from _content(item)
        yield bytes(-item.size % _BLOCK)


def _content(item: Item) -> Iterator[bytes]:
    """Exactly as many bytes as the header said: holes, and what a file has lost since, as zeros."""
    at = 0
    for offset, data in item.data():
        yield from _zeros(offset - at)
        yield bytes(data)
        at = offset + len(data)
    yield from _zeros(item.size - at)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        step = min(count, CHUNK)
        yield bytes(step)
        count -= step


def read(chunks: Iterable[bytes]) -> Iterator[Item]:
    """Yield what an archive holds; ReconcilerError where it is malformed, or has a name that leads elsewhere."""
    reader = tar.Reader(chunks, Limits())
    for entry in reader:
        path = _path(entry.name)
        if not path:
            continue  # the directory that it is unpacked into
        kind = _KINDS.get(entry.kind)
        if kind is None:
            continue
        yield Item(
            path=path,
            kind=kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=entry.mtime,
            size=entry.size,
            target=os.fsdecode(entry.target) if kind == stat.S_IFLNK else "",
            link=_path(entry.target) if entry.kind == tar.HARD_LINK else None,
            xattrs=tuple(
                (os.fsdecode(key), value) for key, value in entry.xattrs.items() if kept(os.fsdecode(key))
            ),
            data=reader.data,
        )
    reader.drain()


def _path(name: bytes) -> Path:
    parts = tuple(part for part in os.fsdecode(name).split("/") if part not in ("", "."))
    if ".." in parts:
        raise ReconcilerError(f"archive: {os.fsdecode(name)!r}: a name with .. in it")
    return parts
