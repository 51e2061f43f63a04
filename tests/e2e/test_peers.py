"""Devices that have images from one another: two agents in one network, a registry that goes away, real clients."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.test_accounts import PrivateRegistry, login
from tests.e2e.world import SLEEPER, Registry
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

HERE = "127.0.0.1:5080"
REGISTRY = "127.0.0.1:5000"


def gives(device: Device, **more: object) -> None:
    """Have the device give what it has."""
    settings = {"registries": {"insecure": [REGISTRY]}, **more}
    device.configure(gc={"keep_blobs": "used"}, peers={"listen": HERE}, interval="1s", **settings)


def asks(device: Device, **more: object) -> None:
    """Have the device ask there."""
    settings = {"registries": {"insecure": [REGISTRY]}, **more}
    device.configure(peers={"ask": [HERE]}, metrics={"listen": "127.0.0.1:9471"}, interval="1s", **settings)


def metric(device: Device, port: int, name: str) -> int:
    """The sum of a metric's series whose name and labels begin so."""
    text = device.curl(f"http://127.0.0.1:{port}/metrics")
    return sum(int(float(line.rpartition(" ")[2])) for line in text.splitlines() if line.startswith(name))


def test_what_one_device_has_the_other_gets_without_the_registry(
    device: Device, neighbour: Device, box: Built
) -> None:
    registry = Registry(device, device.root / "registry")
    image = registry.push(box, "box")
    gives(device)
    device.spec("web", SLEEPER.format(image=image))
    device.start()
    device.running("web/main")
    assert f"peers: http://{HERE}/v2/" in device.output
    registry.stop()

    asks(neighbour)
    done = neighbour.reconciler("pull", image)
    manifest = json.loads((box.layout / "blobs/sha256" / box.digest.hex).read_bytes())
    packed = sum(layer["size"] for layer in manifest["layers"])
    assert done.stderr.splitlines()[-1].endswith(f" peer {HERE}")
    assert done.stderr.splitlines()[-1].startswith("pulled ")
    document = json.loads(neighbour.reconciler("pull", image, "-o", "json").stdout)
    assert document["bytes"] == {}  # it is here
    neighbour.spec("web", SLEEPER.format(image=image))
    neighbour.start()
    neighbour.running("web/main")
    assert metric(device, 9470, "reconciler_peer_sent_bytes_total") >= packed

    # By the loop too, with what came from where in metrics.
    neighbour.finish()
    neighbour.start()
    neighbour.running("web/main")
    assert (
        metric(neighbour, 9471, 'reconciler_pull_bytes_total{registry="127.0.0.1:5000",source="peer"')
        == packed
    )


def test_real_clients_have_images_from_a_device_by_digest(device: Device, box: Built, tmp_path: Path) -> None:
    registry = Registry(device, device.root / "registry")
    image = registry.push(box, "box")
    gives(device)
    device.start()
    device.logged("peers: ")
    device.reconciler("pull", image)
    registry.stop()
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    device.inside([*copy, f"docker://{HERE}/any/name@{box.digest}", f"oci:{tmp_path}/copy:latest"])
    manifest = next((tmp_path / "copy/blobs/sha256").glob(box.digest.hex))
    assert manifest.is_file()
    refused = device.inside(
        [*copy, f"docker://{HERE}/box:latest", f"oci:{tmp_path}/none:latest"], check=False
    )
    assert "manifest unknown" in refused.stderr


def test_what_needed_a_password_stays_here_unless_the_device_says_otherwise(
    device: Device, neighbour: Device, box: Built
) -> None:
    registry = PrivateRegistry(device, device.root / "registry")
    image = registry.push(box, "box")
    trusting = {"registries": {"ca": str(registry.ca)}}
    gives(device, **trusting)
    login(device)
    device.start()
    device.logged("peers: ")
    device.reconciler("pull", image)
    blobs = [path.name for path in (device.state / "blobs/sha256").iterdir()]
    assert len(blobs) == 3
    for name in blobs:
        for kind in ("blobs", "manifests"):
            assert "UNKNOWN" in device.curl(f"http://{HERE}/v2/box/{kind}/sha256:{name}")
    asks(neighbour, **trusting)
    refused = neighbour.reconciler("pull", image, check=False)
    assert refused.returncode != 0
    assert f"reconciler login {REGISTRY}" in refused.stderr

    device.stop()
    device.configure(
        gc={"keep_blobs": "used"}, peers={"listen": HERE, "share": "all"}, interval="1s", **trusting
    )
    device.start()
    device.until(lambda: device.curl(f"http://{HERE}/v2/") == "{}")
    assert neighbour.reconciler("pull", image).stderr.splitlines()[-1].endswith(f" peer {HERE}")


def test_an_address_that_is_taken_and_one_with_nothing_to_give_are_named(device: Device) -> None:
    server = device.spawn(
        ["python3", "-m", "http.server", "5080", "--bind", "127.0.0.1"], stderr=subprocess.DEVNULL
    )
    device.until(lambda: "<html" in device.curl(f"http://{HERE}/").lower())
    gives(device)
    said = device.reconciler("agent", str(device.specs), check=False)
    assert f"peers address {HERE}: Address already in use" in said.stderr
    assert "set peers.listen in device.yaml" in said.stderr
    server.terminate()
    server.wait(10)

    device.configure(peers={"listen": HERE})
    said = device.reconciler("status", check=False)
    assert "peers.listen needs packed layers, and this device keeps none" in said.stderr
    assert "gc: {keep_blobs: used}" in said.stderr
    device.configure()


def test_an_address_that_comes_later_holds_up_no_container(device: Device, box: Built) -> None:
    """The cable is out when the device starts: what runs on it needs no peers."""
    device.configure(
        bundles=[str(box.layout)],
        gc={"keep_blobs": "used"},
        peers={"listen": "192.0.2.7:5080"},
    )
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.inside(["ip", "address", "add", "192.0.2.7/32", "dev", "lo"])
    device.until(lambda: device.curl("http://192.0.2.7:5080/v2/") == "{}")
