"""The format of a container's log on disk: names, and the records of the sidecar index. Pure: it opens nothing.

A log directory holds raw bytes and, beside them, what the bytes alone do not say:

  current.log  current.idx          being written; the index's header carries the sequence number of the pair
  00000007.log 00000007.idx         rotated, whole; at most `max_files - 1` of them
  00000007.log.gz                   the same, compressed; its index stays as it is

The index is a header and entries of 32 bytes each, little endian, so that entry n is at 32 * (n + 1). An entry tells
of one stretch of bytes as it came out of the container's pipe, many lines or half a line. It is written after its
bytes, so that a reader who follows never sees an entry that points beyond the data; after a power cut either file may
be short, or hold zeros: the checksum says which entries to believe. An index that a rotation begins carries over how
much was told of before it, so that one is enough to know how much a container has written in all. `shim.logfile` writes
this format, `engine.logs` reads it.
"""

import struct
import zlib

VERSION = 1
MAGIC = b"RCLOGIDX"

CURRENT_LOG = "current.log"
CURRENT_INDEX = "current.idx"
NEW_LOG = "new.log"
NEW_INDEX = "new.idx"
COMPRESSING = "compressing"

STDOUT = 1
STDERR = 2

PARTIAL = 1  # the last byte is no newline
CONTINUES = 2  # the first byte is in the middle of a line of its stream
JUMP = 4  # the wall clock was set between the entry before and this one
DROPPED = 8  # no bytes: `length` bytes were lost here, the disk did not take them
RECOVERED = 16  # bytes without an entry of their own; a reader makes these up, they are never written
TOTAL = (
    32  # no bytes: `length` bytes of this stream are told of by the files before this one, kept or deleted
)

_HEADER = struct.Struct("<8sIIQQ")
_ENTRY = struct.Struct("<QQQBBHI")
_CHECKED = struct.Struct("<QQQBBH")
SIZE = _ENTRY.size

Entry = tuple[int, int, int, int, int]  # wall clock in ns, offset, length, stream, flags


def rotated_log(sequence: int) -> str:
    return f"{sequence:08d}.log"


def rotated_index(sequence: int) -> str:
    return f"{sequence:08d}.idx"


def compressed_log(sequence: int) -> str:
    return f"{sequence:08d}.log.gz"


def sequence_of(name: str) -> int | None:
    """Return the sequence number of a rotated file's name, None for any other name."""
    stem, _, kind = name.partition(".")
    if kind not in ("log", "idx", "log.gz") or len(stem) < 8 or not (stem.isascii() and stem.isdigit()):
        return None
    return int(stem)


def pack_header(sequence: int, created_ns: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, 0, sequence, created_ns)


def unpack_header(data: bytes) -> int | None:
    """Return the sequence number, None where `data` is no header of this format."""
    if len(data) < SIZE:
        return None
    magic, version, _, sequence, _ = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or not sequence:
        return None
    return int(sequence)


def pack(wall_ns: int, offset: int, length: int, stream: int, flags: int) -> bytes:
    checked = _CHECKED.pack(wall_ns, offset, length, stream, flags, 0)
    return checked + zlib.crc32(checked).to_bytes(4, "little")


def unpack(data: bytes, position: int = 0) -> Entry | None:
    """Return the entry at `position`, None where it is torn, zeroed or overwritten."""
    wall_ns, offset, length, stream, flags, _, checksum = _ENTRY.unpack_from(data, position)
    if zlib.crc32(data[position : position + SIZE - 4]) != checksum or stream not in (STDOUT, STDERR):
        return None
    return wall_ns, offset, length, stream, flags
