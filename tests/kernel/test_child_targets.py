"""Mount targets and files of the image as traps: links out, links into /proc, links in the place of /dev.

The ids are those of the list of vulnerability classes in docs/security.md. After every case the host is as before.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.box import Bundle, make_bundle, run
from tests.kernel.leaks import LeakCheck

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A layer on top of busybox that the test fills with its traps."""
    layer = tmp_path / "image"
    layer.mkdir()
    return layer


@pytest.fixture
def canary(tmp_path: Path, leak_check: LeakCheck) -> Iterator[Path]:
    """A directory of the host's that nothing in a container may change."""
    directory = tmp_path / "canary"
    directory.mkdir()
    (directory / "file").write_text("untouched")
    yield directory
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"file": "untouched"}


@pytest.fixture
def bundle(tmp_path: Path, image: Path, busybox: Path, canary: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", [image, busybox], "/bin/sh", "-c", "true")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A host directory that may be bound."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "data").write_text("bound")
    return directory


def shell(bundle: Bundle, script: str) -> list[str]:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    result = run(bundle)
    assert result.error is None, result.error
    assert result.code == 0, result.output
    return result.lines()


def refusal(bundle: Bundle, step: str) -> str:
    error = run(bundle).error
    assert error is not None
    assert error["step"] == step, error
    return str(error["message"])


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/tmp", "/../../../tmp", "var", "/nowhere"])
def test_p4_p8_a_link_in_the_place_of_a_kernel_directory_is_refused(
    bundle: Bundle, image: Path, name: str, target: str
) -> None:
    (image / name).symlink_to(target)
    message = refusal(bundle, "mount")
    assert message.startswith(f"mount: /{name}: ")
    assert "symbolic link" in message


def test_p8_links_inside_an_images_dev_are_hidden_by_the_new_one(
    bundle: Bundle, image: Path, canary: Path
) -> None:
    (image / "dev").mkdir()
    for name in ("null", "pts", "shm", "ptmx", "console", "fd"):
        (image / "dev" / name).symlink_to(canary / "file")
    assert shell(bundle, "echo x >/dev/null; readlink /dev/fd; stat -c %F /dev/null") == [
        "/proc/self/fd",
        "character special file",
    ]


@pytest.mark.parametrize("link", ["{canary}", "/../../..{canary}", "../../../../../../..{canary}"])
def test_p4_a_target_behind_a_link_out_stays_inside(
    bundle: Bundle, image: Path, source: Path, canary: Path, link: str
) -> None:
    (image / "x").symlink_to(link.format(canary=canary))
    bundle.mount("/x/sub", "bind", str(source), "rbind", "ro")
    assert shell(bundle, "cat /x/sub/data; readlink /x") == ["bound" + link.format(canary=canary)]
    assert (bundle.upper / str(canary).lstrip("/") / "sub").is_dir()


@pytest.mark.parametrize("link", ["/proc", "/proc/self", "proc/1/attr", "/proc/self/root/proc"])
def test_p4_a_target_that_leads_into_proc_is_refused(
    bundle: Bundle, image: Path, source: Path, link: str
) -> None:
    (image / "x").symlink_to(link)
    bundle.mount("/x", "bind", str(source), "rbind")
    assert refusal(bundle, "mount").startswith("mount: /x: ")


def test_p4_a_target_that_leads_to_the_root_is_refused(bundle: Bundle, image: Path, source: Path) -> None:
    (image / "x").symlink_to("..")
    bundle.mount("/x", "bind", str(source), "rbind")
    assert "the root itself" in refusal(bundle, "mount")


def test_p4_links_that_go_round_in_a_circle_end(bundle: Bundle, image: Path, source: Path) -> None:
    (image / "a").symlink_to("b")
    (image / "b").symlink_to("a")
    bundle.mount("/a/x", "bind", str(source), "rbind")
    assert "symbolic link" in refusal(bundle, "mount").lower()


@pytest.mark.parametrize("name", ["resolv.conf", "hosts", "hostname", "mtab"])
def test_p9_a_file_mounted_over_a_link_of_the_image_stays_inside(
    bundle: Bundle, image: Path, source: Path, canary: Path, name: str
) -> None:
    (image / "etc").mkdir()
    (image / "etc" / name).symlink_to(canary / "file")
    bundle.mount(f"/etc/{name}", "bind", str(source / "data"), "bind", "ro")
    assert shell(bundle, f"cat /etc/{name}") == ["bound"]


def test_p9_a_dangling_link_of_debian_works(bundle: Bundle, image: Path, source: Path) -> None:
    (image / "etc").mkdir()
    (image / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    bundle.mount("/etc/resolv.conf", "bind", str(source / "data"), "bind", "ro")
    assert shell(bundle, "cat /etc/resolv.conf") == ["bound"]


def test_p9_a_directory_in_the_place_of_a_file_is_refused(bundle: Bundle, image: Path, source: Path) -> None:
    (image / "etc/resolv.conf").mkdir(parents=True)
    bundle.mount("/etc/resolv.conf", "bind", str(source / "data"), "bind")
    assert "is a directory" in refusal(bundle, "mount")


def test_a_whole_etc_that_is_a_link_stays_inside(
    bundle: Bundle, image: Path, source: Path, canary: Path
) -> None:
    (image / "etc").symlink_to(canary)
    bundle.mount("/etc/hosts", "bind", str(source / "data"), "bind", "ro")
    assert shell(bundle, "cat /etc/hosts") == ["bound"]


def test_targets_that_are_missing_are_made(bundle: Bundle, source: Path) -> None:
    bundle.mount("/a/b/c", "bind", str(source), "rbind", "ro", "nosuid", "nodev")
    bundle.mount("/a/d/file", "bind", str(source / "data"), "bind", "ro")
    lines = shell(
        bundle, "cat /a/b/c/data /a/d/file; grep ' /a/b/c ' /proc/self/mountinfo; touch /a/b/c/x || true"
    )
    assert lines[0].startswith("boundbound")
    assert "ro,nosuid,nodev" in lines[0]
    assert not (source / "x").exists()


def test_read_only_holds_for_everything_below_a_recursive_bind(
    bundle: Bundle, source: Path, tmp_path: Path, leak_check: LeakCheck
) -> None:
    from reconciler.linux import mount

    (source / "below").mkdir()
    mount.mount("tmpfs", str(source / "below"), "tmpfs")
    try:
        bundle.mount("/data", "bind", str(source), "rbind", "ro")
        assert shell(bundle, "touch /data/x /data/below/x 2>/dev/null || echo refused") == ["refused"]
        assert os.listdir(source / "below") == []
        bundle.config["mounts"][-1]["options"] = ["bind", "ro"]
        assert shell(bundle, "grep -c ' /data' /proc/self/mountinfo") == ["1"]
    finally:
        mount.umount(str(source / "below"))


def test_y7_a_bind_source_that_became_a_link_is_refused(bundle: Bundle, source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    bundle.mount("/data", "bind", str(tmp_path / "link"), "rbind")
    message = refusal(bundle, "mount")
    assert str(tmp_path / "link") in message
    assert "symbolic links" in message


def test_a_missing_bind_source_is_named(bundle: Bundle, tmp_path: Path) -> None:
    bundle.mount("/data", "bind", str(tmp_path / "missing"), "rbind")
    error = run(bundle).error
    assert error is not None
    assert (error["step"], error["path"], error["errno"]) == ("mount", "/data", 2)
    assert f"bind source {tmp_path}/missing: no such file or directory" in error["message"].lower()


def test_a_mount_of_the_host_that_appears_later_does_not_appear_inside(bundle: Bundle, source: Path) -> None:
    bundle.mount("/data", "bind", str(source), "rbind")
    lines = shell(bundle, "grep ' /data ' /proc/self/mountinfo")
    assert "shared:" not in lines[0]
    assert "master:" not in lines[0]


def test_tmpfs_takes_the_modes_of_the_bundle_or_the_image(bundle: Bundle, image: Path) -> None:
    (image / "cache").mkdir(mode=0o750)
    (image / "cache").chmod(0o750)
    (image / "cache/file").write_text("from the image")
    bundle.mount("/cache", "tmpfs", "tmpfs", "nosuid", "size=64k")
    bundle.mount("/scratch", "tmpfs", "tmpfs", "mode=1777", "size=64k", "uid=7")
    bundle.mount("/ro", "tmpfs", "tmpfs", "ro", "size=64k")
    lines = shell(bundle, "stat -c '%a %u' /cache /scratch; ls /cache; touch /ro/x 2>&1; true")
    assert lines[:2] == ["750 0", "1777 7"]
    assert "Read-only" in lines[-1]
    assert len(lines) == 3
    bundle.config["mounts"][-3]["options"].append("tmpcopyup")
    assert shell(bundle, "cat /cache/file; stat -c %a /cache") == ["from the image750"]


def test_an_unknown_file_system_and_a_bad_option_are_named(bundle: Bundle) -> None:
    bundle.mount("/x", "nosuchfs", "none")
    assert "no such device" in refusal(bundle, "mount")
    bundle.config["mounts"][-1].update(type="tmpfs", options=["size=much"])
    assert "size" in refusal(bundle, "mount")


@pytest.mark.parametrize(
    "cwd", [f"/proc/self/fd/{n}" for n in range(3, 11)] + ["/work", "/proc/self/fd/7/../../.."]
)
def test_p2_no_working_directory_is_outside(bundle: Bundle, image: Path, canary: Path, cwd: str) -> None:
    (image / "work").symlink_to("/proc/self/fd/7")
    bundle.config["process"]["cwd"] = cwd
    bundle.config["process"]["args"] = ["/bin/sh", "-c", f"pwd -P; ls .{canary} ..{canary} 2>&1; true"]
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = run(bundle)
    finally:
        os.close(handle)
    if result.error is None:
        assert "file" not in result.lines()
    else:
        assert result.error["step"] in ("cwd", "exec")


def test_p5_the_images_dev_null_is_no_mask(bundle: Bundle, image: Path) -> None:
    (image / "dev").mkdir()
    (image / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    assert shell(bundle, "wc -c </proc/timer_list; wc -c </proc/keys") == ["0", "0"]


def test_p4_a_target_that_is_swapped_while_mounting_stays_inside(
    tmp_path: Path, busybox: Path, canary: Path, source: Path
) -> None:
    """Another container swaps a directory of a shared volume with a link while this one mounts inside it."""
    from reconciler.linux.path import RENAME_EXCHANGE, renameat2

    volume = tmp_path / "volume"
    (volume / "d").mkdir(parents=True)
    (volume / "l").symlink_to(f"/../../../../../../..{canary}")
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/true")
    bundle.mount("/v", "bind", str(volume), "rbind")
    bundle.mount("/v/d/sub", "bind", str(source), "rbind")
    swapper = os.fork()
    if swapper == 0:
        fd = os.open(volume, os.O_RDONLY)
        while os.getppid() != 1:
            renameat2(fd, "d", fd, "l", RENAME_EXCHANGE)
    try:
        outcomes = [run(bundle) for _ in range(200)]
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert all(result.error is None or result.error["step"] == "mount" for result in outcomes)
    assert any(result.code == 0 for result in outcomes)
