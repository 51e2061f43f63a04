"""What a process can see and do in a container as a spec makes it by default, measured from inside, beside Docker's.

tests/golden/inside holds what our containers show, with the device's ids and with ids of their own, and what Docker
20.10 shows by default on the same kernel: inside.c run in each. UPDATE_GOLDEN=1 writes ours anew.
"""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built, OciLayout, file, layer

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

SOURCE = Path(__file__).with_name("inside.c")
GOLDEN = Path(__file__).parents[1] / "golden" / "inside"
REFUSED = ("EPERM", "ENOSYS", "EACCES", "signal")
MEASURED = "x86_64"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image with nothing but the program."""
    directory = tmp_path_factory.mktemp("probe")
    program = directory / "inside"
    subprocess.run(["gcc", "-O1", "-static", "-Wall", "-Werror", "-o", program, SOURCE], check=True)
    layers = [layer([file("inside", program.read_bytes(), 0o755)])]
    layout = OciLayout(directory / "image")
    digest = layout.image(layers, config={"Cmd": ["/inside"]}, tag="probe")
    return Built(directory / "image", digest, "probe")


def lines(text: str) -> dict[str, str]:
    """By what is asked: calls as refused or not, since errors depend on the kernel; without the mounts of cgroups."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("mount./sys/fs/cgroup"):
            continue
        if name.startswith(("call.", "socket.", "unshare.", "ioctl.")):
            value = "refused" if value.startswith(REFUSED) else "not refused"
        found[name] = value
    return dict(sorted(found.items()))


def text(found: dict[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in found.items())


@pytest.fixture
def seen(device: Device, probe: Built, request: pytest.FixtureRequest) -> dict[str, str]:
    device.configure(bundles=[str(probe.layout)])
    device.start()
    done = device.reconciler("run", "--rm", "--userns", request.param, reference(probe))
    return lines(done.stdout)


@pytest.mark.parametrize("seen", ["host", "auto"], indirect=True)
def test_s4_s5_a_process_sees_and_may_what_it_always_did_and_nothing_that_docker_refuses(
    seen: dict[str, str], request: pytest.FixtureRequest
) -> None:
    mode = request.node.callspec.params["seen"]
    docker = lines((GOLDEN / "docker.txt").read_text())
    wider = [
        name
        for name, value in seen.items()
        if value in ("not refused", "ok") and docker.get(name, value) not in ("not refused", "ok")
    ]
    assert wider == []
    assert not [name for name in seen if name.startswith("descriptor.")]
    assert {name for name in seen if name.startswith("device.")} <= {
        name for name in docker if name.startswith("device.")
    }
    capabilities = {name: int(value, 16) for name, value in seen.items() if name.startswith("status.Cap")}
    assert all(bits & ~int(docker[name], 16) == 0 for name, bits in capabilities.items())
    if platform.machine() != MEASURED:
        return
    path = GOLDEN / f"{mode}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text(seen))
    assert text(seen) == path.read_text()
