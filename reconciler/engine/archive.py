"""An archive of images as a source of blobs: one pass over it finds every member, its place and its digest.

Nothing is unpacked and no name in it is ever a path here: what is wanted is read from where it lies. Members that are
links are other names, followed within the archive only (Docker before version 25 wrote equal layers so).
"""

import hashlib
import io
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from reconciler.engine import tar
from reconciler.engine.inflate import inflate
from reconciler.engine.limits import Limits
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.errors import NotFoundError, VerificationError
from reconciler.spec.reference import Digest

_CHUNK: Final = 1 << 20
_MEMBERS: Final = 20_000  # files of an archive: a blob each
_LINKS: Final = 40
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHERS: Final = {b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}


class InvalidArchiveError(VerificationError):
    """The file is no archive of images: not a tar archive, cut off, or not of a known form."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: where its bytes are, how many, and their digest."""

    offset: int
    size: int
    digest: Digest


class Archive:
    """The archive in `file`, which can be read at any place and is closed with this. `name` is for messages.

    `found` are the members by their names, without `./`. Raises InvalidArchiveError.
    """

    def __init__(self, file: IO[bytes], name: str, told: Callable[[int], object] = lambda _: None) -> None:
        self.name = name
        self._file = file
        self._fd = file.fileno()
        self._more: dict[Digest, bytes] = {}
        # What a layer may be, a member may be, and several of them
        limits = Limits()
        limits = replace(limits, entries=2 * _MEMBERS, unpacked=limits.unpacked * limits.layers)
        self.found: dict[str, Member] = {}
        links: dict[str, str] = {}
        try:
            self._index(tar.Reader(self._chunks(told), limits), links)
        except InvalidLayerError as error:
            raise InvalidArchiveError(
                f"{name}: {error}", hint="is it whole, and an archive of images?"
            ) from error
        for link in links:
            target = link
            for _ in range(_LINKS):
                target = links.get(target, target)
            if target in self.found:
                self.found.setdefault(link, self.found[target])
        self._by_digest = {member.digest: member for member in self.found.values()}

    def _chunks(self, told: Callable[[int], object]) -> Iterator[bytes]:
        at = 0
        while chunk := os.pread(self._fd, _CHUNK, at):
            at += len(chunk)
            told(len(chunk))
            yield chunk

    def _index(self, reader: tar.Reader, links: dict[str, str]) -> None:
        for entry in reader:
            name = posixpath.normpath(os.fsdecode(entry.name))
            if entry.kind in (tar.SYMLINK, tar.HARD_LINK):
                start = posixpath.dirname(name) if entry.kind == tar.SYMLINK else ""
                links[name] = posixpath.normpath(posixpath.join(start, os.fsdecode(entry.target)))
            elif entry.kind == tar.REGULAR and entry.segments is None:
                member = self._member(reader, entry.size)
                if self.found.setdefault(name, member).digest != member.digest:
                    raise InvalidLayerError(f"{name[:80]!r} is there twice, with different content")
            if len(self.found) + len(links) > _MEMBERS:
                raise InvalidLayerError(f"more than {_MEMBERS} files")
        reader.drain()

    def _member(self, reader: tar.Reader, size: int) -> Member:
        offset = reader.offset
        digest = hashlib.sha256()
        for _, data in reader.data():
            digest.update(data)
        return Member(offset, size, Digest("sha256", digest.hexdigest()))

    # --- content ---------------------------------------------------------------------------------------------------

    def open(self, member: Member) -> IO[bytes]:
        """The content of a member, for whoever closes it."""
        return io.BufferedReader(_Part(self._fd, member.offset, member.size), _CHUNK)

    def member(self, name: str) -> Member | None:
        """The file of that name, whichever way it is spelt."""
        return self.found.get(posixpath.normpath(name))

    def read(self, name: str, limit: int) -> bytes | None:
        """Return a small member, or None where there is none of that name; VerificationError beyond `limit` bytes."""
        member = self.member(name)
        if member is None:
            return None
        if member.size > limit:
            raise VerificationError(
                f"{self.name}: {name[:80]}: {member.size} bytes, expected at most {limit}"
            )
        with self.open(member) as file:
            return file.read()

    def add(self, digest: Digest, data: bytes) -> None:
        """Let a document be found here that is not in the archive: Docker leaves out manifests."""
        self._more[digest] = data

    def blob(self, digest: Digest) -> IO[bytes] | None:
        if digest in self._more:
            return io.BytesIO(self._more[digest])
        member = self._by_digest.get(digest) or self.found.get(f"blobs/{digest.algorithm}/{digest.hex}")
        return None if member is None else self.open(member)

    def close(self) -> None:
        self._file.close()


class _Part(io.RawIOBase):
    """A part of a file, read without its position: several threads read others."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._end - self._at)]
        count = os.preadv(self._fd, [view], self._at) if view else 0
        self._at += count
        return count


def open_archive(
    path: Path | None, stdin: IO[bytes], scratch: Path, told: Callable[[int], object] = lambda _: None
) -> Archive:
    """Open the archive in `path`, or on standard input; packed with gzip or zstd it is unpacked into `scratch` first.

    Raises NotFoundError, InvalidArchiveError, or UnsupportedError where this Python has no zstd.
    """
    name = "standard input" if path is None else str(path)
    try:
        source = stdin if path is None else path.open("rb", buffering=0)
    except OSError as error:
        raise NotFoundError(f"{name}: {(error.strerror or '').lower()}") from error
    head = _head(source)
    packed = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    other = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), "")
    if other:
        raise InvalidArchiveError(f"{name}: packed with {other}", hint=f"unpack it first: {other} -dc")
    if path is not None and not packed and source.seekable():
        return Archive(source, name, told)
    copy = (scratch / "archive.tar").open("w+b", buffering=0)
    (scratch / "archive.tar").unlink()
    chunks: Iterator[bytes] = _all(head, source)
    try:
        for chunk in inflate(chunks, packed, Limits()) if packed else chunks:
            _write(copy, chunk)
    except InvalidLayerError as error:
        raise InvalidArchiveError(f"{name}: {error}") from error
    return Archive(copy, name, told)


def _head(source: IO[bytes]) -> bytes:
    if source.seekable():
        head = source.read(6)
        source.seek(0)
        return head
    head = b""
    while len(head) < 6 and (more := source.read(6 - len(head))):
        head += more
    return head


def _all(head: bytes, source: IO[bytes]) -> Iterator[bytes]:
    if not source.seekable() and head:
        yield head
    while chunk := source.read(_CHUNK):
        yield chunk


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
