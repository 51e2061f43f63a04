"""What an entry of `bundles` means: a path, or a pattern whose matches come and go; a stranger's links lead nowhere."""

import os
from pathlib import Path

from reconciler.engine.bundlepath import BundlePath


def matches(pattern: str) -> list[str]:
    return [path for path, _ in BundlePath(pattern).directories()]


def ways(pattern: str) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in BundlePath(pattern).waypoints()]


def test_a_path_is_one_directory_or_none(tmp_path: Path) -> None:
    assert matches(str(tmp_path)) == [str(tmp_path)]
    assert matches(f"{tmp_path}/later") == []
    (tmp_path / "file").write_text("")
    assert matches(f"{tmp_path}/file") == []
    # A link there is the operator's own
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert matches(f"{tmp_path}/link") == [f"{tmp_path}/link"]


def test_a_pattern_is_every_match_in_order(tmp_path: Path) -> None:
    for name in ("b/images", "a/images", ".hidden/images", "c/other", "usb10/images", "usb2/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "d").write_text("")
    names = ["a", "b", "usb10", "usb2"]
    assert matches(f"{tmp_path}/*/images") == [f"{tmp_path}/{name}/images" for name in names]
    assert matches(f"{tmp_path}/usb[0-9]/im?ges") == [f"{tmp_path}/usb2/images"]
    assert matches(f"{tmp_path}/.h*/images") == [f"{tmp_path}/.hidden/images"]


def test_a_link_below_a_wildcard_is_not_followed(tmp_path: Path) -> None:
    """It may be on a stick; also one that stays within."""
    (tmp_path / "secret/images").mkdir(parents=True)
    (tmp_path / "media/stick").mkdir(parents=True)
    (tmp_path / "media/link").symlink_to(tmp_path / "secret")
    (tmp_path / "media/stick/images").symlink_to(tmp_path / "secret/images")
    assert matches(f"{tmp_path}/media/*/images") == []
    assert matches(f"{tmp_path}/media/*/*") == []


def test_what_is_looked_at_is_bounded(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"d{number:02}").mkdir()
    assert len(matches(f"{tmp_path}/*")) == 32


def test_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a/images").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    entry = BundlePath(f"{tmp_path}/*/images")
    for _ in range(3):
        list(entry.directories())
        list(entry.waypoints())
        assert next(entry.directories())[0] == f"{tmp_path}/a/images"
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_way_to_a_match_is_known_before_there_is_one(tmp_path: Path) -> None:
    # The nearest directory that is there, and the one above it, which a mount point is made in
    assert ways(f"{tmp_path}/media/usb/images") == [str(tmp_path.parent), str(tmp_path)]
    (tmp_path / "media/stick").mkdir(parents=True)
    found = ways(f"{tmp_path}/media/*/images")
    assert found == [str(tmp_path), f"{tmp_path}/media", f"{tmp_path}/media/stick"]
