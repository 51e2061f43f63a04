"""The log reader: lines come back as written, from whole, rotated, compressed and damaged files, and as they come."""

import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine import logs
from reconciler.engine.logfollow import Log, Window, follow_all
from reconciler.errors import NotFoundError
from reconciler.shim import compress, logindex
from reconciler.shim.logindex import STDERR, STDOUT
from tests.unit.shim.pipes import Feed

NAMES = {STDOUT: "stdout", STDERR: "stderr"}
writes = st.lists(
    st.tuples(
        st.sampled_from((STDOUT, STDERR)),
        st.lists(st.sampled_from((b"\n", b"a", b"some words", b"x" * 700)), min_size=1, max_size=8).map(
            b"".join
        ),
    ),
    max_size=60,
)


def follow(directory: Path, ended: int, *, tail: int | None = None) -> Iterator[logs.Record]:
    """Follow one log until `ended` is readable."""
    return (record for _, record in follow_all([Log(directory, ended)], Window(tail)))


def compress_all(directory: Path, sequences: list[int]) -> None:
    fd = os.open(directory, os.O_RDONLY)
    for sequence in sequences:
        compress.compress(fd, sequence)
    os.close(fd)


def expected(chunks: list[tuple[int, bytes]]) -> dict[str, list[bytes]]:
    """The lines of each stream; an unterminated last one counts."""
    result = {}
    for number, name in NAMES.items():
        lines = b"".join(data for stream, data in chunks if stream == number).split(b"\n")
        result[name] = lines if lines[-1] else lines[:-1]
    return result


def by_stream(records: list[logs.Record]) -> dict[str, list[bytes]]:
    return {name: [r.data for r in records if r.stream == name] for name in NAMES.values()}


@settings(max_examples=60, deadline=None)
@given(
    writes,
    st.sampled_from((4096, 9000, 1 << 20)),
    st.booleans(),
    st.booleans(),
    st.integers(min_value=0, max_value=50),
)
def test_lines_come_back_per_stream_and_the_tail_is_the_end_of_all(
    tmp_path_factory: pytest.TempPathFactory,
    chunks: list[tuple[int, bytes]],
    max_size: int,
    squeeze: bool,
    ended: bool,
    tail: int,
) -> None:
    directory = tmp_path_factory.mktemp("log")
    feed = Feed(directory, max_size=max_size)
    if ended:  # the end of a line that began long before the tail would be in nobody's last lines
        chunks = [*chunks, (STDOUT, b"\n"), (STDERR, b"\n")]
    for stream, data in chunks:
        feed.write(data, stream)
    feed.close()
    if squeeze:
        compress_all(directory, list(range(1, feed.log.sequence)))
    records = list(logs.read(directory))
    assert by_stream(records) == expected(chunks)
    assert [r.partial for r in records].count(True) <= 2
    if not ended:
        return
    assert list(logs.read(directory, tail=tail)) == records[len(records) - min(tail, len(records)) :]
    errors = [r for r in records if r.stream == "stderr"]
    assert list(logs.read(directory, streams=("stderr",))) == errors
    assert list(logs.read(directory, streams=("stderr",), tail=3)) == errors[-3:]


def test_a_line_in_pieces_is_one_record_with_the_time_of_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(tmp_path)
    clock = iter(range(10**18, 10**18 + 100 * 10**9, 10**9))
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    feed.write(b"one, ")
    feed.write(b"err\n", STDERR)
    feed.write(b"two\nthree")
    feed.close()
    assert [(r.time_ns // 10**9 - 10**9, r.stream, r.data, r.partial) for r in logs.read(tmp_path)] == [
        (1, "stderr", b"err", False),
        (0, "stdout", b"one, two", False),
        (2, "stdout", b"three", True),
    ]


def test_since_and_until_go_by_the_time_at_which_a_line_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(tmp_path)
    now = [0]
    monkeypatch.setattr("time.time_ns", lambda: now[0] * 10**9)
    for now[0] in range(1000, 1010):
        feed.write(b"%d begins, " % now[0])
        feed.write(b"err %d\n" % now[0], STDERR)
        feed.write(b"ends\n") if now[0] % 2 else None
    feed.close()
    out = [r.data for r in logs.read(tmp_path, since=1003, until=1006, streams=("stdout",))]
    # lines begin at even seconds only; the one of 1002 was open at 1003, so it belongs before
    assert out == [b"1004 begins, 1005 begins, ends", b"1006 begins, 1007 begins, ends"]
    errors = [r.data for r in logs.read(tmp_path, since=1003, until=1006, streams=("stderr",))]
    assert errors == [b"err 1003", b"err 1004", b"err 1005", b"err 1006"]
    assert [r.data for r in logs.read(tmp_path, since=1003, tail=1, streams=("stderr",))] == [b"err 1009"]
    assert not list(logs.read(tmp_path, since=2000))


def test_a_line_longer_than_the_bound_comes_in_pieces(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=10 << 20)
    feed.write(b"x" * 1_000_000 + b"\nshort\n")
    feed.close()
    records = list(logs.read(tmp_path))
    assert b"".join(r.data for r in records[:-1]) == b"x" * 1_000_000
    assert max(len(r.data) for r in records) < 600_000
    assert [r.partial for r in records[:-2]] == [True] * (len(records) - 2)
    assert records[-1].data == b"short"


def test_no_log_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(logs.read(tmp_path / "none"))
    assert list(logs.read(tmp_path)) == []
    assert logs.size(tmp_path) == logs.size(tmp_path / "none") == 0


def written(directory: Path, count: int = 200) -> list[bytes]:
    feed = Feed(directory, max_size=4096)
    lines = [b"line %d" % number for number in range(count)]
    for line in lines:
        feed.write(line + b"\n")
    feed.close()
    return lines


def age(directory: Path) -> None:
    """Make the files look as after a reboot: nobody has written for a while."""
    for path in directory.iterdir():
        os.utime(path, (1, 1))


def test_a_lost_index_loses_times_and_streams_only(tmp_path: Path) -> None:
    lines = written(tmp_path)
    age(tmp_path)
    for path in tmp_path.glob("*.idx"):
        path.unlink()
    assert [r.data for r in logs.read(tmp_path)] == lines
    assert [r.data for r in logs.read(tmp_path, tail=4)] == lines[-4:]


def test_an_index_cut_short_or_zeroed_in_the_middle_loses_no_line(tmp_path: Path) -> None:
    lines = written(tmp_path)
    index = tmp_path / logindex.CURRENT_INDEX
    data = index.read_bytes()
    index.write_bytes(data[: len(data) - 40])
    rotated = tmp_path / logindex.rotated_index(1)
    data = rotated.read_bytes()
    rotated.write_bytes(data[:320] + bytes(320) + data[640:])
    age(tmp_path)
    assert [r.data for r in logs.read(tmp_path)] == lines


def test_a_log_shorter_than_its_index_tells_what_is_missing(tmp_path: Path) -> None:
    lines = written(tmp_path, 50)
    log = tmp_path / logindex.CURRENT_LOG
    total = log.stat().st_size
    os.truncate(log, 100)
    records = list(logs.read(tmp_path))
    assert [r.data for r in records if r.data and not r.partial] == lines[:13]
    assert sum(r.dropped for r in records) == total - 100


def test_a_damaged_compressed_file_does_not_hide_the_others(tmp_path: Path) -> None:
    lines = written(tmp_path, 1000)
    last = max(n for n in map(logindex.sequence_of, os.listdir(tmp_path)) if n is not None)
    compress_all(tmp_path, list(range(1, last + 1)))
    packed = tmp_path / logindex.compressed_log(2)
    data = packed.read_bytes()
    packed.write_bytes(data[: len(data) // 2])
    records = list(logs.read(tmp_path))
    assert sum(r.dropped for r in records) > 0
    whole = [r.data for r in records if r.data and not r.partial]
    assert whole[:100] == lines[:100]
    assert whole[-100:] == lines[-100:]
    assert [r.data for r in logs.read(tmp_path, tail=5)] == lines[-5:]


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(min_value=0, max_value=4000), st.booleans())
def test_no_damage_to_an_index_makes_the_reader_fail(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, current: bool
) -> None:
    directory = tmp_path_factory.mktemp("log")
    written(directory, 300)
    name = logindex.CURRENT_INDEX if current else logindex.rotated_index(1)
    with (directory / name).open("r+b") as file:
        file.seek(place)
        file.write(noise)
    age(directory)
    list(logs.read(directory))
    list(logs.read(directory, tail=10))


def test_following_sees_every_line_once_across_rotations_and_compression(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096, max_files=100_000)
    lines = [b"line %d" % number for number in range(3000)]
    ended_read, ended_write = os.pipe()
    first = len(lines) // 10
    for line in lines[:first]:
        feed.write(line + b"\n")

    def go_on() -> None:
        for number, line in enumerate(lines[first:]):
            feed.write(line[:3])
            feed.write(line[3:] + b"\n")
            if number % 200 == 0:
                compress_all(tmp_path, list(range(1, feed.log.sequence)))
        feed.close()
        os.close(ended_write)

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        assert [r.data for r in follow(tmp_path, ended_read)] == lines
    finally:
        writer.join()
        os.close(ended_read)


def test_following_from_the_end_shows_only_what_comes(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write(b"old\nhalf a ")
    ended_read, ended_write = os.pipe()
    follower = follow(tmp_path, ended_read, tail=0)
    got: list[bytes] = []

    def read() -> None:
        for record in follower:
            got.append(record.data)
            if len(got) == 2:
                seen.set()

    seen = threading.Event()
    reader = threading.Thread(target=read)
    # a marker that only the follower's first look can come before: its position is taken at the first step
    feed.write(b"line\n")
    reader.start()
    deadline = 200
    while not seen.wait(0.01) and deadline:
        feed.write(b"new\n")
        deadline -= 1
    os.close(ended_write)
    reader.join()
    assert got[:2] == [b"new", b"new"]
    feed.close()
    os.close(ended_read)


def test_following_ends_when_the_log_is_deleted(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    lines = written(directory, 20)
    never, writer = os.pipe()
    follower = follow(directory, never)
    got = [next(follower).data for _ in lines]
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert got + [r.data for r in follower] == lines
    os.close(never)
    os.close(writer)


def test_times_do_not_go_back_within_a_file_unless_marked(tmp_path: Path) -> None:
    written(tmp_path, 100)
    times = [r.time_ns for r in logs.read(tmp_path)]
    assert all(before <= after for before, after in pairwise(times))
