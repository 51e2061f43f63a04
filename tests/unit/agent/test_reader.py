"""Reading again and again: an intent is the same object for exactly as long as nothing that it is made from changed."""

import os
import time
from pathlib import Path

import pytest

from reconciler.agent.intent import Reader
from reconciler.agent.resolver import Resolver
from reconciler.config import Device
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.source.directory import DirectorySource
from reconciler.spec.reference import Digest
from reconciler.state.image import Image

HEX = "1" * 64


def spec(name: str, *, extra: str = "") -> str:
    return (
        f"apiVersion: reconciler/v1\nkind: App\nname: {name}\n{extra}"
        f"containers:\n  main:\n    image: r.example/x@sha256:{HEX}\n    command: [run]\n"
    )


class Case:
    """A directory of specs, and a reader of it that looks nothing up elsewhere."""

    def __init__(self, path: Path) -> None:
        layout = Layout(path / "state", path / "run")
        self.specs = path / "specs"
        self.specs.mkdir()
        self.store = Store(layout)
        self.store.prepare()
        resolver = Resolver(None, self.store, lambda: None, background=False)
        layout.lastgood_root.mkdir()
        self.reader = Reader(layout, Device(name="test"), DirectorySource(self.specs), resolver)

    def write(self, name: str, text: str) -> None:
        """Write a file that is old enough for its times to tell it from the next."""
        path = self.specs / name
        path.write_text(text)
        while path.stat().st_ctime_ns > time.time_ns() - 30_000_000:
            os.sched_yield()

    def remember_image(self) -> None:
        digest = Digest("sha256", HEX)
        self.store.remember(
            Image(index=digest, manifest=digest, config=digest, platform="linux/amd64", layers=())
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    made.write("a.yaml", spec("a"))
    made.write("b.yaml", spec("b"))
    return made


def test_an_unchanged_source_is_the_same_intent(case: Case) -> None:
    first = case.reader.read()
    assert case.reader.read() is first


def test_specs_that_were_just_kept_do_not_count_as_settled(case: Case) -> None:
    case.remember_image()
    first = case.reader.read()
    second = case.reader.read()
    assert second is not first
    assert second.desired == first.desired
    assert case.reader.read() is second


def test_a_changed_and_a_removed_file_are_seen_at_once(case: Case) -> None:
    case.remember_image()
    for _ in range(3):
        case.reader.read()
    case.write("a.yaml", spec("a", extra="configs: {}\n"))
    before = case.reader.read()
    (case.specs / "b.yaml").unlink()
    assert set(case.reader.read().desired.apps) == {"a"}
    assert set(before.desired.apps) == {"a", "b"}


def test_a_changed_config_file_is_seen_although_the_specs_are_the_same(case: Case) -> None:
    case.remember_image()
    config = "configs:\n  one: {file: one.txt}\n"
    case.write("one.txt", "1")
    case.write("a.yaml", spec("a", extra=config))
    for _ in range(3):
        before = case.reader.read()
    case.write("one.txt", "2")
    after = case.reader.read()
    assert after.apps["a"].config_files["one"] == b"2"
    assert after.apps["a"].digest != before.apps["a"].digest
    (case.specs / "one.txt").unlink()
    assert [p.message for p in case.reader.read().problems if p.severity == "error"] == [
        "configs.one.file: one.txt: can't be read: one.txt: no such file"
    ]


def test_an_image_that_somebody_else_brought_is_seen(case: Case) -> None:
    assert case.reader.read().desired.apps["a"].unresolved
    case.remember_image()
    assert not case.reader.read().desired.apps["a"].unresolved


def test_leave_to_remove_everything_counts_in_the_turn_that_has_it(case: Case) -> None:
    case.remember_image()
    for _ in range(3):
        case.reader.read()
    for path in case.specs.iterdir():
        path.unlink()
    held = case.reader.read()
    assert held.guard
    assert case.reader.read() is held
    assert not case.reader.read(allow_empty=True).desired.apps


def test_an_app_that_may_be_empty_goes_without_leave(case: Case) -> None:
    case.remember_image()
    (case.specs / "b.yaml").unlink()
    case.write("a.yaml", spec("a", extra="allow_empty: true\n"))
    assert set(case.reader.read().desired.apps) == {"a"}
    (case.specs / "a.yaml").unlink()
    gone = case.reader.read()
    assert (gone.guard, dict(gone.desired.apps)) == ("", {})
