"""R4: a disk that is full to the last blocks, each time a little less: every write of a pull meets its end once.

R23: a link that has the name of one of ours. Ids as in docs/security.md.
"""

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.errors import BlockedError
from reconciler.spec.reference import Reference
from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.test_loop import sleeper
from tests.faults.test_powerloss import run
from tests.images import Built, directory, file, layer
from tests.images import OciLayout as ImageLayout
from tests.kernel.shims import eventually

_BLOCK = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB with nothing set aside for root."""
    image, mounted = tmp_path / "small.img", tmp_path / "small"
    mounted.mkdir()
    with image.open("wb") as made:
        made.truncate(24 << 20)
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK), str(image))
    run("mount", "-o", "loop", str(image), str(mounted))
    try:
        yield mounted
    finally:
        run("umount", str(mounted))


def leave(disk: Path, blocks: int) -> Path:
    """Fill the disk up to its last `blocks`; gives the file that does."""
    filler = disk / "filler"
    with filler.open("wb") as taken:
        size = 0
        for step in (1 << 20, 16 * _BLOCK, _BLOCK):
            while True:
                try:
                    os.posix_fallocate(taken.fileno(), size, step)
                except OSError:
                    break
                size += step
        os.ftruncate(taken.fileno(), max(0, size - blocks * _BLOCK))
        os.fsync(taken.fileno())
    return filler


@pytest.mark.kernel
@pytest.mark.usefixtures("leak_check")
def test_r4_whichever_write_finds_the_disk_full_nothing_is_half_there(small: Path, tmp_path: Path) -> None:
    dice = random.Random(4)
    layers = [
        layer(
            [
                directory(f"./d{number}"),
                *(file(f"./d{number}/f{n}", bytes([n]) * dice.randrange(9000)) for n in range(6)),
            ]
        )
        for number in range(3)
    ]
    source = ImageLayout(tmp_path / "layout")
    wanted = Reference.parse(f"box.example/box@{source.image(layers)}")
    layout = Layout(small / "state", tmp_path / "run")
    store = Store(layout)
    store.prepare()
    said: list[str] = []
    for blocks in range(51):
        filler = leave(small, blocks)
        images = Images(
            store, layout, bundles=[source.path], platform=host_platform(), limits=Limits(reserve=0)
        )
        try:
            images.pull(images.resolve(wanted), wanted)
            said.append("")
        except BlockedError as error:
            said.append(f"{error}, {error.transient}")
        finally:
            images.close()
        # Of layers that are added side by side the one that fails first is told of; the others clear up by themselves
        eventually(lambda: not os.listdir(layout.partial))
        store.empty_trash()
        for chain_id in store.layers():
            assert list(store.damaged_files(chain_id)) == []
        for blob in store.blobs():
            store.read_blob(blob.digest)
        filler.unlink()
        if not said[-1] and blocks < 50:  # begin again, with everything to be written once more
            for path in (layout.layers, layout.blobs / "sha256", layout.resolved):
                subprocess.run(["find", str(path), "-mindepth", "1", "-delete"], check=True)
            store = Store(layout)
    assert said[0]
    assert said[-1] == ""
    full = [text for text in said if text]
    assert len(full) > 5
    assert [text for text in full if "disk full: " not in text or not text.endswith("True")] == []


@pytest.mark.e2e
@pytest.mark.kernel
@pytest.mark.network
def test_r23_a_link_that_has_a_name_of_ours_holds_up_one_container_at_most(
    device: Device, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)], interval="500ms")
    for name in ("web", "other"):
        device.spec(name, sleeper(name, reference(box)))
    device.start()
    device.running("web/main")
    other = device.running("other/main")
    before = links(device)
    (device.specs / "web.yaml").unlink()
    device.until(lambda: "web/main" not in device.ps())
    ours = sorted(before - device.until(lambda: found if (found := links(device)) < before else None))
    for name in ours:  # bridge and veth, under the names that they will have again
        device.inside(["ip", "link", "add", name, "type", "bridge"])
    device.spec("web", sleeper("web", reference(box)))
    device.until(lambda: device.pid("web/main") or device.status()["web"]["failure"])
    assert device.pid("other/main") == other
    for name in ours:
        device.inside(["ip", "link", "del", name], check=False)
    device.running("web/main", timeout=40)
    assert device.pid("other/main") == other


def links(device: Device) -> set[str]:
    return set(re.findall(r"\d+: (r[cv][^:@]*)", device.inside(["ip", "-o", "link"]).stdout))
