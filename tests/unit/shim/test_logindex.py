"""The index format: what is packed comes back, and nothing that was damaged does."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.shim import logindex

U64 = st.integers(min_value=0, max_value=2**64 - 1)


@given(U64, U64, U64, st.sampled_from((1, 2)), st.integers(min_value=0, max_value=15))
def test_an_entry_survives_packing(wall: int, offset: int, length: int, stream: int, flags: int) -> None:
    assert logindex.unpack(logindex.pack(wall, offset, length, stream, flags)) == (
        wall,
        offset,
        length,
        stream,
        flags,
    )


@given(U64, U64, U64, st.integers(min_value=0, max_value=31), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_makes_an_entry_invalid(
    wall: int, offset: int, length: int, place: int, change: int
) -> None:
    data = bytearray(logindex.pack(wall, offset, length, 1, 0))
    data[place] ^= change
    assert logindex.unpack(bytes(data)) is None


def test_zeros_are_no_entry_and_no_header() -> None:
    assert logindex.unpack(bytes(logindex.SIZE)) is None
    assert logindex.unpack_header(bytes(logindex.SIZE)) is None
    assert logindex.unpack_header(b"RCLOG") is None


@given(st.integers(min_value=1, max_value=2**63))
def test_a_header_carries_its_number(sequence: int) -> None:
    assert logindex.unpack_header(logindex.pack_header(sequence, 1)) == sequence


@given(st.integers(min_value=1, max_value=10**12))
def test_a_rotated_name_carries_its_number(sequence: int) -> None:
    for name in (logindex.rotated_log, logindex.rotated_index, logindex.compressed_log):
        assert logindex.sequence_of(name(sequence)) == sequence


def test_other_names_carry_none() -> None:
    for name in (
        "current.log",
        "new.idx",
        "compressing.7",
        "7.log",
        "00000007.txt",
        "00000007.log.gz.gz",
        "٠٠٠٠٠٠٠٧.log",
    ):
        assert logindex.sequence_of(name) is None
