"""The per-file digest index beside a layer: what every regular file in it was when it was unpacked.

The format is that of sha256sum(1), escapes included, so that `sha256sum --check` run inside the layer's directory reads
it too. It is written while unpacking, costs about a hundred bytes per file, and lets a damaged layer be found later.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from reconciler.errors import VerificationError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_ESCAPES: Final = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))
_HEX: Final = 64


class IndexWriter:
    """Collects the lines of one layer in `file`, new, binary and open for reading and writing; not closed here."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines = 0
        self._forgotten: dict[bytes, int] = {}  # path -> number of lines written before it was replaced

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
        self._forgotten[path] = self._lines

    def finish(self) -> None:
        """Leave only the lines that are still true, and flush."""
        if self._forgotten:
            self._file.seek(0)
            lines = self._file.readlines()
            self._file.seek(0)
            self._file.truncate()
            self._file.writelines(
                line for number, line in enumerate(lines) if not self._stale(number, _parse(line)[1])
            )
        self._file.flush()

    def _stale(self, number: int, path: bytes) -> bool:
        while path:
            if number < self._forgotten.get(path, 0):
                return True
            path = path.rpartition(b"/")[0]
        return False


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


def damaged(root: Path, index: Path, told: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
    """Yield the path of every file in the layer `root` that is missing or is not what `index` says; reads them all.

    `told` hears of every number of bytes read.
    """
    buffer = memoryview(bytearray(1 << 18))
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, digest in entries(index):
            if _sha256(directory, path, buffer, told) != digest:
                yield path
    finally:
        os.close(directory)


def _sha256(directory: int, path: bytes, buffer: memoryview, told: Callable[[int], object]) -> str | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = openat2(directory, path, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError:
        return None  # gone, or something else in its place: damaged either way
    found = hashlib.sha256()
    try:
        with open(fd, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                found.update(buffer[:size])
                told(size)
    except OSError:
        return None  # EIO is what damage often looks like
    return found.hexdigest()
