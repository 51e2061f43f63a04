"""A named volume's first content: taken from the image once, whole or not at all, whatever interrupts it."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kernel.box import Box, Bundle, make_bundle, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a directory that has one of everything."""
    layer = tmp_path / "image"
    data = layer / "data"
    (data / "sub/deep").mkdir(parents=True)
    (data / "file").write_text("content")
    (data / "file").chmod(0o640)
    os.chown(data / "file", 1000, 1001)
    os.link(data / "file", data / "sub/hard")
    (data / "setuid").write_text("x")
    (data / "setuid").chmod(0o4755)
    (data / "link").symlink_to("/etc/passwd")
    (data / "sub/broken").symlink_to("nowhere")
    os.mkfifo(data / "fifo", 0o620)
    os.chown(data / "link", 7, 8, follow_symlinks=False)
    os.setxattr(data / "file", "trusted.note", b"kept")
    os.utime(data / "file", (1_000_000, 2_000_000))
    os.utime(data / "sub", (3_000_000, 4_000_000))
    (data / "sparse name \n").write_bytes(b"\0" * 10_000_000)
    os.chown(data, 1000, 1001)
    data.chmod(0o2750)
    return layer


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume as the engine makes it."""
    directory = tmp_path / "volume"
    (directory / "data").mkdir(parents=True)
    (directory / "pending").touch()
    return directory


@pytest.fixture
def bundle(tmp_path: Path, image: Path, busybox: Path, volume: Path) -> Bundle:
    return make_with(tmp_path / "bundle", image, busybox, volume)


def make_with(directory: Path, image: Path, busybox: Path, volume: Path, *args: str) -> Bundle:
    bundle = make_bundle(directory, [image, busybox], *(args or ("/bin/true",)))
    bundle.mount("/data", "bind", str(volume / "data"), "bind", "nosuid", "nodev")
    return bundle.annotate("volumes", [{"destination": "/data", "root": str(volume)}])


def listing(directory: Path) -> list[str]:
    """Give everything about a tree that a copy must keep."""
    command = r"find . -printf '%p %y %m %U %G %n %l %s\n' | sort; getfattr -R -d . 2>/dev/null || true"
    lines = subprocess.check_output(["/bin/sh", "-c", command], cwd=directory, text=True).splitlines()
    # the size of a directory is the file system's business
    return [line if " d " not in line else line.rsplit(" ", 1)[0] for line in lines]


def succeed(bundle: Bundle) -> None:
    result = run(bundle)
    assert result.error is None, result.error
    assert result.code == 0


def test_the_first_start_copies_everything_as_it_is(bundle: Bundle, image: Path, volume: Path) -> None:
    succeed(bundle)
    data = volume / "data"
    assert listing(data) == listing(image / "data")
    assert os.getxattr(data / "file", "trusted.note") == b"kept"
    assert (data / "file").stat().st_mtime == 2_000_000
    assert (data / "sub").stat().st_mtime == 4_000_000
    assert (data / "file").stat().st_ino == (data / "sub/hard").stat().st_ino
    assert stat.S_IMODE(data.stat().st_mode) == 0o2750
    assert sorted(os.listdir(volume)) == ["data"]
    assert os.listdir(bundle.upper / "data") == [] if (bundle.upper / "data").exists() else True


def test_a_volume_with_content_is_left_alone(bundle: Bundle, volume: Path) -> None:
    (volume / "data/mine").write_text("precious")
    succeed(bundle)
    assert os.listdir(volume / "data") == ["mine"]
    assert not (volume / "pending").exists()


def test_a_settled_volume_stays_empty(bundle: Bundle, volume: Path) -> None:
    (volume / "pending").unlink()
    succeed(bundle)
    assert os.listdir(volume / "data") == []


def test_an_image_without_the_directory_gives_an_empty_volume(
    bundle: Bundle, volume: Path, image: Path
) -> None:
    (image / "data").rename(image / "elsewhere")
    succeed(bundle)
    assert os.listdir(volume / "data") == []
    assert not (volume / "pending").exists()


def test_p11_a_link_in_the_place_of_the_directory_does_not_lead_out(
    bundle: Bundle, volume: Path, image: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("x")
    (image / "data").rename(image / "elsewhere")
    (image / "data").symlink_to(f"/../../../../../../../..{secret}")
    run(bundle)
    assert os.listdir(volume / "data") == []


def test_a_device_node_in_the_content_is_refused(bundle: Bundle, volume: Path, image: Path) -> None:
    os.mknod(image / "data/disk", 0o060600, os.makedev(254, 0))
    error = run(bundle).error
    assert error is not None
    assert (error["step"], error["errno"]) == ("volume", errno.EPERM)
    assert os.listdir(volume / "data") == []
    assert (volume / "pending").exists()


@pytest.mark.parametrize("stop", ["mkdir", "chown", "symlink", "link", "syncfs", "rename", "unlink", "fsync"])
def test_a_copy_that_is_cut_off_anywhere_is_completed_by_the_next_start(
    bundle: Bundle, volume: Path, image: Path, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is killed at its n-th call of one kind, for every n, and started again until it succeeds."""
    from reconciler.shim import volume as code

    names = {"syncfs": (code, "syncfs"), "chown": (os, "fchown")}
    owner, name = names.get(stop, (os, stop))
    original = getattr(owner, name)
    target = 0

    def cut(*args: object, **keywords: object) -> object:
        nonlocal target
        target -= 1
        if target == 0:
            os.kill(os.getpid(), 9)
        return original(*args, **keywords)

    for attempt in range(1, 200):
        with monkeypatch.context() as patch:
            target = attempt
            patch.setattr(owner, name, cut)
            result = run(bundle)
        found = listing(volume / "data")
        # whole or empty, never in between
        assert len(found) == 1 or found == listing(image / "data")
        if result.code == 0:
            break
        if len(found) > 1:
            for path in (volume / "data").iterdir():
                subprocess.check_call(["rm", "-rf", path])
            (volume / "pending").touch()
    else:
        pytest.fail("never got through")
    assert sorted(os.listdir(volume)) == ["data"]
    assert listing(volume / "data") == listing(image / "data")


def test_two_containers_that_start_at_once_copy_once(
    tmp_path: Path, image: Path, busybox: Path, volume: Path
) -> None:
    for number in range(300):
        (image / f"data/many{number}").write_text("x")
    script = "ls /data | wc -l"
    bundles = [
        make_with(tmp_path / f"b{n}", image, busybox, volume, "/bin/sh", "-c", script) for n in range(4)
    ]
    boxes = [Box(bundle) for bundle in bundles]
    try:
        for box in boxes:
            box.launch()
        assert [box.answer() for box in boxes] == [None] * 4
        assert [box.start() for box in boxes] == [None] * 4
        assert {box.wait().output for box in boxes} == {"306\n"}
    finally:
        for box in boxes:
            box.__exit__()


def test_what_the_program_writes_is_in_the_volume_and_the_next_container_sees_it(
    tmp_path: Path, image: Path, busybox: Path, volume: Path
) -> None:
    one = make_with(
        tmp_path / "one", image, busybox, volume, "/bin/sh", "-c", "echo kept >/data/new; rm /data/file"
    )
    two = make_with(
        tmp_path / "two", image, busybox, volume, "/bin/sh", "-c", "cat /data/new; ls /data/file 2>&1"
    )
    succeed(one)
    lines = run(two).lines()
    assert lines[0] == "kept"
    assert "No such file" in lines[1]
