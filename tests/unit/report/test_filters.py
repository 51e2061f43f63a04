"""`--filter` over the items of `ps`."""

from typing import Any

import pytest

from reconciler.errors import UsageError
from reconciler.report.filters import CONTAINER_KEYS, Filters, truth


def item(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "app": name.partition("/")[0],
        "id": "0123abcd",
        "state": "running",
        "image": "r.example/shop/web:1@sha256:aa",
        "digest": "sha256:aa",
        "labels": {},
        "health": "none",
        "exit_code": None,
        "ports": [],
        "volumes": [],
        **more,
    }


ITEMS = [
    item("web/page", labels={"tier": "front", "x": ""}, ports=["0.0.0.0:8080->80/tcp"], health="healthy"),
    item("web/db", volumes=["web/data"], state="exited", exit_code=1, ports=["127.0.0.1:53->53/udp"]),
    item("old/job", id="ff00", state="backoff", exit_code=137, labels={"tier": "back"}, image="other"),
    item("old/page", state="waiting", ports=["0.0.0.0:7000-7010->7000-7010/tcp"]),
]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], ["web/page", "web/db", "old/job", "old/page"]),
        (["name=page"], ["web/page", "old/page"]),
        (["name=web/*"], ["web/page", "web/db"]),
        (["name=db", "name=job"], ["web/db", "old/job"]),
        (["app=web", "name=page"], ["web/page"]),
        (["id=ff"], ["old/job"]),
        (["id="], []),
        (["status=exited", "status=restarting"], ["web/db", "old/job"]),
        (["status=created"], ["old/page"]),
        (["image=shop/web", "app=web"], ["web/page", "web/db"]),
        (["label=tier"], ["web/page", "old/job"]),
        (["label=tier=front", "label=x"], ["web/page"]),
        (["label=tier=front", "label=tier=back"], []),
        (["label=x="], ["web/page"]),
        (["health=healthy"], ["web/page"]),
        (["exited=137"], ["old/job"]),
        (["publish=8080"], ["web/page"]),
        (["publish=8080/udp"], []),
        (["publish=1-100/udp"], ["web/db"]),
        (["publish=7005"], ["old/page"]),
        (["volume=data"], ["web/db"]),
        (["volume=web/data"], ["web/db"]),
    ],
)
def test_filters_select(filters: list[str], names: list[str]) -> None:
    found = Filters(filters, CONTAINER_KEYS).select(ITEMS)
    assert [one["name"] for one in found] == names


@pytest.mark.parametrize("text", ["name", "nothing=x", "=", "status=flying", "exited=x", "publish=http"])
def test_a_filter_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--filter"):
        Filters([text], CONTAINER_KEYS).select(ITEMS)


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_a_yes_or_no(value: str, asked: bool) -> None:
    assert truth("dangling", value) is asked


def test_a_yes_or_no_that_is_neither_is_refused() -> None:
    with pytest.raises(UsageError, match="--filter orphaned=maybe: expected true or false"):
        truth("orphaned", "maybe")
