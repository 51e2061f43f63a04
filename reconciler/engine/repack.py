"""A layer of the store as an archive again, for who has nothing but what was unpacked.

The archive holds the same files, but its bytes are not those that came: packers order and spell things differently. So
it is another layer, with another diff_id, and whoever writes it must say so. The same layer gives the same bytes each
time. Every file is compared with the index that was written when it was unpacked: damage is not passed on.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reconciler.engine.fileindex import entries
from reconciler.engine.lowers import is_opaque, is_whiteout
from reconciler.errors import VerificationError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_CHUNK: Final = 1 << 20
_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_LEFT: Final = ("trusted.overlay.", "security.selinux")


def pack(root: Path, index: Path) -> Iterator[bytes]:
    """Yield the archive of the unpacked layer `root` with its file `index`; VerificationError at a damaged file."""
    return _Packer(root, dict(entries(index))).pack()


class _Packer:
    def __init__(self, root: Path, digests: dict[bytes, str]) -> None:
        self._path = root
        self._digests = digests
        self._links: dict[int, bytes] = {}

    def pack(self) -> Iterator[bytes]:
        root = os.open(self._path, _DIRECTORY)
        total = 0
        try:
            todo = [b""]
            while todo:
                path = todo.pop()
                fd = openat2(root, path or b".", _DIRECTORY, resolve=_RESOLVE)
                try:
                    below: list[bytes] = []
                    for chunk in self._directory(fd, path, below):
                        total += len(chunk)
                        yield chunk
                    todo += reversed(below)
                finally:
                    os.close(fd)
        finally:
            os.close(root)
        yield bytes(2 * _BLOCK + -(total + 2 * _BLOCK) % _RECORD)

    def _directory(self, fd: int, path: bytes, below: list[bytes]) -> Iterator[bytes]:
        yield _header(path + b"/" if path else b"./", os.fstat(fd), fd, tarfile.DIRTYPE)
        if path and is_opaque(f"/proc/self/fd/{fd}/.".encode()):
            yield _mark(path + b"/.wh..wh..opq")
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            full = path + b"/" + name if path else name
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            place = f"/proc/self/fd/{fd}/".encode() + name
            if stat.S_ISDIR(status.st_mode):
                below.append(full)
            elif is_whiteout(status):
                yield _mark((path + b"/" if path else b"") + b".wh." + name)
            elif (first := self._links.get(status.st_ino)) is not None:
                yield _header(full, status, place, tarfile.LNKTYPE, target=first)
            else:
                if status.st_nlink > 1:
                    self._links[status.st_ino] = full
                yield from self._file(fd, name, full, status, place)

    def _file(
        self, fd: int, name: bytes, full: bytes, status: os.stat_result, place: bytes
    ) -> Iterator[bytes]:
        if stat.S_ISLNK(status.st_mode):
            yield _header(full, status, place, tarfile.SYMTYPE, target=os.readlink(name, dir_fd=fd))
        elif stat.S_ISFIFO(status.st_mode):
            yield _header(full, status, place, tarfile.FIFOTYPE)
        elif stat.S_ISREG(status.st_mode):
            yield _header(full, status, place, tarfile.REGTYPE)
            yield from self._content(fd, name, full, status.st_size)
        else:
            raise VerificationError(f"{_text(full)}: of a kind that no layer here can have")

    def _content(self, fd: int, name: bytes, full: bytes, size: int) -> Iterator[bytes]:
        digest = hashlib.sha256()
        done = 0
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            while chunk := os.read(file, min(_CHUNK, size - done)):
                digest.update(chunk)
                done += len(chunk)
                yield chunk
        finally:
            os.close(file)
        if digest.hexdigest() != self._digests.get(full):
            raise VerificationError(
                f"{_text(full)}: is not what was unpacked", hint="run: reconciler fsck --repair"
            )
        yield bytes(-size % _BLOCK)


def _text(path: bytes) -> str:
    return repr(os.fsdecode(path[:120]).encode("utf-8", "backslashreplace").decode())


def _mark(path: bytes) -> bytes:
    return tarfile.TarInfo(os.fsdecode(path)).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _header(
    path: bytes, status: os.stat_result, place: bytes | int, kind: bytes, *, target: bytes = b""
) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type = kind
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    info.size = status.st_size if kind == tarfile.REGTYPE else 0
    info.linkname = os.fsdecode(target)
    seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
    info.mtime = seconds
    more = {}
    if rest or seconds < 0:
        sign, whole = ("-", -status.st_mtime_ns) if status.st_mtime_ns < 0 else ("", status.st_mtime_ns)
        more["mtime"] = f"{sign}{whole // 1_000_000_000}.{whole % 1_000_000_000:09}"
    follow = isinstance(place, int)
    for name in sorted(os.listxattr(place, follow_symlinks=follow)):
        if not name.startswith(_LEFT):
            value = os.getxattr(place, name, follow_symlinks=follow)
            more[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = more
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
