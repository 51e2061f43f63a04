"""The tar reader, beside Python's own on archives at random, and against archives that are not what they claim."""

import io
import random
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine.limits import Limits
from reconciler.engine.tar import Entry, Reader
from reconciler.engine.tarfields import (
    InvalidLayerError,
    check_segments,
    clamp_time,
    nanoseconds,
    number,
    pax_records,
)
from tests.images import Item, directory, file, symlink, tar


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, size: int = 4096, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    """Return every entry with its content, holes filled."""
    found = []
    reader = Reader(pieces(data, size), limits or Limits())
    for entry in reader:
        content = bytearray(entry.size if entry.kind == b"0" else 0)
        for offset, part in reader.data():
            content[offset : offset + len(part)] = part
        found.append((entry, bytes(content)))
    reader.drain()
    return found


def header(name: bytes = b"x", *, kind: bytes = b"0", size: int = 0, **fields: bytes) -> bytearray:
    """A header block by hand; `fields` overwrite raw bytes by name before the checksum is made."""
    places = {
        "mode": (100, 8),
        "uid": (108, 8),
        "gid": (116, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "link": (157, 100),
    }
    places |= {"magic": (257, 8), "prefix": (345, 155), "sparse": (386, 97), "realsize": (483, 12)}
    block = bytearray(512)
    block[: len(name)] = name
    values = {"mode": b"0000644", "size": b"%011o" % size, "magic": b"ustar\x0000"} | fields
    for key, value in values.items():
        start, length = places[key]
        block[start : start + length] = value.ljust(length, b"\0")
    block[156:157] = kind
    return seal(block)


def seal(block: bytearray) -> bytearray:
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return block


def record(text: bytes) -> bytes:
    """A pax record with the length in front that counts itself."""
    length = len(text) + 3
    while len(b"%d %s\n" % (length, text)) != length:
        length += 1
    return b"%d %s\n" % (length, text)


END = bytes(1024)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


# --- beside Python's tarfile ----------------------------------------------------------------------------------------

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"), min_size=1, max_size=120)
_names = st.builds(
    "/".join, st.lists(_text.filter(lambda part: "/" not in part), min_size=1, max_size=4)
).filter(lambda name: len(name.encode()) < 3000)


@st.composite
def _members(draw: st.DrawFn) -> tarfile.TarInfo:
    info = tarfile.TarInfo(draw(_names))
    kinds = [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    ]
    info.type = draw(st.sampled_from(kinds))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 0o7777777) | st.integers(0, 1 << 40))
    info.gid = draw(st.integers(0, 0o7777777))
    info.mtime = draw(st.integers(0, 0o77777777777) | st.integers(0, 1 << 36))
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(_names)
    if info.type == tarfile.REGTYPE:
        info.size = draw(st.sampled_from([0, 1, 511, 512, 513, 5000]))
    return info


@settings(max_examples=200)
@given(
    st.lists(_members(), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([1, 100, 512, 513, 100_000]),
)
def test_every_archive_reads_as_python_reads_it(members: list[tarfile.TarInfo], form: int, size: int) -> None:
    out = io.BytesIO()
    contents = [random.Random(index).randbytes(info.size) for index, info in enumerate(members)]
    with tarfile.open(
        fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info, content in zip(members, contents, strict=True):
            archive.addfile(info, io.BytesIO(content))
    found = read(out.getvalue(), size)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), encoding="utf-8") as archive:
        expected = archive.getmembers()
    assert len(found) == len(expected)
    for (entry, content), info, original in zip(found, expected, contents, strict=True):
        assert entry.name.rstrip(b"/") == info.name.encode("utf-8", "surrogateescape").rstrip(b"/")
        assert (entry.kind, entry.mode, entry.uid, entry.gid) == (info.type, info.mode, info.uid, info.gid)
        assert entry.mtime == int(info.mtime) * 10**9
        assert entry.target == info.linkname.encode("utf-8", "surrogateescape")
        assert content == original


@given(st.binary(max_size=2048))
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    try:
        read(data)
    except InvalidLayerError:
        pass


@settings(max_examples=300)
@given(st.data())
def test_any_damage_to_a_header_is_read_or_refused(data: st.DataObject) -> None:
    archive = bytearray(
        tar([file("a", "x" * 600), directory("d"), symlink("s", "t" * 200), Item("l" * 200, mtime=1.5)])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    block = data.draw(st.integers(0, len(archive) // 512 - 1)) * 512
    archive[block : block + 512] = seal(archive[block : block + 512])
    try:
        read(bytes(archive), limits=Limits(entries=1000))
    except InvalidLayerError:
        pass


def test_an_archive_cut_off_anywhere_before_its_end_is_refused() -> None:
    """tarfile's stream mode takes a damaged header for the end."""
    whole = tar([file("a", "x" * 700), symlink("s", "t" * 150), file("b")])
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in [*range(0, end, 128), end]:
        with pytest.raises(InvalidLayerError):
            read(whole[:length])
    assert len(read(whole[: end + 512])) == 3  # one block of zeros is an end too
    assert len(read(whole[: end + 1024] + b"anything")) == 3


# --- forms ----------------------------------------------------------------------------------------------------------


def test_old_and_unusual_headers_mean_what_they_always_meant() -> None:
    star = bytearray(512)
    star[:1] = b"f"
    star[100:107], star[124:135], star[156:157], star[257:265] = (
        b"0000644",
        b"%011o" % 0,
        b"0",
        b"ustar\x0000",
    )
    star[345:350] = b"p" * 5
    star[476:487] = b"%011o" % 7  # star's atime, where others have the end of the prefix
    star[508:512] = b"tar\0"
    archive = b"".join(
        [
            header(b"v7-dir/", kind=b"\0", magic=b""),
            header(b"v7-file", kind=b"\0", magic=b""),
            header(b"contiguous", kind=b"7"),
            header(b"name", prefix=b"long/prefix"),
            header(b"gnu", magic=b"ustar  \0", prefix=b"not-a-prefix"),
            seal(star),
            header(b"sized-link", kind=b"1", size=5000, link=b"v7-file"),
            header(b"octal", uid=b" 0000012", gid=b"12 \0", mtime=b"\x80" + bytes(6) + b"\1\0\0\0\0"),
            header(b"negative", mtime=b"\xff" * 11 + b"\xfe"),
            END,
        ]
    )
    found = {entry.name: entry for entry, _ in read(archive)}
    assert found[b"v7-dir/"].kind == b"5"
    assert found[b"v7-file"].kind == found[b"contiguous"].kind == b"0"
    assert {b"long/prefix/name", b"gnu", b"ppppp/f"} <= found.keys()
    assert found[b"sized-link"].size == 0
    assert (found[b"octal"].uid, found[b"octal"].gid) == (10, 10)
    assert found[b"octal"].mtime == (1 << 32) * 10**9
    assert found[b"negative"].mtime == -2 * 10**9


def test_pax_records_override_and_global_ones_do_not() -> None:
    def pax(kind: bytes, records: bytes) -> bytes:
        return bytes(header(b"pax", kind=kind, size=len(records))) + padded(records)

    archive = b"".join(
        [
            pax(b"g", record(b"path=wrong") + record(b"uid=99999")),
            pax(b"x", record(b"path=right") + record(b"mtime=1.25678") + record(b"comment=abc")),
            header(b"ignored", size=3),
            padded(b"abc"),
            pax(b"x", record(b"path=a") + record(b"path=b") + record(b"SCHILY.xattr.user.k=v=w\n")),
            header(b"c"),
            END,
        ]
    )
    (first, content), (second, _) = read(archive)
    assert (first.name, first.mtime, first.uid, content) == (b"right", 1_256_780_000, 0, b"abc")
    assert second.name == b"b"
    assert second.xattrs == {b"user.k": b"v=w\n"}


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=b\n",
        b"6 a=b",
        b"06 a=b\n",
        b"6 a=bX",
        b"x a=b\n",
        b"5 =b\n",
        b"99999999999999 a=b\n",
        b"100 a=b\n",
        b"4 =\n\n",
        b"-6 a=b\n",
        b"\xb26 a=b\n",
        b"6\ta=b\n",
        b"5 ab\n",
        b"8 a\0b=c\n",
    ],
)
def test_a_malformed_pax_header_is_refused(records: bytes) -> None:
    with pytest.raises(InvalidLayerError):
        pax_records(records)


@pytest.mark.parametrize(
    "archive",
    [
        bytes(header(size=-1 % 8)) + b"short",
        bytes(header(mode=b"notoctal")),
        bytes(header(size=0, uid=b"0000o17")),
        bytes(header(uid=b"1_0")),
        bytes(header(mtime=b"99999999999")),
        bytes(header(kind=b"x", size=2 << 20)) + bytes(2 << 20),
        bytes(header(kind=b"L", size=2 << 20)) + bytes(2 << 20),
        bytes(header(kind=b"x", size=6)) + padded(b"6 a=b\n") + END,
        bytes(header(b"")) + END,
        bytes(header(kind=b"L", size=5000)) + padded(b"n" * 5000) + bytes(header()) + END,
        bytes(512) + bytes(header()) + END,
    ],
    ids=[
        "size",
        "mode",
        "uid",
        "underscore",
        "mtime",
        "pax bomb",
        "name bomb",
        "orphan",
        "no name",
        "long name",
        "hole",
    ],
)
def test_a_malformed_archive_is_refused(archive: bytes) -> None:
    with pytest.raises(InvalidLayerError):
        read(archive)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidLayerError, match="negative"):
        read(bytes(seal(header()[:124] + b"\xff" * 12 + header()[136:])) + END)


def test_a_wrong_checksum_is_refused_and_a_signed_one_taken() -> None:
    block = header(b"\xe9t\xe9")
    wrong = bytearray(block)
    wrong[0] = 1
    with pytest.raises(InvalidLayerError, match="checksum"):
        read(bytes(wrong) + END)
    signed = sum(byte - 256 if byte > 127 else byte for byte in [*block[:148], *b"        ", *block[156:]])
    block[148:156] = b"%06o\0 " % signed
    assert read(bytes(block) + END)[0][0].name == b"\xe9t\xe9"


# --- sparse files ---------------------------------------------------------------------------------------------------


ONE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}


def pax_sparse(records: dict[str, str], data: bytes) -> bytes:
    return tar([Item("GNUSparseFile.0/x", data=data, pax=records)])


def test_each_form_of_a_sparse_file_is_read() -> None:
    expected = bytes(100) + b"abc" + bytes(397) + b"defg" + bytes(496)
    one = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "real",
        "GNU.sparse.realsize": "1000",
    }
    zero = {
        "GNU.sparse.size": "1000",
        "GNU.sparse.numblocks": "2",
        "GNU.sparse.map": "100,3,500,4",
        "GNU.sparse.name": "real",
    }
    old = header(b"real", kind=b"S", size=7, magic=b"ustar  \0", realsize=b"%011o" % 1000, sparse=b"")
    for place, value in ((386, 100), (398, 3), (410, 500), (422, 4)):
        old[place : place + 12] = b"%011o\0" % value
    for archive in (
        pax_sparse(one, b"2\n100\n3\n500\n4\n".ljust(512, b"\0") + b"abcdefg"),
        pax_sparse(zero, b"abcdefg"),
        bytes(seal(old)) + padded(b"abcdefg") + END,
    ):
        for size in (100, 512, 5000):
            ((entry, content),) = read(archive, size)
            assert (entry.name, entry.size, content) == (b"real", 1000, expected)


def test_an_old_sparse_header_may_go_on_in_further_blocks() -> None:
    count = 30
    old = header(b"f", kind=b"S", size=count, magic=b"ustar  \0", realsize=b"%011o" % 5000, sparse=b"")
    pairs = [(n * 100, 1) for n in range(count)]

    def put(block: bytearray, start: int, few: list[tuple[int, int]]) -> None:
        for index, (offset, length) in enumerate(few):
            place = start + 24 * index
            block[place : place + 24] = b"%011o\0%011o\0" % (offset, length)

    put(old, 386, pairs[:4])
    old[482] = 1
    more = [bytearray(512), bytearray(512)]
    put(more[0], 0, pairs[4:25])
    more[0][504] = 1
    put(more[1], 0, pairs[25:])
    archive = bytes(seal(old)) + bytes(more[0]) + bytes(more[1]) + padded(b"z" * count) + END
    ((entry, content),) = read(archive)
    assert entry.size == 5000
    assert [at for at, byte in enumerate(content) if byte] == [offset for offset, _ in pairs]


@pytest.mark.parametrize(
    ("segments", "size", "stored"),
    [
        ([(0, 5)], 4, 5),
        ([(0, 5), (3, 5)], 100, 10),
        ([(50, 5), (0, 5)], 100, 10),
        ([(0, 5)], 100, 6),
        ([(0, 5)], 100, 4),
        ([(0, -5)], 100, -5),
        ([(1 << 62, 1 << 62)], 1 << 62, 1 << 62),
    ],
)
def test_a_sparse_map_that_does_not_add_up_is_refused(
    segments: list[tuple[int, int]], size: int, stored: int
) -> None:
    with pytest.raises(InvalidLayerError):
        check_segments(segments, size=size, stored=stored)


@pytest.mark.parametrize(
    ("records", "data"),
    [
        ({**ONE, "GNU.sparse.realsize": "10"}, b"99999999999999999999\n".ljust(512)),
        ({**ONE, "GNU.sparse.realsize": "10"}, b"9" * 2048),
        ({**ONE, "GNU.sparse.realsize": "10"}, b"3\n0\n1\n"),
        ({"GNU.sparse.major": "2", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "10"}, b""),
        (ONE, b"0\n".ljust(512, b"\0")),
        ({"GNU.sparse.size": "-5", "GNU.sparse.map": "0,1"}, b"x"),
        ({"GNU.sparse.size": "10", "GNU.sparse.map": "0,1,2"}, b"x"),
        ({"GNU.sparse.size": "10", "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "7"}, b"x"),
        ({"GNU.sparse.size": "10", "GNU.sparse.map": ",".join(["1", "0"] * 70_000)}, b""),
    ],
)  # fmt: skip
def test_a_malformed_sparse_file_is_refused(records: dict[str, str], data: bytes) -> None:
    with pytest.raises(InvalidLayerError):
        read(pax_sparse(records, data), limits=Limits(header=4 << 20))


# --- numbers --------------------------------------------------------------------------------------------------------


@given(st.integers(min_value=-(1 << 62), max_value=1 << 62))
def test_base_256_numbers_read_as_they_were_written(value: int) -> None:
    raw = bytearray((value & ((1 << 96) - 1)).to_bytes(12, "big"))
    raw[0] = 0xFF if value < 0 else 0x80
    assert number(bytes(raw)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"0", 0),
        (b".25", 250_000_000),
        (b"1.1234567899", 1_123_456_789),
    ],
)
def test_pax_times_are_read_to_the_nanosecond(text: bytes, value: int) -> None:
    assert nanoseconds(text) == value


@pytest.mark.parametrize("text", [b"", b"-", b"1e5", b"0x1", b"1.5.5", b" 1", b"--1", b"nan", b"9" * 100])
def test_a_pax_time_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidLayerError):
        nanoseconds(text)


def test_absurd_times_are_brought_into_range() -> None:
    assert clamp_time(1 << 90) == (1 << 40) * 10**9
    assert clamp_time(-(1 << 90)) == -(1 << 40) * 10**9
