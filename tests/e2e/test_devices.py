"""A device that is not there yet: the container waits, says for what, and starts when it appears."""

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

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
