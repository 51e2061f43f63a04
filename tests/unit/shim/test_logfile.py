"""The log writer: what goes in is on disk, indexed, within its bounds, whatever the disk does."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.engine import logs
from reconciler.shim import compress, logfile, logindex, logopen
from reconciler.shim.logindex import CONTINUES, DROPPED, JUMP, PARTIAL, SIZE, STDERR, STDOUT
from tests.unit.shim.pipes import Feed


def entries(directory: Path, name: str = logindex.CURRENT_INDEX) -> list[logindex.Entry]:
    data = (directory / name).read_bytes()
    assert logindex.unpack_header(data) is not None
    found = [logindex.unpack(data, start) for start in range(SIZE, len(data), SIZE)]
    assert None not in found
    return [entry for entry in found if entry is not None]


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: EFBIG, an error of the disk's kind that needs no root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_bytes_arrive_unchanged_and_each_stretch_has_its_stream(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write(b"one\ntwo\n")
    feed.write(b"bad\n", STDERR)
    feed.write(b"\x00\xff half")
    feed.write(b" and half\n")
    feed.close()
    assert (tmp_path / "current.log").read_bytes() == b"one\ntwo\nbad\n\x00\xff half and half\n"
    assert [(offset, length, stream, flags) for _, offset, length, stream, flags in entries(tmp_path)] == [
        (0, 8, STDOUT, 0),
        (8, 4, STDERR, 0),
        (12, 7, STDOUT, PARTIAL),
        (19, 10, STDOUT, CONTINUES),
    ]
    assert feed.log.bytes == {STDOUT: 25, STDERR: 4}


def test_log_and_index_together_stay_within_their_size_and_number(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096, max_files=3)
    for number in range(2000):
        feed.write(b"%d\n" % number)
    feed.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    last = feed.log.sequence
    assert names == sorted(
        ["current.idx", "current.log"]
        + [name(last - back) for back in (1, 2) for name in (logindex.rotated_log, logindex.rotated_index)]
    )
    for stem in ("current", f"{last - 1:08d}", f"{last - 2:08d}"):
        assert sum((tmp_path / f"{stem}.{kind}").stat().st_size for kind in ("log", "idx")) <= 4096
    assert logs.size(tmp_path) <= 3 * 4096


def test_one_file_means_that_nothing_rotated_is_kept(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096, max_files=1)
    feed.write(b"x" * 100 + b"\n" * 10000)
    feed.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current.idx", "current.log"]


def test_a_changed_rotation_counts_from_the_next_write_on(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=1 << 20, max_files=10)
    feed.write(b"a" * 20000)
    feed.log.configure(4096, 2, False)
    feed.write(b"b" * 20000)
    feed.close()
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert logs.size(tmp_path) <= 2 * 4096


def test_a_writer_that_was_killed_is_succeeded_without_losing_its_log(tmp_path: Path) -> None:
    Feed(tmp_path).write(b"before\n")
    (tmp_path / logindex.NEW_LOG).write_bytes(b"")
    (tmp_path / f"{logindex.COMPRESSING}.1").write_bytes(b"\x1f\x8b")
    feed = Feed(tmp_path)
    feed.write(b"after\n")
    feed.close()
    assert [record.data for record in logs.read(tmp_path)] == [b"before", b"after"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000001.idx",
        "00000001.log",
        "current.idx",
        "current.log",
    ]


@pytest.mark.parametrize("renames", range(5))
def test_a_rotation_cut_off_after_any_rename_is_finished_by_the_next_writer(
    tmp_path: Path, renames: int
) -> None:
    feed = Feed(tmp_path)
    feed.write(b"before\n")
    feed.log._begin_rotation()
    steps = list(feed.log._renames)
    assert len(steps) == 4
    for old, new in steps[:renames]:
        (tmp_path / old).rename(tmp_path / new)
    assert [record.data for record in logs.read(tmp_path)] == [b"before"]
    successor = Feed(tmp_path)
    successor.write(b"after\n")
    successor.close()
    assert [record.data for record in logs.read(tmp_path)] == [b"before", b"after"]


def test_what_a_full_disk_did_not_take_is_counted_and_told_once_there_is_room(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write(b"kept\n")
    with disk_full_at(5):
        feed.write(b"lost\n" * 10)
        feed.write(b"gone\n", STDERR)
        assert feed.log.dropped == 55
        assert feed.log.error
    feed.write(b"back\n")
    feed.close()
    assert [(r.data, r.stream, r.dropped) for r in logs.read(tmp_path)] == [
        (b"kept", "stdout", 0),
        (b"", "stdout", 50),
        (b"", "stderr", 5),
        (b"back", "stdout", 0),
    ]
    assert feed.log.error == 0


def test_a_log_that_ends_while_the_disk_is_full_still_tells_what_is_missing(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    with disk_full_at(0):
        feed.write(b"lost\n")
    feed.close()
    assert [entry[1:] for entry in entries(tmp_path)] == [(0, 5, STDOUT, DROPPED)]


def test_bytes_whose_entry_found_no_room_are_indexed_later(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    with disk_full_at(SIZE):  # the log takes 32 bytes, the index none beyond its header
        feed.write(b"in the log\n")
        feed.write(b"too late\n")
    feed.write(b"later\n")
    feed.close()
    assert [(r.data, r.dropped) for r in logs.read(tmp_path)] == [(b"in the log", 0), (b"", 9), (b"later", 0)]


def test_a_rotation_that_fails_is_tried_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096)
    feed.write(b"x" * 3000 + b"\n")
    blocker = tmp_path / logindex.rotated_log(1)
    blocker.mkdir()
    feed.write(b"y" * 3000 + b"\n")
    assert feed.log.dropped > 0
    blocker.rmdir()
    feed.write(b"z\n")
    feed.close()
    assert [r.data for r in logs.read(tmp_path)][-1] == b"z"


def test_a_log_directory_that_was_deleted_does_not_stop_the_draining(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    feed = Feed(directory, max_size=4096)
    feed.write(b"x\n")
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    feed.write(b"y" * 30000)
    assert feed.log.bytes[STDOUT] == 30002
    assert feed.log.dropped > 0
    feed.close()


def test_a_file_system_without_splice_gets_the_same_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(tmp_path, max_size=4096)
    feed.log._splice = False
    feed.write(b"line of a log\n" * 1000)
    with disk_full_at(6):
        feed.write(b"lost\n" * 5)
    feed.close()
    records = list(logs.read(tmp_path))
    assert [r.data for r in records if not r.dropped][:1000] == [b"line of a log"] * 1000
    assert feed.log.dropped == sum(r.dropped for r in records)


def test_end_of_pipe_is_told_apart_from_an_empty_pipe(tmp_path: Path) -> None:
    log = logfile.LogFile(logopen.open_log(str(tmp_path)), max_size=4096, max_files=2)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        log.take(reader, STDOUT)
    os.close(writer)
    assert log.take(reader, STDOUT) == 0
    os.close(reader)
    log.close()


def test_a_clock_that_was_set_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(tmp_path)
    feed.write(b"1970\n")
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + 56 * 365 * 86400 * 10**9)
    feed.write(b"2026\n")
    feed.write(b"2026\n")
    feed.close()
    assert [entry[4] for entry in entries(tmp_path)] == [0, JUMP, 0]


def test_only_files_that_took_their_time_are_given_to_the_compressor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(tmp_path, max_size=4096, compress=True)
    feed.write(b"x" * 10000)
    assert feed.asked == []
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 60)
    feed.write(b"x" * 4000)
    assert len(feed.asked) == 1
    assert feed.asked[0] == list(range(1, feed.log.sequence))
    feed.log.configure(4096, 100, False)
    monkeypatch.setattr("time.monotonic", lambda: now + 120)
    feed.write(b"x" * 4000)
    assert len(feed.asked) == 1
    feed.close()


def test_compressing_keeps_the_content_and_removes_the_plain_file(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=8192)
    lines = [b"line %d of many" % number for number in range(900)]
    feed.write(b"".join(line + b"\n" for line in lines))
    feed.close()
    pid = compress.spawn(str(tmp_path), [1, 77])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / logindex.rotated_log(1)).exists()
    assert (tmp_path / logindex.compressed_log(1)).read_bytes()[:2] == b"\x1f\x8b"
    assert not list(tmp_path.glob(f"{logindex.COMPRESSING}*"))
    assert [record.data for record in logs.read(tmp_path)] == lines


def test_nothing_is_kept_by_the_driver_none() -> None:
    discard = logfile.Discard()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, b"x" * 1000)
    assert discard.take(reader, STDERR) == 1000
    assert discard.bytes == {STDOUT: 0, STDERR: 1000}
    with pytest.raises(BlockingIOError):
        discard.take(reader, STDERR)
    discard.configure(1, 1, True)
    discard.close()
    for fd in (reader, writer):
        os.close(fd)
