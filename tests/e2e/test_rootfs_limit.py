"""What a container may write, as people see it where the kernel keeps no such limit."""

import json

import pytest

from reconciler.engine.layout import Layout
from reconciler.engine.rootfslimit import counts
from reconciler.engine.snapshot import Uppers
from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

WRITE = "dd if=/dev/zero of=/big bs=1048576 count=3 2>/dev/null"


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)], interval="1s")
    return device


def spec(image: str, rootfs: str, restart: str) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sh, -c, "exec sleep 100000"]
    limits: {{memory: 16Mi, rootfs: {rootfs}}}
    restart: {restart}
    stop_grace_period: 0s
"""


def test_s13_who_writes_too_much_is_ended_starts_anew_empty_and_one_that_keeps_it_not_at_all(
    ready: Device, box: Built
) -> None:
    ready.spec("web", spec(reference(box), "2Mi", "{policy: always, delay: 5m}"))
    ready.start()
    first = ready.running("web/main")
    if counts(Layout(ready.state, ready.run), Uppers(Layout(ready.state, ready.run))):
        pytest.skip("the file system of the tests has project quotas")
    # What is declared ends, by its restart policy starts anew, and begins with nothing.
    ready.reconciler("exec", "web/main", "sh", "-c", WRITE)
    ready.until(lambda: ready.ps()["web/main"]["state"] == "backoff")
    why = "rootfs limit of 2 MiB exceeded: 3"
    assert f"exit 137 {why}" in ready.ps()["web/main"]["status"]
    assert f"exit 137 ({why}" in ready.reconciler("status").stdout
    (state,) = (item["State"] for item in json.loads(ready.reconciler("inspect", "web/main").stdout))
    assert state["Error"].startswith(why)
    items = json.loads(ready.reconciler("events", "-o", "json").stdout)["items"]
    assert [event["kind"] for event in items if why in event["message"]] == ["limit", "exit"]
    ready.reconciler("restart", "web/main")
    again = ready.running("web/main")
    assert again != first
    assert ready.reconciler("exec", "web/main", "test", "-e", "/big", check=False).returncode == 1

    # A greater limit is a change in place, and the use is shown beside it.
    ready.spec("web", spec(reference(box), "16Mi", "{policy: always, delay: 5m}"))
    ready.until(lambda: ready.ps()["web/main"]["limits"]["rootfs"] == 16 << 20)
    ready.reconciler("exec", "web/main", "sh", "-c", WRITE)
    (seen,) = json.loads(ready.reconciler("inspect", "web/main").stdout)
    assert seen["HostConfig"]["StorageOpt"] == {"size": str(16 << 20)}
    assert (seen["Reconciler"]["Rootfs"]["Limit"], seen["Reconciler"]["Rootfs"]["KeptBy"]) == (
        16 << 20,
        "agent",
    )
    assert seen["Reconciler"]["Rootfs"]["Used"] >= 3 << 20
    assert "16.0MiB" in ready.reconciler("df", "-v", "-o", "wide").stdout
    assert ready.pid("web/main") == again

    # One by hand keeps what it has written, and with it stays down until it may have more.
    by_hand = (
        "run",
        "-d",
        "--name",
        "box",
        "--stop-timeout",
        "0",
        "--storage-opt",
        "size=2m",
        reference(box),
    )
    ready.reconciler(*by_hand, "sleep", "100000")
    ready.reconciler("exec", "box", "sh", "-c", WRITE)
    ready.until(lambda: ready.ps()["box"]["state"] == "exited")
    assert f"Exited (137) ({why}" in ready.ps()["box"]["status"]
    refused = ready.reconciler("start", "box", check=False)
    assert refused.returncode == 5, refused.stderr
    assert f"container box: {why}" in refused.stderr
    assert "reconciler update --storage-opt size=SIZE" in refused.stderr
    ready.reconciler("update", "--storage-opt", "size=8m", "box")
    ready.reconciler("start", "box")
    assert ready.reconciler("exec", "box", "sh", "-c", "wc -c </big").stdout.strip() == str(3 << 20)
    wrong = ready.reconciler("update", "--storage-opt", "inodes=8", "box", check=False)
    assert (wrong.returncode, "expected size=SIZE" in wrong.stderr) == (64, True)
    # Nobody measures while no agent runs, and whoever starts it then is told so.
    ready.stop()
    told = ready.reconciler("restart", "box").stderr
    assert "box: its rootfs limit is not kept while no agent runs" in told
    assert "limits.rootfs is measured" in ready.reconciler("doctor", check=False).stdout
