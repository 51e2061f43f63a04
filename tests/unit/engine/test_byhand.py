"""Records of what people ask for by hand: whole or not there, and never taken for missing when they can't be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine import byhand, record
from reconciler.engine.byhand import Adhoc, ByHand, DamagedRecordError
from reconciler.engine.layout import Layout
from reconciler.engine.named import named
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, UsageError
from reconciler.state.desired import Settings
from reconciler.state.wish import Goal, Wish


def identity(layout: Layout, id: str, app: str, name: str) -> None:
    """Let there be a container."""
    layout.container(id).mkdir(parents=True)
    layout.run_container(id).mkdir(parents=True)
    digest = f"sha256:{'0' * 64}"
    made = record.Record(
        id, app, name, "print", Settings(), digest, digest, f"r.example/x@{digest}", (), (), "172.16.0.2", 1.0
    )
    record.write(layout, made)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    made.state.mkdir()
    return made


def adhoc(name: str = "web1", *, id: str = "ab" * 16) -> Adhoc:
    return Adhoc(name, id, 12.5, '{"name": "by-hand"}', Wish(turn=2, grace=0.5, auto_remove=True))


def test_a_record_comes_back_as_it_was_written(layout: Layout) -> None:
    hand = ByHand(layout)
    hand.add(adhoc())
    assert hand.read("web1") == adhoc()
    with pytest.raises(BlockedError, match="taken"):
        hand.add(adhoc())
    changed = hand.change("web1", lambda one: replace(one, wish=Wish(Goal.STOPPED)))
    assert byhand.parse_adhoc(layout.adhoc("web1")) == changed
    assert byhand.adhoc_names(layout) == frozenset(("web1",))
    hand.forget("web1")
    hand.forget("web1")
    assert byhand.adhoc_names(layout) == frozenset()
    with pytest.raises(NotFoundError):
        hand.change("web1", lambda one: one)


def test_another_name_is_taken_whole_and_once(layout: Layout) -> None:
    hand = ByHand(layout)
    hand.add(adhoc())
    assert hand.rename("web1", "web2") == adhoc().id
    assert hand.rename("web1", "web2") == adhoc().id  # a crash came before anybody knew
    assert hand.read("web2") == replace(adhoc(), name="web2")
    assert byhand.adhoc_names(layout) == frozenset(("web2",))
    assert hand.rename("gone", "never") == ""


def test_a_wish_comes_back_and_goes(layout: Layout) -> None:
    hand = ByHand(layout)
    assert hand.wish("web", "main") is None
    wish = Wish(Goal.STOPPED, 3, force=True, grace=None, reason="held")
    hand.put("web", "main", wish)
    assert hand.wish("web", "main") == wish
    assert list(byhand.wished_names(layout)) == [("web", "main")]
    hand.drop("web", "main")
    hand.drop("web", "main")
    assert byhand.wished_names(layout) == {}


@given(
    st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b'{"name": 1}', b"[" * 5000, b"1e999", b"null"])
)
def test_what_is_no_record_is_damage_and_not_absence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    layout = Layout(tmp_path_factory.mktemp("damage") / "state", Path("/nowhere"))
    layout.adhoc_root.mkdir(parents=True)
    layout.adhoc("one").write_bytes(data)
    assert byhand.adhoc_names(layout) == frozenset(("one",))
    for parse in (byhand.parse_adhoc, byhand.parse_wish):
        with pytest.raises(DamagedRecordError):
            parse(layout.adhoc("one"))


def test_a_record_under_another_name_is_damage(layout: Layout) -> None:
    ByHand(layout).add(adhoc())
    layout.adhoc("web1").rename(layout.adhoc("web2"))
    with pytest.raises(DamagedRecordError, match="under another name"):
        byhand.parse_adhoc(layout.adhoc("web2"))


def test_without_a_place_of_records_nobody_is_missing_one(layout: Layout) -> None:
    """Whoever deletes the directory does not thereby delete the containers."""
    assert byhand.adhoc_names(layout) == frozenset()
    identity(layout, "cd" * 16, "adhoc", "lost")
    assert byhand.adhoc_names(layout) is None
    with pytest.raises(ReconcilerError, match="records of lost"):
        ByHand(layout).add(adhoc())


def test_names_mean_what_people_expect(layout: Layout) -> None:
    ByHand(layout).add(adhoc("db", id="ab" * 16))
    identity(layout, "ac" * 16, "web", "db")
    assert named(layout, "db") == ("adhoc", "db")
    assert named(layout, "adhoc/db") == ("adhoc", "db")
    assert named(layout, "web/db") == ("web", "db")
    assert named(layout, "abab") == ("adhoc", "db")
    assert named(layout, "ac") == ("web", "db")
    with pytest.raises(NotFoundError, match="not found"):
        named(layout, "other")
    identity(layout, "ac" + "00" * 15, "web", "two")
    with pytest.raises(UsageError, match="ambiguous"):
        named(layout, "ac")
    assert json.loads(layout.adhoc("db").read_bytes())["version"] == 1
