"""`image unpack`: what images become on the disk, beside what podman and umoci make of the same ones."""

import json
import os
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.e2e.workbench import Podman, skopeo, umoci
from tests.e2e.world import Registry
from tests.images import (
    Built,
    Item,
    LayerBlob,
    OciLayout,
    busybox,
    busybox_layer,
    debian_base,
    directory,
    file,
    hard_link,
    layer,
    nginx,
    redis,
    symlink,
)
from tests.kernel.rootfs import Tree, differences, scan, unpacked_by_umoci
from tests.kernel.workshop import remove

pytestmark = [pytest.mark.e2e, pytest.mark.kernel]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")
# Where others differ, as docs/images.md says with the reason: podman's root directory, where no layer describes it,
# and its times of directories in which an upper layer changes something without describing them.
ROOT = {"": ["mode", "mtime"]}


@pytest.fixture(scope="module")
def bench() -> Iterator[Path]:
    """A directory on tmpfs for images and their trees."""
    path = Path(tempfile.mkdtemp(prefix="rct-", dir="/dev/shm"))  # short: podman allows no longer one
    yield path
    remove(path)


@pytest.fixture(scope="module")
def podman(bench: Path) -> Podman:
    return Podman(bench / "podman")


def unpack(layout: Path, name: str, target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Unpack from a layout, with a state directory that does not exist and stays so."""
    state = target.parent / "no-state"
    places = ["--state", str(state), "--run", str(state / "run")]
    done = subprocess.run(
        [*PROGRAM, "image", "unpack", *places, "--bundle", str(layout), name, str(target), *more],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    assert not state.exists()
    return done


def tree(layout: Path, name: str, target: Path) -> Tree:
    done = unpack(layout, name, target)
    assert done.returncode == 0, done.stderr
    return scan(target)


# --- beside others ----------------------------------------------------------------------------------------------------


RUN = """
FROM scratch
ADD box /
RUN mkdir /a /b /keep && echo one >/a/one && echo two >/a/two && echo x >/b/x && echo k >/keep/k && ln /a/one /a/hard
RUN rm /a/two /bin/vi && rm -rf /b && mkdir /b && echo new >/b/new && ln /keep/k /keep/second && ln -s /bin /keep/bin
RUN chmod 4755 /a/one && chown 5:6 /keep/k && mkfifo /keep/fifo && dd if=/dev/zero of=/keep/holes bs=1 count=1 seek=9M
RUN rm -rf /keep && echo file >/keep && mv /a /moved
"""


@pytest.fixture(scope="module")
def built(bench: Path, podman: Podman) -> str:
    """An image by podman build, in podman's storage: files that go, directories that come again, links, modes."""
    box = busybox(bench / "box.oci")
    (bench / "context").mkdir()
    assert unpack(box.layout, "latest", bench / "context/box").returncode == 0
    podman.build("built", RUN, bench / "context")
    podman(
        "push", "--quiet", "built", f"oci:{bench}/buildah:i"
    )  # first: once it has seen zstd it gives only that
    return "built"


def _times_of_directories(ours: Tree) -> dict[str, list[str]]:
    return {path: ["mtime"] for path, entry in ours.items() if entry["kind"] == "directory" and path}


def _buildah(bench: Path, podman: Podman) -> Path:
    return bench / "buildah"


def _zstd(bench: Path, podman: Podman) -> Path:
    podman("push", "--quiet", "--compression-format", "zstd", "built", f"oci:{bench}/zstd:i")
    manifest = json.loads(
        next(path for path in (bench / "zstd/blobs/sha256").iterdir() if _lists(path)).read_bytes()
    )
    assert {item["mediaType"].rpartition("+")[2] for item in manifest["layers"]} == {"zstd"}
    return bench / "zstd"


def _lists(path: Path) -> bool:
    return path.stat().st_size < 10_000 and b'"layers":' in path.read_bytes()


def _docker_archive(bench: Path, podman: Podman) -> Path:
    """By way of Docker's archive: schema 2, layers that are not compressed."""
    skopeo(f"oci:{bench}/buildah:i", f"docker-archive:{bench}/saved.tar:box:built")
    skopeo(f"docker-archive:{bench}/saved.tar", f"oci:{bench}/archived:i")
    return bench / "archived"


def _umoci(bench: Path, podman: Podman) -> Path:
    """Changed and packed again by umoci, which writes whiteouts of its own."""
    busybox(bench / "umoci", tag="base")
    umoci("unpack", "--image", f"{bench}/umoci:base", f"{bench}/umoci-work")
    root = bench / "umoci-work/rootfs"
    (root / "bin/vi").unlink()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "etc/group").rename(root / "etc/groups")
    (root / "deep/er").mkdir(parents=True)
    os.link(root / "bin/busybox", root / "deep/er/busybox")
    os.setxattr(root / "deep/er", "user.note", b"\x00\xff")
    umoci("repack", "--image", f"{bench}/umoci:i", f"{bench}/umoci-work")
    return bench / "umoci"


def _opaque(bench: Path, podman: Podman) -> Path:
    """Directories that hide what is below them, in one layer with what is new in them, before and after the mark."""
    layers = [
        busybox_layer(),
        layer([directory("etc"), file("etc/before", "1"), file("etc/.wh..wh..opq"), file("etc/after", "2")]),
        layer(
            [directory("home"), file("home/x", "3"), file(".wh.root"), directory("usr"), file("usr/.wh.bin")]
        ),
        layer(
            [
                directory("home"),
                file("home/.wh..wh..opq"),
                directory("usr"),
                directory("usr/bin"),
                file("usr/bin/y"),
            ]
        ),
    ]
    OciLayout(bench / "opaque").image(layers, tag="i")
    return bench / "opaque"


def _again(name: str, target: str, **same: Any) -> Item:
    """A hard link as tar writes it: with what its target has. podman gives that to the file once more."""
    return Item(name, tarfile.LNKTYPE, target=target, **same)


def _links(bench: Path, podman: Podman) -> Path:
    """Hard links into lower layers, capabilities, extended attributes, owners, times of nanoseconds, a sparse file."""
    layers: list[LayerBlob] = [
        busybox_layer(),
        layer(
            [
                directory("d", 0o2775),
                Item(
                    "d/ping",
                    data=b"x" * 9000,
                    mode=0o755,
                    pax={"SCHILY.xattr.security.capability": CAPABILITY},
                ),
                Item(
                    "d/f", data=b"f", mode=0o4711, uid=1000, gid=1001, pax={"mtime": "1700000000.123456789"}
                ),
                _again("d/g", "d/f", mode=0o4711, uid=1000, gid=1001, pax={"mtime": "1700000000.123456789"}),
                symlink("d/s", "../../../etc/passwd"),
                Item("d/p", tarfile.FIFOTYPE, mode=0o622),
            ]
        ),
        layer(
            [
                _again("h", "d/ping", mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
                _again("h2", "d/ping", mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
                Item("d/.wh.g"),
                directory("e/"),
                file("e/x", "1"),
            ]
        ),
        layer(
            [
                Item("e/", tarfile.DIRTYPE, mode=0o700, uid=7, xattrs={"user.note": "n"}),
                Item("e/.wh..wh..opq"),
            ]
        ),
    ]
    OciLayout(bench / "links").image(layers, tag="i")
    return bench / "links"


def _debian(make: Callable[[], Built]) -> Callable[[Path, Podman], Path]:
    def build(bench: Path, _: Podman) -> Path:
        image = make()
        target = bench / f"debian-{image.tag}"
        skopeo(f"oci:{image.layout}:{image.tag}", f"oci:{target}:i")
        return target

    return build


def _schema2(bench: Path, podman: Podman) -> Path:
    """By way of a directory of Docker's schema 2."""
    image = nginx()
    skopeo(f"oci:{image.layout}:{image.tag}", f"dir:{bench}/schema2", "--format", "v2s2")
    skopeo(f"dir:{bench}/schema2", f"oci:{bench}/from-schema2:i")
    return bench / "from-schema2"


IMAGES = {
    "buildah": _buildah,
    "zstd": _zstd,
    "docker-archive": _docker_archive,
    "umoci": _umoci,
    "opaque": _opaque,
    "links": _links,
    "debian": _debian(debian_base),
    "nginx": _debian(nginx),
    "redis": _debian(redis),
    "schema-2": _schema2,
}


@pytest.mark.network
@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_becomes_what_podman_and_umoci_make_of_it(
    bench: Path, podman: Podman, built: str, kind: str
) -> None:
    layout = IMAGES[kind](bench, podman)
    ours = tree(layout, "i", bench / f"ours-{kind}")
    assert len(ours) > 60
    if kind != "zstd":  # which umoci 0.4.7 can't read
        theirs = unpacked_by_umoci(layout, "i", bench)
        remove(bench / "umoci-bundle")
        assert differences(ours, theirs, ignore=ROOT) == []
    podman.take(f"oci:{layout}:i", f"localhost/{kind}:i")
    theirs = podman.unpacked(f"localhost/{kind}:i")
    assert differences(ours, theirs, ignore=ROOT | _times_of_directories(ours)) == []


def test_what_is_in_the_store_is_copied_as_it_would_be_unpacked(device: Device, bench: Path) -> None:
    """Beside a running agent, and without one; nothing is taken from the store by it."""
    layout = (
        _links(bench, Podman(device.root / "podman")) if not (bench / "links").exists() else bench / "links"
    )
    expected = tree(layout, "i", device.root / "expected")
    device.start()
    device.logged("converged", timeout=60)
    device.reconciler("pull", "--bundle", str(layout), "i")
    for number, name in enumerate(("localhost/links:i", "links:i")):
        target = device.root / f"copy-{number}"
        told = device.reconciler("image", "unpack", name, str(target), "-o", "json")
        assert json.loads(told.stdout)["directory"] == str(target)
        assert differences(scan(target), expected) == []
        if not number:
            device.stop()
    assert os.stat(target / "d/ping").st_blocks > 0
    digest = json.loads(told.stdout)["manifest"]
    device.reconciler("image", "unpack", digest[7:19], str(device.root / "by-start"))
    assert differences(scan(device.root / "by-start"), expected) == []


@pytest.mark.network
def test_an_image_of_a_registry_is_unpacked_and_nothing_of_it_kept(
    device: Device, box: Built, tmp_path: Path
) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    reference = Registry(device, tmp_path / "registry").push(box, "box")
    for text in (reference, reference.partition("@")[0]):
        target = device.root / "root"
        done = device.reconciler("image", "unpack", text, str(target))
        assert done.stdout == f"{box.digest}\n"
        assert (target / "bin/busybox").stat().st_mode & 0o777 == 0o755
        assert not device.state.exists()
        remove(target)


def test_a_platform_is_chosen_and_another_one_refused(bench: Path, tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "layout")
    one, two = (
        layout.image([layer([file("which", name)])], architecture=name, tag=name)
        for name in ("arm64", "riscv64")
    )
    index = layout.index({"linux/arm64": one, "linux/riscv64": two}, tag="both")
    for name in ("arm64", "riscv64"):
        for text in ("both", str(index)):
            target = tmp_path / "out"
            assert unpack(layout.path, text, target, "--platform", f"linux/{name}").returncode == 0
            assert (target / "which").read_text() == name
            remove(target)
    done = unpack(layout.path, "both", tmp_path / "out")
    assert done.returncode == 1
    assert "no image for linux/" in done.stderr
    assert not (tmp_path / "out").exists()


# --- refused, and never half ----------------------------------------------------------------------------------------


HOSTILE = {
    "dotdot": ([file("../../x", "out")], "`..`"),
    "device": ([Item("dev/sda", tarfile.BLKTYPE, device=(8, 0))], "'dev/sda'"),
    "redirect": ([Item("d", tarfile.DIRTYPE, xattrs={"trusted.overlay.redirect": "/etc"})], "'d/'"),
    "link-out": ([hard_link("x", "../etc/passwd")], "`..`"),
    "link-nowhere": ([hard_link("x", "nothing")], "'x'"),
    "below-a-file": ([file("f", "x"), file("f/g", "y")], "'f'"),
    "uid": ([Item("u", uid=1 << 33)], "'u'"),
    "root": ([file("./", "x"), symlink("./", "/")], ""),
}


@pytest.mark.hostile
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_image_is_refused_by_layer_and_entry_and_leaves_nothing(
    tmp_path: Path, case: str, there: bool
) -> None:
    items, named = HOSTILE[case]
    bad = layer(items)
    built = OciLayout(tmp_path / "layout")
    built.image([busybox_layer(), bad], tag="bad")
    place = tmp_path / "place"
    target = place / "root"
    (target if there else place).mkdir(parents=True)
    (tmp_path / "canary").write_text("untouched")
    done = unpack(built.path, "bad", target)
    assert done.returncode == 7, done.stderr
    digest = json.loads((built.path / "blobs/sha256" / _manifest(built)).read_bytes())["layers"][1]["digest"]
    assert f"layer {digest[7:19]}: " in done.stderr
    assert named in done.stderr
    assert os.listdir(place) == (["root"] if there else [])
    assert not there or os.listdir(target) == []
    assert sorted(os.listdir(tmp_path)) == ["canary", "layout", "place"]


def _manifest(layout: OciLayout) -> str:
    index = json.loads((layout.path / "index.json").read_text())
    return str(index["manifests"][0]["digest"][7:])


@pytest.mark.parametrize("how", ["altered", "cut", "gone"])
def test_a_damaged_layout_is_said_by_blob_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    built = busybox(tmp_path / "layout", more=[layer([file("x", "y" * 5000)])])
    manifest = json.loads((built.layout / "blobs/sha256" / built.digest.hex).read_bytes())
    digest = manifest["layers"][1]["digest"]
    blob = built.layout / "blobs/sha256" / digest[7:]
    data = blob.read_bytes()
    if how == "gone":
        blob.unlink()
    else:
        blob.write_bytes(data[:-9] if how == "cut" else data[:-9] + b"\0" + data[-8:])
    done = unpack(built.layout, "latest", tmp_path / "out")
    assert done.returncode == (8 if how == "gone" else 7), done.stderr
    assert digest[7:19] in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["layout"]


def test_a_directory_that_is_used_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, code, said in (
        ("full", 5, "is not empty"),
        ("file", 5, "no directory"),
        ("no/where", 8, "no such"),
    ):
        done = unpack(tmp_path / "nothing", "x", tmp_path / name)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    done = unpack(tmp_path / "nothing", "x", Path("/dev/shm"))
    assert done.returncode == 5
    assert (tmp_path / "full/x").read_text() == "mine"


def test_one_that_is_ended_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    many = [layer([file(f"d{number}/f{item}", "x" * 2000) for item in range(2000)]) for number in range(12)]
    built = busybox(tmp_path / "layout", more=many)
    (tmp_path / "place/root").mkdir(parents=True)
    for seconds in (0.3, 0.5, 0.8):
        process = subprocess.Popen(
            [
                *PROGRAM,
                "image",
                "unpack",
                "--bundle",
                str(built.layout),
                "latest",
                str(tmp_path / "place/root"),
            ],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)  # somewhere in the middle: where does not matter
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        if code == 0:
            assert (tmp_path / "place/root/bin/busybox").exists()
            remove(tmp_path / "place/root")
            (tmp_path / "place/root").mkdir()
        else:
            assert code in (143, -signal.SIGTERM)
        assert os.listdir(tmp_path / "place") == ["root"]
        assert os.listdir(tmp_path / "place/root") == []


def test_a_layer_of_deep_paths_and_many_layers_are_merged(tmp_path: Path) -> None:
    deep = "/".join("d" * 40 for _ in range(80))
    layers = [
        layer([file(f"{deep}/f{number}", str(number)), file("same", str(number))]) for number in range(130)
    ]
    OciLayout(tmp_path / "layout").image(layers, tag="i")
    out = tmp_path / "out"
    assert unpack(tmp_path / "layout", "i", out).returncode == 0
    fd = os.open(out, os.O_RDONLY)
    try:
        inner = os.open(deep, os.O_RDONLY, dir_fd=fd)
        assert len(os.listdir(inner)) == 130
        os.close(inner)
    finally:
        os.close(fd)
    assert (out / "same").read_text() == "129"
