"""Sizes of trees that somebody else writes to: nothing in there leads the walk elsewhere, or ends it."""

import os
import subprocess
from pathlib import Path

from reconciler.engine.volumes import tree_size

BLOCK = 1 << 16


def fill(path: Path) -> None:
    path.write_bytes(b"x" * BLOCK)


def test_a_tree_is_counted_whole_and_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        fill(tmp_path / name)
    assert 3 * BLOCK <= tree_size(tmp_path) < 4 * BLOCK
    assert tree_size(tmp_path / "missing") == 0
    assert tree_size(tmp_path / "one") == 0


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    fill(outside / "large")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to("..")
    assert tree_size(inside) < BLOCK
    (tmp_path / "itself").symlink_to(inside)


def test_a_tree_deeper_than_a_path_can_name_is_no_error(tmp_path: Path) -> None:
    """Root inside a container makes it with mkdir and chdir; 20,000 would take the same way."""
    start = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(300):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        fill(Path("file"))
    finally:
        os.fchdir(start)
        os.close(start)
    assert tree_size(tmp_path) >= 0
    subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 250))], check=True)
