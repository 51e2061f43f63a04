"""A tree that travels through an archive and lands elsewhere is the same tree; hostile names go nowhere."""

import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine.transfer import archive, place
from reconciler.engine.transfer.item import Item
from reconciler.engine.transfer.landing import Landing, Ownership
from reconciler.engine.transfer.walk import walk
from reconciler.errors import NotFoundError, ReconcilerError

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200)
FILES = st.one_of(st.binary(max_size=2000), st.integers(0, 3_000_000).map(lambda size: size))
TREES = st.recursive(
    FILES | st.text("abc/.", min_size=1, max_size=10).map(lambda text: ("link", text)),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))
MINE = Ownership(os.geteuid(), os.getegid())


def make(path: Path, tree: object) -> None:
    match tree:
        case dict():
            path.mkdir()
            for name, inner in tree.items():
                make(path / name, inner)
        case bytes():
            path.write_bytes(tree)
        case int():
            with path.open("wb") as file:
                file.truncate(tree)
                file.seek(tree // 2)
                file.write(b"in the middle")
        case (_, text):
            path.symlink_to(str(text))


def seen(path: Path) -> object:
    info = path.lstat()
    common = (stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode), info.st_mtime_ns // 10**9)
    if stat.S_ISDIR(info.st_mode):
        return common, {inner.name: seen(inner) for inner in path.iterdir()}
    return common, path.readlink() if stat.S_ISLNK(info.st_mode) else path.read_bytes()


def land(items: object, target: Path, name: str = "") -> list[str]:
    warnings: list[str] = []
    top = os.open(target, os.O_PATH)
    landing = Landing(
        top, name, str(target), ownership=MINE, warn=warnings.append, progress=lambda count: None
    )
    try:
        for item in items:  # type: ignore[attr-defined]
            landing.put(item)
        landing.finish()
    finally:
        landing.close()
        os.close(top)
    return warnings


def items_of(path: Path) -> list[Item]:
    top = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return list(walk(top, str(path), lambda text: None))
    finally:
        os.close(top)


@settings(max_examples=60)
@given(TREES)
def test_a_tree_lands_as_it_was_with_and_without_an_archive_between(tree: object) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make(root / "from", tree)
        (root / "there").mkdir()
        top = os.open(root / "from", os.O_PATH)
        out = io.BytesIO()
        assert land(walk(top, "from", lambda text: None), root / "there", "copied") == []
        archive.write(walk(top, "from", lambda text: None), "packed", out.write)
        os.close(top)
        assert len(out.getvalue()) % 10240 == 0
        assert land(archive.read([out.getvalue()]), root / "there") == []
        assert seen(root / "there/copied") == seen(root / "from")
        assert seen(root / "there/packed") == seen(root / "from")
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as other:
            assert len(other.getmembers()) == len(items_of(root / "from"))


def test_hard_links_stay_one_file_also_when_copied_twice(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/a").write_text("one")
    (tmp_path / "from/b").hardlink_to(tmp_path / "from/a")
    (tmp_path / "to").mkdir()
    for _ in range(2):
        top = os.open(tmp_path / "from", os.O_PATH)
        land(walk(top, "from", lambda text: None), tmp_path / "to", "x")
        os.close(top)
    assert (tmp_path / "to/x/a").samefile(tmp_path / "to/x/b")
    assert sorted(os.listdir(tmp_path / "to/x")) == ["a", "b"]


def test_a_link_where_a_directory_should_be_is_refused_and_one_where_a_file_should_be_is_replaced(
    tmp_path: Path,
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_text("untouched")
    (tmp_path / "from/dir").mkdir(parents=True)
    (tmp_path / "from/dir/file").write_text("new")
    (tmp_path / "to/from").mkdir(parents=True)
    (tmp_path / "to/from/dir").symlink_to(canary)
    items = tmp_path / "from"
    top = os.open(items, os.O_PATH)
    with pytest.raises(ReconcilerError, match="not a directory"):
        land(walk(top, "from", lambda text: None), tmp_path / "to", "from")
    (tmp_path / "to/from/dir").unlink()
    (tmp_path / "to/from/dir").mkdir()
    (tmp_path / "to/from/dir/file").symlink_to(canary / "file")
    land(walk(top, "from", lambda text: None), tmp_path / "to", "from")
    os.close(top)
    assert (canary / "file").read_text() == "untouched"
    assert (tmp_path / "to/from/dir/file").read_text() == "new"
    assert not (tmp_path / "to/from/dir/file").is_symlink()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo(name))
    with pytest.raises(ReconcilerError, match=r"\.\."):
        list(archive.read([out.getvalue()]))


def test_a_path_in_a_container_ends_inside_it_whatever_its_links_say(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_text("inside")
    (tmp_path / "file").write_text("outside")
    (root / "up").symlink_to("../../../file")
    (root / "absolute").symlink_to("/file")
    (root / "dir/round").symlink_to("round")
    (root / "dir/new").symlink_to("../../made")
    fd = os.open(root, os.O_PATH)
    tree = place.Tree(fd, "web/main", True)
    for name in ("up", "absolute", "dir/../../../file"):
        found = place.source(tree, f"/{name}", follow=True)
        assert os.stat("file", dir_fd=fd).st_ino == os.fstat(found.fd).st_ino
        os.close(found.fd)
        parent, last = place.final(tree, f"/{name}")
        assert (os.fstat(parent).st_ino, last) == (os.fstat(fd).st_ino, "file")
        os.close(parent)
    parent, last = place.final(tree, "/dir/new")
    assert (os.fstat(parent).st_ino, last) == (os.fstat(fd).st_ino, "made")
    os.close(parent)
    with pytest.raises(ReconcilerError, match="links in a row"):
        place.final(tree, "/dir/round")
    with pytest.raises(NotFoundError, match="web/main:/nothing"):
        place.source(tree, "/nothing", follow=False)
    os.close(fd)
