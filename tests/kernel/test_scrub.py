"""R9: the scrub finds what a disk has damaged, says so, and makes it good from where the image came."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.agent.parts import Parts, open_parts
from reconciler.agent.scrub import Scrub
from reconciler.agent.stock import tag
from reconciler.config import load_device
from reconciler.engine import instance, scrubbed
from reconciler.engine.layout import Layout
from reconciler.engine.platter import Platter
from reconciler.linux import scheduling
from reconciler.spec.reference import Reference
from tests.faults.test_powerloss import run
from tests.images import Built, busybox
from tests.kernel.shims import eventually

pytestmark = [pytest.mark.kernel]


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.problems: list[str] = []

    def noted(self, kind: str, subject: str, text: str) -> None:
        self.events.append((kind, subject, text))

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]


@pytest.fixture
def image(tmp_path: Path) -> Built:
    return busybox(tmp_path / "layout")


def parts_of(tmp_path: Path, image: Built, **store: object) -> Parts:
    """A store with the image, which has a name and so is needed."""
    layout = Layout(tmp_path / "s", Path(f"/dev/shm/rct-scrub-{os.getpid()}"))
    settings = {"bundles": [str(image.layout)], "store": {"scrub": "100Gi", **store}}
    instance.prepare(layout)
    parts = open_parts(layout, load_device("device.yaml", json.dumps(settings).encode()), lambda _: None)
    reference = Reference.parse(f"box.example/box@{image.digest}")
    parts.images.pull(parts.images.resolve(reference), reference)
    tag(parts, str(image.digest), "box.example/box:1")
    return parts


@pytest.fixture
def parts(tmp_path: Path, image: Built, request: pytest.FixtureRequest) -> Iterator[Parts]:
    made = parts_of(tmp_path, image, **getattr(request, "param", {}))
    yield made
    made.close()
    shutil.rmtree(made.layout.run)


def layer_of(parts: Parts) -> Path:
    return next(path for path in parts.layout.layers.iterdir() if path.is_dir())


@pytest.mark.usefixtures("leak_check")
def test_r9_damage_is_found_told_and_made_good(parts: Parts) -> None:
    victim = layer_of(parts) / "etc/passwd"
    original = victim.read_bytes()
    victim.write_bytes(original[:-3] + b"x\n\n")
    blob = next(path for path in (parts.layout.blobs / "sha256").iterdir())
    blob.write_bytes(b"")
    heard = Heard()
    scrub = Scrub(parts, heard, day=1)
    scrub.start()
    try:
        eventually(lambda: scrub.state.finished > 0)
    finally:
        scrub.close()
    assert victim.read_bytes() == original
    assert blob.stat().st_size
    assert sorted(heard.kinds()) == ["damaged", "damaged", "repaired", "repaired", "scrubbed"]
    assert scrub.state.corrupt() == dict.fromkeys(scrubbed.KINDS, 0)
    assert scrub.repairs == {"success": 2, "error": 0}
    assert scrubbed.read(parts.layout).finished == scrub.state.finished
    assert len(heard.problems) == 2
    assert "reconciler fsck" in heard.problems[0]


@pytest.mark.parametrize("parts", [{"repair": False}], indirect=True)
def test_without_repair_it_stays_and_is_counted_over_a_restart(parts: Parts) -> None:
    victim = layer_of(parts) / "etc/passwd"
    original = victim.read_bytes()
    victim.write_bytes(b"x")
    scrub = Scrub(parts, Heard(), day=1)
    scrub.start()
    eventually(lambda: scrub.state.finished > 0)
    scrub.close()
    assert victim.read_bytes() == b"x"
    assert scrub.state.corrupt()["layer"] == 1
    again = Scrub(parts, heard := Heard(), day=1)
    assert again.state.corrupt()["layer"] == 1
    victim.write_bytes(original)  # by hand
    again.start()
    eventually(lambda: again.state.corrupt()["layer"] == 0)
    again.close()
    assert "repaired" not in heard.kinds()


def test_where_nobody_has_it_the_repair_is_tried_again_and_the_damage_stays(
    parts: Parts, image: Built
) -> None:
    (layer_of(parts) / "etc/passwd").write_bytes(b"x")
    shutil.rmtree(image.layout)
    scrub = Scrub(parts, heard := Heard(), day=1)
    scrub.start()
    eventually(lambda: scrub.state.finished > 0, 60)  # the registry is asked several times
    scrub.close()
    assert scrub.state.corrupt()["layer"] == 1
    assert scrub.repairs["error"] == 1  # once; then after a pause
    assert any("could not be repaired" in text for _, _, text in heard.events)


@pytest.mark.parametrize("parts", [{"scrub": "50Mi"}], indirect=True)
def test_it_reads_no_more_a_day_than_it_may_and_goes_on_where_it_was(parts: Parts) -> None:
    scrub = Scrub(parts, Heard(), day=1440.0)  # pieces of a second, of 36 KiB; one read may be of 256
    scrub.start()
    eventually(lambda: scrub.state.bytes > 0)
    scrub.close()
    assert 0 < scrub.read < 2 << 20
    kept = json.loads(parts.layout.scrub.read_text())
    assert kept["at"] is not None
    again = Scrub(parts, Heard(), day=0.2)
    assert again.state.at == tuple(kept["at"])
    again.start()
    eventually(lambda: again.state.finished > 0)
    again.close()


@pytest.mark.parametrize("parts", [{"scrub": "off"}], indirect=True)
def test_off_is_off(parts: Parts) -> None:
    scrub = Scrub(parts, heard := Heard(), day=0.001)
    scrub.start()
    assert scrub._thread is not None
    scrub._thread.join(20)
    assert not scrub._thread.is_alive()
    scrub.close()
    assert (scrub.read, heard.events) == (0, [])
    assert not parts.layout.scrub.exists()


def test_it_is_the_disk_that_is_read_not_memory(tmp_path: Path) -> None:
    """A block is changed behind the file system's back: the page cache still has what it was."""
    disk, mounted = tmp_path / "disk.img", tmp_path / "disk"
    mounted.mkdir()
    with disk.open("wb") as made:
        made.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", str(disk))
    run("mount", "-o", "loop", str(disk), str(mounted))
    try:
        content = os.urandom(8192) + b"tail"
        victim = mounted / "victim"
        victim.write_bytes(content)
        run("sync", "-f", str(victim))
        where = disk.read_bytes().find(content[:4096])
        assert where > 0
        with disk.open("r+b") as raw:
            raw.seek(where + 100)
            raw.write(b"damaged")
        assert victim.read_bytes() == content
        found = bytearray()
        sizes: list[int] = []
        with victim.open("rb", buffering=0) as file:
            Platter().read(file.fileno(), found.extend, sizes.append)
        assert found[100:107] == b"damaged"
        assert found[4096:] == content[4096:]
        assert sum(sizes) == len(content)
    finally:
        run("umount", str(mounted))


def test_its_thread_comes_last() -> None:
    """ionice of the thread alone: the agent's others keep theirs."""
    import threading

    seen: list[str] = []

    def look() -> None:
        scheduling.background()
        me = str(threading.get_native_id())
        seen.append(subprocess.run(["ionice", "-p", me], capture_output=True, text=True).stdout.strip())
        seen.append(str(os.getpriority(os.PRIO_PROCESS, 0)))

    before = os.getpriority(os.PRIO_PROCESS, os.getpid())
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == ["idle", "19"]
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before
