"""The event log: bounded, one record per line, and harmless when it can't be written."""

import errno
import fcntl
import json
import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.steps import CollectGarbage, CreateVolume, RemoveContainer, StartContainer, Step
from reconciler.report.events import Ends, EventLog, append_end, attributes, previous_of, read_events
from reconciler.shim import eventfile
from reconciler.state.observed import Exited, Lost, Observed
from tests import values


def test_events_are_lines_of_json_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    assert log.append(1.0, "step", "web/page", "start web/page", seconds=0.5)
    assert log.append(2.0, "step", "web/page", "two\nlines \x1b[2J", error=None)
    assert path.read_text().count("\n") == 2
    assert "\x1b" not in path.read_text()
    events = list(read_events(path))
    assert [event["time"] for event in events] == [1.0, 2.0]
    assert events[0] == {
        "time": 1.0,
        "kind": "step",
        "subject": "web/page",
        "message": "start web/page",
        "seconds": 0.5,
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_same_event_again_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    assert log.append(1.0, "source", "", "no such directory")
    before = path.stat()
    assert not log.append(2.0, "source", "", "no such directory")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert log.append(3.0, "source", "", "readable again")


def test_the_log_never_grows_beyond_its_limit_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, limit=10_000)
    for number in range(2000):
        log.append(float(number), "step", "a", f"event {number}")
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    events = list(read_events(path))
    assert events[-1]["message"] == "event 1999"
    numbers = [int(event["time"]) for event in events]
    assert numbers == list(range(numbers[0], 2000))
    assert len(numbers) > 50


def test_a_torn_line_is_skipped_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append(1.0, "a", "b", "c")
    with path.open("a") as file:
        file.write('{"time": 2, "ki')
    EventLog(path).append(3.0, "a", "b", "d")
    with path.open("ab") as file:
        file.write(b"\xff\x00\n[]\n5\n")
    assert [event["time"] for event in read_events(path)] == [1.0, 3.0]


def test_a_log_that_cannot_be_written_counts_what_is_lost(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "missing" / "events.jsonl")
    assert not log.append(1.0, "a", "b", "c")
    assert log.lost == 1
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert not EventLog(tmp_path / "link").append(1.0, "a", "b", "c")
    assert not (tmp_path / "target").exists()
    assert list(read_events(tmp_path / "none")) == []


@given(st.text(), st.text(max_size=10_000), st.floats(allow_nan=False, allow_infinity=False))
def test_every_event_is_one_line_of_valid_json(subject: str, message: str, number: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.jsonl"
        assert EventLog(path).append(1.0, "kind", subject, message, detail=message, number=number)
        (line,) = path.read_text().splitlines()
        assert len(line) <= 8 * 1024
        assert json.loads(line)["kind"] == "kind"


# --- ends ------------------------------------------------------------------------------------------------------------


def ends(
    path: Path, ended: Ends, *worlds: Observed, busy: frozenset[str] = frozenset()
) -> list[dict[str, object]]:
    log = EventLog(path)
    for have in worlds:
        for one in ended.new(have, busy):
            append_end(log, 1.0, one)
    return [event for event in read_events(path) if event["kind"] == "exit"]


def test_an_end_is_told_once_also_by_the_next_agent(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    page, db = values.container("web", "page"), values.container("web", "db")
    runs = values.world(values.found(page), values.found(db))
    killed = values.found(page, Exited(values.record(code=None, signal=9, oom=True)))
    over = values.world(killed, values.found(db))
    ended = Ends(path)
    (event,) = ends(path, ended, runs, over, over)
    assert (event["subject"], event["container"], event["exit_code"], event["oom"]) == (
        "web",
        "page",
        137,
        True,
    )
    assert "OOM" in str(event["message"])
    assert len(ends(path, Ends(path), over)) == 1  # the next agent reads what the last one wrote
    assert len(ends(path, ended, runs, over)) == 2  # it had run again in between


def test_a_container_that_is_being_made_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lost = values.world(values.found(values.container("web", "page"), Lost("it has no shim")))
    ended = Ends(path)
    assert ends(path, ended, lost, busy=frozenset({"web"})) == []
    (event,) = ends(path, ended, lost)
    assert event["message"] == "web/page: lost: it has no shim"


@pytest.mark.parametrize(
    ("step", "facts"),
    [
        (StartContainer("web", "page"), {"container": "page"}),
        (RemoveContainer("web", "page", "ab"), {"container": "page", "id": "ab"}),
        (CreateVolume("web", "data"), {"volume": "web/data"}),
        (CollectGarbage(()), {}),
    ],
)
def test_events_carry_what_their_step_is_about(step: Step, facts: dict[str, str]) -> None:
    assert attributes(step) == facts


# --- several writers -------------------------------------------------------------------------------------------------


def test_writers_that_do_not_know_of_each_other_write_whole_lines_in_order_and_keep_the_bound(
    tmp_path: Path,
) -> None:
    """Four processes, whose lines make a new file every few writes."""
    path, half, lines = tmp_path / "events.jsonl", 4000, 500

    def write(writer: int) -> None:
        for number in range(lines):
            line = b'{"time":1,"from":%d,"number":%d}\n' % (writer, number)
            while not appended(line):
                time.sleep(0.001)

    def appended(line: bytes) -> bool:
        try:
            eventfile.append(str(path), line, half)
        except OSError as error:
            # Whoever makes the new file was stopped by the scheduler for as long as the others took to fill this one
            if error.errno not in (errno.EFBIG, errno.EAGAIN):
                raise
            return False
        return True

    processes = [multiprocessing.get_context("fork").Process(target=write, args=(n,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    kept = previous_of(path).read_bytes() + path.read_bytes()
    events = list(read_events(path))
    assert len(events) == kept.count(b"\n")
    assert half < len(kept) <= 2 * half + 4 * 40  # each may have had the old file open
    for writer in range(4):
        numbers = [event["number"] for event in events if event["from"] == writer]
        assert sorted(numbers) == numbers


def test_who_holds_the_lock_for_ever_stops_nobody_and_the_file_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, limit=2000)
    log.append(1.0, "a", "b", "c")
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for number in range(100):
            log.append(float(number), "step", "a", f"event {number}")
        assert 1000 < path.stat().st_size <= 2000
        assert not previous_of(path).exists()
        assert log.lost > 0
    assert log.append(1.0, "a", "b", "let go")
    assert [event["message"] for event in read_events(path)][-1] == "let go"
    assert path.stat().st_size < 1000 < previous_of(path).stat().st_size


def test_a_directory_in_the_place_of_the_log_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.mkdir()
    assert list(read_events(path)) == []
    log = EventLog(path)
    assert log.append(1.0, "start", "web", "start web/page")
    assert [event["subject"] for event in read_events(path)] == ["web"]
    assert len(list(tmp_path.glob("events.jsonl.corrupt-*"))) == 1
    assert log.lost == 0
