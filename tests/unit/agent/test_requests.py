"""What a client of the agent's socket may send: wrong types are refused by name, and nobody is starved."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from reconciler.agent.loop import Agent
from reconciler.agent.parts import Parts
from reconciler.agent.requests import Requests
from reconciler.engine import volumes
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, UsageError

NOT_TEXT: list[Any] = [1, None, [], {}, True, 1.5]
NO_SECONDS: list[Any] = ["1", None, [], {}, True, -1, float("nan"), float("inf"), 1e300, 10**400]
NO_VOLUMES = (
    *(
        "",
        "/",
        "web",
        "web/",
        "/data",
        "..",
        "../..",
        "../containers",
        "web/..",
        "web/.",
        "./web",
        "web/data/",
    ),
    *("web/data/data", "web/../../containers", "/etc/passwd", "web/\0", "web/nosuch"),
)


class Waiting:
    """An agent that is asked to wait, and does until it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.last = None
        self.allowed: list[bool] = []

    def reconcile(self, *, allow_empty: bool) -> int:
        self.allowed.append(allow_empty)
        return 0

    def wait_for(self, *_: object, **__: object) -> None:
        self.asked.release()
        self.let_go.wait(20)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    agent = Waiting()
    yield agent
    agent.let_go.set()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def requests(waiting: Waiting, layout: Layout) -> Requests:
    store = Store(layout)
    store.prepare()
    parts = SimpleNamespace(layout=layout, store=store)
    return Requests(cast(Agent, waiting), cast(Parts, parts), lambda _: {})


@pytest.mark.parametrize(
    "body",
    [
        *({"timeout": value} for value in NO_SECONDS),
        *({"wait": value} for value in [*NOT_TEXT, "for ever"]),
        *({"allow_empty": value} for value in ["false", "true", 0, 1, None, [], {}]),
    ],
)
def test_a_request_to_reconcile_is_checked_before_anything_is_done(
    requests: Requests, waiting: Waiting, body: dict[str, Any]
) -> None:
    waiting.let_go.set()
    with pytest.raises(UsageError, match=next(iter(body))):
        requests.reconcile(body)
    assert waiting.allowed == []


@pytest.mark.parametrize("value", [*NOT_TEXT, "", "x" * 5000, "a/../b@sha256:short"])
def test_a_reference_of_any_wrong_kind_is_refused(requests: Requests, value: object) -> None:
    with pytest.raises(ReconcilerError):
        requests.pull({"reference": value})


def test_many_who_wait_leave_threads_for_quick_questions(requests: Requests, waiting: Waiting) -> None:
    def wait() -> None:
        with pytest.raises(ReconcilerError):
            requests.reconcile({"wait": "converged"})

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
        assert waiting.asked.acquire(timeout=20)
    with pytest.raises(BlockedError, match="5 others"):
        requests.reconcile({"wait": "tried"})
    waiting.let_go.set()
    for thread in threads:
        thread.join(20)
    with pytest.raises(ReconcilerError, match="not tried"):
        requests.reconcile({"wait": "tried", "timeout": 0})


@pytest.mark.parametrize("name", [*NO_VOLUMES, *NOT_TEXT])
def test_only_what_is_listed_is_a_volume_to_be_removed(
    requests: Requests, layout: Layout, name: object
) -> None:
    for directory in (layout.containers, layout.lastgood_root):
        directory.mkdir(parents=True)
        (directory / "precious").write_text("kept")
    volumes.create(layout, "web", "data")
    before = sorted(str(path) for path in layout.state.rglob("*"))
    with pytest.raises((UsageError, NotFoundError)):
        requests.remove_volume({"name": name})
    assert sorted(str(path) for path in layout.state.rglob("*")) == before
    requests.remove_volume({"name": "web/data"})
    assert list(volumes.volumes(layout)) == []
    assert not (layout.volumes / "web").exists()
    assert list(layout.trash.iterdir()) == []
