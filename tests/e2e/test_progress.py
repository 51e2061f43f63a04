"""A pull under way, as people see it: in `status` how much of it is here, or until when it waits and why."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from reconciler.engine.registry.patience import Patience
from tests.e2e.device import REPOSITORY, Device
from tests.e2e.misbehave import LARGE
from tests.e2e.test_loop import sleeper
from tests.e2e.world import upon
from tests.images import Built, Item, busybox

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of a small layer and one of 8 MiB that nothing can compress."""
    base = busybox(tmp_path_factory.mktemp("base") / "layout")
    return upon(
        base, tmp_path_factory.mktemp("large") / "layout", [Item("./noise", data=os.urandom(2 * LARGE))]
    )


@pytest.fixture
def registries(device: Device, large: Built) -> Mapping[str, str]:
    places = device.root / "registries.json"
    with places.open("wb") as out:
        device.spawn(
            [sys.executable, "-m", "tests.e2e.misbehave", str(large.layout)], stdout=out, cwd=REPOSITORY
        )
    found: dict[str, str] = device.until(lambda: json.loads(places.read_text()))
    device.configure(registries={"insecure": [*found.values()]})
    device.start()
    return found


def test_a_pull_under_way_is_told_in_status_with_what_is_here_of_it(
    device: Device, registries: Mapping[str, str], large: Built
) -> None:
    reference = f"{registries['half']}/app@{large.digest}"
    device.spec("web", sleeper("web", reference))
    said = (
        rf"^pulling {re.escape(registries['half'])}/app@{large.digest.hex[:12]}: "
        r"[45]\.\d\dMiB of [89]\.\d\dMiB, layer 2 of 2$"
    )
    device.until(lambda: re.search(said, device.status()["web"]["reason"]), message="for the pull to be told")
    item = device.status()["web"]
    assert (item["sync"], item["health"], item["busy"]) == ("out_of_sync", "progressing", True)
    assert [container["state"] for container in item["containers"]] == ["starting"]
    table = device.reconciler("status").stdout
    assert re.search(r"web +out_of_sync +progressing +0/1 +pulling ", table), table


def test_a_pull_that_waits_says_why_and_counts_down(
    device: Device, registries: Mapping[str, str], large: Built
) -> None:
    device.spec("web", sleeper("web", f"{registries['later']}/app@{large.digest}"))
    said = re.compile(r"^pulling \S+: \S+ of [89]\.\d\dMiB, layer 2 of 2; .*503.*; next try in (\d+) s$")

    def left() -> int:
        match = said.match(device.status()["web"]["reason"])
        return int(match[1]) if match else 0

    first = device.until(left, message="for the wait to be told")
    assert first <= math.ceil(29 * (1 + Patience().jitter))  # whole seconds are told, rounded up
    assert device.status()["web"]["health"] == "progressing"
    device.until(lambda: 0 < left() < first, message="for the countdown")


def test_an_image_that_cannot_be_looked_up_says_when_that_is_tried_again(
    device: Device, registries: Mapping[str, str], large: Built
) -> None:
    device.spec("web", sleeper("web", f"{registries['500']}/app@{large.digest}"))
    said = re.compile(r"^main: \S+: .*500 on fire.*; next try in (\d+) s$")
    match = device.until(lambda: said.match(device.status()["web"]["reason"]), timeout=40)
    assert match is not None
    first = int(match[1])
    device.until(
        lambda: (again := said.match(device.status()["web"]["reason"])) and int(again[1]) < first,
        message="for the countdown",
    )


def test_what_a_container_uses_is_shown_by_ps(
    device: Device, registries: Mapping[str, str], tmp_path: Path
) -> None:
    box = busybox(tmp_path / "layout")
    device.stop()
    device.configure(bundles=[str(box.layout)])
    device.spec("web", sleeper("web", f"box.example/box@{box.digest}"))
    device.start()
    device.running("web/main")
    usage = device.ps()["web/main"]["usage"]
    assert usage["memory"] > 0
    assert 0 <= usage["cpu"] < 2
    header, line = device.reconciler("ps", "-o", "wide").stdout.splitlines()
    assert header.split()[-6:] == ["ID", "PID", "DIGEST", "CPU", "MEM", "PEAK"]
    cpu, memory, peak = line.split()[-3:]
    assert re.fullmatch(r"\d+\.\d%", cpu)
    assert re.fullmatch(r"\d+(\.\d+)?(B|KiB|MiB)", memory)
    assert re.fullmatch(r"\d+(\.\d+)?(B|KiB|MiB)|-", peak)
    device.stop()
    assert device.ps()["web/main"]["usage"]["memory"] > 0, "without an agent, too"
