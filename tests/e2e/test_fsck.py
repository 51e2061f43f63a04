"""`fsck`: damage of every kind is found and said, put right from where the image came, and taken from under nobody."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.world import SLEEPER, Registry, upon
from tests.images import Built, file

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


@pytest.fixture
def layout(device: Device, box: Built) -> Path:
    """A copy of the bundle, which a test may take away."""
    path = device.root / "bundle"
    shutil.copytree(box.layout, path)
    return path


@pytest.fixture(params=["agent", "alone"])
def ready(request: pytest.FixtureRequest, device: Device, box: Built, layout: Path) -> Device:
    """A device on which `web/main` runs from a bundle, with the agent beside it or gone."""
    device.configure(bundles=[str(layout)])
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.logged("converged", timeout=60)
    if request.param == "alone":
        device.stop()
    return device


def fsck(device: Device, *args: str) -> tuple[int, list[dict[str, Any]]]:
    done = device.reconciler("fsck", "-o", "json", *args, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, list(json.loads(done.stdout)["items"])


def whole(device: Device) -> None:
    assert fsck(device) == (0, [])
    done = device.reconciler("fsck")
    assert "nothing is wrong" in done.stdout


def pid(device: Device) -> str:
    return str(device.reconciler("inspect", "--format", "{{.State.Pid}}", "web/main").stdout.strip())


def damage(path: Path) -> None:
    """Flip a bit in the middle, and leave the size and the times."""
    status = path.stat()
    with path.open("r+b") as item:
        item.seek(status.st_size // 2)
        byte = item.read(1)
        item.seek(status.st_size // 2)
        item.write(bytes([byte[0] ^ 4]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def layer_of(device: Device) -> Path:
    return next(path for path in (device.state / "layers").iterdir() if path.is_dir())


def test_a_damaged_file_under_a_running_container_is_put_right_and_taken_from_nobody(ready: Device) -> None:
    whole(ready)
    before = pid(ready)
    path = layer_of(ready)
    victim = path / "etc/passwd"
    original = victim.read_bytes()
    damage(victim)
    damaged = victim.read_bytes()
    code, (found,) = fsck(ready)
    assert code == 7
    assert (found["kind"], found["name"], found["done"]) == ("layer", path.name, "")
    assert found["files"] == ["'etc/passwd'"]
    assert "web/main" in found["needed_by"]
    assert found["used_by"] == ["web/main"]
    assert "a file is not what was unpacked" in ready.reconciler("fsck", check=False).stdout
    assert victim.read_bytes() == damaged  # looking changes nothing
    code, (found,) = fsck(ready, "--repair")
    assert (code, found["done"]) == (0, "fetched again")
    assert found["next"].endswith("reconciler restart web/main")
    assert victim.read_bytes() == original
    # Who runs goes on, with what it has had
    assert pid(ready) == before
    inside = Path(f"/proc/{before}/root/etc/passwd").read_bytes()
    assert inside == damaged
    assert ready.reconciler("exec", "web/main", "cat", "/etc/passwd").stdout.encode() == damaged
    (aside,) = (ready.state / "replaced").iterdir()
    assert (aside / "bin/busybox").exists()
    whole(ready)
    ready.reconciler("gc")
    assert aside.exists()
    ready.reconciler("restart", "web/main")
    ready.running("web/main")
    assert ready.reconciler("exec", "web/main", "cat", "/etc/passwd").stdout.encode() == original
    ready.reconciler("gc")
    assert os.listdir(ready.state / "replaced") == []
    whole(ready)


def _blob(device: Device, kind: str) -> Path:
    for path in (device.state / "blobs/sha256").iterdir():
        document = json.loads(path.read_bytes())
        if ("rootfs" if kind == "config" else "layers") in document:
            return path
    raise AssertionError(kind)


def _cut_index(device: Device) -> None:
    path = Path(f"{layer_of(device)}.files")
    path.write_bytes(path.read_bytes()[:-20])


def _lost_record(device: Device) -> None:
    Path(f"{layer_of(device)}.json").unlink()


def _emptied_record(device: Device) -> None:
    Path(f"{layer_of(device)}.json").write_bytes(b"")


def _lost_directory(device: Device) -> None:
    layer_of(device).rename(device.root / "taken")


def _lost_file(device: Device) -> None:
    (layer_of(device) / "etc/group").unlink()


def _link_instead(device: Device) -> None:
    (layer_of(device) / "etc/group").unlink()
    (layer_of(device) / "etc/group").symlink_to("/etc/passwd")


def _resolved(device: Device) -> None:
    for path in (device.state / "resolved").iterdir():
        path.write_text("{}")


HARM: dict[str, tuple[Callable[[Device], None], str, str]] = {
    "config": (lambda device: damage(_blob(device, "config")), "blob", "is damaged: its digest is"),
    "manifest": (lambda device: damage(_blob(device, "manifest")), "blob", "is damaged"),
    "no-config": (lambda device: _blob(device, "config").unlink(), "image", "its config"),
    "no-manifest": (lambda device: _blob(device, "manifest").unlink(), "image", "its manifest"),
    "cut-index": (_cut_index, "layer", "its file index can't be read"),
    "lost-record": (_lost_record, "layer", "has no record"),
    "emptied-record": (_emptied_record, "layer", "its record can't be read"),
    "lost-directory": (_lost_directory, "layer", "its directory is missing"),
    "lost-file": (_lost_file, "layer", "'etc/group'"),
    "link-instead": (_link_instead, "layer", "'etc/group'"),
    "resolved": (_resolved, "image", "its record can't be read"),
}


@pytest.mark.parametrize("harm", HARM)
def test_each_kind_of_damage_is_named_and_put_right(
    device: Device, box: Built, layout: Path, harm: str
) -> None:
    device.configure(bundles=[str(layout)])
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.logged("converged", timeout=60)
    before = pid(device)
    device.stop()  # or it would mend some of it first
    make, kind, said = HARM[harm]
    make(device)
    code, found = fsck(device)
    assert code == 7
    first = next(item for item in found if item["kind"] == kind)
    assert said in first["problem"]
    assert first["next"] == "run: reconciler fsck --repair"
    code, found = fsck(device, "--repair")
    assert code == 0, found
    assert all(item["done"] for item in found)
    whole(device)
    assert pid(device) == before
    assert device.reconciler("exec", "web/main", "true").returncode == 0
    device.start()
    device.running("web/main")
    assert pid(device) == before


def test_what_cant_be_fetched_stays_as_it_is_and_is_said(ready: Device, layout: Path) -> None:
    before = pid(ready)
    path = layer_of(ready)
    damage(path / "etc/passwd")
    damaged = (path / "etc/passwd").read_bytes()
    layout.rename(ready.root / "away")
    code, (found,) = fsck(ready, "--repair")
    assert code == 7
    assert found["done"] == ""
    assert "box.example" in found["failure"]
    assert "at hand" in found["next"]
    assert (path / "etc/passwd").read_bytes() == damaged
    assert not (ready.state / "replaced").exists()
    assert pid(ready) == before
    (ready.root / "away").rename(layout)
    assert fsck(ready, "--repair")[0] == 0
    whole(ready)


def test_what_is_broken_and_needed_by_nobody_goes(device: Device, box: Built, tmp_path: Path) -> None:
    other = upon(box, tmp_path / "other", [file("etc/other", "x" * 50_000)])
    device.reconciler("pull", "--bundle", str(other.layout), other.tag)
    device.reconciler("rmi", "-f", "other:latest")
    device.reconciler("pull", "--bundle", str(other.layout), f"box.example/x@{other.digest}")
    victim = next(device.state.glob("layers/*/etc/other"))
    damage(victim)
    (device.state / "layers" / "nonsense").mkdir()
    (device.state / "blobs/sha256/short").write_text("x")
    (device.state / "tags" / f"{'0' * 64}.json").write_text("{")
    code, found = fsck(device)
    assert code == 7
    assert sorted((item["kind"], item["needed_by"]) for item in found) == [
        ("blob", ""),
        ("layer", ""),
        ("layer", ""),
        ("tag", ""),
    ]
    code, found = fsck(device, "--repair")
    assert code == 0, found
    assert all(item["done"].startswith("dropped") for item in found)
    assert not victim.exists()
    whole(device)


def test_a_layer_comes_again_from_its_registry_and_only_that(
    device: Device, box: Built, tmp_path: Path
) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    two = upon(box, tmp_path / "two", [file("etc/two", "2" * 9000)])
    pinned = Registry(device, tmp_path / "registry").push(two, "two")
    device.reconciler("pull", pinned.partition("@")[0])
    damage(next(device.state.glob("layers/*/etc/two")))
    done = device.reconciler("fsck", "--repair")
    layers = json.loads((two.layout / "blobs/sha256" / two.digest.hex).read_bytes())["layers"]
    assert f"{layers[1]['digest'][7:19]}: done" in done.stderr
    assert layers[0]["digest"][7:19] not in done.stderr
    assert "1 wrong, 0 left" in done.stdout
    # Both of them damaged: from the bottom up
    damage(next(device.state.glob("layers/*/etc/two")))
    damage(next(device.state.glob("layers/*/etc/passwd")))
    assert fsck(device, "--repair")[0] == 0
    whole(device)


def test_a_container_that_lost_its_record_or_its_layer_is_said(ready: Device) -> None:
    if ready.alive:
        ready.stop()
    (directory,) = (ready.state / "containers").iterdir()
    record = directory / "identity.json"
    data = record.read_bytes()
    record.write_bytes(b"{}")
    code, found = fsck(ready)
    assert code == 7
    assert [(item["kind"], item["name"]) for item in found] == [("container", directory.name)]
    record.write_bytes(data)
    path = layer_of(ready)
    for name in (path.name, f"{path.name}.json", f"{path.name}.files"):
        (path.parent / name).rename(ready.root / name)
    code, found = fsck(ready)
    assert f"web/main is made from layer {path.name[:12]}, missing" in [item["problem"] for item in found]
    code, found = fsck(ready, "--repair")
    assert code == 0, found
    whole(ready)


def test_a_blob_is_named_by_what_it_holds(device: Device, box: Built) -> None:
    device.reconciler("pull", "--bundle", str(box.layout), "latest")
    path = _blob(device, "config")
    path.write_bytes(b"{}")
    _, (found,) = fsck(device)
    assert found["name"] == f"sha256:{path.name}"
    assert hashlib.sha256(b"{}").hexdigest()[:12] in found["problem"]
    assert device.reconciler("fsck", "--format", "{{.kind}} {{.done}}", check=False).stdout == "blob \n"


def test_a_layer_that_lost_its_record_is_not_taken_from_who_runs_on_it_by_a_restart_of_the_agent(
    device: Device, box: Built, layout: Path
) -> None:
    device.configure(bundles=[str(layout)])
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.logged("converged", timeout=60)
    before = pid(device)
    device.stop()
    path = layer_of(device)
    Path(f"{path}.json").unlink()
    device.start()
    device.until(lambda: Path(f"{path}.json").exists(), message="for the layer to be pulled again")
    # Every file that it has not read yet is still there
    assert pid(device) == before
    assert device.reconciler("exec", "web/main", "/bin/busybox", "cat", "/etc/passwd").stdout
    root = Path(f"/proc/{before}/root")
    assert hashlib.sha256((root / "bin/busybox").read_bytes()).digest() == (
        hashlib.sha256((path / "bin/busybox").read_bytes()).digest()
    )
    assert len(os.listdir(device.state / "replaced")) == 1
    time.sleep(2.1)  # what starts within a second of it may have it mounted
    device.reconciler("restart", "web/main")
    device.until(lambda: str(device.running("web/main")) != before)

    def collected() -> bool:
        device.reconciler("gc")
        return os.listdir(device.state / "replaced") == []

    device.until(collected, message="for what nobody uses any more to go")
