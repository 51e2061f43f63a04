"""Several logs as one: by time, filtered before they are counted, each line once while they grow."""

import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from reconciler.engine.logfollow import Log, Window, follow_all, read_all
from reconciler.errors import NotFoundError
from reconciler.shim.logindex import STDERR
from tests.unit.shim.pipes import Feed


def feeds(tmp_path: Path, *names: str) -> tuple[list[Feed], list[Log]]:
    for name in names:
        (tmp_path / name).mkdir()
    return [Feed(tmp_path / name) for name in names], [Log(tmp_path / name) for name in names]


def test_logs_are_merged_by_time_and_their_ends_are_taken_each(tmp_path: Path) -> None:
    (one, two), found = feeds(tmp_path, "one", "two")
    for number in range(50):
        one.write(b"one %d\n" % number)
        two.write(b"two %d\n" % number, STDERR)
    records = list(read_all(found, Window()))
    assert len(records) == 100
    assert all(before[1].time_ns <= after[1].time_ns for before, after in pairwise(records))
    assert {number for number, _ in records} == {0, 1}
    last = list(read_all(found, Window(tail=2)))
    assert sorted(record.data for _, record in last) == [b"one 48", b"one 49", b"two 48", b"two 49"]
    for feed in (one, two):
        feed.close()


def test_the_last_lines_are_the_last_that_match(tmp_path: Path) -> None:
    (feed,), found = feeds(tmp_path, "log")
    feed.write(b"".join(b"%s %d\n" % (b"even" if n % 2 == 0 else b"odd", n) for n in range(100)))
    window = Window(tail=2, keep=lambda record: record.data.startswith(b"odd"))
    for records in (
        read_all(found, window),
        follow_all(found, window),
    ):  # nobody writes: following ends at once
        assert [record.data for _, record in records] == [b"odd 97", b"odd 99"]
    feed.close()


def test_following_several_sees_every_line_of_each_once_until_all_have_ended(tmp_path: Path) -> None:
    made, found = feeds(tmp_path, "a", "b", "c")
    made[2].write(b"early\nand half a line")
    pipes = [os.pipe(), os.pipe()]
    logs = [Log(log.directory, pipe[0]) for log, pipe in zip(found[:2], pipes, strict=True)]

    def write() -> None:
        for number in range(300):
            made[0].write(b"a %d\n" % number)
            if number < 100:
                made[1].write(b"b %d\n" % number)
            if number == 100:
                os.close(pipes[1][1])
        made[0].write(b"no newline")
        os.close(pipes[0][1])

    writer = threading.Thread(target=write)
    writer.start()
    got: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for number, record in follow_all([*logs, found[2]], Window()):
        got[number].append(record.data)
    writer.join()
    assert got[0] == [*(b"a %d" % number for number in range(300)), b"no newline"]
    assert got[1] == [b"b %d" % number for number in range(100)]
    assert got[2] == [b"early", b"and half a line"]
    for feed in made:
        feed.close()
    for reader, _ in pipes:
        os.close(reader)


def test_following_ends_at_its_time_although_somebody_goes_on_writing(tmp_path: Path) -> None:
    (feed,), found = feeds(tmp_path, "log")
    feed.write(b"before\n")
    reader, writer = os.pipe()
    window = Window(until=time.time() + 0.05)
    assert [r.data for _, r in follow_all([Log(found[0].directory, reader)], window)] == [b"before"]
    feed.close()
    os.close(reader)
    os.close(writer)


def test_a_log_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for look in (read_all, follow_all):
        with pytest.raises(NotFoundError):
            list(look([Log(tmp_path / "none")], Window()))
