"""Layers unpacked on a real file system and seen through a real overlay mount, beside what umoci makes of them."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Sequence

import pytest

from reconciler.engine.fileindex import damaged
from reconciler.engine.limits import Limits
from reconciler.engine.lowers import Lowers
from reconciler.engine.tar import Reader
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.engine.unpack import Unpacker
from tests.images import (
    EPOCH,
    Item,
    LayerBlob,
    OciLayout,
    debian_base,
    directory,
    file,
    hard_link,
    layer,
    symlink,
    tar,
)
from tests.kernel.rootfs import Tree, differences, scan, unpacked_by_umoci
from tests.kernel.workshop import Workshop, make_workshop

pytestmark = pytest.mark.kernel

# A security.capability value (VFS_CAP_REVISION_2, cap_net_bind_service+ep), as text that tarfile can put into pax.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")


workshop = pytest.fixture(make_workshop, name="workshop")


def names(tree: Tree) -> set[str]:
    return {path for path in tree if path}


def compare_with_umoci(
    workshop: Workshop, layers: Sequence[LayerBlob], archives: Sequence[bytes]
) -> list[str]:
    layout = OciLayout(workshop.path / "layout")
    layout.image(layers, tag="latest")
    for archive in archives:
        workshop.add(archive)
    theirs = unpacked_by_umoci(workshop.path / "layout", "latest", workshop.path)
    # umoci and we choose different times for a root directory that no layer describes.
    return differences(workshop.seen(), theirs, ignore={"": ["mtime", "mode"]})


# --- one layer --------------------------------------------------------------------------------------------------------


def test_everything_an_entry_says_is_on_disk(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [
                Item("./", tarfile.DIRTYPE, mode=0o751, uid=5, gid=6),
                Item(
                    "./d/", tarfile.DIRTYPE, mode=0o2755, uid=1, gid=2, pax={"mtime": "1700000000.123456789"}
                ),
                Item("./d/f", data=b"content", mode=0o4711, uid=1000, gid=1001, pax={"mtime": "12.5"}),
                symlink("./d/s", "../../../etc/passwd"),
                Item("./d/p", tarfile.FIFOTYPE, mode=0o622),
                hard_link("./h", "./d/f"),
            ]
        )
    )
    seen = scan(workshop.layers[0])
    assert seen[""]["mode"] == 0o751
    assert seen[""]["owner"] == [5, 6]
    assert (seen["/d"]["mode"], seen["/d"]["owner"]) == (0o2755, [1, 2])
    assert seen["/d"]["mtime"] == 1_700_000_000_123_456_789
    assert (seen["/d/f"]["mode"], seen["/d/f"]["owner"], seen["/d/f"]["size"]) == (0o4711, [1000, 1001], 7)
    assert seen["/d/f"]["mtime"] == 12_500_000_000
    assert seen["/d/f"]["links"] == ["/d/f", "/h"]
    assert seen["/d/s"]["target"] == "../../../etc/passwd"
    assert (seen["/d/p"]["kind"], seen["/d/p"]["mode"]) == ("fifo", 0o622)


def test_a_file_in_a_set_group_id_directory_keeps_its_own_group(workshop: Workshop) -> None:
    workshop.add(tar([Item("d/", tarfile.DIRTYPE, mode=0o2775, gid=50), file("d/f"), directory("d/e")]))
    seen = scan(workshop.layers[0])
    assert seen["/d/f"]["owner"] == [0, 0]
    assert (seen["/d/e"]["owner"], seen["/d/e"]["mode"]) == ([0, 0], 0o755)


def test_capabilities_and_extended_attributes_are_kept(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [
                Item(
                    "ping", data=b"x", mode=0o755, uid=7, pax={"SCHILY.xattr.security.capability": CAPABILITY}
                ),
                Item("d/", tarfile.DIRTYPE, mode=0o755, xattrs={"user.note": "on a directory"}),
                Item("f", xattrs={"user.note": "on a file", "security.selinux": "of another machine"}),
            ]
        )
    )
    seen = scan(workshop.layers[0])
    assert seen["/ping"]["xattrs"] == {"security.capability": CAPABILITY.encode("latin-1").hex()}
    assert seen["/d"]["xattrs"] == {"user.note": b"on a directory".hex()}
    assert seen["/f"]["xattrs"] == {"user.note": b"on a file".hex()}


def test_the_mode_does_not_depend_on_the_umask(workshop: Workshop) -> None:
    before = os.umask(0o077)
    try:
        workshop.add(
            tar([file("f", mode=0o666), directory("d", 0o777), Item("p", tarfile.FIFOTYPE, mode=0o666)])
        )
    finally:
        os.umask(before)
    assert {path: entry["mode"] for path, entry in scan(workshop.layers[0]).items()} == {
        "": 0o755,
        "/f": 0o666,
        "/d": 0o777,
        "/p": 0o666,
    }


def test_a_time_before_1970_is_kept(workshop: Workshop) -> None:
    workshop.add(tar([Item("f", mtime=-100), Item("g", pax={"mtime": "-1.5"})]))
    seen = scan(workshop.layers[0])
    assert (seen["/f"]["mtime"], seen["/g"]["mtime"]) == (-100_000_000_000, -1_500_000_000)


def test_names_that_are_not_utf8_and_the_longest_names_are_kept(workshop: Workshop) -> None:
    longest = "n" * 255
    archive = tar([file(longest), file("a\nb\\c"), symlink("l", "t" * 4095)])
    raw = bytearray(tar([file("xx-bytes")]))
    raw[0:2] = b"\xff\xfe"
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    workshop.add(archive)
    assert names(scan(workshop.layers[0])) == {f"/{longest}", "/a\nb\\c", "/l"}
    workshop.add(bytes(raw))
    assert os.listdir(os.fsencode(workshop.layers[1])) == [b"\xff\xfe-bytes"]


def test_a_sparse_file_keeps_its_holes(workshop: Workshop) -> None:
    source = workshop.path / "sparse"
    with source.open("wb") as out:
        out.seek(5 << 20)
        out.write(b"middle")
        out.truncate(20 << 20)
    for number, form in enumerate(("0.0", "0.1", "1.0")):
        archive = subprocess.run(
            [
                "tar",
                "-C",
                str(workshop.path),
                "--sparse",
                "--format=pax",
                f"--sparse-version={form}",
                "-cf",
                "-",
                "sparse",
            ],
            check=True,
            capture_output=True,
        ).stdout
        workshop.add(archive)
        made = workshop.layers[number] / "sparse"
        assert made.read_bytes() == source.read_bytes()
        assert made.stat().st_blocks < 1000
    old = subprocess.run(
        ["tar", "-C", str(workshop.path), "--sparse", "--format=gnu", "-cf", "-", "sparse"],
        check=True,
        capture_output=True,
    ).stdout
    workshop.add(old)
    assert (workshop.layers[3] / "sparse").read_bytes() == source.read_bytes()
    assert all(not list(damaged(*pair)) for pair in zip(workshop.layers, workshop.indexes, strict=True))


# --- the way to a name ------------------------------------------------------------------------------------------------


def test_absolute_names_are_relative_to_the_root(workshop: Workshop) -> None:
    workshop.add(tar([file("/app/run", "x"), file("//double//slash", "y")]))
    assert names(scan(workshop.layers[0])) == {"/app", "/app/run", "/double", "/double/slash"}


def test_a_symlink_of_the_same_layer_is_followed_inside_the_root(workshop: Workshop) -> None:
    archive = tar(
        [symlink("lib", "/usr/lib"), file("lib/one", "1"), symlink("up", "../../../up2"), file("up/two", "2")]
    )
    workshop.add(archive)
    assert names(scan(workshop.layers[0])) == {
        "/lib",
        "/usr",
        "/usr/lib",
        "/usr/lib/one",
        "/up",
        "/up2",
        "/up2/two",
    }


def test_a_symlink_of_a_lower_layer_is_hidden_by_a_directory_not_followed(workshop: Workshop) -> None:
    workshop.add(tar([directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib")]))
    workshop.add(tar([file("lib/new", "x")]))
    seen = workshop.seen()
    assert seen["/lib"]["kind"] == "directory"
    assert names(seen) == {"/usr", "/usr/lib", "/lib", "/lib/new"}


def test_the_later_entry_of_a_name_wins(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [
                file("f", "old"),
                file("f", "new"),
                directory("d"),
                file("d/inside", "x"),
                file("d", "a file now"),
                file("e", "a directory soon"),
                directory("e"),
                file("e/in", "y"),
                symlink("s", "f"),
                file("s", "no symlink"),
            ]
        )
    )
    seen = scan(workshop.layers[0])
    assert (workshop.layers[0] / "f").read_text() == "new"
    assert {path: seen[path]["kind"] for path in names(seen)} == {
        "/f": "file",
        "/d": "file",
        "/e": "directory",
        "/e/in": "file",
        "/s": "file",
    }
    assert (workshop.layers[0] / "f").read_text() == "new"
    assert list(damaged(workshop.layers[0], workshop.indexes[0])) == []
    lines = workshop.indexes[0].read_text().splitlines()
    assert sorted(line.split("  ")[1] for line in lines) == ["d", "e/in", "f", "s"]


def test_a_directory_without_an_entry_has_what_the_layer_below_gave_it(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [
                Item("data/", tarfile.DIRTYPE, mode=0o700, uid=33, gid=34, xattrs={"user.k": "v"}),
                file("data/a"),
            ]
        )
    )
    workshop.add(tar([file("data/b"), file("fresh/c")]))
    seen = workshop.seen()
    assert (seen["/data"]["mode"], seen["/data"]["owner"], seen["/data"]["mtime"]) == (
        0o700,
        [33, 34],
        EPOCH * 10**9,
    )
    assert seen["/data"]["xattrs"] == {"user.k": b"v".hex()}
    assert (seen["/fresh"]["mode"], seen["/fresh"]["owner"]) == (0o755, [0, 0])


def test_the_root_keeps_its_mode_through_layers_that_do_not_mention_it(workshop: Workshop) -> None:
    workshop.add(tar([Item("./", tarfile.DIRTYPE, mode=0o711, uid=3)]))
    workshop.add(tar([file("x")]))
    assert (workshop.seen()[""]["mode"], workshop.seen()[""]["owner"]) == (0o711, [3, 0])


# --- whiteouts --------------------------------------------------------------------------------------------------------


def lower() -> bytes:
    return tar(
        [
            directory("a"),
            file("a/one", "1"),
            file("a/two", "2"),
            directory("a/b"),
            file("a/b/three", "3"),
            symlink("link", "a"),
            file("top", "t"),
        ]
    )


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([file("a/.wh.one")], {"/a", "/a/two", "/a/b", "/a/b/three", "/link", "/top"}),
        ([file(".wh.a")], {"/link", "/top"}),
        ([file(".wh.link")], {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/top"}),
        ([file(".wh.missing")], {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/link", "/top"}),
        ([file("a/.wh..wh..opq")], {"/a", "/link", "/top"}),
        ([file("a/.wh..wh..opq"), file("a/new")], {"/a", "/a/new", "/link", "/top"}),
        ([file("a/new"), file("a/.wh..wh..opq")], {"/a", "/a/new", "/link", "/top"}),
        ([file(".wh..wh..opq"), file("only")], {"/only"}),
        ([file("only"), file(".wh..wh..opq"), file("a/one", "new")], {"/only", "/a", "/a/one"}),
        ([file(".wh.a"), directory("a"), file("a/new")], {"/a", "/a/new", "/link", "/top"}),
        ([directory("a"), file("a/new"), file(".wh.a")], {"/a", "/a/new", "/link", "/top"}),
        ([file(".wh.a"), file("a/new")], {"/a", "/a/new", "/link", "/top"}),
        ([file(".wh.top"), file("top", "back")], {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/link", "/top"}),
        ([file("a/b/.wh.three"), file("a/.wh..wh..opq")], {"/a", "/link", "/top", "/a/b"}),
        ([file("a/.wh.b"), file("a/.wh.one"), file("a/.wh.two")], {"/a", "/link", "/top"}),
        ([directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs")],
         {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/link", "/top"}),
        ([file("new/.wh.nothing"), file("new/x")],
         {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/link", "/top", "/new", "/new/x"}),
        ([directory("a"), file("a/.wh.b"), directory("a/b"), file("a/b/mine")],
         {"/a", "/a/one", "/a/two", "/a/b", "/a/b/mine", "/link", "/top"}),
        ([file(".wh.link"), directory("link"), file("link/x")],
         {"/a", "/a/one", "/a/two", "/a/b", "/a/b/three", "/link", "/link/x", "/top"}),
    ],
)  # fmt: skip
def test_a_whiteout_hides_what_lower_layers_have_and_only_that(
    workshop: Workshop, upper: list[Item], expected: set[str]
) -> None:
    workshop.add(lower())
    workshop.add(tar(upper))
    seen = workshop.seen()
    assert names(seen) == expected
    assert not any(entry["kind"] == "ghost" for entry in seen.values())


def test_an_opaque_directory_keeps_its_metadata_and_one_made_anew_does_not(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [Item("a/", tarfile.DIRTYPE, mode=0o1777, uid=5), Item("b/", tarfile.DIRTYPE, mode=0o1777, uid=5)]
        )
    )
    workshop.add(tar([file("a/.wh..wh..opq"), file("a/x"), file(".wh.b"), file("b/x")]))
    seen = workshop.seen()
    assert (seen["/a"]["mode"], seen["/a"]["owner"]) == (0o1777, [5, 0])
    assert (seen["/b"]["mode"], seen["/b"]["owner"]) == (0o755, [0, 0])


def test_a_removed_file_stays_removed_in_layers_above_and_can_come_back(workshop: Workshop) -> None:
    workshop.add(lower())
    workshop.add(tar([file(".wh.a")]))
    workshop.add(tar([file("a/again", "x")]))
    seen = workshop.seen()
    assert names(seen) == {"/a", "/a/again", "/link", "/top"}
    assert seen["/a"]["mode"] == 0o755


def test_a_whiteout_of_what_a_lower_layer_already_removed_leaves_no_ghost(workshop: Workshop) -> None:
    workshop.add(lower())
    workshop.add(tar([file("a/.wh.one")]))
    workshop.add(tar([file("a/.wh.one"), file(".wh.nothing")]))
    assert names(workshop.seen()) == {"/a", "/a/two", "/a/b", "/a/b/three", "/link", "/top"}


# --- hard links -------------------------------------------------------------------------------------------------------


def test_a_hard_link_to_a_file_of_a_lower_layer_shares_its_inode_with_a_copy(workshop: Workshop) -> None:
    workshop.add(
        tar(
            [
                Item("bin/", tarfile.DIRTYPE, mode=0o750, gid=9),
                Item("bin/tool", data=b"tool", mode=0o4755, uid=3),
            ]
        )
    )
    workshop.add(tar([hard_link("usr/alias", "bin/tool"), hard_link("again", "usr/alias")]))
    seen = workshop.seen()
    assert seen["/usr/alias"]["links"] == ["/again", "/bin/tool", "/usr/alias"]
    assert (seen["/again"]["mode"], seen["/again"]["owner"], seen["/again"]["size"]) == (0o4755, [3, 0], 4)
    assert (seen["/bin"]["mode"], seen["/bin"]["owner"]) == (0o750, [0, 9])
    assert list(damaged(workshop.layers[1], workshop.indexes[1])) == []


def test_a_hard_link_may_replace_a_file_and_be_replaced(workshop: Workshop) -> None:
    workshop.add(
        tar([file("a", "a"), file("b", "b"), hard_link("b", "a"), hard_link("c", "a"), file("c", "c")])
    )
    seen = scan(workshop.layers[0])
    assert seen["/a"]["links"] == ["/a", "/b"]
    assert (workshop.layers[0] / "c").read_text() == "c"
    assert list(damaged(workshop.layers[0], workshop.indexes[0])) == []


def test_a_hard_link_to_a_symlink_links_the_symlink_itself(workshop: Workshop) -> None:
    workshop.add(tar([symlink("s", "/etc/shadow"), hard_link("t", "s")]))
    seen = scan(workshop.layers[0])
    assert (seen["/t"]["kind"], seen["/t"]["target"]) == ("symlink", "/etc/shadow")


@pytest.mark.parametrize("target", ["/etc/hostname", "missing", "dir", "self", ".", "gone", "link/passwd"])
def test_a_hard_link_to_anything_but_a_file_of_the_image_is_refused(workshop: Workshop, target: str) -> None:
    workshop.add(tar([directory("dir"), file("gone"), symlink("link", "/etc")]))
    with pytest.raises(InvalidLayerError, match="hard link"):
        workshop.add(tar([file(".wh.gone"), hard_link("self", target)]))


# --- beside others ----------------------------------------------------------------------------------------------------


def test_the_result_is_what_umoci_unpacks(workshop: Workshop) -> None:
    below = tar(
        [
            directory("./"),
            directory("etc", 0o750),
            Item("etc/conf", data=b"1", mode=0o640, uid=10, gid=20),
            directory("bin"),
            Item("bin/su", data=b"su", mode=0o4755),
            hard_link("bin/su2", "bin/su"),
            symlink("sbin", "bin"),
            directory("var"),
            directory("var/cache", 0o1777),
            file("var/cache/x", "x" * 5000),
            directory("gone"),
            file("gone/y"),
            Item("pipe", tarfile.FIFOTYPE, mode=0o600),
            Item("cap", data=b"c", mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
        ]
    )
    above = tar(
        [
            file("etc/conf2", "2"),
            file("var/cache/.wh..wh..opq"),
            file("var/cache/new", "n"),
            file(".wh.gone"),
            hard_link("bin/su3", "bin/su"),
            Item("etc/conf", data=b"changed", mode=0o600),
            symlink("latest", "var/cache"),
        ]
    )
    found = compare_with_umoci(workshop, [layer(below), layer(above)], [below, above])
    # umoci unpacks into one directory: there the third name joins the first two, where overlayfs copies the file up.
    # It also changes the time of directories whose entries it removes or makes.
    assert [line for line in found if ": mtime:" not in line and ": links:" not in line] == []


def test_the_debian_base_image_is_unpacked_as_umoci_unpacks_it(workshop: Workshop) -> None:
    built = debian_base()
    theirs = unpacked_by_umoci(built.layout, built.tag, workshop.path)
    archive = subprocess.run(
        [
            "gzip",
            "-dc",
            str(max((built.layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)),
        ],
        check=True,
        capture_output=True,
    ).stdout
    workshop.add(archive)
    ours = scan(workshop.layers[0])
    assert len(ours) > 5000
    assert differences(ours, theirs) == []
    assert list(damaged(workshop.layers[0], workshop.indexes[0])) == []
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", str(workshop.indexes[0])],
        cwd=workshop.layers[0],
        check=False,
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stdout[-500:]


def test_damage_to_any_file_is_found(workshop: Workshop) -> None:
    workshop.add(tar([file("a/good", "good"), file("a/bad", "bad"), file("lost", "x"), file("swapped", "y")]))
    root = workshop.layers[0]
    (root / "a" / "bad").write_text("bat")
    (root / "lost").unlink()
    (root / "swapped").unlink()
    (root / "swapped").symlink_to("/etc/passwd")
    assert sorted(damaged(root, workshop.indexes[0])) == [b"a/bad", b"lost", b"swapped"]


def test_whiteouts_in_the_layer_are_devices_that_overlayfs_knows(workshop: Workshop) -> None:
    workshop.add(lower())
    workshop.add(tar([file("a/.wh.one"), file("a/b/.wh..wh..opq")]))
    found = (workshop.layers[1] / "a" / "one").lstat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == 0
    assert os.getxattr(workshop.layers[1] / "a" / "b", "trusted.overlay.opaque") == b"y"


def test_an_archive_can_come_in_pieces_of_any_size(workshop: Workshop) -> None:
    archive = tar(
        [directory("d"), *(file(f"d/{n}", os.urandom(n * 97)) for n in range(40)), hard_link("h", "d/3")]
    )
    expected = None
    for size in (1, 511, 512, 513, 10_000):
        piece = Workshop(workshop.path / f"size{size}")
        piece.path.mkdir()
        reader = Reader([archive[at : at + size] for at in range(0, len(archive), size)], Limits())
        root, gone = piece.path / "root", piece.path / "gone"
        root.mkdir()
        gone.mkdir()
        fds = [os.open(path, os.O_RDONLY) for path in (root, gone)]
        unpacker = Unpacker(fds[0], fds[1], io.BytesIO(), limits=Limits(), room=lambda more: None)
        unpacker.extract(reader)
        unpacker.finish(Lowers([]))
        unpacker.close()
        for fd in fds:
            os.close(fd)
        seen = scan(root)
        expected = expected or seen
        assert differences(seen, expected) == []
