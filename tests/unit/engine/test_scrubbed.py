"""How far the scrub has come survives what it is kept on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine import scrubbed
from reconciler.engine.layout import Layout
from reconciler.engine.scrubbed import Scrubbed

_KEYS = st.tuples(st.sampled_from(scrubbed.KINDS), st.text(max_size=5))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    made.state.mkdir()
    made.run.mkdir()
    return made


def test_the_newer_file_goes_first_and_a_broken_one_is_none(layout: Layout) -> None:
    assert scrubbed.read(layout) == Scrubbed()
    disk = Scrubbed(("blob", "a"), 0, 1.0, 2.0, 3, {})
    memory = Scrubbed(("layer", "b"), 7, 1.0, 2.0, 4, {("layer", "x"): "is damaged"})
    scrubbed.write(layout.scrub, disk, durable=True)
    assert scrubbed.read(layout) == disk
    scrubbed.write(layout.scrub_progress, memory, durable=False)
    assert scrubbed.read(layout) == memory
    for torn in (b"", b"{", b"[]", b'{"at": 3}', b"\xff"):
        layout.scrub_progress.write_bytes(torn)
        assert scrubbed.read(layout) == disk


@given(st.dictionaries(_KEYS, st.text(min_size=1, max_size=5), max_size=4), _KEYS)
def test_what_is_wrong_is_counted_by_kind(found: dict[tuple[str, str], str], key: tuple[str, str]) -> None:
    state = Scrubbed(found=found)
    assert sum(state.corrupt().values()) == len(found)
    assert state.with_wrong(*key, "bad").wrong == {**found, key: "bad"}
    assert key not in state.with_wrong(*key, "bad").with_wrong(*key, "").wrong
