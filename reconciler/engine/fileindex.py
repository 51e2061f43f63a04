"""The per-file digest index beside a layer: what every regular file in it was when it was unpacked.

The format is that of sha256sum(1), escapes included, so that `sha256sum --check` run inside the layer's directory reads
it too. It is written while unpacking, costs about a hundred bytes per file, and lets a damaged layer be found later.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from reconciler.engine.overflow import Table
from reconciler.engine.platter import Platter
from reconciler.errors import VerificationError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_ESCAPES: Final = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))
_HEX: Final = 64
_READ: Final = 1 << 18
_TOGETHER: Final = 500  # lines written at once


class IndexWriter:
    """Collects the lines of one layer in `file`, new, binary and open for reading and writing; not closed here.

    `forgotten` is an empty table for paths whose lines are true no more.
    """

    def __init__(self, file: BinaryIO, forgotten: Table) -> None:
        self._file = file
        self._lines = 0
        self._forgotten = forgotten  # path -> number of lines written before it was replaced

    def add(self, path: bytes, sha256: str) -> None:
        escaped = path
        if b"\\" in path or b"\n" in path or b"\r" in path:
            for plain, code in _ESCAPES:
                escaped = escaped.replace(plain, code)
            self._file.write(b"\\")
        self._file.write(sha256.encode() + b"  " + escaped + b"\n")
        self._lines += 1

    def forget(self, path: bytes) -> None:
        """Drop what was added for `path`, and for anything below it: the layer itself replaced it."""
        self._forgotten.set(path, str(self._lines).encode())

    def finish(self) -> None:
        """Leave only the lines that are still true, and flush."""
        self._file.flush()
        if not self._forgotten:
            return
        fd, written = self._file.fileno(), 0
        kept: list[bytes] = []
        for number, line in enumerate(
            _lines(fd)
        ):  # in place: what is left is never longer than what was read
            if not self._stale(number, _parse(line)[1]):
                kept.append(line)
            if len(kept) >= _TOGETHER:
                written += _write(fd, b"".join(kept), written)
                kept = []
        written += _write(fd, b"".join(kept), written)
        os.ftruncate(fd, written)
        self._file.seek(0, os.SEEK_END)

    def _stale(self, number: int, path: bytes) -> bool:
        while path:
            if number < int(self._forgotten.get(path) or 0):
                return True
            path = path.rpartition(b"/")[0]
        return False


def _lines(fd: int) -> Iterator[bytes]:
    """Yield the lines of the file, read ahead of whoever writes to its beginning."""
    at, rest = 0, b""
    while data := os.pread(fd, _READ, at):
        at += len(data)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _write(fd: int, data: bytes, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)
    return done


def _parse(line: bytes) -> tuple[str, bytes]:
    escaped = line.startswith(b"\\")
    text = line[1:] if escaped else line
    digest, path = text[:_HEX], text[_HEX + 2 :].removesuffix(b"\n")
    if len(digest) < _HEX or text[_HEX : _HEX + 2] != b"  " or not text.endswith(b"\n"):
        raise VerificationError("layer: its file index is damaged")
    if escaped:
        parts = path.split(b"\\\\")
        path = b"\\".join(part.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for part in parts)
    return digest.decode("ascii", "replace"), path


def entries(index: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the path and the sha256 of every file in `index`; VerificationError where it is damaged."""
    with index.open("rb") as lines:
        for line in lines:
            digest, path = _parse(line)
            yield path, digest


def damaged(
    root: Path,
    index: Path,
    told: Callable[[int], object] = lambda _: None,
    *,
    begin: int = 0,
    passed: Callable[[int], object] = lambda _: None,
) -> Iterator[bytes]:
    """Yield the path of every file in the layer `root` that is missing or is not what `index` says; reads them all.

    They are read from the disk, not from memory. `told` hears of every number of bytes read, `passed` of how many files
    of the index have been read; the first `begin` of them are left out.
    """
    platter = Platter()
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, (path, digest) in enumerate(entries(index), 1):
            if number <= begin:
                continue
            if _sha256(directory, path, platter, told) != digest:
                yield path
            passed(number)
    finally:
        os.close(directory)


def _sha256(directory: int, path: bytes, platter: Platter, told: Callable[[int], object]) -> str | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = openat2(directory, path, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError:
        return None  # gone, or something else in its place: damaged either way
    found = hashlib.sha256()
    try:
        platter.read(fd, found.update, told)
    except OSError:
        return None  # EIO is what damage often looks like
    finally:
        os.close(fd)
    return found.hexdigest()
