"""Files that are looked at turn after turn: parsed once, seen to change, and never guessed about."""

from pathlib import Path

import pytest

from reconciler.engine.sight import ParsedFile, exists


class Counting:
    """A parser that says how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str) -> str | None:
        self.count += 1
        text = Path(path).read_text()
        return None if text == "damaged" else text


def test_a_file_is_parsed_again_only_where_it_is_another_one(tmp_path: Path) -> None:
    path, parse = tmp_path / "file", Counting()
    file = ParsedFile(path, parse)
    assert file.read() is None
    path.write_text("one")
    assert [file.read(), file.read(), parse.count] == ["one", "one", 1]
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").rename(path)
    assert [file.read(), file.read(), parse.count] == ["two", "two", 2]
    path.unlink()
    assert file.read() is None
    path.write_text("damaged")
    assert [file.read(), file.read(), parse.count] == [None, None, 3]


def test_what_can_not_be_told_is_an_error_and_no_guess(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    file = ParsedFile(loop, Counting())
    with pytest.raises(OSError, match="symbolic links"):
        file.read()
    with pytest.raises(OSError, match="symbolic links"):
        exists(str(loop))
    assert not exists(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    assert not exists(str(tmp_path / "file" / "below"))
