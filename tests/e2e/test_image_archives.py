"""`save` and `load`: archives that Docker, podman and skopeo write and read, and archives that lie."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.workbench import Podman, skopeo
from tests.e2e.world import SLEEPER, Registry, upon
from tests.images import Built, OciLayout, busybox, busybox_layer, directory, file, hard_link, layer, symlink
from tests.kernel.rootfs import Tree, differences, scan
from tests.kernel.workshop import remove

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


@pytest.fixture
def podman() -> Iterator[Podman]:
    path = Path(tempfile.mkdtemp(prefix="rct-", dir="/dev/shm"))  # short: podman allows no longer one
    yield Podman(path / "p")
    remove(path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image with what is hard to pack: removals, an opaque directory, links, odd names, times, attributes."""
    more = [
        layer(
            [
                directory("d", 0o2775),
                file("d/f", "f" * 5000, 0o4711, uid=7),
                hard_link("d/g", "d/f"),
                file("x/y", "1"),
            ]
        ),
        layer(
            [file("d/.wh.g"), directory("x"), file("x/.wh..wh..opq"), file("x/z", "2"), symlink("to", "/d/f")]
        ),
        layer([file("d/\u00e9" * 1 + "n" * 120, "long"), file(".wh.home")]),
    ]
    return busybox(tmp_path_factory.mktemp("whole") / "layout", more=more, tag="1")


def images(device: Device) -> dict[str, dict[str, Any]]:
    items = json.loads(device.reconciler("images", "-o", "json").stdout)["items"]
    return {item["digest"]: item for item in items}


def tree(device: Device, image: str) -> Tree:
    path = device.root / "tree"
    device.reconciler("image", "unpack", image, str(path))
    try:
        return scan(path)
    finally:
        remove(path)


@pytest.fixture(params=["agent", "alone"])
def ready(request: pytest.FixtureRequest, device: Device) -> Device:
    if request.param == "agent":
        device.start()
        device.logged("converged", timeout=60)
    return device


# --- ours, read by others ---------------------------------------------------------------------------------------------


def test_what_save_writes_keeps_its_digests_and_is_read_by_podman_and_skopeo(
    ready: Device, whole: Built, podman: Podman
) -> None:
    ready.configure(bundles=[str(whole.layout)])
    ready.reconciler("pull", "--bundle", str(whole.layout), "1")
    ready.reconciler("tag", "layout:1", "web:2")
    (told,) = json.loads(ready.reconciler("image", "inspect", "web:2").stdout)
    assert told["Reconciler"]["Manifest"] == str(whole.digest)
    assert all(item["Size"] for item in told["Reconciler"]["Unpacked"])
    path = ready.root / "out.tar"
    done = ready.reconciler("save", "-o", str(path), "web:2", "localhost/layout:1")
    assert "anew" not in done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(ready.root)) == sorted({*os.listdir(ready.root)} - {"blob"})
    with tarfile.open(path) as archive:
        listed = json.loads(_read(archive, "manifest.json"))
        index = json.loads(_read(archive, "index.json"))
    assert [entry["RepoTags"] for entry in listed] == [["localhost/web:2", "localhost/layout:1"]]
    assert {item["digest"] for item in index["manifests"]} == {str(whole.digest)}
    for transport in ("docker-archive", "oci-archive"):
        out = ready.root / f"from-{transport}"
        name = ":localhost/web:2"
        skopeo(f"{transport}:{path}{name}", f"oci:{out}:i")
        again = ready.root / "again"
        ready.reconciler("image", "unpack", "--bundle", str(out), "i", str(again))
        assert differences(scan(again), tree(ready, "web:2")) == []
        remove(again)
    assert "localhost/web:2" in podman("load", "--input", str(path))
    assert (
        differences(tree(ready, "web:2"), podman.unpacked("localhost/web:2"), ignore=_times(ready, "web:2"))
        == []
    )
    # And by our own load, on a device that has nothing
    other = ("--state", str(ready.root / "other"), "--run", str(ready.root / "run2"))
    loaded = ready.reconciler("load", "-i", str(path), "-o", "json", *other)
    items = json.loads(loaded.stdout)["items"]
    assert [item["manifest"] for item in items] == [str(whole.digest)]
    assert items[0]["names"] == ["localhost/web:2", "localhost/layout:1"]


def _times(device: Device, image: str) -> dict[str, list[str]]:
    found = tree(device, image)
    times = {path: ["mtime"] for path, entry in found.items() if entry["kind"] == "directory"}
    # A hard link's own header counts for podman, and /d/g is removed again by then: only its mode and owner are left
    return times | {"": ["mtime", "mode"], "/d/f": ["mode", "owner", "mtime"]}


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    assert found is not None
    return found.read()


def test_a_layer_that_nobody_has_packed_any_more_is_packed_anew_and_said(
    device: Device, whole: Built, podman: Podman
) -> None:
    device.reconciler("pull", "--bundle", str(whole.layout), "1")
    path = device.root / "out.tar"
    done = device.reconciler("save", "-o", str(path), "layout:1")
    assert done.stderr.count("packed anew from its files") == 4
    assert "which is another digest" in done.stderr
    before = path.read_bytes()
    device.reconciler("save", "-o", str(path), "layout:1")
    assert path.read_bytes() == before  # the same image gives the same archive
    expected = tree(device, "layout:1")
    device.reconciler(
        "load", "-i", str(path), "--state", str(device.root / "s2"), "--run", str(device.root / "r2")
    )
    told = device.reconciler(
        "image", "unpack", "layout:1", str(device.root / "t"), "--state", str(device.root / "s2")
    )
    assert told.stdout.strip() != str(whole.digest)
    assert differences(scan(device.root / "t"), expected) == []
    assert "localhost/layout:1" in podman("load", "--input", str(path))
    skopeo(f"docker-archive:{path}", f"oci:{device.root}/by-skopeo:i")


def test_a_layer_is_fetched_once_more_from_its_registry(device: Device, box: Built, tmp_path: Path) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    pinned = Registry(device, tmp_path / "registry").push(box, "box")
    device.reconciler("pull", pinned.partition("@")[0])
    done = device.reconciler("save", pinned.partition("@")[0], "-o", str(device.root / "x.tar"))
    assert "anew" not in done.stderr
    with tarfile.open(device.root / "x.tar") as archive:
        names = archive.getnames()
        assert f"blobs/sha256/{box.digest.hex}" in names
        for name in names:
            if name.startswith("blobs/sha256/"):
                assert hashlib.sha256(_read(archive, name)).hexdigest() == name[13:]


def test_save_refuses_what_is_not_here_or_damaged_and_leaves_no_file(device: Device, box: Built) -> None:
    device.reconciler("pull", "--bundle", str(box.layout), "latest")
    path = device.root / "out.tar"
    path.write_text("the one before")
    assert device.reconciler("save", "-o", str(path), "nothing:1", check=False).returncode == 8
    victim = next(device.state.glob("layers/*/etc/passwd"))
    victim.write_text(victim.read_text().replace("root", "toor"))
    done = device.reconciler("save", "-o", str(path), "layout:latest", check=False)
    assert done.returncode == 7
    assert "'etc/passwd': is not what was unpacked" in done.stderr
    assert path.read_text() == "the one before"
    assert {name for name in os.listdir(device.root) if name.startswith(".")} == set()


# --- others', read by ours --------------------------------------------------------------------------------------------


def _podman_docker(podman: Podman, layout: Path, out: Path) -> None:
    podman.take(f"oci:{layout}:1", "localhost/web:1")
    podman("save", "--quiet", "--format", "docker-archive", "-o", str(out), "localhost/web:1")


def _podman_oci(podman: Podman, layout: Path, out: Path) -> None:
    podman.take(f"oci:{layout}:1", "localhost/web:1")
    podman("save", "--quiet", "--format", "oci-archive", "-o", str(out), "localhost/web:1")


def _skopeo_docker(podman: Podman, layout: Path, out: Path) -> None:
    skopeo(f"oci:{layout}:1", f"docker-archive:{out}:localhost/web:1")


def _skopeo_oci(podman: Podman, layout: Path, out: Path) -> None:
    skopeo(f"oci:{layout}:1", f"oci-archive:{out}:localhost/web:1")


WRITERS: Mapping[str, Callable[[Podman, Path, Path], None]] = {
    "podman-docker": _podman_docker,
    "podman-oci": _podman_oci,
    "skopeo-docker": _skopeo_docker,
    "skopeo-oci": _skopeo_oci,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("way", ["file", "stdin", "gzip"])
def test_what_others_save_is_loaded(
    device: Device, whole: Built, podman: Podman, writer: str, way: str
) -> None:
    path = device.root / "theirs.tar"
    WRITERS[writer](podman, whole.layout, path)
    data = path.read_bytes() if way != "file" else None
    if data is not None and way == "gzip":
        data = gzip.compress(data, 1)
    done = device.reconciler("load", *(("-i", str(path)) if data is None else ()), input=data)
    assert done.stdout == "Loaded image: localhost/web:1\n"
    told = device.root / "direct"
    device.reconciler("image", "unpack", "--bundle", str(whole.layout), "1", str(told))
    assert differences(tree(device, "web:1"), scan(told)) == []
    if writer == "skopeo-oci":
        assert set(images(device)) == {str(whole.digest)}


def test_the_older_form_of_docker_with_links_between_layers_is_read(device: Device) -> None:
    """As Docker before version 25 wrote it: a directory per layer, equal layers as symlinks, no OCI layout."""
    one, two = layer([file("a", "1")], packed=False), busybox_layer()
    plain = gzip.decompress(two.data)
    config = _config([two, one, one])
    members = {
        f"{'b' * 64}/layer.tar": plain,
        f"{'a' * 64}/layer.tar": one.data,
        f"{'a' * 64}/VERSION": b"1.0",
        f"{hashlib.sha256(config).hexdigest()}.json": config,
        "repositories": b"{}",
        "manifest.json": json.dumps(
            [
                {
                    "Config": f"{hashlib.sha256(config).hexdigest()}.json",
                    "RepoTags": ["box:9", "r.example/a/b:x"],
                    "Layers": [f"{'b' * 64}/layer.tar", f"{'a' * 64}/layer.tar", f"{'c' * 64}/layer.tar"],
                }
            ]
        ).encode(),
    }
    done = device.reconciler(
        "load", input=_tar(members, {f"{'c' * 64}/layer.tar": f"../{'a' * 64}/layer.tar"})
    )
    assert done.stdout == "Loaded image: localhost/box:9\nLoaded image: r.example/a/b:x\n"


def _config(layers: list[Any]) -> bytes:
    value = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [str(item.diff_id) for item in layers]},
    }
    return json.dumps(value).encode()


def _tar(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


# --- what a name means ------------------------------------------------------------------------------------------------


@pytest.mark.hostile
def test_s11_a_name_in_an_archive_takes_nothing_from_a_spec(
    device: Device, box: Built, whole: Built, tmp_path: Path
) -> None:
    """CVE-2026-53489 and its kin."""
    pinned = reference(box)
    name = pinned.partition("@")[0]
    device.configure(bundles=[str(box.layout)])
    device.spec("web", SLEEPER.format(image=pinned))
    device.start()
    device.running("web/main")
    before = device.ps()["web/main"]["id"]
    archive = device.root / "evil.tar"
    skopeo(f"oci:{whole.layout}:1", f"oci-archive:{archive}:{name}")
    done = device.reconciler("load", "-i", str(archive))
    assert done.stdout == f"Loaded image ID: {whole.digest}\n"
    assert f"{name}: not renamed: the spec of web/main pins it to {box.digest}" in done.stderr
    assert name not in images(device)[str(whole.digest)]["names"]
    assert device.ps()["web/main"]["id"] == before
    # By the list of the older form too, and by two forms that disagree
    skopeo(f"oci:{whole.layout}:1", f"docker-archive:{device.root}/evil2.tar:{name}")
    done = device.reconciler("load", "-i", str(device.root / "evil2.tar"))
    assert "not renamed" in done.stderr
    assert all(name not in item["names"] for key, item in images(device).items() if key != str(box.digest))


def test_a_name_that_means_another_image_moves_and_that_is_said(
    device: Device, box: Built, tmp_path: Path
) -> None:
    other = upon(box, tmp_path / "layout", [file("etc/other", "x")])
    for built in (box, other):
        archive = device.root / "one.tar"
        skopeo(f"oci:{built.layout}:{built.tag}", f"oci-archive:{archive}:localhost/a:1")
        done = device.reconciler("load", "-i", str(archive))
        archive.unlink()
    assert f"localhost/a:1: meant {box.digest} before" in done.stderr
    found = images(device)
    assert found[str(other.digest)]["names"] == ["localhost/a:1"]
    assert found[str(box.digest)]["names"] == []


# --- archives that lie ------------------------------------------------------------------------------------------------


def _members(box: Built) -> dict[str, bytes]:
    found = {
        str(path.relative_to(box.layout)): path.read_bytes()
        for path in box.layout.rglob("*")
        if path.is_file()
    }
    return dict(sorted(found.items()))


def _altered(members: dict[str, bytes]) -> dict[str, bytes]:
    name = max(members, key=lambda name: len(members[name]))
    return members | {name: members[name][:-9] + b"\0" + members[name][-8:]}


def _docker_list(members: dict[str, bytes], **changed: Any) -> dict[str, bytes]:
    blobs = {name: data for name, data in members.items() if name.startswith("blobs/")}
    config = next(name for name, data in blobs.items() if b'"diff_ids"' in data[:4000])
    packed = max(blobs, key=lambda name: len(blobs[name]))
    entry = {"Config": config, "RepoTags": ["a:1"], "Layers": [packed]} | changed
    return {**blobs, "manifest.json": json.dumps([entry]).encode()}


LIES: Mapping[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], int, str]] = {
    "altered": (_altered, 7, "digest is"),
    "no-index": (
        lambda m: {k: v for k, v in m.items() if k != "index.json"},
        7,
        "neither index.json nor manifest.json",
    ),
    "no-layer": (lambda m: {k: v for k, v in m.items() if len(v) < 9999}, 8, "not there"),
    "no-config": (lambda m: {k: v for k, v in m.items() if b'"rootfs"' not in v[:9000]}, 8, "config"),
    "config-named-otherwise": (
        lambda m: _docker_list(m | {f"{'0' * 64}.json": b'{"os":"linux"}'}, Config=f"{'0' * 64}.json"),
        7,
        "0000",
    ),
    "layer-swapped": (
        lambda m: _docker_list(m, Layers=[next(n for n in m if b'"rootfs"' in m[n][:9000])]),
        7,
        "layer",
    ),
    "too-many-layers": (
        lambda m: _docker_list(m, Layers=[max(m, key=lambda n: len(m[n]))] * 2),
        7,
        "diff_ids",
    ),
    "layer-outside": (lambda m: _docker_list(m, Layers=["../../../etc/passwd"]), 7, "not in the archive"),
    "config-outside": (lambda m: _docker_list(m, Config="/etc/passwd"), 7, "not in the archive"),
    "not-json": (lambda m: m | {"index.json": b"[" * 5000}, 7, "index.json"),
    "nan": (lambda m: m | {"index.json": b'{"manifests": NaN}'}, 7, "NaN"),
    "md5": (
        lambda m: (
            m
            | {
                "index.json": b'{"schemaVersion":2,"manifests":[{"mediaType":'
                b'"application/vnd.oci.image.manifest.v1+json","digest":"md5:../..","size":1}]}'
            }
        ),
        7,
        "digest",
    ),
    "empty-list": (lambda m: {"manifest.json": b"{}"}, 7, "manifest.json"),
}


@pytest.mark.hostile
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused_and_brings_nothing(device: Device, box: Built, lie: str) -> None:
    change, code, said = LIES[lie]
    members = {f"blobs/{k[6:]}" if k.startswith("blobs/") else k: v for k, v in _members(box).items()}
    made = change(members)
    if lie == "config-named-otherwise":
        made[f"{'0' * 64}.json"] = b'{"os":"linux"}'
    done = device.reconciler("load", input=_tar(made), check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(device.reconciler("images", "-a", "-o", "json").stdout)["items"] in (
        [],
        _incomplete(device),
    )
    assert not [name for name in os.listdir(device.state / "layers") if name.endswith(".json")]
    assert os.listdir(device.state / "partial") == []


def _incomplete(device: Device) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(device.reconciler("images", "-a", "-o", "json").stdout)["items"]
    return [item for item in items if not item["complete"] and not item["names"]]


@pytest.mark.hostile
def test_a_cut_off_archive_is_refused_wherever_it_ends(device: Device, box: Built) -> None:
    data = _tar(_members(box))
    for end in (0, 3, 100, 512, 700, len(data) // 2, len(data) - 10240):
        done = device.reconciler("load", input=data[:end], check=False)
        assert done.returncode == 7, (end, done.stderr)
        assert done.stderr.startswith("reconciler: standard input: ")
    for data, said in ((b"\xfd7zXZ\0" + bytes(600), "xz"), (os.urandom(2000), "tar header")):
        done = device.reconciler("load", input=data, check=False)
        assert (done.returncode, said in done.stderr) == (7, True), done.stderr


def test_a_missing_file_and_another_platform_are_said(device: Device, tmp_path: Path) -> None:
    assert device.reconciler("load", "-i", str(tmp_path / "none"), check=False).returncode == 8
    layout = OciLayout(tmp_path / "layout")
    layout.image([layer([file("a", "1")])], architecture="s390x", tag="1")
    archive = tmp_path / "foreign.tar"
    subprocess.run(["tar", "-C", str(layout.path), "-cf", str(archive), "."], check=True)
    refused = device.reconciler("load", "-i", str(archive), check=False)
    assert refused.returncode == 1
    assert "no image for linux/" in refused.stderr
    done = device.reconciler("load", "-i", str(archive), "--platform", "linux/s390x")
    assert done.stdout.startswith("Loaded image ID: sha256:")
    assert "the tag of no name" in done.stderr
