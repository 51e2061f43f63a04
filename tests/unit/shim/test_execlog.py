"""What is run beside a container, as events: bounded, whole, and with what an auditor asks for."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.report.events import MAX_BYTES, read_events
from reconciler.shim.execlog import HALF, Trace, command_line
from reconciler.shim.fields import Section

ID = "c" * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[int]:
    (tmp_path / ID).mkdir()
    fd = os.open(tmp_path / ID, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def trace(bundle: int, path: Path | None, **asked: object) -> Trace:
    annotations = {"dev.reconciler.name": "web/page", "dev.reconciler.user": "app"}
    if path is not None:
        annotations["dev.reconciler.events"] = str(path)
    request: dict[str, object] = {"args": ["id"], "tty": False, "origin": "exec", **asked}
    return Trace({"annotations": annotations}, Section({"exec": request}, "exec"), bundle, os.getpid())


def told(path: Path) -> list[dict[str, Any]]:
    return list(read_events(path))


def test_it_keeps_to_the_bound_of_the_log_of_events() -> None:
    assert 2 * HALF == MAX_BYTES


def test_a_program_is_two_events_with_user_command_container_and_code(bundle: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    one = trace(bundle, path, args=["sh", "-c", "echo a; exit 3"], user="root:root", tty=True)
    one.begin()
    one.end(3)
    one.end(0)  # nothing ends twice
    begun, ended = told(path)
    assert begun["message"] == "exec web/page: sh -c 'echo a; exit 3' (as root:root, on a terminal)"
    assert ended["message"] == "exec web/page: sh -c 'echo a; exit 3': exit 3"
    for event in (begun, ended):
        assert (event["kind"], event["subject"], event["container"], event["id"]) == (
            "exec",
            "web",
            "page",
            ID,
        )
        assert (event["user"], event["tty"], event["origin"]) == ("root:root", True, "exec")
        assert event["command"] == "sh -c 'echo a; exit 3'"
    assert begun["exec"] == ended["exec"]
    assert "exit_code" not in begun
    assert ended["exit_code"] == 3
    assert ended["seconds"] >= 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_that_never_ran_ends_with_the_reason(bundle: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    one = trace(bundle, path, args=["nothing"], origin="")
    one.begin()
    one.end(127, "exec: nothing: no such program in PATH")
    begun, ended = told(path)
    assert (begun["user"], begun["origin"]) == ("app", "unknown")
    assert ended["exit_code"] == 127
    assert ended["error"] == "exec: nothing: no such program in PATH"
    assert ended["message"] == "exec web/page: nothing: exec: nothing: no such program in PATH"


def test_its_name_is_that_of_the_record_which_a_new_name_changes(bundle: int, tmp_path: Path) -> None:
    (tmp_path / ID / "identity.json").write_text(json.dumps({"app": "adhoc", "name": "new"}))
    path = tmp_path / "events.jsonl"
    trace(bundle, path).begin()
    (tmp_path / ID / "identity.json").write_text("damaged")
    trace(bundle, path).begin()
    assert [(event["subject"], event["container"]) for event in told(path)] == [
        ("adhoc", "new"),
        ("web", "page"),
    ]


def test_without_a_file_nothing_is_written_and_one_that_cannot_be_is_a_problem(
    bundle: int, tmp_path: Path
) -> None:
    silent = trace(bundle, None)
    silent.begin()
    assert silent.problem == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [ID]
    lost = trace(bundle, tmp_path / "none" / "events.jsonl")
    lost.begin()
    assert "none/events.jsonl: No such file or directory" in lost.problem


def test_a_long_command_is_cut_and_says_so(bundle: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for word in ("x" * 100_000, "\U0001f600" * 100_000, "\udc80" * 5000):
        trace(bundle, path, args=["echo", word], user="u" * 5000).begin()
    assert max(map(len, path.read_bytes().splitlines())) <= 8 * 1024
    events = told(path)
    assert len(events) == 3
    assert all(event["cut"] and len(event["user"]) == 256 for event in events)
    assert len(events[0]["command"]) == 1024
    assert path.read_bytes().isascii()


@given(st.lists(st.text(st.characters(exclude_characters="\0"))))
def test_a_shell_would_read_the_command_as_it_was(words: list[str]) -> None:
    assert shlex.split(command_line(words)) == words
