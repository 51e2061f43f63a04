"""The small grammars inside a tar header: numbers, times, pax records and sparse maps, each with its limits.

Sources: POSIX.1-2017 pax ("ustar Interchange Format", "pax Extended Header"), the GNU tar manual ("Basic Tar Format",
"Storing Sparse Files"). Where implementations differ this follows Go's archive/tar, because that is what packs and
unpacks nearly every image. Pure.
"""

from collections.abc import Sequence
from typing import Final

from reconciler.errors import VerificationError

BLOCK: Final = 512
_MAX_NUMBER: Final = 1 << 63
_MAX_SECONDS: Final = 1 << 40  # the year 36812: nothing beyond it is a time
_NANOSECONDS: Final = 1_000_000_000

Segments = tuple[tuple[int, int], ...]


class InvalidLayerError(VerificationError):
    """The layer is not a tar archive that may be unpacked: malformed, beyond a limit, or trying to reach outside."""


class LimitError(InvalidLayerError):
    """The layer, or the image, is beyond a limit that the device's own file sets."""

    def __init__(self, message: str, setting: str, *, hint: str = "") -> None:
        hint = hint or f"if the image is meant to be so, raise {setting} in device.yaml"
        super().__init__(f"{message} ({setting})", hint=hint)


def number(field: bytes) -> int:
    """Read a numeric header field: octal, or base 256 (GNU) where its first bit is set; blank is 0."""
    plain = field.rstrip(b"\0 ")  # as nearly every one is written
    if plain.isdigit():
        try:
            return int(plain, 8)
        except ValueError:
            pass  # an 8 or a 9: said below
    if field and field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if value >> (bits - 1):
            value -= 1 << bits
        if not -_MAX_NUMBER <= value < _MAX_NUMBER:
            raise InvalidLayerError("tar header: number out of range")
        return value
    text = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not text:
        return 0
    try:
        if not text.isdigit():
            raise ValueError
        return int(text, 8)
    except ValueError as error:
        raise InvalidLayerError(f"tar header: {text[:24]!r} is not an octal number") from error


def decimal(text: bytes, what: str) -> int:
    """Read a non-negative decimal number below 2**63."""
    if not text.isdigit() or len(text) > 19 or int(text) >= _MAX_NUMBER:
        raise InvalidLayerError(f"tar header: {what} {text[:24]!r} is not a number in range")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Read a pax time: decimal seconds, perhaps negative, perhaps with a fraction, which is cut to nanoseconds."""
    digits = text[1:] if text[:1] == b"-" else text
    seconds, _, fraction = digits.partition(b".")
    if not (seconds or b"0").isdigit() or not (fraction or b"0").isdigit() or not digits or len(digits) > 64:
        raise InvalidLayerError(f"tar header: mtime {text[:24]!r} is not a time")
    value = int(seconds or b"0") * _NANOSECONDS + int(fraction[:9].ljust(9, b"0"))
    return clamp_time(-value if text[:1] == b"-" else value)


def clamp_time(value: int) -> int:
    """Bring an absurd time into the range that utimensat takes; file systems clamp further by themselves."""
    return max(-_MAX_SECONDS * _NANOSECONDS, min(value, _MAX_SECONDS * _NANOSECONDS))


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an extended header into its `key=value` records, in order, or raise InvalidLayerError."""
    found = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        length = data[position:space] if space > 0 else b""
        if not length.isdigit() or length.startswith(b"0"):
            raise InvalidLayerError("pax header: a record without a length")
        end = position + int(length)
        if end > len(data) or end <= space + 2 or data[end - 1] != 0x0A:
            raise InvalidLayerError("pax header: a record of the wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise InvalidLayerError("pax header: a record without a key")
        found.append((key, value))
        position = end
    return found


def check_segments(segments: Sequence[tuple[int, int]], *, size: int, stored: int) -> Segments:
    """Return the data segments (offset, length) of a sparse file, or raise unless they are in order and add up.

    `size` is the file's size, `stored` what the archive holds of it. Anything looser was seen to make unpackers write
    zeros until the disk is full.
    """
    position = total = 0
    found = []
    for offset, length in segments:
        if length < 0 or offset < position or offset + length > size:
            raise InvalidLayerError("sparse file: its segments overlap or lie outside the file")
        position = offset + length
        total += length
        if length:
            found.append((offset, length))
    if total != stored:
        raise InvalidLayerError(f"sparse file: segments of {total} bytes, the archive holds {stored}")
    return tuple(found)


def gnu_segments(block: bytes, count: int) -> list[tuple[int, int]]:
    """Read up to `count` pairs of an old GNU sparse header; the first blank one ends the list."""
    found = []
    for start in range(0, 24 * count, 24):
        if not block[start : start + 24].strip(b"\0 "):
            break
        found.append((number(block[start : start + 12]), number(block[start + 12 : start + 24])))
    return found


def listed_segments(numbers: Sequence[bytes], limit: int) -> list[tuple[int, int]]:
    """Pair up the numbers of a pax sparse map, at most `limit` pairs."""
    if len(numbers) % 2 or len(numbers) > 2 * limit:
        raise InvalidLayerError("sparse file: a map of the wrong length")
    values = [decimal(text, "sparse offset") for text in numbers]
    return list(zip(values[::2], values[1::2], strict=True))
