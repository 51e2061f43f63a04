"""Who the program is: USER against the passwd and group files of the image, honest ones and traps (S7)."""

import os
from pathlib import Path

import pytest

from tests.kernel.box import Bundle, make_bundle, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    layer = tmp_path / "image"
    (layer / "etc").mkdir(parents=True)
    return layer


@pytest.fixture
def bundle(tmp_path: Path, image: Path, busybox: Path) -> Bundle:
    script = "echo $(grep -E '^(Uid|Gid|Groups)' /proc/self/status | cut -f2-) $HOME"
    return make_bundle(tmp_path / "bundle", [image, busybox], "/bin/sh", "-c", script)


def who(bundle: Bundle, user: str) -> tuple[str, str, list[str], str]:
    """Give uid, gid, groups and HOME of the program under USER `user`."""
    result = run(bundle.annotate("user", user))
    assert result.error is None, result.error
    words = result.output.split()
    assert len(set(words[0:4])) == 1
    assert len(set(words[4:8])) == 1
    return words[0], words[4], words[8:-1], words[-1]


def refusal(bundle: Bundle, user: str) -> str:
    error = run(bundle.annotate("user", user)).error
    assert error is not None
    assert error["step"] == "user", error
    return str(error["message"])


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ("0", "0", ["0"], "/root")),
        ("root", ("0", "0", ["0"], "/root")),
        ("web", ("1000", "1001", ["44", "45", "1001"], "/home/web")),
        ("web:logs", ("1000", "44", ["44"], "/home/web")),
        ("web:7", ("1000", "7", ["7"], "/home/web")),
        ("1000", ("1000", "1001", ["1001"], "/home/web")),
        ("1000:44", ("1000", "44", ["44"], "/home/web")),
        ("4711", ("4711", "0", ["0"], "/")),
        ("4711:logs", ("4711", "44", ["44"], "/")),
        ("4294967294", ("4294967294", "0", ["0"], "/")),
    ],
)
def test_a_user_is_what_docker_would_make_of_it(
    bundle: Bundle, user: str, expected: tuple[str, str, list[str], str]
) -> None:
    assert who(bundle, user) == expected


@pytest.mark.parametrize(
    "user",
    [
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "-1",
        "+0",
        "0x0",
        " 0",
        "web\n",
        "a:b:c",
        "web:",
        "nope",
        "web:nope",
        "web:4294967295",
        "٣",
    ],
)
def test_s7_what_is_no_user_is_refused(bundle: Bundle, user: str) -> None:
    refusal(bundle, user)


def test_s7_a_number_is_never_a_name(bundle: Bundle, image: Path) -> None:
    (image / "etc/passwd").write_text("1000:x:0:0::/root:/bin/sh\n")
    assert who(bundle, "1000")[0] == "1000"


def test_s7_an_id_in_passwd_that_does_not_fit_is_refused(bundle: Bundle, image: Path) -> None:
    (image / "etc/passwd").write_text("big:x:4294967296:0::/:/\nneg:x:-1:0::/:/\nshort:x\ngid:x:1:y::/:/\n")
    for name in ("big", "neg", "short", "gid"):
        assert "passwd" in refusal(bundle, name) or "id" in refusal(bundle, name)


def test_s7_a_fifo_does_not_hang(bundle: Bundle, image: Path) -> None:
    os.mkfifo(image / "etc/passwd")
    assert "not a regular file" in refusal(bundle, "web")


def test_s7_a_device_is_not_read(bundle: Bundle, image: Path) -> None:
    os.mknod(image / "etc/passwd", 0o020666, os.makedev(1, 5))
    refusal(bundle, "web")


def test_s7_a_link_out_finds_nothing_of_the_hosts(bundle: Bundle, image: Path) -> None:
    (image / "etc/passwd").symlink_to("/../../../../../../../../etc/shadow")
    assert "not in the image's /etc/passwd" in refusal(bundle, "daemon")
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
    refusal(bundle, "web")


def test_s7_a_file_without_end_is_not_read_to_it(bundle: Bundle, image: Path) -> None:
    (image / "etc/passwd").write_bytes(b"x" * (4 * 1024 * 1024) + b"\nweb:x:1:1::/:/\n")
    assert "larger than" in refusal(bundle, "web")
    (image / "etc/passwd").write_bytes(b"x" * (3 * 1024 * 1024) + b"\nweb:x:1:1::/:/\n")
    assert who(bundle, "web")[0] == "1"


def test_an_image_without_passwd_knows_numbers_only(tmp_path: Path, busybox: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "bin").mkdir(parents=True)
    (layer / "bin/sh").write_bytes((busybox / "bin/busybox").read_bytes())
    (layer / "bin/sh").chmod(0o755)
    bundle = make_bundle(tmp_path / "bundle", [layer], "/bin/sh", "-c", "echo $HOME")
    assert run(bundle.annotate("user", "12")).output == "/\n"
    assert "not in the image's /etc/passwd" in refusal(bundle, "web")


def test_a_home_that_is_no_path_is_not_believed(bundle: Bundle, image: Path) -> None:
    (image / "etc/passwd").write_text("web:x:1:1::relative:/\n")
    assert who(bundle, "web")[3] == "/"


def test_standard_output_can_be_opened_again_by_a_user_other_than_root(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "echo again >/dev/stdout"]
    assert run(bundle.annotate("user", "1000")).output == "again\n"
