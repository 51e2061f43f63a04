"""R3: the power is cut in the middle of a long transfer; what had been written out by then is not fetched again."""

from collections.abc import Iterator

import pytest

from reconciler.engine.layout import Layout
from tests.faults.test_powerloss import Disk
from tests.hostile import test_registry_resume as resume
from tests.hostile.test_registry_behaviour import Device
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Request, Wire

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@pytest.fixture
def device() -> Iterator[Device]:
    path = scratch("cut")
    with FakeRegistry() as fake:
        made = Device(path, fake)
        yield made
        made.images.close()
    remove(path)


def test_r3_a_transfer_goes_on_after_a_power_cut(device: Device) -> None:
    disk = Disk(device.path)
    try:
        layout = Layout(disk.mount_point / "state", device.path / "run")
        size = len(device.blob)

        def dripping(_: Request, wire: Wire) -> None:
            wire.respond(200, device.blob[:100_000], length=size)
            for at in range(100_000, size - 1000, 1000):
                wire.send(device.blob[at : at + 1000])
                wire.pause(0.1)

        device.fake.scripts[device.blob_path] = dripping
        resume.killed_after(device, layout, 100_000, 7.0, disk.cut)
        disk.unmount()
        disk.mount()
        (path,) = layout.downloads.glob("*")
        there = path.stat().st_size
        assert there >= 100_000
        del device.fake.scripts[device.blob_path]
        device.fake.requests.clear()
        assert resume.pulled(device, layout) == 0
        asked = [request.headers.get("range") for request in device.fake.asked(device.blob_path)]
        assert asked[0] == f"bytes={there}-"
        assert list(layout.downloads.glob("*")) == []
    finally:
        disk.unmount()
