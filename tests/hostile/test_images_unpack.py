"""Layers that attack whoever unpacks them. Whatever happens, nothing outside the layer's own directory changes.

The classes are those of known vulnerabilities of container engines; the name of each test says which way is tried.
"""

import os
import random
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.engine.limits import MIB, Limits
from reconciler.engine.tarfields import InvalidLayerError
from tests.images import Item, directory, file, hard_link, symlink, tar
from tests.kernel.rootfs import Tree, scan
from tests.kernel.workshop import Workshop, make_workshop, remove, scratch

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

workshop = pytest.fixture(make_workshop, name="workshop")


@pytest.fixture
def canary() -> Iterator[Path]:
    """A directory of the host that no test may change."""
    path = scratch("canary")
    (path / "file").write_text("untouched")
    (path / "directory").mkdir(mode=0o700)
    (path / "directory" / "inner").write_text("untouched")
    before = scan(path)
    yield path
    after = scan(path)
    remove(path)
    assert after == before


def attempt(workshop: Workshop, *layers: list[Item]) -> Tree | None:
    """Unpack layers; returns what they look like, or None where one was refused."""
    try:
        for items in layers:
            workshop.add(tar(items))
    except InvalidLayerError:
        return None
    return workshop.seen()


# --- names that lead out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["../" * 12, "a/" + "../" * 13, "./../" * 6, "/" + "../" * 12, "a/b/../../" + "../" * 12]
)
def test_a_name_with_dot_dot_is_refused(workshop: Workshop, canary: Path, prefix: str) -> None:
    for item in (
        file(f"{prefix}{canary}/file", "overwritten"),
        directory(f"{prefix}{canary}/new"),
        symlink(f"{prefix}x", "y"),
    ):
        with pytest.raises(InvalidLayerError, match=r"\.\."):
            workshop.add(tar([item]))


def test_an_absolute_name_lands_inside(workshop: Workshop, canary: Path) -> None:
    seen = attempt(workshop, [file(f"{canary}/file", "overwritten")])
    assert seen is not None
    assert f"{canary}/file" in seen


@pytest.mark.parametrize(
    "target", ["{canary}", "/../../../../../..{canary}", "../../../../../../../..{canary}"]
)
def test_a_symlink_is_not_written_through(workshop: Workshop, canary: Path, target: str) -> None:
    link = symlink("x", target.format(canary=canary))
    for items in (
        [link, file("x/file", "overwritten")],
        [link, directory("x/directory", 0o777)],
        [link, symlink("x/new", "y")],
    ):
        seen = attempt(workshop, items)
        assert seen is not None
        assert any(path.startswith(f"{canary}/") for path in seen)


def test_a_symlink_of_a_lower_layer_is_not_written_through(workshop: Workshop, canary: Path) -> None:
    seen = attempt(
        workshop,
        [symlink("x", str(canary))],
        [file("x/file", "overwritten"), file("x/directory/inner", "too")],
    )
    assert seen is not None
    assert seen["/x"]["kind"] == "directory"


def test_a_symlink_in_place_of_a_file_is_replaced_not_followed(workshop: Workshop, canary: Path) -> None:
    seen = attempt(workshop, [symlink("x", f"{canary}/file"), file("x", "overwritten")])
    assert seen is not None
    assert seen["/x"]["kind"] == "file"


def test_a_directory_entry_for_a_symlink_changes_no_mode_behind_it(workshop: Workshop, canary: Path) -> None:
    """CVE-2021-32760: chmod through a symlink that an earlier entry made."""
    items = [symlink("x", f"{canary}/directory"), Item("x/", tarfile.DIRTYPE, mode=0o777, uid=1)]
    seen = attempt(workshop, items)
    assert seen is not None
    assert seen["/x"]["kind"] == "directory"


def test_a_chain_of_symlinks_that_never_ends_is_refused(workshop: Workshop) -> None:
    loop = [symlink("a", "b"), symlink("b", "a"), file("a/x")]
    assert attempt(workshop, loop) is None
    assert attempt(workshop, [symlink(f"l{n}", f"l{n + 1}") for n in range(60)] + [file("l0/x")]) is None


@pytest.mark.parametrize("target", ["{canary}/file", "../../../../../../..{canary}/file", "through/file"])
def test_a_hard_link_reaches_no_file_of_the_host(workshop: Workshop, canary: Path, target: str) -> None:
    items = [symlink("through", str(canary)), hard_link("stolen", target.format(canary=canary))]
    assert attempt(workshop, items) is None
    assert (canary / "file").stat().st_nlink == 1


def test_a_hard_link_follows_no_symlink_at_its_end(workshop: Workshop, canary: Path) -> None:
    seen = attempt(workshop, [symlink("s", f"{canary}/file"), hard_link("h", "s"), file("h", "overwritten")])
    assert seen is not None
    assert seen["/s"]["kind"] == "symlink"
    assert seen["/h"]["kind"] == "file"


# --- the root and whiteouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./", ".", "/", "././", "//"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_the_root_can_not_be_replaced(workshop: Workshop, canary: Path, name: str, kind: bytes) -> None:
    """CVE-2021-29136."""
    with pytest.raises(InvalidLayerError):
        workshop.add(tar([Item(name, kind, target=str(canary))]))
    assert stat.S_ISDIR((workshop.path / "layer0").lstat().st_mode)


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y", "a/.wh.x/y"]
)
def test_a_whiteout_of_nothing_or_with_something_below_it_is_refused(workshop: Workshop, name: str) -> None:
    with pytest.raises(InvalidLayerError):
        workshop.add(tar([file(name)]))


@pytest.mark.parametrize("name", ["x/.wh.file", "x/.wh..wh..opq", "x/.wh.directory"])
def test_a_whiteout_removes_nothing_through_a_symlink(workshop: Workshop, canary: Path, name: str) -> None:
    attempt(workshop, [symlink("x", str(canary)), file(name)])
    attempt(workshop, [symlink("y", "/")], [file(name.replace("x/", f"y{canary}/"))])


def test_a_whiteout_is_a_mark_of_ours_never_an_entry(workshop: Workshop) -> None:
    with pytest.raises(InvalidLayerError, match="device"):
        workshop.add(tar([Item("hidden", tarfile.CHRTYPE, device=(0, 0))]))


# --- what only the engine may make ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
@pytest.mark.parametrize("device", [(1, 1), (8, 0), (254, 0), (1, 3)])
def test_a_device_node_is_refused(workshop: Workshop, kind: bytes, device: tuple[int, int]) -> None:
    with pytest.raises(InvalidLayerError, match="device node"):
        workshop.add(tar([Item("dev/sda", kind, device=device)]))


@pytest.mark.parametrize("space", ["trusted", "user"])
@pytest.mark.parametrize(
    "name", ["opaque", "redirect", "metacopy", "origin", "impure", "whiteout", "anything"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_overlayfs_own_attributes_are_refused(workshop: Workshop, space: str, name: str, kind: bytes) -> None:
    """containers/storage keeps them: a layer can hide lower directories, or redirect to any of them."""
    with pytest.raises(InvalidLayerError, match="extended attribute"):
        workshop.add(tar([Item("x", kind, xattrs={f"{space}.overlay.{name}": "y"})]))


@pytest.mark.parametrize("kind", [b"A", b"D", b"M", b"N", b"V", b"X", b"Z", b"8", b"9", b" ", b"\xff"])
def test_an_entry_of_an_unknown_kind_is_refused(workshop: Workshop, kind: bytes) -> None:
    archive = bytearray(tar([file("x")]))
    archive[156:157] = kind
    archive[148:156] = b"        "
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    with pytest.raises(InvalidLayerError):
        workshop.add(bytes(archive))


@pytest.mark.parametrize(
    ("uid", "gid"), [((1 << 32) - 1, 0), (0, (1 << 32) - 1), (99_999_999_999, 0), (1 << 62, 0), (0, 1 << 32)]
)
def test_an_owner_beyond_32_bits_is_refused_not_wrapped(workshop: Workshop, uid: int, gid: int) -> None:
    """CVE-2024-40635 in its form for files: 2**32 would be root."""
    with pytest.raises(InvalidLayerError, match="out of range"):
        workshop.add(tar([Item("x", uid=uid, gid=gid)]))


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_longer_than_the_file_system_takes_is_refused(workshop: Workshop) -> None:
    with pytest.raises(InvalidLayerError, match="name"):
        workshop.add(tar([file("n" * 256)]))
    with pytest.raises(InvalidLayerError, match="name"):
        workshop.add(tar([file("d" * 256 + "/x")]))


def test_a_path_longer_than_path_max_is_refused(workshop: Workshop) -> None:
    with pytest.raises(InvalidLayerError, match="longer"):
        workshop.add(tar([file("d/" * 2100 + "x")]))


def test_the_deepest_path_that_fits_is_unpacked_and_removed(workshop: Workshop) -> None:
    workshop.add(tar([file("d/" * 2040 + "x", "deep")]))
    with pytest.raises(InvalidLayerError, match="too long"):
        workshop.add(tar([file("d/" * 2040 + ".wh.x")]))
    workshop.add(tar([file("d/" * 1900 + "y", "deep"), file("d/" * 1900 + ".wh.d")]))
    top = os.listdir(workshop.layers[1])
    remove(workshop.layers[1])
    assert top == ["d"]
    assert not workshop.layers[1].exists()


def test_a_nul_in_a_pax_path_is_refused(workshop: Workshop) -> None:
    archive = tar([Item("x", pax={"path": "good\0evil"})])
    with pytest.raises(InvalidLayerError):
        workshop.add(archive)


def test_names_that_differ_in_case_only_are_two_files(workshop: Workshop) -> None:
    seen = attempt(workshop, [file("File", "1"), file("file", "2"), directory("Dir"), file("dir/x")])
    assert seen is not None
    assert {"/File", "/file", "/Dir", "/dir", "/dir/x"} <= set(seen)


def test_entries_below_a_file_are_refused(workshop: Workshop) -> None:
    with pytest.raises(InvalidLayerError, match="below it"):
        workshop.add(tar([file("f", "x"), file("f/g", "y")]))


def test_a_message_shows_no_control_characters_of_a_name(workshop: Workshop) -> None:
    with pytest.raises(InvalidLayerError) as caught:
        workshop.add(tar([Item("\x1b[31mred\n\u202ename", tarfile.CHRTYPE)]))
    assert str(caught.value).isprintable()


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_more_entries_than_allowed_are_refused(workshop: Workshop) -> None:
    workshop.limits = Limits(entries=100)
    with pytest.raises(InvalidLayerError, match="entries"):
        workshop.add(tar([file(f"f{n}") for n in range(101)]))


def test_more_directories_than_memory_should_hold_are_refused(workshop: Workshop) -> None:
    workshop.limits = Limits(directories=100)
    with pytest.raises(InvalidLayerError, match="directories"):
        workshop.add(tar([file(f"d{n}/f") for n in range(101)]))
    workshop.limits = Limits(directory_names=10_000)
    with pytest.raises(InvalidLayerError, match="directories"):
        workshop.add(tar([file(f".wh.{'w' * 200}{n}") for n in range(100)]))


def test_more_content_than_allowed_is_refused_before_it_is_written(workshop: Workshop) -> None:
    workshop.limits = Limits(unpacked=MIB)
    with pytest.raises(InvalidLayerError, match="unpacks to more"):
        workshop.add(tar([file("a", bytes(MIB)), file("b", b"x")]))
    assert not (workshop.path / "layer0" / "b").exists()


def test_a_sparse_file_that_claims_exabytes_is_refused(workshop: Workshop) -> None:
    """umoci and podman write its zeros until the disk is full."""
    claims = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bomb"}
    bomb = Item("x", data=b"0\n".ljust(512, b"\0"), pax={**claims, "GNU.sparse.realsize": str(1 << 60)})
    with pytest.raises(InvalidLayerError, match="unpacks to more"):
        workshop.add(tar([bomb]))


def test_a_layer_that_replaces_its_own_directories_without_end_is_refused(workshop: Workshop) -> None:
    workshop.limits = Limits(replaced=10)
    items = [entry for n in range(11) for entry in (directory(f"d{n}"), file(f"d{n}", "x"))]
    with pytest.raises(InvalidLayerError, match="replaces"):
        workshop.add(tar(items))


def test_a_layer_that_leads_through_its_own_symlinks_without_end_is_refused(workshop: Workshop) -> None:
    workshop.limits = Limits(symlink_hops=20)
    items = [symlink("l", "d"), *(file(f"l/sub{n}/f") for n in range(30))]
    with pytest.raises(InvalidLayerError, match="symlinks"):
        workshop.add(tar(items))


# --- at random ------------------------------------------------------------------------------------------------------

_names = st.lists(
    st.sampled_from(["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", ".", "..", "", "a"]),
    min_size=1,
    max_size=4,
)


@st.composite
def _items(draw: st.DrawFn, canary: str) -> Item:
    name = "/".join(draw(_names))
    target = draw(
        st.sampled_from(
            [
                "a",
                "b",
                "a/b",
                "/",
                "..",
                "../../..",
                "/a",
                canary,
                f"{canary}/file",
                f"../../../../..{canary}",
                ".",
            ]
        )
    )
    kind = draw(
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
        )
    )
    data = draw(st.sampled_from([b"", b"overwritten"])) if kind == tarfile.REGTYPE else b""
    return Item(name, kind, data=data, target=target, mode=draw(st.sampled_from([0o644, 0o4755, 0o777])))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_archive_reaches_outside_its_directory(canary: Path, data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.lists(_items(str(canary)), max_size=8), min_size=1, max_size=3))
    path = scratch("fuzz")
    outside = path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    try:
        before = scan(outside)
        shop = Workshop(path)
        seen = attempt(shop, *layers)
        assert scan(outside) == before
        assert sorted(os.listdir(path)) == sorted(
            ["outside"]
            + [
                f"{kind}{n}"
                for n in range(len(shop.layers) + (seen is None))
                for kind in ("layer", "gone", "index")
            ]
            + (["merged", "empty-layer", "names"] if seen is not None else [])
        )
        for root in shop.layers:
            for entry in scan(root).values():
                assert entry["kind"] not in ("block", "socket")
                assert entry["kind"] != "character" or entry["device"] == [0, 0]
    finally:
        remove(path)


def test_random_damage_to_an_archive_never_does_more_than_fail(workshop: Workshop, canary: Path) -> None:
    good = tar(
        [
            directory("d"),
            file("d/f", b"x" * 700),
            symlink("s", str(canary)),
            hard_link("h", "d/f"),
            Item("x" * 150, pax={"mtime": "1.5"}),
        ]
    )
    chance = random.Random(7)
    for round_number in range(300):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        shop = Workshop(workshop.path / str(round_number))
        shop.path.mkdir()
        try:
            shop.add(bytes(bad))
        except InvalidLayerError:
            continue
