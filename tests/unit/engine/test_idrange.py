"""The ranges of ids: none is anybody else's."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine import idrange
from reconciler.engine.idrange import COUNT, FIRST, choose, subordinate
from reconciler.errors import ReconcilerError

SLOTS = st.integers(0, 32766).map(lambda slot: FIRST + slot * COUNT)


@given(
    st.text(), st.sets(SLOTS, max_size=50), st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 2**31)))
)
def test_a_range_is_free_and_ends_before_the_last_id(
    name: str, taken: set[int], foreign: list[tuple[int, int]]
) -> None:
    try:
        first = choose(name, taken, foreign)
    except ReconcilerError:
        assert foreign
        return
    assert first not in taken
    assert first % COUNT == 0
    assert FIRST <= first <= 2**32 - 2 - COUNT
    assert all(first + COUNT <= begin or begin + count <= first for begin, count in foreign if count)


def test_a_device_without_a_free_range_says_so() -> None:
    with pytest.raises(ReconcilerError, match="none of the 4094 ranges of ids is free"):
        choose("a", (), [(FIRST, 2**31)])


def test_the_same_container_gets_the_same_range_while_that_is_free() -> None:
    first = choose("a", ())
    assert choose("a", ()) == first
    assert choose("a", {first}) != first


def test_ranges_of_users_are_read_and_what_is_none_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids, gids = tmp_path / "subuid", tmp_path / "subgid"
    uids.write_text("web:2147483648:65536\n# a comment\nbad\nx:y:z\n1000:5:1")
    monkeypatch.setattr(idrange, "_SUBORDINATE", (uids, gids))
    assert subordinate() == [(2147483648, 65536), (5, 1)]
