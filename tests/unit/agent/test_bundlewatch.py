"""Bundles that appear: told once, whatever is in them, and everything is tried again; nothing is held open."""

import json
import os
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reconciler.agent.bundlewatch import BundleWatch

WAIT = 20.0


@dataclass
class Heard:
    """What a watch has said."""

    noted: "queue.Queue[str]" = field(default_factory=queue.Queue)
    changed: "queue.Queue[None]" = field(default_factory=queue.Queue)

    def next(self) -> str:
        return self.noted.get(timeout=WAIT)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Heard]]:
    """Start a watch of patterns below the test's directory."""
    started: list[BundleWatch] = []

    def start(*patterns: str) -> Heard:
        heard = Heard()
        found = [f"{tmp_path}/{pattern}" for pattern in patterns]
        made = BundleWatch(found, lambda _, text: heard.noted.put(text), lambda: heard.changed.put(None))
        started.append(made)
        assert made.watching.wait(WAIT)
        return heard

    before = set(os.listdir("/proc/self/fd"))
    yield start
    for one in started:
        one.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def layout(path: Path, index: str = '{"schemaVersion": 2, "manifests": [{}, {}]}') -> None:
    """Make a layout as `bundle create` does: the index last, by rename."""
    (path / "blobs/sha256").mkdir(parents=True)
    (path / "new").write_text(index)
    (path / "new").rename(path / "index.json")


def test_a_directory_that_appears_is_told_once(watch: Callable[..., Heard], tmp_path: Path) -> None:
    heard = watch("media/*/images")
    layout(tmp_path / "media/stick/images")
    assert heard.next() == f"bundle {tmp_path}/media/stick/images: appeared, 2 images"
    heard.changed.get(timeout=WAIT)
    layout(tmp_path / "media/other/images", json.dumps({"manifests": [{}]}))
    assert heard.next() == f"bundle {tmp_path}/media/other/images: appeared, 1 image"
    (tmp_path / "media/stick").rename(tmp_path / "elsewhere")
    (tmp_path / "media/third").mkdir()  # what is taken away is seen with what comes
    assert heard.next() == f"bundle {tmp_path}/media/stick/images: gone"
    assert heard.noted.empty()


def test_what_was_there_at_the_beginning_is_no_news(watch: Callable[..., Heard], tmp_path: Path) -> None:
    layout(tmp_path / "a")
    heard = watch("a", "b")
    layout(tmp_path / "b")
    assert heard.next().startswith(f"bundle {tmp_path}/b: ")
    assert heard.noted.empty()


def test_a_blob_that_is_copied_into_a_bundle_is_a_change(watch: Callable[..., Heard], tmp_path: Path) -> None:
    """By hand everything comes in any order: the index before the blobs."""
    layout(tmp_path / "a")
    heard = watch("a")
    (tmp_path / "a/blobs/sha256/1").write_text("x")
    heard.changed.get(timeout=WAIT)
    assert heard.noted.empty()


def test_what_happens_beside_it_is_none(watch: Callable[..., Heard], tmp_path: Path) -> None:
    """The first to be heard is what appears itself."""
    heard = watch("a")
    heard.changed = heard.noted  # type: ignore[assignment]
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/file").write_text("x")
    layout(tmp_path / "a")
    assert heard.next() == f"bundle {tmp_path}/a: appeared, 2 images"


@pytest.mark.parametrize("kind", ["fifo", "huge", "deep", "link"])
def test_a_hostile_index_is_a_line_and_nothing_else(
    watch: Callable[..., Heard], tmp_path: Path, kind: str
) -> None:
    heard = watch("stick")
    path = tmp_path / "new"
    (path / "blobs").mkdir(parents=True)
    match kind:
        case "fifo":
            os.mkfifo(path / "index.json")
        case "huge":
            (path / "index.json").write_text('{"manifests": [' + "{}," * 2_000_000 + "{}]}")
        case "deep":
            (path / "index.json").write_text("[" * 100_000)
        case _:
            (path / "index.json").symlink_to("/etc/passwd")
    path.rename(tmp_path / "stick")
    text = heard.next()
    assert text.startswith(f"bundle {tmp_path}/stick: appeared, with an index that can't be read (")
    assert "root:" not in text
    heard.changed.get(timeout=WAIT)
