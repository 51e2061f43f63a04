"""A reader for the tar archives that image layers are: a stream of entries, every length checked before it is used.

Why not `tarfile`: its stream mode takes a damaged header for the end of the archive, its filters were bypassed again
and again (CVE-2025-4517, CVE-2025-4330), one header could hang it (CVE-2025-8194), and it is six times slower. This
reader only parses; which names and kinds are allowed is `unpack`'s decision. It keeps one chunk and one header.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final
from zlib import adler32

from reconciler.engine.limits import Limits
from reconciler.engine.tarfields import (
    BLOCK,
    InvalidLayerError,
    LimitError,
    Segments,
    check_segments,
    clamp_time,
    decimal,
    gnu_segments,
    listed_segments,
    nanoseconds,
    number,
    pax_records,
)

REGULAR: Final = b"0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"

# name mode uid gid size mtime | checksum | type linkname magic+version | uname gname major minor | prefix
_HEADER: Final = Struct("100s8s8s8s12s12s8sc100s8s64x16x155s12x")
_ZERO: Final = bytes(BLOCK)
_REMEMBERED: Final = 1024
_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = b"GNU.sparse."
# Kinds without content, whatever their size field says: old writers repeat the size of a hard link's target there.
_WITHOUT_CONTENT: Final = frozenset({HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})


@dataclass(slots=True)
class Entry:
    """One archive member. `kind` is its type flag, with b"0" for every way to write a regular file.

    `size` is the file's size; `mtime` nanoseconds since 1970, negative before; `target` that of a link, unresolved.
    `segments` are the (offset, length) of a sparse file's data, None for a plain one. Names are bytes as found.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    segments: Segments | None = None


class _Numbers(dict[bytes, int]):
    """The numbers in fields that say the same in most headers: modes, owners, times; so many of them are kept."""

    def __missing__(self, field: bytes) -> int:
        found = number(field)
        if len(self) < _REMEMBERED:
            self[field] = found
        return found


class Reader:
    """Iterates over the entries of an archive that comes in `chunks` of any size; each entry's `data` goes with it.

    Raises InvalidLayerError where the archive is malformed, beyond `limits`, or ends without its end marker.
    """

    def __init__(self, chunks: Iterable[bytes], limits: Limits) -> None:
        self._chunks = iter(chunks)
        self._limits = limits
        self._chunk = b""
        self._position = 0
        self._before = 0  # bytes of the chunks before this one
        self._stored = 0  # bytes of the current entry's content not read yet
        self._padding = 0
        self._segments: Segments | None = None
        self._numbers = _Numbers()
        self.entries = 0

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _more(self) -> bool:
        """Move on to the next chunk; only once the current one is used up."""
        self._before += len(self._chunk)
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._position = chunk, 0
                return True
        self._chunk, self._position = b"", 0
        return False

    def _read(self, size: int) -> bytes:
        """Return exactly `size` bytes; fewer only at the end of the stream."""
        start = self._position
        if start + size <= len(self._chunk):
            self._position = start + size
            return self._chunk[start : start + size]
        parts = []
        while size:
            part = self._chunk[self._position : self._position + size]
            if not part:
                if not self._more():
                    break
                continue
            self._position += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        while size:
            step = min(size, len(self._chunk) - self._position)
            if not step:
                if not self._more():
                    raise InvalidLayerError("tar archive: cut off inside an entry")
                continue
            self._position += step
            size -= step

    def whole(self) -> memoryview | None:
        """Take all content of the current, plain file at once where it lies in one piece; None where it does not.

        The view is valid until the next entry is asked for.
        """
        start, size = self._position, self._stored
        if self._segments is not None or start + size > len(self._chunk):
            return None
        self._position = start + size
        self._stored = 0
        return memoryview(self._chunk)[start : start + size]

    def data(self) -> Iterator[tuple[int, memoryview]]:
        """Yield what is stored of the current file as (offset in the file, bytes)."""
        segments = self._segments if self._segments is not None else ((0, self._stored),)
        for offset, length in segments:
            while length:
                step = min(length, len(self._chunk) - self._position)
                if not step:
                    if not self._more():
                        raise InvalidLayerError("tar archive: cut off inside a file")
                    continue
                start = self._position
                self._position += step
                self._stored -= step
                length -= step
                yield offset, memoryview(self._chunk)[start : start + step]
                offset += step

    @property
    def offset(self) -> int:
        """Where in the stream the next byte is: after an entry, and before its `data` is asked for, its content."""
        return self._before + self._position

    def drain(self) -> None:
        """Read to the end of the stream: what follows the end marker has no meaning, but belongs to the digest."""
        while self._more():
            pass

    # --- entries --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def _extended(self, size: int) -> bytes:
        if size > self._limits.header:
            raise InvalidLayerError(f"tar header: extended by {size} bytes, limit {self._limits.header}")
        data = self._read(size)
        if len(data) < size:
            raise InvalidLayerError("tar archive: cut off inside an extended header")
        self._skip(-size % BLOCK)
        return data

    def _next(self) -> Entry | None:
        self._skip(self._stored + self._padding)
        self._stored = self._padding = 0
        self._segments = None
        records: list[tuple[bytes, bytes]] = []
        long_name = long_target = None
        extended = False
        while True:
            header = self._read(BLOCK)
            if header == _ZERO or not header:
                if extended:
                    raise InvalidLayerError("tar archive: ends after an extended header")
                self._end(header)
                return None
            if len(header) < BLOCK:
                raise InvalidLayerError("tar archive: cut off inside a header")
            self.entries += 1
            if self.entries > self._limits.entries:
                raise LimitError(f"tar archive: more than {self._limits.entries} entries", "limits.entries")
            fields = _HEADER.unpack(header)
            kind: bytes = fields[7]
            _checksum(header, fields[6])
            size = number(fields[4])
            if size < 0:
                raise InvalidLayerError(f"tar header: size {size} is negative")
            if kind == b"x":
                records = pax_records(self._extended(size))
            elif kind == b"g":
                self._extended(size)  # global headers have no effect, as in Docker and containerd
            elif kind == b"L":
                long_name = self._extended(size).partition(b"\0")[0]
            elif kind == b"K":
                long_target = self._extended(size).partition(b"\0")[0]
            else:
                break
            extended = True
        entry = self._plain(header, fields, kind, size)
        if records:
            self._apply(entry, records)
        if long_name is not None:
            entry.name = long_name
        if long_target is not None:
            entry.target = long_target
        self._check(entry)
        return entry

    def _end(self, block: bytes) -> None:
        """The archive ends in two blocks of zeros; the second is left out by some writers, the first by none."""
        if not block:
            raise InvalidLayerError("tar archive: ends without its end marker, perhaps cut off")
        second = self._read(BLOCK)
        if second not in (b"", _ZERO):
            raise InvalidLayerError("tar archive: a block of zeros between entries")

    def _plain(self, header: bytes, fields: tuple[bytes, ...], kind: bytes, size: int) -> Entry:
        name = fields[0].partition(b"\0")[0]
        magic = fields[9]
        if magic[:6] == b"ustar\0":
            # star keeps two times behind a shorter prefix
            prefix = fields[10][:131] if header[508:512] == b"tar\0" else fields[10]
            if prefix := prefix.partition(b"\0")[0]:
                name = prefix + b"/" + name
        numbers = self._numbers
        entry = Entry(
            name,
            kind,
            numbers[fields[1]] & 0o7777,
            numbers[fields[2]],
            numbers[fields[3]],
            size,
            clamp_time(numbers[fields[5]] * 1_000_000_000),
            fields[8].partition(b"\0")[0],
        )
        if kind == b"\0":  # V7: a directory is a file whose name ends in a slash
            entry.kind = DIRECTORY if name.endswith(b"/") else REGULAR
        elif kind == b"7":
            entry.kind = REGULAR
        if entry.kind in _WITHOUT_CONTENT:
            entry.size = size = 0
        self._content(size)
        if kind == b"S":
            entry.kind = REGULAR
            self._old_sparse(entry, header)
        return entry

    def _content(self, size: int) -> None:
        self._stored, self._padding = size, -size % BLOCK

    def _check(self, entry: Entry) -> None:
        if not entry.name:
            raise InvalidLayerError("tar header: an entry without a name")
        limit = self._limits.path
        if len(entry.name) - entry.name.endswith(b"/") > limit or len(entry.target) > limit:
            raise LimitError(
                f"tar header: {entry.name[:60]!r}...: a path longer than {limit} bytes", "limits.path"
            )
        if b"\0" in entry.name or b"\0" in entry.target:
            raise InvalidLayerError(f"tar header: {entry.name[:60]!r}: a path with a NUL byte")

    # --- pax and sparse -----------------------------------------------------------------------------------------------

    def _apply(self, entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
        """Let pax records override the header, as POSIX says; the last of two equal keys wins."""
        sparse: dict[bytes, bytes] = {}
        offsets: list[bytes] = []
        for key, value in records:
            if key == b"path":
                entry.name = value or entry.name
            elif key == b"linkpath":
                entry.target = value or entry.target
            elif key == b"mtime":
                entry.mtime = nanoseconds(value) if value else entry.mtime
            elif key == b"uid":
                entry.uid = decimal(value, "uid") if value else entry.uid
            elif key == b"gid":
                entry.gid = decimal(value, "gid") if value else entry.gid
            elif key == b"size":
                if value and entry.kind not in _WITHOUT_CONTENT:
                    if self._segments is not None:
                        raise InvalidLayerError("sparse file: two sizes")
                    entry.size = decimal(value, "size")
                    self._content(entry.size)
            elif key.startswith(_XATTR):
                entry.xattrs[key[len(_XATTR) :]] = value
                if len(value) > self._limits.xattr_value:
                    raise InvalidLayerError(f"{entry.name[:60]!r}: an xattr of {len(value)} bytes")
            elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                if (len(offsets) % 2 == 0) is not (key == b"GNU.sparse.offset"):
                    raise InvalidLayerError("sparse file: offsets and lengths do not alternate")
                offsets.append(value)
            elif key.startswith(_SPARSE):
                sparse[key[len(_SPARSE) :]] = value
        if sparse and entry.kind == REGULAR:
            self._pax_sparse(entry, sparse, offsets)

    def _pax_sparse(self, entry: Entry, sparse: dict[bytes, bytes], offsets: list[bytes]) -> None:
        """GNU tar's three forms of sparse file in pax: 0.0 (repeated keys), 0.1 (one key), 1.0 (map in the data)."""
        limit = self._limits.sparse_segments
        if b"major" in sparse or b"minor" in sparse:
            if (sparse.get(b"major"), sparse.get(b"minor")) != (b"1", b"0"):
                raise InvalidLayerError("sparse file: a format other than 0.0, 0.1 and 1.0")
            size = decimal(sparse.get(b"realsize", sparse.get(b"size", b"")), "sparse size")
            segments = self._map(limit)
        else:
            size = decimal(sparse.get(b"size", sparse.get(b"realsize", b"")), "sparse size")
            numbers = sparse[b"map"].split(b",") if sparse.get(b"map") else offsets
            segments = listed_segments(numbers, limit)
            if b"numblocks" in sparse and decimal(sparse[b"numblocks"], "numblocks") != len(segments):
                raise InvalidLayerError("sparse file: a map of the wrong length")
        entry.name = sparse.get(b"name") or entry.name
        entry.size = size
        entry.segments = self._segments = check_segments(segments, size=size, stored=self._stored)

    def _map(self, limit: int) -> list[tuple[int, int]]:
        """Read the map at the head of a 1.0 file's data: numbers on lines of their own, padded to whole blocks."""
        lines: list[bytes] = []
        rest = b""
        wanted = 1
        while len(lines) < wanted:
            if self._stored < BLOCK:
                raise InvalidLayerError("sparse file: its map is cut off")
            block = self._read(BLOCK)
            self._stored -= BLOCK
            *whole, rest = (rest + block).split(b"\n")
            lines += whole
            if len(rest) > BLOCK:
                raise InvalidLayerError("sparse file: a map without line ends")
            if lines and wanted == 1:
                count = decimal(lines[0], "number of segments")
                if count > limit:
                    raise InvalidLayerError(f"sparse file: {count} segments, limit {limit}")
                wanted = 1 + 2 * count
        return listed_segments(lines[1:wanted], limit)

    def _old_sparse(self, entry: Entry, header: bytes) -> None:
        """Old GNU sparse: four segments in the header, more in blocks that follow it."""
        segments = gnu_segments(header[386:482], 4)
        more = header[482]
        while more:
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise InvalidLayerError("tar archive: cut off inside a sparse header")
            segments += gnu_segments(block, 21)
            if len(segments) > self._limits.sparse_segments:
                raise InvalidLayerError(f"sparse file: more than {self._limits.sparse_segments} segments")
            more = block[504]
        entry.size = number(header[483:495])
        entry.segments = self._segments = check_segments(segments, size=entry.size, stored=self._stored)


def _checksum(header: bytes, field: bytes) -> None:
    """Raise unless the header's checksum is right, in unsigned or (old Sun and NeXT writers) signed arithmetic."""
    expected = number(field)
    # The lower half of Adler-32 is the sum of the bytes plus one, below 65521, which 256 of them can't reach.
    # It takes a tenth of the time that adding them up does, and this is done for every entry.
    halves = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    total = halves - sum(field) + 256
    if total == expected:
        return
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if signed != expected:
        raise InvalidLayerError("tar header: its checksum is wrong")
