"""`limits` and `disk` of device.yaml: the same in every way by which an image comes in, and within 80 MiB of memory."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent.images import open_images
from reconciler.config import load_device
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, VerificationError
from reconciler.spec.reference import Reference
from tests.e2e.device import PROGRAM, REPOSITORY
from tests.faults.test_powerloss import run
from tests.images import Built, OciLayout, directory, file, layer
from tests.kernel.workshop import remove
from tests.registry import FakeRegistry

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

_MIB = 1 << 20


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short path, for the socket in it."""
    path = Path(tempfile.mkdtemp(prefix="rct-", dir="/dev/shm"))
    yield path
    remove(path)


@pytest.fixture
def image(tmp_path: Path) -> Built:
    """Two layers of 2 MiB and three entries each."""
    layers = [
        layer([directory(f"d{n}"), file(f"d{n}/a", os.urandom(_MIB)), file(f"d{n}/b", bytes([n]) * _MIB)])
        for n in range(2)
    ]
    layout = OciLayout(tmp_path / "layout")
    return Built(layout.path, layout.image(layers, tag="box.example/box:1"), "box.example/box:1")


def reconciler(tmp_path: Path, settings: dict[str, Any], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a verb on a state directory of its own, without an agent."""
    given = tmp_path / "device.yaml"
    given.write_text(json.dumps(settings))
    verb = command[:2] if command[0] in ("image", "bundle") else command[:1]
    places = ["--state", str(tmp_path / "state"), "--run", str(tmp_path / "run"), "--device", str(given)]
    return subprocess.run(
        [*PROGRAM, *verb, *places, *command[len(verb) :]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _pull(image: Built, tmp_path: Path) -> list[str]:
    return ["pull", "--bundle", str(image.layout), "box.example/box:1"]


def _load(image: Built, tmp_path: Path) -> list[str]:
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", str(image.layout), "-cf", str(archive), "."], check=True)
    return ["load", "-i", str(archive)]


def _ingest(image: Built, tmp_path: Path) -> list[str]:
    return ["bundle", "ingest", str(image.layout)]


def _unpack(image: Built, tmp_path: Path) -> list[str]:
    return ["image", "unpack", "--bundle", str(image.layout), "box.example/box:1", str(tmp_path / "out")]


@pytest.mark.parametrize("way", [_pull, _load, _ingest, _unpack])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"unpacked": "1Mi"}, "unpacks to more than 1048576 bytes (limits.unpacked)"),
        (
            {"unpacked": "3Mi"},
            "with the layers below it 4194304 bytes unpacked, an image may have 3145728 (limits.unpacked)",
        ),
        ({"entries": 4}, "with the layers below it 6 entries, an image may have 4 (limits.entries)"),
        ({"path": 3}, "a path longer than 3 bytes (limits.path)"),
    ],
)
def test_a_limit_holds_in_every_way_in(
    image: Built,
    tmp_path: Path,
    way: Callable[[Built, Path], list[str]],
    limits: dict[str, Any],
    said: str,
) -> None:
    done = reconciler(tmp_path, {"limits": limits}, *way(image, tmp_path))
    assert done.returncode == 7, done.stderr
    assert said in done.stderr
    assert "layer sha256:" in done.stderr or "layer " in done.stderr
    (name,) = limits
    assert f"raise limits.{name} in device.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert reconciler(tmp_path, {}, *way(image, tmp_path)).returncode == 0


def pulled(image: Built, tmp_path: Path, **settings: Any) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    store = Store(layout)
    store.prepare()
    device = load_device("device.yaml", json.dumps({"bundles": [str(image.layout)], **settings}).encode())
    images = open_images(layout, device, store)
    try:
        reference = Reference.parse(f"box.example/box@{image.digest}")
        images.pull(images.resolve(reference), reference)
    finally:
        images.close()


def test_nesting_is_limited(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "layout")
    digest = layout.image([layer([file("x")])])
    size = layout.blob_path(digest).stat().st_size
    kind = "application/vnd.oci.image.manifest.v1+json"
    for _ in range(2):
        platform = {"os": "linux", "architecture": _architecture()}
        entry = {"mediaType": kind, "digest": str(digest), "size": size, "platform": platform}
        kind = "application/vnd.oci.image.index.v1+json"
        digest, size = layout.json({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]})
    image = Built(layout.path, digest, "x")
    with pytest.raises(VerificationError, match=r"more than 2 documents .*\(limits\.nesting\)"):
        pulled(image, tmp_path, limits={"nesting": 2})
    pulled(image, tmp_path, limits={"nesting": 3})


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=48m", "rct", str(mounted))
    try:
        yield mounted
    finally:
        run("umount", str(mounted))


@pytest.mark.parametrize("ranges", [True, False], ids=["honest", "without-ranges"])
def test_what_would_not_fit_is_refused_before_the_first_byte(
    small: Path, tmp_path: Path, ranges: bool
) -> None:
    """A layer of 4 MiB that unpacks to 44: gzip's last four bytes say so, and are all that is fetched of it."""
    made = OciLayout(tmp_path / "layout")
    big = layer([file("noise", os.urandom(4 * _MIB)), file("zeros", bytes(40 * _MIB))], level=1)
    built = Built(made.path, made.image([big]), "latest")
    with FakeRegistry(ranges=ranges) as registry:
        reference = Reference.parse(registry.add(built))
        layout = Layout(small / "state", tmp_path / "run")
        store = Store(layout)
        store.prepare()
        settings = {"registries": {"insecure": [registry.name]}, "disk": {"reserve": "6Mi"}}
        images = open_images(layout, load_device("d", json.dumps(settings).encode()), store)
        try:
            with pytest.raises(BlockedError, match="disk full") as caught:
                images.pull(images.resolve(reference), reference)
        finally:
            images.close()
        assert caught.value.transient
        (blob,) = {digest for digest, data in registry.blobs.items() if data == big.data}
        asked = [request.headers.get("range", "") for request in registry.asked(blob)]
        assert asked[0] == f"bytes={len(big.data) - 4}-{len(big.data) - 1}"
        assert (len(asked) == 1) is ranges
        if ranges:
            assert "needs more than 52" in str(caught.value)  # 44 MiB of files, their headers, 6 in reserve
        assert os.listdir(layout.partial) == []
        assert store.layers() == {}
    with pytest.raises(BlockedError, match="disk full"):
        pulled(built, small, disk={"reserve": "44Mi"})


# --- memory -----------------------------------------------------------------------------------------------------------

_MEASURED = """
import sys
from pathlib import Path
from reconciler.spec.reference import Digest
from tests.e2e.test_image_limits import Built, pulled
layout, digest, place = sys.argv[1:]
def most():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
import httpx, sqlite3
before = most()
pulled(Built(Path(layout), Digest.parse(digest), "x"), Path(place))
print(before, most())
"""


def test_r11_no_number_of_names_takes_memory(tmp_path: Path) -> None:
    """Two layers beside each other of as many long whiteouts, hard links and directories as an image may do with."""

    def archive(count: int, kind: bytes, name: str, target: str = "") -> bytes:
        info = tarfile.TarInfo()
        info.type, info.linkname, info.mode = kind, target, 0o755
        found = bytearray()
        for number in range(count):
            info.name = name.format(number)
            found += info.tobuf(tarfile.GNU_FORMAT)
        return bytes(found) + bytes(1024)

    made = OciLayout(tmp_path / "layout")
    long = "x" * 85
    layers = [
        layer([file("x")]),
        layer(archive(60_000, b"0", ".wh.{}" + long), level=1),
        layer(archive(30_000, b"1", "l{}" + long, "x"), level=1),
        layer(archive(30_000, b"5", "d{}" + long), level=1),
    ]
    digest = made.image(layers)
    del layers
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(made.path), str(digest), str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    before, most = map(int, done.stdout.split())
    assert most <= 80 * _MIB, f"{most / _MIB:.1f} MiB"
    assert most - before <= 24 * _MIB, f"{(most - before) / _MIB:.1f} MiB more"
