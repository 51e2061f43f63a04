"""What packed layers say of their own size: believed as far as it can be true."""

import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.estimate import gzip_size, zstd_size

zstd = pytest.importorskip("backports.zstd")


@given(st.binary(max_size=5000))
def test_gzip_says_what_it_unpacks_to(data: bytes) -> None:
    packed = gzip.compress(data)
    assert gzip_size(packed[-4:], len(packed)) == len(data)


@given(st.binary(max_size=9))
def test_what_gzip_can_not_reach_is_not_believed(tail: bytes) -> None:
    found = gzip_size(tail, 100)
    assert 0 <= found <= 103_200
    assert gzip_size(b"\xff\xff\xff\xff", 100) == 0


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_535, 65_536, 70_000, 1 << 20])
def test_zstd_says_what_it_unpacks_to(size: int) -> None:
    packed = zstd.compress(os.urandom(1) * size)
    assert zstd_size(packed[:18]) == zstd.get_frame_info(packed).decompressed_size == size


@given(st.binary(max_size=18))
def test_a_zstd_header_may_be_anything(head: bytes) -> None:
    assert zstd_size(head) == 0 or head.startswith(b"\x28\xb5\x2f\xfd")
    assert zstd_size(b"\x28\xb5\x2f\xfd" + head) >= 0


def test_a_zstd_stream_need_not_say() -> None:
    packer = zstd.ZstdCompressor()
    assert zstd_size(packer.compress(b"x" * 100, packer.FLUSH_BLOCK)[:18]) == 0
