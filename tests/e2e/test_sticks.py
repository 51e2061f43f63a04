"""A stick with an OCI layout is plugged in, pulled out and broken, under a real agent and real mounts.

Mounts are made in a mount namespace of the agent's own, of a file system in a file: the machine's are not touched.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, Device
from tests.e2e.world import SLEEPER, Registry
from tests.images import Built, OciLayout, file, layer, sha256

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

# A registry that takes a connection and says nothing, as one behind a broken link does
_SILENT = "import socket; s = socket.create_server(('127.0.0.1', 5000)); print('up', flush=True); input()"


def stick(device: Device, built: Built, size: str = "16M") -> Path:
    """A file with an ext4 file system that has the image in images/."""
    tree = device.root / "tree"
    tree.mkdir()
    subprocess.run(["cp", "-r", str(built.layout), str(tree / "images")], check=True)
    path = device.root / "stick.img"
    subprocess.run(["mkfs.ext4", "-q", "-d", str(tree), str(path), size], check=True)
    return path


def in_mounts(device: Device, *command: str) -> None:
    """Run a command where the agent's mounts are."""
    device.inside(["nsenter", f"--mount=/proc/{device.agent_pid}/ns/mnt", "--", *command])


def holders(path: Path) -> list[str]:
    """Processes, of whatever mount namespace, to which something is mounted below `path`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(path) in (process / "mountinfo").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_stick_is_noticed_and_used_at_once_and_held_by_nobody(
    device: Device, box: Built, box2: Built
) -> None:
    image = stick(device, box2)
    media = device.root / "media"
    device.configure(
        bundles=[f"{media}/*/images", str(box.layout)], registries={"insecure": ["127.0.0.1:5000"]}
    )
    device.spec("first", SLEEPER.format(image=reference(box)).replace("name: web", "name: first"))
    device.spec("web", SLEEPER.format(image=f"127.0.0.1:5000/box:2@{box2.digest}"))
    silent = device.spawn([sys.executable, "-c", _SILENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert silent.stdout is not None
    silent.stdout.readline()
    device.start(under=["unshare", "--mount", "--propagation", "private"])
    device.running("first/main")
    # The registry has been asked, and takes half a minute to be given up
    device.until(lambda: device.ps().get("web/main", {}).get("id") == "")
    place = media / "OPS \u00e9"
    place.mkdir(parents=True)
    in_mounts(device, "mount", "-o", "ro,loop", str(image), str(place))
    device.running("web/main", timeout=15)
    device.logged(r"bundle .*/media/OPS \u00e9/images: appeared, 1 image")
    kinds = [json.loads(line)["kind"] for line in (device.state / "events.jsonl").read_text().splitlines()]
    assert kinds.count("bundle") == 1
    # Two containers run, one of them started beside it, and it can be taken away
    assert set(holders(place)) <= agents(device)
    in_mounts(device, "umount", str(place))
    assert holders(place) == []
    device.logged(r"bundle .*/media/OPS \u00e9/images: gone")
    assert device.pid("web/main")
    # Plugged in once more it is told once more
    in_mounts(device, "mount", "-o", "ro,loop", str(image), str(place))
    device.until(lambda: device.output.count("appeared, 1 image") == 2)
    in_mounts(device, "umount", str(place))
    silent.communicate()


def agents(device: Device) -> set[str]:
    """The agent and its helpers, which live where it does."""
    where = Path(f"/proc/{device.agent_pid}/ns/mnt").readlink()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/mnt").readlink() == where:
                found.add(process.name)
        except OSError:
            continue
    return found


def test_a_stick_that_breaks_in_the_middle_gives_way_to_the_next_source(
    device: Device, tmp_path: Path
) -> None:
    """The file below it ends in the middle of the layer: reading on is EIO, or zeros, as the driver likes."""
    built_in = OciLayout(tmp_path / "layout")
    data = layer([file("./big", random.Random(1).randbytes(1 << 20))], packed=False)
    built = Built(built_in.path, built_in.image([data]), "latest")
    image = stick(device, built)
    content = image.read_bytes()
    middle = content.find(data.data[600_000:604_096])
    assert middle > 0
    device.configure(bundles=[str(device.root / "stick/images")], registries={"insecure": ["127.0.0.1:5000"]})
    pinned = Registry(device, tmp_path / "registry").push(built, "big")
    blob = device.root / "stick/images/blobs/sha256" / sha256(data.data).hex
    script = (
        f"mkdir {device.root}/stick && mount -o ro,loop {image} {device.root}/stick || exit 98;"
        f" truncate -s {middle} {image} || exit 98;"
        f" if sha256sum {blob} | grep -q ^{blob.name}; then echo the stick is whole; exit 99; fi;"
        f" exec {' '.join(PROGRAM)} pull {pinned} {' '.join(device.places)}"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = device.inside(command, timeout=60)
    assert str(built.digest) in done.stdout
    assert device.reconciler("fsck").returncode == 0
