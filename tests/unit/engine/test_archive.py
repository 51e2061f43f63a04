"""Archives of images as they come: members are found where they lie, and whatever else comes is refused by name."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.engine.archive import Archive, InvalidArchiveError, open_archive
from reconciler.engine.archived import images
from reconciler.engine.document import InvalidDocumentError
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest


def tar(members: Mapping[str, bytes], links: Mapping[str, tuple[bytes, str]] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return out.getvalue()


def opened(data: bytes) -> Archive:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  the archive closes it
    file.write(data)
    return Archive(file, "x.tar")


def digest(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


@given(
    st.dictionaries(
        st.text("abcé/.-", min_size=1, max_size=120).filter(lambda n: n.strip("/.") != ""),
        st.binary(max_size=3000),
        max_size=8,
    )
)
def test_every_member_is_read_from_where_it_lies(members: dict[str, bytes]) -> None:
    names = {name: name.strip("/") for name in members}
    if len({Path(f"/{name}").resolve() for name in names.values()}) < len(names):
        return  # two spellings of one name
    archive = opened(tar(members))
    try:
        for data in members.values():
            file = archive.blob(digest(data))
            assert file is not None
            with file:
                assert file.read() == data
    finally:
        archive.close()


def test_links_are_other_names_within_the_archive_and_lead_nowhere_else() -> None:
    links = {
        "a/same": (tarfile.SYMTYPE, "../b/layer.tar"),
        "again": (tarfile.SYMTYPE, "a/same"),
        "hard": (tarfile.LNKTYPE, "b/layer.tar"),
        "out": (tarfile.SYMTYPE, "/etc/passwd"),
        "up": (tarfile.SYMTYPE, "../../etc/passwd"),
        "loop": (tarfile.SYMTYPE, "pool"),
        "pool": (tarfile.SYMTYPE, "loop"),
    }
    archive = opened(tar({"b/layer.tar": b"layer"}, links))
    assert {name for name in links if archive.member(name)} == {"a/same", "again", "hard"}
    assert archive.read("./a/../again", 10) == b"layer"
    assert archive.read("/etc/passwd", 10) is None
    archive.close()


def test_one_name_with_two_contents_is_refused() -> None:
    """Whoever reads the first, and whoever reads the last, would load different images."""
    data = tar({"a": b"1"})[:1024] + tar({"a": b"2"})
    with pytest.raises(InvalidArchiveError, match="twice"):
        opened(data)
    archive = opened(tar({"a": b"1"})[:1024] + tar({"./a": b"1"}))
    assert archive.read("a", 9) == b"1"
    archive.close()


def test_a_member_beyond_its_limit_and_too_many_are_refused() -> None:
    archive = opened(tar({"manifest.json": b" " * 100}))
    with pytest.raises(VerificationError, match="100 bytes, expected at most 99"):
        archive.read("manifest.json", 99)
    archive.close()
    one = tar({"a": b""})[:512]
    many = b"".join(tar({f"{number}": b""})[:512] for number in range(20_010)) + one
    with pytest.raises(InvalidArchiveError, match="more than 20000 files"):
        opened(many + bytes(1024))


WHOLE = tar(
    {
        "oci-layout": b"{}",
        "index.json": json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    {
                        "mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "size": 2,
                        "digest": str(digest(b"{}")),
                    }
                ],
            }
        ).encode(),
        "manifest.json": json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l"]}]).encode(),
        "c.json": b"{}",
        "l": b"layer",
    }
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=12),
    st.integers(0, len(WHOLE)),
)
def test_whatever_is_changed_in_it_an_archive_is_read_or_refused_by_name(
    changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    archive = None
    try:
        archive = opened(bytes(data[: end or None]))
        for image in images(archive):
            assert isinstance(image.digest, Digest)
    except VerificationError as error:
        said = str(error)
    else:
        said = "x.tar: read"
    finally:
        if archive is not None:
            archive.close()
    assert said.startswith("x.tar: ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["Config", "Layers", "RepoTags", "manifests", "digest", "mediaType", "annotations"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_a_list_of_any_form_is_read_or_refused(value: object) -> None:
    for name in ("manifest.json", "index.json"):
        archive = opened(tar({name: json.dumps(value).encode(), "c.json": b"{}"}))
        said = "x.tar: read"
        try:
            images(archive)
        except (InvalidDocumentError, InvalidArchiveError) as error:
            said = str(error)
        finally:
            archive.close()
        assert said.startswith("x.tar: ")


def test_what_is_packed_is_unpacked_first_and_another_packer_named(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar({"a": b"content"})))
    archive = open_archive(path, io.BytesIO(), tmp_path)
    assert archive.read("a", 10) == b"content"
    archive.close()
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InvalidArchiveError, match="cut off"):
        open_archive(path, io.BytesIO(), tmp_path)
    path.write_bytes(b"BZh91AY&SY" + bytes(100))
    with pytest.raises(InvalidArchiveError, match="bzip2") as caught:
        open_archive(path, io.BytesIO(), tmp_path)
    assert caught.value.hint == "unpack it first: bzip2 -dc"
