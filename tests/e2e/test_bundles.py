"""`bundle`: what a device lacks of some images, carried to it; made again where it broke off, refused where it lies."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.e2e.workbench import skopeo
from tests.e2e.world import Registry, upon
from tests.images import Built, OciLayout, busybox, file, layer

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

APP = """
# a comment that nobody reads
apiVersion: reconciler/v1
kind: App
name: web
containers:
  one: {{image: {one}, command: [sleep, "100000"], stop_grace_period: 0s}}
  two:
    image: "{two}"
    command: [sleep, "100000"]
    stop_grace_period: 0s
"""


@pytest.fixture(scope="module")
def two(box: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image that has one more layer than `box`."""
    return upon(box, tmp_path_factory.mktemp("two") / "layout", [file("./etc/two", os.urandom(70_000))])


def blobs(path: Path) -> dict[str, int]:
    return {item.name: item.stat().st_size for item in (path / "blobs/sha256").iterdir()}


def layers_of(built: Built) -> list[str]:
    manifest = json.loads((built.layout / "blobs/sha256" / built.digest.hex).read_bytes())
    return [item["digest"][7:] for item in manifest["layers"]]


def other(device: Device, name: str) -> tuple[str, ...]:
    """Another device, by its places."""
    return ("--state", str(device.root / name), "--run", str(device.root / f"{name}-run"))


def spec(device: Device, box: Built, two: Built) -> Path:
    return device.spec("web", APP.format(one=reference(box), two=reference(two, "box.example/two")))


def create(device: Device, to: Path, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return device.reconciler("bundle", "create", *more, "-o", str(to), check=check)


def test_a_bundle_of_specs_has_what_the_device_lacks_and_starts_them_there(
    device: Device, box: Built, two: Built
) -> None:
    """The device has `box`, and writes what it has; the bundle is made elsewhere, and carried over as a file."""
    spec(device, box, two)
    sources = ("--bundle", str(box.layout), "--bundle", str(two.layout))
    device.reconciler("pull", "--bundle", str(box.layout), "latest")
    listed = device.reconciler("bundle", "have").stdout
    assert listed.splitlines()[0].startswith("platform linux/")
    (device.root / "have").write_text(listed)
    device.start()
    device.until(lambda: device.ps().get("web/two", {}).get("id") == "")  # wanted, and not to be had
    elsewhere = other(device, "elsewhere")
    whole = device.root / "whole"
    create(device, whole, str(device.specs), *sources, *elsewhere)
    assert set(layers_of(two)) <= blobs(whole).keys()
    for have in (device.root / "have", device.state):
        path = device.root / "part.tar"
        done = create(device, path, str(device.specs), *sources, "--for", str(have), *elsewhere)
        assert "2 images, " in done.stderr
        assert "left out that the device has" in done.stderr
        assert path.stat().st_size < 100_000 < sum(blobs(whole).values())
    assert not (device.root / "elsewhere").exists()  # nothing is kept where a bundle is made
    done = device.reconciler("bundle", "ingest", str(path))
    assert {line.split()[0] for line in done.stdout.splitlines()} == {str(box.digest), str(two.digest)}
    device.running("web/two", timeout=30)
    device.running("web/one")
    # Elsewhere that bundle is of no use, and says why
    refused = device.reconciler("bundle", "ingest", str(path), *elsewhere, check=False)
    assert refused.returncode == 8
    assert "not there, and not here" in refused.stderr
    assert layers_of(box)[0] in refused.stderr
    # The whole one is, and others can read it
    assert device.reconciler("bundle", "ingest", str(whole), *elsewhere).returncode == 0
    skopeo(f"oci:{whole}:box.example/two:1", f"oci:{device.root}/skopeo:i")


def test_a_bundle_comes_from_a_registry_by_tag_or_digest(device: Device, two: Built, tmp_path: Path) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    pinned = Registry(device, tmp_path / "registry").push(two, "two")
    for text in (pinned, pinned.partition("@")[0]):
        out = device.root / "out"
        create(device, out, text)
        assert set(layers_of(two)) <= blobs(out).keys()
        index = json.loads((out / "index.json").read_text())
        assert [item["digest"] for item in index["manifests"]] == [str(two.digest)]
        assert not device.state.exists()
        shutil.rmtree(out)
    # Through a pipe, as over ssh
    data = device.reconciler("bundle", "create", pinned, "-o", "-")
    assert data.returncode == 0
    line = (
        f"{' '.join(PROGRAM)} bundle create {' '.join(device.places)} {pinned} -o - |"
        f" {' '.join(PROGRAM)} bundle ingest {' '.join(device.places)} -"
    )
    assert str(two.digest) in device.inside(["sh", "-c", line]).stdout


def test_making_a_directory_goes_on_where_it_broke_off(device: Device, box: Built, two: Built) -> None:
    source = device.root / "source"
    shutil.copytree(two.layout, source)
    missing = source / "blobs/sha256" / layers_of(two)[1]
    data = missing.read_bytes()
    missing.unlink()
    out = device.root / "out"
    text = reference(two, "box.example/two")
    failed = create(device, out, text, "--bundle", str(source), check=False)
    assert failed.returncode == 8
    assert layers_of(two)[1][:12] in failed.stderr
    assert not (out / "index.json").exists()
    refused = device.reconciler("bundle", "ingest", str(out), check=False)
    assert refused.returncode == 8
    assert "run bundle create once more" in refused.stderr
    first = out / "blobs/sha256" / layers_of(two)[0]
    kept = first.stat().st_ino
    (out / "blobs/sha256" / layers_of(two)[1]).write_bytes(data[:1000])  # half, as after a power cut
    missing.write_bytes(data)
    create(device, out, text, "--bundle", str(source))
    assert first.stat().st_ino == kept
    assert device.reconciler("bundle", "ingest", str(out)).returncode == 0
    # A file is there whole, or not at all
    missing.unlink()
    refused = create(device, device.root / "x.tar", text, "--bundle", str(source), check=False)
    assert refused.returncode == 8
    assert not [name for name in os.listdir(device.root) if name.endswith(".tar") or name.startswith(".reco")]


@pytest.mark.hostile
@pytest.mark.parametrize("form", ["directory", "file"])
@pytest.mark.parametrize("how", ["altered", "cut", "gone"])
def test_a_damaged_bundle_is_refused_by_blob_and_brings_nothing_half(
    device: Device, two: Built, form: str, how: str
) -> None:
    out = device.root / "out"
    create(device, out, reference(two), "--bundle", str(two.layout))
    victim = out / "blobs/sha256" / layers_of(two)[1]
    data = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-20] if how == "cut" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
    source = out
    if form == "file":
        source = device.root / "out.tar"
        subprocess.run(["tar", "-C", str(out), "-cf", str(source), "."], check=True)
    done = device.reconciler("bundle", "ingest", str(source), check=False)
    assert done.returncode == (7 if how != "gone" and form == "directory" else done.returncode)
    assert done.returncode in (7, 8)
    assert layers_of(two)[1][:12] in done.stderr
    assert "box.example/box:1" in done.stderr
    items = json.loads(device.reconciler("images", "-a", "-o", "json").stdout)["items"]
    assert not [item for item in items if item["complete"] or item["names"]]
    # What came in whole stays, so that the next attempt is shorter
    victim.write_bytes(data)
    subprocess.run(["tar", "-C", str(out), "-cf", str(source), "."], check=True) if form == "file" else None
    again = device.reconciler("bundle", "ingest", str(source))
    assert layers_of(two)[0][:12] not in again.stderr
    assert layers_of(two)[1][:12] in again.stderr


@pytest.mark.hostile
def test_s11_a_bundle_takes_no_name_from_an_image_that_is_here(
    device: Device, box: Built, two: Built
) -> None:
    device.reconciler("pull", "--bundle", str(box.layout), "latest")
    device.reconciler("tag", "layout:latest", "box.example/box:1")
    out = device.root / "out"
    create(device, out, reference(two), "--bundle", str(two.layout))
    done = device.reconciler("bundle", "ingest", str(out))
    assert f"box.example/box:1: stays with {box.digest}" in done.stderr
    found = {
        item["digest"]: item["names"]
        for item in json.loads(device.reconciler("images", "-o", "json").stdout)["items"]
    }
    assert "box.example/box:1" in found[str(box.digest)]
    assert found[str(two.digest)] == []


def test_another_platform_is_chosen_by_its_list(device: Device, tmp_path: Path) -> None:
    source = OciLayout(tmp_path / "layout")
    arm = source.image([layer([file("which", "arm64")])], architecture="arm64", tag="a")
    riscv = source.image([layer([file("which", "riscv64")])], architecture="riscv64", tag="r")
    index = source.index({"linux/arm64": arm, "linux/riscv64": riscv}, tag="both")
    (device.root / "have").write_text("platform linux/riscv64\n")
    out = device.root / "out"
    create(device, out, "both", "--bundle", str(source.path), "--for", str(device.root / "have"))
    found = blobs(out)
    assert index.hex in found
    assert riscv.hex in found
    assert arm.hex not in found


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("layer sha256:12\n", 64, ":1: "),
        ("platform linux/arm64\nnonsense\n", 64, ":2: is no line of such a list"),
        (None, 8, "no such file"),
    ],
)
def test_a_list_that_is_none_is_refused_by_line(
    device: Device, text: str | None, code: int, said: str
) -> None:
    path = device.root / "list"
    if text is not None:
        path.write_text(text)
    done = create(device, device.root / "out", "x.example/y:1", "--for", str(path), check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert create(device, device.root / "out", "none.yaml", check=False).returncode == 8
    (device.specs / "empty.yaml").write_text("name: [\n")
    refused = create(device, device.root / "out", str(device.specs), check=False)
    assert refused.returncode == 3
    assert "empty.yaml:" in refused.stderr


def test_an_ingest_that_is_killed_is_gone_on_with(device: Device, tmp_path: Path) -> None:
    many: list[Any] = [layer([file(f"d{n}/f{i}", os.urandom(3000)) for i in range(300)]) for n in range(12)]
    built = busybox(tmp_path / "layout", more=many)
    for seconds in (0.4, 0.6, 0.9):
        process = subprocess.Popen(
            [*PROGRAM, "bundle", "ingest", *device.places, str(built.layout)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)  # somewhere in the middle: where does not matter
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert str(built.digest) in device.reconciler("bundle", "ingest", str(built.layout)).stdout
    items = json.loads(device.reconciler("images", "-o", "json").stdout)["items"]
    assert [item["complete"] for item in items] == [True]
