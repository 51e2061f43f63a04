"""Pulls from a real registry on loopback, from bundles, through crashes, damage and a full disk."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from reconciler.config import Registries
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Holder
from reconciler.engine.platform import PlatformError, host_platform
from reconciler.engine.pull import Images, Phase, Progress
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.patience import Patience
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, VerificationError
from reconciler.spec.reference import Digest, Reference
from reconciler.state.image import Image
from tests.images import (
    ARCHITECTURE,
    Built,
    OciLayout,
    busybox,
    busybox_layer,
    directory,
    file,
    hard_link,
    layer,
)
from tests.kernel.rootfs import differences, merged, scan, unpacked_by_umoci
from tests.kernel.workshop import remove, scratch
from tests.registry import DockerRegistry

pytestmark = pytest.mark.kernel


@dataclass
class Place:
    """A state directory with its store, on tmpfs unless said otherwise."""

    path: Path
    insecure: tuple[str, ...] = ()
    bundles: tuple[Path | Holder, ...] = ()
    limits: Limits | None = None
    keep_blobs: bool = False

    def __post_init__(self) -> None:
        self.layout = Layout(self.path / "state", self.path / "run")
        self.open()

    def open(self) -> None:
        """Start anew, as an agent does: nothing but the disk is remembered."""
        self.store = Store(self.layout)
        self.store.prepare()
        self.store.recover()
        self.store.empty_trash()
        self.images = Images(
            self.store,
            self.layout,
            registry=Registry(Registries(insecure=self.insecure), patience=Patience(retries=(0.01,))),
            bundles=self.bundles,
            platform=host_platform(),
            limits=self.limits,
            keep_blobs=self.keep_blobs,
        )

    def pull(self, reference: str) -> Image:
        parsed = Reference.parse(reference)
        image = self.images.resolve(parsed)
        self.images.pull(image, parsed)
        return image

    def check_whole(self, image: Image) -> None:
        """Assert that the image is complete, undamaged, and that nothing else is left."""
        assert self.images.missing(image) == ()
        for item in image.layers:
            assert list(self.store.damaged_files(item.chain_id)) == []
        assert os.listdir(self.layout.partial) == []


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    if not DockerRegistry.available():
        pytest.skip("docker-registry is not installed")
    path = scratch("registry")
    with DockerRegistry(path) as running:
        yield running
    remove(path)


@pytest.fixture
def place(registry: DockerRegistry) -> Iterator[Place]:
    path = scratch("pull")
    made = Place(path, insecure=(registry.name,))
    yield made
    made.images.close()
    remove(path)


def big(path: Path, *, layers: int = 3, files: int = 40, tag: str = "latest") -> Built:
    """An image whose layers take a while, with content that does not compress."""
    chance = random.Random(layers * 1000 + files)
    packed = [
        layer(
            [directory(f"l{n}"), *(file(f"l{n}/f{k}", chance.randbytes(20_000)) for k in range(files))],
            level=1,
        )
        for n in range(layers)
    ]
    layout = OciLayout(path)
    return Built(path, layout.image([busybox_layer(), *packed], config={"Cmd": ["/bin/sh"]}, tag=tag), tag)


# --- the ordinary way -----------------------------------------------------------------------------------------------


def test_an_image_is_resolved_pulled_and_shared(registry: DockerRegistry, place: Place) -> None:
    built = busybox(
        place.path / "layout",
        config={
            "Entrypoint": ["/bin/echo"],
            "User": "app",
            "Labels": {"b": "2", "a": "1"},
            "StopSignal": "SIGINT",
        },
        more=[layer([file("etc/motd", "hello")])],
    )
    image = place.pull(registry.push(built, "app"))
    assert (image.entrypoint, image.command, image.user) == (("/bin/echo",), ("/bin/sh",), "app")
    assert (image.labels, image.stop_signal) == ((("a", "1"), ("b", "2")), "SIGINT")
    assert image.platform == str(host_platform())
    assert image.index == image.manifest == built.digest
    place.check_whole(image)
    seen = merged([place.store.layer_path(item.chain_id) for item in image.layers], place.path)
    assert (
        differences(
            seen,
            unpacked_by_umoci(built.layout, built.tag, place.path),
            ignore={"": ["mtime"], "/etc": ["mtime"]},
        )
        == []
    )
    records = place.store.layers()
    assert [records[item.chain_id].parent for item in image.layers] == [None, image.layers[0].chain_id]
    assert records[image.layers[1].chain_id].size == 5


def test_a_second_pull_asks_nobody(registry: DockerRegistry, place: Place) -> None:
    reference = registry.push(busybox(place.path / "layout"), "twice")
    place.pull(reference)
    place.open()
    image = place.pull(reference)
    assert not place.images.requests
    place.check_whole(image)


def test_progress_tells_of_every_layer_from_start_to_end(registry: DockerRegistry, place: Place) -> None:
    reference = Reference.parse(registry.push(big(place.path / "layout"), "progress"))
    heard: list[Progress] = []
    image = place.images.resolve(reference)
    place.images.pull(image, reference, heard.append)
    for item in image.layers:
        mine = [progress for progress in heard if progress.layer == item.digest]
        assert mine[0].phase is Phase.DOWNLOADING
        shares = (("origin", item.size),)
        end = Progress(item.digest, item.size, item.size, Phase.DONE, source="origin", shares=shares)
        assert mine[-1] == end
        assert [progress.done for progress in mine] == sorted(progress.done for progress in mine)
    assert place.images.received[registry.name, "origin", "full"] == image.download_size
    assert place.images.requests[registry.name, "2xx"] == 2 + len(image.layers)


def test_a_tag_means_a_digest(registry: DockerRegistry, place: Place) -> None:
    built = busybox(place.path / "layout", tag="v1")
    registry.push(built, "tagged")
    assert place.images.digest(Reference.parse(f"{registry.name}/tagged:v1")) == built.digest
    with pytest.raises(RegistryError, match="404") as caught:
        place.images.digest(Reference.parse(f"{registry.name}/tagged:v2"))
    assert caught.value.exit_code == 8


def test_a_digest_that_the_registry_does_not_have_is_told_plainly(
    registry: DockerRegistry, place: Place
) -> None:
    with pytest.raises(
        RegistryError,
        match=f"{registry.name}: GET /v2/app/manifests/sha256:1{'1' * 63}: 404 manifest unknown",
    ):
        place.pull(f"{registry.name}/app@sha256:{'1' * 64}")


def test_an_index_gives_the_manifest_for_this_platform(registry: DockerRegistry, place: Place) -> None:
    layout = OciLayout(place.path / "layout")
    foreign = layout.image([layer([file("arch", "other")])], architecture="s390x", tag="a")
    mine = layout.image([layer([file("arch", "mine")])], architecture=ARCHITECTURE, tag="b")
    index = layout.index({"linux/s390x": foreign, f"linux/{ARCHITECTURE}": mine}, tag="both")
    image = place.pull(registry.push(Built(layout.path, index, "both"), "multi"))
    assert (image.index, image.manifest) == (index, mine)
    assert (place.store.layer_path(image.layers[-1].chain_id) / "arch").read_text() == "mine"
    only = layout.index({"linux/s390x": foreign}, tag="one")
    with pytest.raises(PlatformError, match=rf"no image for {host_platform()}, available: linux/s390x"):
        place.pull(registry.push(Built(layout.path, only, "one"), "multi"))
    with pytest.raises(PlatformError, match=rf"no image for {host_platform()}, available: linux/s390x"):
        place.pull(registry.push(Built(layout.path, foreign, "a"), "multi"))


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_what_skopeo_pushes_as_docker_schema_2_is_the_same_image(
    registry: DockerRegistry, place: Place
) -> None:
    built = busybox(place.path / "layout", more=[layer([file("x", "y")])])
    target = f"docker://{registry.name}/skopeo:v2s2"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--format", "v2s2"]
    subprocess.run([*command, f"oci:{built.layout}:{built.tag}", target], check=True, capture_output=True)
    digest = place.images.digest(Reference.parse(f"{registry.name}/skopeo:v2s2"))
    assert digest != built.digest
    image = place.pull(f"{registry.name}/skopeo@{digest}")
    assert "docker" in image.layers[0].media_type
    place.check_whole(image)


def test_plain_tar_layers_are_pulled_too(registry: DockerRegistry, place: Place) -> None:
    layout = OciLayout(place.path / "layout")
    digest = layout.image([layer([file("x", "y" * 100_000)], packed=False)])
    place.check_whole(place.pull(registry.push(Built(layout.path, digest), "plain")))


def test_plan_can_resolve_without_writing_a_byte(registry: DockerRegistry, place: Place) -> None:
    reference = Reference.parse(registry.push(busybox(place.path / "layout"), "planned"))
    before = scan(place.layout.state)
    image = place.images.resolve_without_storing(reference)
    assert place.images.resolve_without_storing(reference) == image
    assert place.images.requests[registry.name, "2xx"] == 2
    assert scan(place.layout.state) == before
    assert place.images.resolve(reference) == image
    assert place.store.resolved(image.index) == image


# --- side by side ---------------------------------------------------------------------------------------------------


def test_one_layer_wanted_by_many_at_once_is_fetched_once(registry: DockerRegistry, place: Place) -> None:
    shared = big(place.path / "layout", layers=2)
    other = busybox(place.path / "layout", more=[layer([file("other", "x")])], tag="other")
    references = [Reference.parse(registry.push(built, "shared")) for built in (shared, other)] * 4
    failures: list[BaseException] = []

    def pull(reference: Reference) -> None:
        try:
            image = place.images.resolve(reference)
            place.images.pull(image, reference)
            assert place.images.missing(image) == ()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=pull, args=(reference,)) for reference in references]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    images = [place.images.resolve(reference) for reference in references[:2]]
    for image in images:
        place.check_whole(image)
    distinct = {item.chain_id: item.size for image in images for item in image.layers}
    assert place.images.received[registry.name, "origin", "full"] == sum(distinct.values())


def test_a_layer_may_need_the_ones_below_it_and_still_be_fetched_beside_them(
    registry: DockerRegistry, place: Place
) -> None:
    """Layers are unpacked in parallel, but the third links to a file of the second and removes one of the first."""
    chance = random.Random(1)
    layers = [
        layer(
            [directory("d", 0o700), *(file(f"d/f{n}", chance.randbytes(50_000)) for n in range(60))], level=1
        ),
        layer([file("d/second", "content")]),
        layer([hard_link("linked", "d/second"), file("d/.wh.f1"), file("d/third")]),
    ]
    layout = OciLayout(place.path / "layout")
    image = place.pull(registry.push(Built(layout.path, layout.image(layers)), "ordered"))
    seen = merged([place.store.layer_path(item.chain_id) for item in image.layers], place.path)
    assert seen["/linked"]["links"] == ["/d/second", "/linked"]
    assert "/d/f1" not in seen
    assert seen["/d"]["mode"] == 0o700


def test_an_image_with_more_layers_than_threads_is_pulled_in_order(
    registry: DockerRegistry, place: Place
) -> None:
    layout = OciLayout(place.path / "layout")
    layers = [layer([file(f"f{n}", str(n)), *([file(f".wh.f{n - 2}")] if n >= 2 else [])]) for n in range(60)]
    image = place.pull(registry.push(Built(layout.path, layout.image(layers)), "many"))
    place.check_whole(image)
    seen = merged([place.store.layer_path(item.chain_id) for item in image.layers], place.path)
    assert seen.keys() == {"", "/f58", "/f59"}


# --- bundles --------------------------------------------------------------------------------------------------------


def test_a_bundle_serves_an_image_without_any_registry(place: Place) -> None:
    built = busybox(place.path / "stick")
    place.bundles = (place.path / "not-plugged-in", place.path / "stick")
    place.open()
    image = place.pull(f"registry.invalid/app@{built.digest}")
    place.check_whole(image)
    assert not place.images.requests
    assert place.images.received["registry.invalid", "bundle", "full"] == image.download_size


def test_a_damaged_bundle_gives_way_to_the_registry(registry: DockerRegistry, place: Place) -> None:
    built = busybox(place.path / "stick", more=[layer([file("x", "y" * 5000)])])
    reference = registry.push(built, "bundled")
    place.bundles = (place.path / "stick",)
    place.open()
    for path in (place.path / "stick" / "blobs" / "sha256").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    image = place.pull(reference)
    place.check_whole(image)
    assert place.images.received[registry.name, "origin", "full"] == image.download_size


class WornOut:
    """A bundle that opens everything and can read nothing: the kernel answers with EIO."""

    def blob(self, _: Digest) -> IO[bytes]:
        return open("/proc/self/mem", "rb", buffering=0)


@pytest.mark.parametrize("damage", ["other bytes", "EIO"])
def test_of_two_bundles_the_one_whose_copy_is_whole_is_taken(place: Place, damage: str) -> None:
    good = busybox(place.path / "good")
    if damage == "EIO":
        place.bundles = (WornOut(), place.path / "good")
    else:
        shutil.copytree(good.layout / "blobs", place.path / "bad/blobs")
        for path in (place.path / "bad/blobs/sha256").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"~")
        place.bundles = (place.path / "bad", place.path / "good")
    place.open()
    place.check_whole(place.pull(f"registry.invalid/app@{good.digest}"))


def test_a_bundle_leads_nowhere_outside_itself(place: Place) -> None:
    built = busybox(place.path / "real")
    stick = place.path / "stick" / "blobs" / "sha256"
    stick.mkdir(parents=True)
    (stick / built.digest.hex).symlink_to(place.path / "real" / "blobs" / "sha256" / built.digest.hex)
    other = place.path / "fifo" / "blobs" / "sha256"
    other.mkdir(parents=True)
    os.mkfifo(other / built.digest.hex)
    place.bundles = (place.path / "stick", place.path / "fifo")
    place.open()
    with pytest.raises(RegistryError):
        place.pull(f"127.0.0.1:1/app@{built.digest}")


# --- wrong content --------------------------------------------------------------------------------------------------


def test_a_layer_whose_archive_has_another_diff_id_is_refused(registry: DockerRegistry, place: Place) -> None:
    """podman 4.3 takes it."""
    good = layer([file("x", "promised")])
    other = layer([file("x", "delivered")])
    layout = OciLayout(place.path / "layout")
    mixed = type(good)(other.data, other.media_type, good.diff_id)
    digest = layout.image([mixed])
    with pytest.raises(VerificationError, match="unpacked, its digest is"):
        place.pull(registry.push(Built(layout.path, digest), "mixed"))
    assert place.store.layers() == {}
    assert os.listdir(place.layout.partial) == []
    assert os.listdir(place.layout.trash) == []


def test_a_wrong_size_in_the_manifest_is_refused_though_the_digest_is_right(place: Place) -> None:
    """skopeo and podman take it."""
    for change in (-1, 1):
        built = busybox(place.path / f"stick{change}")
        layout = OciLayout(built.layout)
        manifest = json.loads(layout.blob_path(built.digest).read_bytes())
        manifest["layers"][0]["size"] += change
        digest, _ = layout.json(manifest)
        place.bundles = (built.layout,)
        place.open()
        with pytest.raises((VerificationError, RegistryError)) as caught:
            place.pull(f"127.0.0.1:1/app@{digest}")
        assert "bytes" in str(caught.value) + getattr(caught.value, "hint", "")
        assert place.store.layers() == {}


# --- crashes, damage, a full disk -----------------------------------------------------------------------------------

_PULL = """
import sys
from pathlib import Path
from tests.kernel.test_pull import Place
place = Place(Path(sys.argv[1]), insecure=(sys.argv[2],))
print("begin", flush=True)
place.pull(sys.argv[3])
print("whole", flush=True)
"""


def _on_own_tmpfs(
    options: str, path: Path, registry: str, reference: str, script: str
) -> subprocess.CompletedProcess[str]:
    """Run `script` with a tmpfs mounted at `path` that only the child sees."""
    shell = 'mkdir -p "$1" && mount -t tmpfs -o "$5" own "$1" && exec "$0" -c "$4" "$1" "$2" "$3"'
    arguments = [sys.executable, str(path), registry, reference, script, options]
    return subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", shell, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_kill_9_at_any_moment_of_a_pull_leaves_a_store_that_the_next_pull_completes(
    registry: DockerRegistry, place: Place
) -> None:
    reference = registry.push(big(place.path / "layout", layers=4, files=60), "killed")
    chance = random.Random(3)
    survived = 0
    for round_number in range(12):
        state = place.path / f"round{round_number}"
        process = subprocess.Popen(
            [sys.executable, "-c", _PULL, str(state), registry.name, reference],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begin\n"
        try:
            process.wait(chance.uniform(0.0, 0.35))
            survived += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        process.stdout.close()
        again = Place(state, insecure=(registry.name,))
        assert os.listdir(again.layout.partial) == []
        for record in again.store.layers().values():
            assert list(again.store.damaged_files(record.chain_id)) == []
        image = again.pull(reference)
        again.check_whole(image)
        assert set(os.listdir(again.layout.layers)) == {
            f"{item.chain_id.hex}{suffix}" for item in image.layers for suffix in ("", ".json", ".files")
        }
        again.images.close()
        remove(state)
    assert survived < 12


def test_a_full_disk_is_said_with_figures_and_leaves_nothing(registry: DockerRegistry, place: Place) -> None:
    """R4: on a file system of its own, mounted where only a child sees it."""
    reference = registry.push(big(place.path / "layout", layers=1, files=1500), "full")
    script = """
import os, sys
from pathlib import Path
from tests.kernel.test_pull import Place
from reconciler.engine.limits import Limits
from reconciler.errors import BlockedError
place = Place(Path(sys.argv[1]), insecure=(sys.argv[2],), limits=Limits(reserve=1 << 20))
try:
    place.pull(sys.argv[3])
except BlockedError as error:
    print(error, "|", error.transient, "|", error.hint)
print(os.listdir(place.layout.partial), os.listdir(place.layout.trash), len(place.store.layers()))
os.system("mount -o remount,size=200m " + sys.argv[1])
place.check_whole(place.pull(sys.argv[3]))
"""
    for size in ("31m", "24m", "8m"):
        done = _on_own_tmpfs(f"size={size}", place.path / "small", registry.name, reference, script)
        assert done.returncode == 0, done.stderr
        told, left = done.stdout.splitlines()
        assert "disk full: " in told
        assert " needs more than " in told
        assert "| True | make room" in told
        assert left.startswith("[] [] ")


def test_packed_layers_that_are_kept_make_damage_good_without_a_registry(
    place: Place, registry: DockerRegistry, tmp_path: Path
) -> None:
    reference = registry.push(big(tmp_path / "big"), "kept")
    place.keep_blobs = True
    place.open()
    image = place.pull(reference)
    place.check_whole(image)
    for item in image.layers:
        path = place.layout.blob(item.digest)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == item.digest.hex
        assert path.stat().st_mode & 0o777 == 0o600
    place.insecure = ("nobody.example",)  # the registry is not to be reached any more
    place.open()
    for item in image.layers:
        shutil.rmtree(place.layout.layer(item.chain_id))
        place.layout.layer_record(item.chain_id).unlink()
    place.open()
    assert place.images.missing(image) == image.layers
    place.images.pull(image, Reference.parse(reference))
    place.check_whole(image)
    assert sum(place.images.received.values()) == 0
    # One that is damaged itself is no longer kept, and fetched again where that can be
    first = image.layers[0]
    path = place.layout.blob(first.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(place.layout.layer(first.chain_id))
    place.layout.layer_record(first.chain_id).unlink()
    place.open()
    with pytest.raises(RegistryError):
        place.images.pull(image, Reference.parse(reference))
    assert not path.exists()
    place.insecure = (registry.name,)
    place.open()
    place.images.pull(image, Reference.parse(reference))
    place.check_whole(image)
    assert path.exists()


def test_damage_in_the_store_is_noticed_and_repaired_by_the_next_pull(
    registry: DockerRegistry, place: Place
) -> None:
    """R9: one byte flipped, truncated, deleted, or replaced by a directory, in every file that is ours."""
    reference = registry.push(busybox(place.path / "layout", more=[layer([file("x", "y")])]), "damaged")
    image = place.pull(reference)
    state = place.layout.state
    files = [path for path in state.rglob("*.json") if path.name != "index.json"]
    files += [path for path in (state / "blobs").rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        original = path.read_bytes()
        for damage in ("flip", "truncate", "delete", "directory"):
            if damage == "flip":
                data = bytearray(original)
                data[len(data) // 2] ^= 4
                path.write_bytes(data)
            elif damage == "truncate":
                path.write_bytes(b"")
            else:
                path.unlink()
                if damage == "directory":
                    path.mkdir()
            place.open()
            assert place.pull(reference) == image, (path, damage)
            place.store.forget(image.index)
            assert place.pull(reference) == image, (path, damage)
            place.check_whole(image)


def test_a_deleted_layer_directory_is_pulled_again(registry: DockerRegistry, place: Place) -> None:
    reference = registry.push(busybox(place.path / "layout", more=[layer([file("x", "y")])]), "lost")
    image = place.pull(reference)
    shutil.rmtree(place.store.layer_path(image.layers[0].chain_id))
    assert [item.chain_id for item in place.images.missing(image)] == [image.layers[0].chain_id]
    place.check_whole(place.pull(reference))


def test_the_store_is_a_valid_oci_layout_with_private_files(registry: DockerRegistry, place: Place) -> None:
    image = place.pull(registry.push(busybox(place.path / "layout"), "private"))
    assert json.loads(place.layout.oci_layout.read_text()) == {"imageLayoutVersion": "1.0.0"}
    for digest in (image.manifest, image.config):
        assert hashlib.sha256(place.layout.blob(digest).read_bytes()).hexdigest() == digest.hex
    for path in place.layout.state.rglob("*"):
        if place.layout.layers in path.parents and path.is_dir():
            continue
        inside = any(parent.parent == place.layout.layers for parent in path.parents)
        if not inside:
            assert path.lstat().st_mode & 0o077 == 0, path


def test_a_write_that_fails_is_an_error_about_the_state_directory(
    place: Place, registry: DockerRegistry
) -> None:
    reference = registry.push(busybox(place.path / "layout"), "readonly")
    script = """
import os, sys
from pathlib import Path
from tests.kernel.test_pull import Place
from reconciler.errors import ReconcilerError
place = Place(Path(sys.argv[1]), insecure=(sys.argv[2],))
os.system("mount -o remount,ro " + sys.argv[1])
try:
    place.pull(sys.argv[3])
except ReconcilerError as error:
    print(error, "|", error.transient)
"""
    done = _on_own_tmpfs("size=50m", place.path / "ro", registry.name, reference, script)
    assert os.strerror(errno.EROFS) in done.stdout, done.stderr
    assert str(place.path / "ro" / "state") in done.stdout


def test_garbage_waits_for_a_pull_and_a_removed_layer_is_gone(registry: DockerRegistry, place: Place) -> None:
    image = place.pull(registry.push(busybox(place.path / "layout"), "garbage"))
    with place.store.adding(), pytest.raises(BlockedError), place.store.exclusive():
        pass
    seen = place.store.observe()
    assert {(item.kind, item.name) for item in seen.objects} == {
        ("layer", image.layers[0].chain_id.hex),
        ("blob", str(image.manifest)),
        ("blob", str(image.config)),
        ("image", str(image.index)),
    }
    assert seen.layers == {image.layers[0].chain_id.hex}
    assert 0 < seen.free < seen.size
    with place.store.exclusive():
        for item in seen.objects:
            match item.kind:
                case "layer":
                    place.store.remove_layer(Digest("sha256", item.name))
                case "blob":
                    place.store.remove_blob(Digest.parse(item.name))
                case _:
                    place.store.forget(Digest.parse(item.name))
    assert place.store.observe().objects == ()
    assert place.images.missing(image) == image.layers
    assert place.store.empty_trash() > 0
    assert os.listdir(place.layout.trash) == []
    assert os.listdir(place.layout.layers) == []
