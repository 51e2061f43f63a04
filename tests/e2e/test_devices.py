"""A device that is not there yet: the container waits, says for what, and starts when it appears."""

import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


@pytest.fixture
def node() -> Iterator[Path]:
    """A path in /dev where a device may appear."""
    path = Path(f"/dev/reconciler-test-{secrets.token_hex(4)}")
    yield path
    path.unlink(missing_ok=True)


def test_a_container_waits_for_its_device_and_starts_when_it_appears(
    device: Device, box: Built, node: Path
) -> None:
    device.configure(bundles=[str(box.layout)], allowed_devices=["/dev/reconciler-test-*"], interval="10m")
    script = "exec 3<>/dev/modem && echo opened && exec sleep 100000"
    device.spec(
        "modem",
        f"""
apiVersion: reconciler/v1
kind: App
name: modem
containers:
  main:
    image: {reference(box)}
    command: [sh, -c, "{script}"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    devices: ["{node}:/dev/modem:rw"]
""",
    )
    first = device.reconciler("plan", str(device.specs)).stdout
    assert f"waiting: modem/main: waiting for {node}" in first
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    assert "waiting" not in device.reconciler("plan", str(device.specs)).stdout
    node.unlink()
    device.start()
    device.until(lambda: device.status()["modem"]["health"] == "degraded")
    assert device.status()["modem"]["reason"] == f"main: waiting for {node}"
    found = device.ps()["modem/main"]
    assert (found["state"], found["status"]) == ("waiting", f"Degraded: waiting for {node}")
    planned = device.reconciler("plan").stdout
    assert f"waiting: modem/main: waiting for {node}" in planned
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    device.running("modem/main")
    device.until(lambda: "opened" in device.reconciler("logs", "modem/main").stdout)
    found = device.ps()["modem/main"]
    assert (found["restarts"], device.status()["modem"]["health"]) == (0, "healthy")


def test_what_the_device_does_not_allow_changes_nothing_and_what_it_allows_is_called_a_risk(
    device: Device, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    text = f"""
apiVersion: reconciler/v1
kind: App
name: root
containers:
  main:
    image: {reference(box)}
    command: [sleep, "100000"]
    limits: {{memory: 16Mi}}
    privileged: true
"""
    device.spec("root", text)
    refused = device.reconciler("validate", str(device.specs), check=False)
    assert refused.returncode == 3
    assert "the device does not allow privileged containers" in refused.stderr
    assert f"add it in {device.device_yaml}: allow_privileged: true" in refused.stderr
    device.configure(bundles=[str(box.layout)], allow_privileged=True)
    planned = device.reconciler("plan", str(device.specs))
    assert "risk: privileged: its root can do anything to the device" in planned.stdout
    assert "containers.main is privileged" in planned.stderr


def test_a_profile_that_the_device_does_not_allow_changes_nothing_and_one_that_it_allows_is_called_a_risk(
    device: Device, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    rule = {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    (device.specs / "calls.json").write_text(json.dumps(profile))
    text = f"""
apiVersion: reconciler/v1
kind: App
name: calls
containers:
  own:
    image: {reference(box)}
    command: [sh, -c, "mkdir /x 2>&1; exec sleep 100000"]
    limits: {{memory: 16Mi}}
    seccomp: {{profile: calls.json}}
  free:
    image: {reference(box)}
    command: [sh, -c, "grep Seccomp: /proc/self/status; exec sleep 100000"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    seccomp: unconfined
"""
    device.spec("calls", text)
    refused = device.reconciler("validate", str(device.specs), check=False)
    assert refused.returncode == 3
    assert f"add it in {device.device_yaml}: allowed_seccomp: [profiles]" in refused.stderr
    assert f"add it in {device.device_yaml}: allowed_seccomp: [unconfined]" in refused.stderr
    device.configure(bundles=[str(box.layout)], allowed_seccomp=["profiles", "unconfined"])
    planned = device.reconciler("plan", str(device.specs))
    assert "risk: unconfined: it can make every system call" in planned.stdout
    assert "risk: a seccomp profile of its own" in planned.stdout
    device.start()
    device.running("calls/own")
    device.running("calls/free")
    device.until(lambda: "Input/output error" in device.reconciler("logs", "calls/own").stdout)
    device.until(lambda: "Seccomp:\t0" in device.reconciler("logs", "calls/free").stdout)
    inspected = json.loads(device.reconciler("inspect", "calls/own", "calls/free").stdout)
    own, free = (one["HostConfig"]["SecurityOpt"] for one in inspected)
    assert free == ["no-new-privileges", "seccomp=unconfined"]
    assert own[1].startswith("seccomp=sha256:")
    # Only what the profile says makes another container of it, not how that is written
    pid = device.ps()["calls/own"]["pid"]
    (device.specs / "calls.json").write_text(json.dumps({"comment": "the same", **profile}, indent=2))
    assert "stop" not in device.reconciler("plan").stdout
    profile["syscalls"][0]["errnoRet"] = 28
    (device.specs / "calls.json").write_text(json.dumps(profile))
    device.until(lambda: "No space left" in device.reconciler("logs", "calls/own").stdout)
    assert device.ps()["calls/own"]["pid"] != pid
