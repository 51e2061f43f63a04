"""Files that are replaced whole, whatever was in their place."""

import json
from pathlib import Path

import pytest

from reconciler.engine.durable import replace_json


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "value.json"
    for value in ({"a": 1}, {"a": 2}):
        replace_json(path, value, durable=durable)
        assert json.loads(path.read_bytes()) == value
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_in_its_place_is_kept_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.mkdir()
    (path / "inside").write_text("somebody's")
    replace_json(path, {"a": 1})
    assert json.loads(path.read_bytes()) == {"a": 1}
    (aside,) = tmp_path.glob("value.json.corrupt-*")
    assert (aside / "inside").read_text() == "somebody's"


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_json(tmp_path / "missing" / "value.json", {})
    assert list(tmp_path.iterdir()) == []
