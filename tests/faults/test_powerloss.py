"""R3: the power is cut while images are pulled and containers are made, and the device comes back by itself.

The state directory is on an ext4 or xfs in a loop device. FS_IOC_SHUTDOWN stops that file system at once: nothing that
was not on the disk by then gets there. Then everything dies, the disk is mounted again (the journal is replayed), and
the next agent has to find only whole layers, whole blobs and files that it can read, and bring everything up without
help.

A few cuts are made in every run; POWER_CUTS=100 makes so many on each file system, at random moments.
"""

import fcntl
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from tests.e2e.device import PATIENCE, Device, cgroups
from tests.images import Built, busybox, directory, file, layer

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2  # what is in the journal's memory is lost too


_SIZES = {"ext4": 96 << 20, "xfs": 300 << 20}  # the least that mkfs.xfs takes; both are sparse
_FORCE = {"ext4": "-F", "xfs": "-f"}
_CUTS = int(os.environ.get("POWER_CUTS", "0"))


def _moments() -> list[tuple[str, float]]:
    """File systems, and seconds after the agent's start."""
    if not _CUTS:
        return [("ext4", 0.35), ("ext4", 0.5), ("xfs", 0.5), ("ext4", 0.65), ("xfs", 0.8)]
    dice = random.Random(3)
    return [(kind, round(dice.uniform(0.2, 1.2), 3)) for kind in _SIZES for _ in range(_CUTS)]


class Disk:
    """A file system of its own, whose power can be cut."""

    def __init__(self, path: Path, kind: str = "ext4") -> None:
        self.mount_point = path / "disk"
        self._image = path / "disk.img"
        self.mount_point.mkdir()
        with self._image.open("wb") as image:
            image.truncate(_SIZES[kind])
        run(f"mkfs.{kind}", "-q", _FORCE[kind], str(self._image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self._image), str(self.mount_point))

    def cut(self) -> None:
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount, once the last process that uses it has gone; in whatever mount namespace it had it, too.

        While one of these lives, another mount of the same file would be the very file system whose power was cut.
        """
        deadline = time.monotonic() + 10 * PATIENCE
        while subprocess.run(["umount", str(self.mount_point)], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "the disk stays in use"
            time.sleep(0.05)
        attached = ["losetup", "--noheadings", "--associated", str(self._image)]
        while subprocess.run(attached, capture_output=True, check=True).stdout:
            assert time.monotonic() < deadline, "the disk stays mounted elsewhere"
            time.sleep(0.05)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image of six layers with files of all sizes, so that there is much to be cut in the middle of."""
    dice = random.Random(6)
    layers = []
    for number in range(5):
        entries = [directory(f"./data{number}")]
        for position in range(40):
            size = dice.choice([0, 1, 100, 4096, 20_000, 100_000])
            entries.append(file(f"./data{number}/file{position}", dice.randbytes(size)))
        layers.append(layer(entries, level=1))
    return busybox(tmp_path_factory.mktemp("layered") / "layout", more=layers)


@pytest.fixture
def disk(device: Device, layered: Built, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """Move the device's state directory to a disk of its own; the parameter is its file system."""
    made = Disk(device.root, getattr(request, "param", "ext4"))
    device.state = made.mount_point / "state"
    device.configure(bundles=[str(layered.layout)], interval="1s")
    try:
        yield made
        device.finish()
    finally:
        made.unmount()


def spec(image: Built, mark: str = "") -> str:
    containers = "\n".join(
        f"  {name}: {{image: 'box.example/box:1@{image.digest}', command: [sleep, '1000'], init: true,"
        f" environment: {{MARK: '{mark}'}}, volumes: ['data:/keep'],"
        " limits: {memory: 16Mi}, stop_grace_period: 0s}"
        for name in ("a", "b")
    )
    return f"apiVersion: reconciler/v1\nkind: App\nname: web\nvolumes: {{data: {{}}}}\ncontainers:\n{containers}\n"


def power_cut(device: Device, disk: Disk) -> None:
    """The disk first, then every process, then all that lives in memory only."""
    disk.cut()  # does nothing the second time
    device.stop(signal.SIGKILL)
    for group in cgroups(name_of(device)):
        for pid in (group / "cgroup.procs").read_text().split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
    disk.unmount()
    for group in cgroups(name_of(device)):
        group.rmdir()  # a reboot has none of them
    shutil.rmtree(device.run, ignore_errors=True)
    device.inside(["nft", "flush", "ruleset"])
    for link in re.findall(r"\d+: (rc[^:@]*)", device.inside(["ip", "-o", "link"]).stdout):
        device.inside(["ip", "link", "del", link])
    disk.mount()


_names: dict[Path, str] = {}


def name_of(device: Device) -> str:
    """The instance's name, as it was before its disk could no longer be read."""
    return _names.get(device.root, "none")


def whole(device: Device) -> None:
    """Whatever claims to be complete is."""
    store = Store(Layout(device.state, device.run))
    for chain_id in store.layers():
        assert list(store.damaged_files(chain_id)) == [], f"half a layer: {chain_id}"
    for blob in store.blobs():
        store.read_blob(blob.digest)


@pytest.mark.parametrize(("disk", "after"), _moments(), indirect=["disk"])
def test_a_power_cut_while_everything_is_new_leaves_nothing_half(
    device: Device, disk: Disk, layered: Built, after: float
) -> None:
    device.spec("web", spec(layered))
    device.start()
    time.sleep(after)
    remember(device)
    power_cut(device, disk)
    if (device.state / "layers").exists():
        whole(device)
    device.start()
    device.running("web/a", timeout=30)
    device.running("web/b", timeout=30)
    remember(device)
    whole(device)


def test_what_was_finished_is_on_the_disk(device: Device, disk: Disk, layered: Built) -> None:
    """The power goes right after convergence: images, volumes and the last good spec are there, without any source."""
    device.spec("web", spec(layered))
    device.start()
    device.logged("converged")
    remember(device)
    with (device.state / "volumes/web/data/data/old").open("w") as kept:
        kept.write("x")
        kept.flush()
        os.fsync(
            kept.fileno()
        )  # commits the journal too: names without their content are what a bad writer leaves
    power_cut(device, disk)
    whole(device)
    device.configure(bundles=[], interval="1s")
    device.spec("web", "{")  # and the spec can't be read any more
    device.start()
    device.running("web/a", timeout=30)
    device.running("web/b", timeout=30)
    remember(device)
    assert (device.state / "volumes/web/data/data/old").read_text() == "x"


def test_a_power_cut_during_an_update_is_recovered_from(device: Device, disk: Disk, layered: Built) -> None:
    device.spec("web", spec(layered))
    device.start()
    device.logged("converged")
    remember(device)
    device.spec("web", spec(layered, "new"))
    time.sleep(0.15)
    power_cut(device, disk)
    whole(device)
    device.start()
    device.running("web/a", timeout=30)
    device.until(lambda: device.reconciler("apply", check=False).returncode == 0)
    for name in ("web/a", "web/b"):
        assert "MARK=new" in device.reconciler("exec", name, "env").stdout


def remember(device: Device) -> None:
    try:
        _names[device.root] = device.instance
    except OSError:
        pass  # it has no name yet, and so no cgroups


def test_a_disk_that_fails_ends_neither_the_agent_nor_what_runs(
    device: Device, disk: Disk, layered: Built
) -> None:
    """R5: from one moment on every access to the disk fails; it is said, nothing is stopped, nothing is made twice."""
    device.spec("web", spec(layered))
    device.start()
    device.logged("converged")
    remember(device)
    pids = device.pid("web/a"), device.pid("web/b")
    disk.cut()
    device.spec("other", spec(layered).replace("name: web", "name: other"))
    device.logged("Input/output error|Read-only file system")
    time.sleep(3)
    assert device.alive
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    power_cut(device, disk)
    device.start()
    for name in ("web/a", "web/b", "other/a"):
        device.running(name, timeout=30)
