"""What the kernel says of memory that ran out, in the words of both versions."""

import os
from pathlib import Path

import pytest

from reconciler.shim import oom


def group(place: Path, name: str, **files: str) -> str:
    (place / name).mkdir()
    for file, text in files.items():
        (place / name / file.replace("__", ".")).write_text(text)
    return str(place / name)


def test_kills_are_counted_wherever_they_are_told(tmp_path: Path) -> None:
    second = group(tmp_path, "v2", memory__events="low 0\noom 2\noom_kill 3\noom_group_kill 1\n")
    first = group(tmp_path, "v1", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert oom.count((second,)) == 3
    assert oom.count(("", str(tmp_path / "gone"), first)) == 4
    assert oom.count(("", group(tmp_path, "old", memory__oom_control="under_oom 0\n"))) == 0
    assert oom.count(()) == 0


def test_the_most_memory_is_what_either_version_says_and_none_where_neither_does(tmp_path: Path) -> None:
    assert oom.peak((group(tmp_path, "v2", memory__peak="123\n"), "")) == 123
    assert oom.peak(("", group(tmp_path, "v1", memory__max_usage_in_bytes="456\n"))) == 456
    assert oom.peak((group(tmp_path, "old", memory__current="9\n"), str(tmp_path / "gone"))) is None


def test_what_is_not_counted_in_version_1_announces_nothing(tmp_path: Path) -> None:
    assert oom.announced((group(tmp_path, "v2", memory__oom_control="oom_kill 0\n"),)) == -1
    assert oom.announced(("", group(tmp_path, "pids"), str(tmp_path / "gone"))) == -1


def test_a_kernel_that_takes_no_wish_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError, match=r"cgroup\.event_control"):
        oom.announced(("", group(tmp_path, "v1", memory__oom_control="oom_kill 0\n")))
    assert os.listdir("/proc/self/fd") == before
