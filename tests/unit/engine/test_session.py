"""Which layers are in doubt: those of a boot that did not end in order, until somebody has read them."""

from pathlib import Path

import pytest

from reconciler.engine import session
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.layout import Layout
from reconciler.engine.session import Mark, Session, this_boot
from reconciler.spec.reference import Digest

_DIGEST = Digest("sha256", "a" * 64)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    made.layers.mkdir(parents=True)
    made.run.mkdir()
    return made


def record(boot: str) -> LayerRecord:
    return LayerRecord(_DIGEST, _DIGEST, _DIGEST, None, 1, 1, 0, boot)


def in_boot(layout: Layout, boot: str, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(session, "boot_id", lambda: boot * 16)
    return Session(layout)


def test_a_boot_that_ended_in_order_leaves_no_doubt(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = in_boot(layout, "1", monkeypatch)
    first.begin()
    assert not first.doubts(record("1" * 16))
    first.end()
    second = in_boot(layout, "2", monkeypatch)
    assert not second.doubts(record("1" * 16))
    second.begin()
    third = in_boot(layout, "3", monkeypatch)  # the second broke off
    assert not third.doubts(record("1" * 16))
    assert third.doubts(record("2" * 16))
    assert not third.doubts(record("3" * 16))
    assert not third.doubts(record(""))  # of a release that did not write it
    third.begin()
    third.end()  # in order itself, with the doubt about the second still open
    fourth = in_boot(layout, "4", monkeypatch)
    assert fourth.doubts(record("2" * 16))
    assert not fourth.doubts(record("3" * 16))
    fourth.begin()
    fourth.settle()
    assert not in_boot(layout, "4", monkeypatch).doubts(record("2" * 16))


def test_what_was_read_is_in_no_doubt_until_the_next_boot(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_boot(layout, "1", monkeypatch).begin()
    second = in_boot(layout, "2", monkeypatch)
    old = record("1" * 16)
    assert second.check("a" * 64, lambda: old, lambda _, told: bool(told(5))) is True
    assert second.check("a" * 64, lambda: old, lambda *_: True) is None
    assert (second.checked.layers, second.checked.bytes, second.checked.wrong) == (1, 5, 0)
    assert not in_boot(layout, "2", monkeypatch).doubts(old)
    assert in_boot(layout, "3", monkeypatch).doubts(old)
    wrong = in_boot(layout, "3", monkeypatch)
    assert wrong.check("a" * 64, lambda: old, lambda *_: True) is False
    assert wrong.doubts(old)
    assert wrong.check("a" * 64, lambda: None, lambda *_: True) is None  # thrown away meanwhile
    assert wrong.check("a" * 64, lambda: record("3" * 16), lambda *_: True) is None  # and brought anew


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"[]", b'{"boot": 1, "clean": true, "doubted": []}', b"\xff" * 50]
)
def test_a_mark_that_can_not_be_read_is_doubt_about_all(layout: Layout, torn: bytes) -> None:
    layout.session.write_bytes(torn)
    found = Session(layout)
    assert found.doubts(record("1" * 16))
    assert not found.doubts(record(this_boot()))
    assert not found.doubts(record(""))
    layout.session.unlink()
    assert Session(layout).doubts(record("1" * 16))  # a store that has such records has had a mark


def test_a_new_store_has_no_doubts_and_a_full_disk_no_mark(layout: Layout) -> None:
    found = Session(layout)
    found.begin()
    assert session._read(layout) == Mark(this_boot(), False, ())
    layout.session.unlink()
    layout.session.mkdir()
    found.end()  # raises nothing
