"""Compressed layers: every form that is legal, and the ones that are damaged, endless or disguised."""

import gzip
import hashlib
import importlib.util
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine.inflate import inflate
from reconciler.engine.limits import MIB, Limits
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.errors import UnsupportedError

NOISE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(3000))
DATA = NOISE + bytes(2_000_000)
PACKED = gzip.compress(DATA, 6, mtime=0)


def unpack(data: bytes, size: int = 65536, declared: str = "gzip", limits: Limits | None = None) -> bytes:
    def pieces() -> Iterator[bytes]:
        return (data[at : at + size] for at in range(0, len(data), size))

    return b"".join(inflate(pieces(), declared, limits or Limits()))


@pytest.mark.parametrize("size", [1, 17, 4096, 1 << 20])
def test_gzip_is_unpacked_however_it_arrives(size: int) -> None:
    assert unpack(gzip.compress(NOISE[:5000], mtime=0) if size == 1 else PACKED, size) == (
        NOISE[:5000] if size == 1 else DATA
    )


def test_several_members_and_padding_are_one_archive() -> None:
    for size in (1000, 1 << 20):
        assert unpack(PACKED + gzip.compress(b"second") + bytes(5000), size) == DATA + b"second"
    assert unpack(gzip.compress(b"") + PACKED) == DATA


def test_what_is_not_compressed_stays_as_it_is() -> None:
    assert unpack(DATA, declared="tar") == DATA
    assert unpack(DATA, declared="gzip") == DATA  # Docker and containerd look at the bytes, not at the name
    assert (
        unpack(b"\x1f\x8b is how this plain archive begins", declared="tar")
        == b"\x1f\x8b is how this plain archive begins"
    )
    assert unpack(b"", declared="gzip") == b""
    assert unpack(b"abc", 1) == b"abc"


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 1000, len(PACKED) - 20])
def test_gzip_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(InvalidLayerError):
        unpack(PACKED[:-cut])


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_damaged_gzip_and_garbage_behind_it_are_refused(size: int) -> None:
    crc = bytearray(PACKED)
    crc[-6] ^= 1
    length = bytearray(PACKED)
    length[-1] ^= 1
    body = bytearray(PACKED)
    body[len(body) // 2] ^= 0xFF
    method = bytearray(PACKED)
    method[2] = 9
    for bad in (crc, length, body, method, PACKED + b"garbage", PACKED + b"\0\0x", PACKED + PACKED[:100]):
        with pytest.raises(InvalidLayerError):
            unpack(bytes(bad), size)


@given(st.binary(max_size=300))
def test_anything_behind_a_gzip_header_is_unpacked_or_refused(tail: bytes) -> None:
    try:
        unpack(b"\x1f\x8b\x08" + tail)
    except InvalidLayerError:
        pass


@settings(max_examples=30)
@given(st.binary(max_size=3000), st.integers(1, 500), st.integers(0, 9))
def test_every_level_and_split_gives_the_content_back(data: bytes, size: int, level: int) -> None:
    assert unpack(gzip.compress(data, level), size) == data


def test_a_bomb_is_refused_before_it_fills_anything() -> None:
    bomb = gzip.compress(bytes(64 * MIB), 9)
    sizes: list[int] = []

    def watch() -> None:
        for chunk in inflate([bomb], "gzip", Limits(ratio=100, ratio_floor=8 * MIB)):
            sizes.append(len(chunk))

    with pytest.raises(InvalidLayerError, match="bomb"):
        watch()
    assert max(sizes) <= 1 << 18
    assert sum(sizes) <= 9 * MIB


def test_zeros_below_the_floor_are_no_bomb() -> None:
    assert (
        len(unpack(gzip.compress(bytes(4 * MIB), 9), limits=Limits(ratio=100, ratio_floor=8 * MIB)))
        == 4 * MIB
    )


def test_a_raw_deflate_or_zlib_stream_is_not_taken_for_gzip() -> None:
    packed = zlib.compress(DATA)
    assert unpack(packed) == packed


# "tar!" as one raw block, by hand: magic, frame header (single segment, one byte of size), last raw block of 4 bytes.
FRAME = bytes.fromhex("28b52ffd2004210000") + b"tar!"
SKIPPABLE = bytes.fromhex("502a4d1803000000") + b"abc"
ZSTD = any(
    importlib.util.find_spec(name) for name in ("compression", "backports")
)  # either has only this in it


def test_zstd_is_unpacked_or_the_missing_part_is_named() -> None:
    if not ZSTD:
        for data in (FRAME, SKIPPABLE + FRAME):
            with pytest.raises(UnsupportedError, match="zstd") as caught:
                unpack(data, declared="zstd")
            assert "backports.zstd" in caught.value.hint
        return
    assert unpack(FRAME, declared="zstd") == b"tar!"
    assert unpack(FRAME + SKIPPABLE + FRAME, 3, declared="zstd") == b"tar!tar!"
    assert unpack(SKIPPABLE + FRAME, declared="gzip") == b"tar!"
    endless_window = bytes.fromhex("28b52ffd00f8210000") + b"tar!"  # 2 TiB
    for bad in (FRAME[:-1], FRAME + b"junk", FRAME[:5] + b"\xff" * 8, endless_window):
        with pytest.raises(InvalidLayerError):
            unpack(bad, declared="zstd")
