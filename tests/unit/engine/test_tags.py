"""Names that people give to images: what they may be, and that a damaged one is none."""

from pathlib import Path

import pytest

from reconciler.engine import tags
from reconciler.engine.layout import Layout
from reconciler.engine.oci_layout import named
from reconciler.errors import NotFoundError, UsageError
from tests.images import OciLayout, file, layer, sha256


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    for path in (made.tags, made.trash):
        path.mkdir(parents=True)
    return made


def test_a_short_name_is_completed_and_a_whole_one_stays() -> None:
    for text, whole in (
        ("web", "localhost/web:latest"),
        ("team/web:1", "localhost/team/web:1"),
        ("r.example/web", "r.example/web:latest"),
        ("r.example:5000/web:2", "r.example:5000/web:2"),
        ("localhost/web:1", "localhost/web:1"),
    ):
        assert tags.full_name(text) == whole
        assert tags.full_name(whole) == whole
    for text in ("", "Web", "../web", "web@sha256:" + "0" * 64, "a b", "-x", "web:", "r.example/"):
        with pytest.raises(UsageError):
            tags.full_name(text)


def test_a_name_is_given_moved_and_taken(layout: Layout) -> None:
    one, two = sha256(b"one"), sha256(b"two")
    tags.give(layout, "localhost/web:1", one)
    tags.give(layout, "localhost/db:1", one)
    tags.give(layout, "localhost/web:1", two)
    assert [(tag.name, tag.digest) for tag in tags.tags(layout)] == [
        ("localhost/db:1", one),
        ("localhost/web:1", two),
    ]
    found = tags.find(layout, "localhost/web:1")
    assert found is not None
    assert found.digest == two
    tags.take(layout, "localhost/web:1")
    tags.take(layout, "localhost/web:1")
    assert [tag.name for tag in tags.tags(layout)] == ["localhost/db:1"]


def test_a_damaged_name_and_one_in_anothers_place_are_none(layout: Layout) -> None:
    tags.give(layout, "localhost/web:1", sha256(b"one"))
    [path] = layout.tags.iterdir()
    path.rename(layout.tags / "0123.json")
    assert tags.tags(layout) == ()
    for content in (
        b"",
        b"[]",
        b'{"name": 1}',
        b'{"name": "localhost/x:1", "digest": "md5:0", "created": 1}',
    ):
        path.write_bytes(content)
        assert tags.tags(layout) == ()
        assert tags.find(layout, "localhost/web:1") is None


def test_a_layout_is_asked_by_the_names_that_it_has(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "layout")
    digest = layout.image([layer([file("./a", "a")])], tag="r.example/box:1")
    assert named(layout.path, "r.example/box:1") == digest
    with pytest.raises(NotFoundError, match="nothing there is called other") as caught:
        named(layout.path, "other")
    assert "r.example/box:1" in caught.value.hint
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFoundError):
            named(path, "x")
