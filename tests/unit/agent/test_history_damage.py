"""What the agent keeps on disk may be damaged in any way: it is left out, and nothing of it ends the agent."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.agent.history import (
    LastGood,
    read_failures,
    read_generations,
    read_last_good,
    write_failures,
    write_generation,
    write_last_good,
)
from reconciler.engine.layout import Layout
from reconciler.state.generation import AppliedApp, Generation
from reconciler.state.observed import Failure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
GOOD = LastGood("web", "web.yaml", "d", b"x", (("c", b"y"),))
FAILURE = Failure("step", "error", "hint", True, 1, 1.0, "d")
GENERATION = Generation(
    7, "r", 1.0, (AppliedApp("web", "web.yaml", "d", (("a", "b", "c"),), ("l",), ("b",)),)
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    path = tmp_path_factory.mktemp("history")
    made = Layout(path / "state", path / "run")
    for directory in (made.lastgood_root, made.generations, made.run):
        directory.mkdir(parents=True)
    return made


def read_all(layout: Layout) -> tuple[object, ...]:
    return read_last_good(layout), read_failures(layout, "boot"), read_generations(layout)


def write_all(layout: Layout) -> list[Path]:
    write_last_good(layout, GOOD)
    write_failures(layout, "boot", {"web": FAILURE})
    write_generation(layout, GENERATION, 3)
    return [layout.lastgood("web"), layout.failures, layout.generation(7)]


def test_what_was_written_is_read(layout: Layout) -> None:
    write_all(layout)
    assert read_all(layout) == ({"web": GOOD}, {"web": FAILURE}, [GENERATION])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_place_is_left_out_or_of_the_right_type(layout: Layout, data: st.DataObject) -> None:
    for path in write_all(layout):
        value = json.loads(path.read_bytes())
        place = data.draw(st.sampled_from([None, *value]))
        found = data.draw(JSON)
        path.write_text(json.dumps(found if place is None else {**value, place: found}))
    good, failures, generations = read_all(layout)
    assert isinstance(good, dict)
    assert isinstance(failures, dict)
    assert isinstance(generations, list)
    assert all(isinstance(kept.path, str) and hash(kept.path) is not None for kept in good.values())
    assert all(isinstance(failure.at, float) for failure in failures.values())


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b"{}", b"null"])
def test_bytes_that_are_no_record_are_left_out(layout: Layout, damage: bytes) -> None:
    for path in write_all(layout):
        path.write_bytes(damage)
    assert read_all(layout) == ({}, {}, [])


def test_directories_in_the_place_of_files_and_files_of_directories_are_left_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    for path in (layout.lastgood("web"), layout.failures, layout.generation(7)):
        path.mkdir(parents=True)
    assert read_all(layout) == ({}, {}, [])
    other = Layout(tmp_path / "other", tmp_path / "other")
    other.state.mkdir()
    for path in (other.lastgood_root, other.generations):
        path.write_text("")
    assert read_all(other) == ({}, {}, [])


def test_names_that_are_no_numbers_stop_no_generation_from_being_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.generations.mkdir(parents=True)
    for name in ("1x.json", "2².json", "x.json"):
        (layout.generations / name).write_text("{}")
    layout.generation(3).mkdir()
    write_generation(layout, GENERATION, 1)
    assert read_generations(layout) == [GENERATION]
