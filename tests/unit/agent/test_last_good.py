"""The last good specs: what a source that can't be read any more still wants, each app by itself."""

from pathlib import Path

import pytest

from reconciler.agent.history import LastGood, write_last_good
from reconciler.agent.intent import Reader
from reconciler.agent.resolver import Resolver
from reconciler.config import load_device
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.source.snapshot import Snapshot
from reconciler.spec.load import load

DIGEST = "sha256:" + "0" * 64
DB = f"""\
apiVersion: reconciler/v1
kind: App
name: db
containers:
  main: {{image: "r.example/db@{DIGEST}"}}
"""
WEB = f"""\
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main: {{image: "r.example/web@{DIGEST}", depends_on: [db/main]}}
"""


class Source:
    """A source that has these files, or that can't be read."""

    def __init__(self, files: dict[str, bytes], problem: str = "") -> None:
        self.files, self.problem = files, problem

    def snapshot(self) -> Snapshot:
        return Snapshot("r", self.files, problem=self.problem)


def reader(tmp_path: Path, source: Source) -> Reader:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.lastgood_root.mkdir(parents=True, exist_ok=True)
    store = Store(layout)
    resolver = Resolver(None, store, lambda: None, background=False, keep=False)
    return Reader(layout, load_device("device.yaml", None), source, resolver)


@pytest.mark.parametrize(
    ("files", "problem"),
    [({}, "no such directory"), ({"web.yaml": WEB.encode()}, ""), ({"web.yaml": b"{", "db.yaml": b"{"}, "")],
    ids=["source gone", "dependency deleted", "both broken"],
)
def test_an_app_that_depends_on_another_file_keeps_its_last_good_spec(
    tmp_path: Path, files: dict[str, bytes], problem: str
) -> None:
    good = {"web.yaml": WEB.encode(), "db.yaml": DB.encode()}
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.lastgood_root.mkdir(parents=True)
    loaded = load(good, lambda _: b"")
    for name, app in loaded.apps.items():
        write_last_good(layout, LastGood(name, app.path, app.digest, good[app.path], ()))
    intent = reader(tmp_path, Source(files, problem)).read()
    assert "web" in intent.desired.apps
    assert intent.desired.held == {}
    (waiting,) = intent.desired.apps["web"].unresolved  # its image is not here: nothing else is wrong with it
    assert waiting.container == "main"
    assert "web" in intent.stale
