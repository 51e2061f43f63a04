"""Following the event log: every event once, whatever its writer does with its files."""

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reconciler.report.eventfollow import EventReader, follow_events
from reconciler.report.events import EventLog, read_events


def test_a_reader_that_keeps_up_sees_every_event_once_across_rotations(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, limit=4000)
    seen: list[int] = []
    with EventReader(path) as reader:
        assert list(reader.advance()) == []  # there is no log yet
        for number in range(500):
            log.append(float(number), "step", "a", f"event {number}")
            if number % 7 == 0:
                seen += [int(event["time"]) for event in reader.advance()]
        seen += [int(event["time"]) for event in reader.advance()]
    assert seen == list(range(500))


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(400, 4000))
def test_a_reader_that_does_not_keep_up_loses_only_what_is_gone(rounds: list[int], limit: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.jsonl"
        log, count, seen = EventLog(path, limit=limit), itertools.count(), []
        with EventReader(path) as reader:
            for many in rounds:
                for _ in range(many):
                    log.append(float(next(count)), "step", "a", "x" * 20)
                    assert sum(file.stat().st_size for file in Path(directory).iterdir()) <= max(limit, 400)
                kept = [event["time"] for event in read_events(path)]
                new = [event["time"] for event in reader.advance()]
                assert new == [time for time in kept if time not in seen]
                seen += new
        assert seen == sorted(set(seen))


def test_torn_lines_are_waited_for_and_given_up_when_the_file_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventReader(path) as reader:
        path.write_text('{"time":1,"kind":"a"}\n{"time":2,')
        assert [event["time"] for event in reader.advance()] == [1]
        with path.open("a") as file:
            file.write('"kind":"b"}\n{"time":3')
        assert [event["time"] for event in reader.advance()] == [2]
        path.rename(tmp_path / "events.jsonl.1")
        path.write_text('{"time":4,"kind":"c"}\n')
        assert [event["time"] for event in reader.advance()] == [4]


def test_following_ends_at_its_time_and_when_the_log_goes(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    path = directory / "events.jsonl"
    EventLog(path).append(1.0, "a", "b", "c")
    assert len(list(follow_events(path, until=1.0))) == 1
    following = follow_events(path)
    assert next(following)["time"] == 1.0
    path.unlink()
    directory.rmdir()
    assert list(following) == []
