"""Tables that go to a file when they grow: the same as a dictionary, whatever their size."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine import overflow
from reconciler.engine.overflow import Overflow

_PATHS = st.lists(st.sampled_from([b"a", b"b", b"a.", b"a0", b"\xff"]), min_size=1, max_size=3).map(b"/".join)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "drop", "below", "get"]), st.integers(0, 1), _PATHS, st.binary(max_size=3)
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(_STEPS, st.integers(0, 8))
def test_a_table_is_a_dictionary_before_and_after_it_went_to_the_file(
    steps: list[tuple[str, int, bytes, bytes]], most: int
) -> None:
    directory = os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY)
    before = overflow._ENTRIES
    overflow._ENTRIES = most  # type: ignore[misc]
    try:
        tables = Overflow(directory)
        pairs: list[tuple[overflow.Table, dict[bytes, bytes]]] = [(tables.table(), {}), (tables.table(), {})]
        for what, which, path, value in steps:
            table, model = pairs[which]
            match what:
                case "set":
                    table.set(path, value)
                    model[path] = value
                case "drop":
                    table.drop(path)
                    model.pop(path, None)
                case "below":
                    table.drop_below(path)
                    for key in [key for key in model if key.startswith(path + b"/")]:
                        del model[key]
                case _:
                    assert table.get(path) == model.get(path)
                    assert (path in table) == (path in model)
            assert list(table.items()) == list(model.items())
            assert bool(table) == bool(model)
        tables.close()
    finally:
        overflow._ENTRIES = before  # type: ignore[misc]
        os.close(directory)


def test_the_file_has_no_name_and_a_full_disk_is_said_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "_ENTRIES", 10)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    tables = Overflow(directory)
    table = tables.table()
    for number in range(5000):
        table.set(b"%d" % number, bytes(100))
    assert os.listdir(tmp_path) == []
    assert sum(1 for _ in table.items()) == 5000
    assert tables._file is not None
    tables._file.execute("pragma max_page_count = 1")
    with pytest.raises(OSError, match="No space left on device"):
        _fill(table)
    tables.close()
    os.close(directory)


def _fill(table: overflow.Table) -> None:
    for number in range(5000, 500_000):
        table.set(b"%d" % number, bytes(1000))
