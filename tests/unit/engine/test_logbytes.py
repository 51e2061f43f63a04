"""How much a container has written: by stream, from the index alone, and never less than before."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.engine import logs
from reconciler.engine.logbytes import LogBytes
from reconciler.shim import logindex
from reconciler.shim.logindex import STDERR, STDOUT
from tests.unit.shim.pipes import Feed
from tests.unit.shim.test_logfile import disk_full_at


def counted(directory: Path, reader: LogBytes | None = None) -> tuple[int, int] | None:
    """What a new reader, or this one, finds: bytes of stdout and of stderr."""
    own = reader or LogBytes()
    try:
        own.look({"web/page": directory})
        found = own.counts({"web/page": directory})
    finally:
        if reader is None:
            own.close()
    return (found["web/page", "stdout"], found["web/page", "stderr"]) if found else None


def test_a_log_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert counted(tmp_path / "none") == (0, 0)
    Feed(tmp_path).close()
    assert counted(tmp_path) == (0, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(1, 3000), st.booleans()), max_size=40),
    st.integers(1, 3),
)
def test_every_byte_counts_once_across_rotations_for_old_and_new_readers(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, bool]], files: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    feed = Feed(directory, max_size=4096, max_files=files)
    wrote = {STDOUT: 0, STDERR: 0}
    steady = LogBytes()
    for stream, size, look in writes:
        feed.write(b"x" * size, stream)
        wrote[stream] += size
        if look:
            assert counted(directory, steady) == (wrote[STDOUT], wrote[STDERR])
    assert counted(directory) == (wrote[STDOUT], wrote[STDERR])
    assert counted(directory, steady) == (wrote[STDOUT], wrote[STDERR])
    feed.close()
    steady.close()


def test_what_is_carried_over_is_no_part_of_the_log(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096, max_files=2)
    lines = [b"%04d " % number + b"x" * 200 + b"\n" for number in range(60)]
    for number, line in enumerate(lines):
        feed.write(line, STDERR if number % 3 else STDOUT)
    feed.close()
    read = [(record.stream, record.data, record.partial, record.dropped) for record in logs.read(tmp_path)]
    expected = [
        ("stderr" if number % 3 else "stdout", line[:-1], False, 0) for number, line in enumerate(lines)
    ]
    assert 5 < len(read) < 60
    assert read[1:] == expected[1 - len(read) :]  # the first may be the end of a line whose file is gone
    assert [record.data for record in logs.read(tmp_path, tail=1)] == [lines[-1][:-1]]


def test_what_the_disk_did_not_take_counts_too(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=1 << 20)
    with disk_full_at(100_000):
        feed.write(b"y" * 300_000)
    feed.write(b"after\n", STDERR)
    assert counted(tmp_path) == (300_000, 6)
    feed.close()


def test_a_rotation_that_the_disk_refuses_loses_no_count(tmp_path: Path) -> None:
    feed = Feed(tmp_path, max_size=4096, max_files=2)
    feed.write(b"a" * 4000)
    with disk_full_at(0):
        feed.write(b"b" * 5000, STDERR)
    feed.write(b"c" * 50)
    feed.close()
    assert counted(tmp_path) == (4050, 5000)


@pytest.mark.parametrize("renames", range(5))
def test_a_count_stands_while_a_rotation_is_under_way(tmp_path: Path, renames: int) -> None:
    feed = Feed(tmp_path)
    feed.write(b"before\n")
    reader = LogBytes()
    assert counted(tmp_path, reader) == (7, 0)
    feed.log._begin_rotation()
    for old, new in feed.log._renames[:renames]:
        (tmp_path / old).rename(tmp_path / new)
    assert counted(tmp_path, reader) == (7, 0)
    reader.close()


def test_a_look_reads_no_more_than_its_limit_and_tells_only_whole_counts(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    for _ in range(25):
        feed.write(b"z")
    logs_ = {"web/page": tmp_path}
    reader = LogBytes()
    assert not reader.look(logs_, limit=10)
    assert reader.counts(logs_) == {}  # half a count after a restart of the agent would look like a reset
    assert not reader.look(logs_, limit=10)
    assert reader.look(logs_, limit=10)
    assert reader.counts(logs_) == {("web/page", "stdout"): 25, ("web/page", "stderr"): 0}
    for _ in range(20):
        feed.write(b"z")
    assert not reader.look(logs_, limit=10)
    assert reader.counts(logs_)["web/page", "stdout"] == 25
    assert not reader.look(logs_, limit=10)
    assert reader.look(logs_, limit=10)
    assert reader.counts(logs_)["web/page", "stdout"] == 45
    feed.close()
    reader.close()


def test_a_container_that_is_gone_is_forgotten_with_its_descriptor(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.write(b"x")
    reader = LogBytes()
    counted(tmp_path, reader)
    assert reader.look({})
    assert reader.counts({"web/page": tmp_path}) == {}
    feed.close()
    reader.close()


def zeroed(data: bytes) -> bytes:
    return data[: 2 * logindex.SIZE] + bytes(logindex.SIZE) + data[3 * logindex.SIZE :]


def torn(data: bytes) -> bytes:
    return data[:-10]


@pytest.mark.parametrize(("damage", "count"), [(zeroed, 2), (torn, 2), (lambda _: b"", 0)])
def test_a_damaged_index_costs_only_what_is_damaged(
    tmp_path: Path, damage: Callable[[bytes], bytes], count: int
) -> None:
    feed = Feed(tmp_path)
    for _ in range(3):
        feed.write(b"1")
    feed.close()
    index = tmp_path / logindex.CURRENT_INDEX
    index.write_bytes(damage(index.read_bytes()))
    assert counted(tmp_path) == (count, 0)
