"""Documents that strangers wrote: strict JSON, manifests, indexes and configs, and which platform fits."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.document import InvalidDocumentError, parse
from reconciler.engine.image import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    assemble,
    chain_ids,
    digest_of,
    is_index,
    parse_config,
    parse_index,
    parse_manifest,
    select_platform,
)
from reconciler.engine.imagerecord import InvalidRecordError, LayerRecord, decode_image, encode_image
from reconciler.engine.limits import Limits
from reconciler.engine.platform import Platform, PlatformError, host_platform
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest

A, B = Digest("sha256", "a" * 64), Digest("sha256", "b" * 64)


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def descriptor(media_type: str, digest: Digest = A, size: int = 10, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size, **more}


def manifest(**change: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG),
        "layers": [descriptor(OCI_LAYER + "+gzip")],
    } | change


def config(**change: Any) -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(B)]},
    } | change


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": 1} x',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a": 0x10}',
        b"{'a': 1}",
        b'{"a": 1,}',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_not_exactly_a_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocumentError):
        parse(data, subject="x", limit=1 << 20)


def test_a_document_beyond_its_limit_or_of_too_many_members_is_refused() -> None:
    with pytest.raises(InvalidDocumentError, match="at most 10"):
        parse(b'{"a": "12345678"}', subject="x", limit=10)
    with pytest.raises(InvalidDocumentError, match="members"):
        parse(b'{"a": [' + b"1," * 300_000 + b"1]}", subject="x", limit=1 << 22)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    try:
        parse(data, subject="x", limit=1000)
    except InvalidDocumentError:
        pass


@pytest.mark.parametrize("value", [True, 1.5, "1", [], {}])
def test_a_size_is_an_integer_and_nothing_that_resembles_one(value: object) -> None:
    with pytest.raises(InvalidDocumentError, match="size"):
        parse_manifest(encode(manifest(config=descriptor(OCI_CONFIG) | {"size": value})))


# --- manifests --------------------------------------------------------------------------------------------------------


def test_oci_and_docker_manifests_are_read_alike() -> None:
    docker = manifest(
        mediaType=DOCKER_MANIFEST,
        config=descriptor(DOCKER_CONFIG),
        layers=[descriptor(DOCKER_LAYER + ".gzip", B, 20)],
    )
    found = parse_manifest(encode(docker), declared=(DOCKER_MANIFEST,))
    assert found.layers[0].digest == B
    assert (
        parse_manifest(
            encode(manifest()), declared=(OCI_MANIFEST, "application/json; charset=utf-8")
        ).config.size
        == 10
    )
    without = manifest()
    del without["mediaType"]
    assert parse_manifest(encode(without), declared=("", OCI_MANIFEST)).config.digest == A


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifests": []}, "ambiguous"),
        ({"mediaType": OCI_INDEX}, "mediaType"),
        ({"mediaType": "text/html"}, "mediaType"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": 3}, "schemaVersion"),
        ({"schemaVersion": None}, "schemaVersion"),
        ({"artifactType": "application/vnd.example"}, "artifact"),
        ({"config": descriptor("application/vnd.oci.empty.v1+json")}, "artifact"),
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json")}, "artifact"),
        ({"config": None}, "config is missing"),
        ({"config": []}, "config"),
        ({"config": descriptor(OCI_CONFIG, size=5 << 20)}, "config of"),
        ({"config": descriptor(OCI_CONFIG) | {"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}}, "digest"),
        ({"config": descriptor(OCI_CONFIG) | {"digest": f"sha256:{'A' * 64}"}}, "digest"),
        ({"config": descriptor(OCI_CONFIG) | {"digest": "sha256:../../../etc/passwd"}}, "digest"),
        ({"layers": None}, "layers is missing"),
        ({"layers": []}, "no layers"),
        ({"layers": {}}, "layers"),
        ({"layers": ["x"]}, r"layers\[0\]"),
        ({"layers": [descriptor(OCI_LAYER, size=-1)]}, "out of range"),
        ({"layers": [descriptor(OCI_LAYER, size=1 << 63)]}, "out of range"),
        ({"layers": [descriptor(OCI_LAYER, size=1 << 50)]}, "at most"),
        ({"layers": [descriptor(OCI_LAYER, urls=["http://x/"])]}, "foreign"),
        ({"layers": [descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]}, "foreign"),
        ({"layers": [descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar")]}, "foreign"),
        ({"layers": [descriptor(OCI_LAYER + "+encrypted")]}, "unpacked"),
        ({"layers": [descriptor(OCI_CONFIG)]}, "unpacked"),
        ({"layers": [descriptor(OCI_LAYER)] * 501}, "at most 500"),
    ],
)
def test_a_manifest_that_is_no_plain_image_is_refused_by_name(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidDocumentError, match=message):
        parse_manifest(encode(manifest(**change)))


def test_an_image_of_the_most_layers_that_overlayfs_stacks_is_read() -> None:
    assert len(parse_manifest(encode(manifest(layers=[descriptor(OCI_LAYER)] * 500))).layers) == 500


@pytest.mark.parametrize(
    "declared",
    [OCI_INDEX, DOCKER_MANIFEST, "text/html", "application/vnd.docker.distribution.manifest.v1+prettyjws"],
)
def test_a_declaration_that_contradicts_the_document_is_refused(declared: str) -> None:
    """CVE-2021-41190."""
    with pytest.raises(InvalidDocumentError, match="declared as"):
        parse_manifest(encode(manifest()), declared=(declared,))


def test_an_index_is_told_from_a_manifest_and_a_chimera_is_refused() -> None:
    index = {"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]}
    assert is_index(encode(index), subject="x")
    assert not is_index(encode(manifest()), subject="x")
    parts: list[dict[str, object]] = [{"layers": []}, {"config": {}}]
    for part in parts:
        with pytest.raises(InvalidDocumentError, match="ambiguous"):
            is_index(encode(index | part), subject="x")
        with pytest.raises(InvalidDocumentError, match="ambiguous"):
            parse_index(encode(index | part))
    with pytest.raises(InvalidDocumentError, match="schema 1"):
        is_index(encode({"schemaVersion": 1, "fsLayers": []}), subject="x")


# --- platforms --------------------------------------------------------------------------------------------------------


def index_of(*platforms: str | None) -> bytes:
    entries = []
    for number, text in enumerate(platforms):
        item = descriptor(OCI_MANIFEST, digest_of(str(number).encode()))
        if text is not None:
            system, architecture, *variant = text.split("/")
            item["platform"] = {"os": system, "architecture": architecture} | (
                {"variant": variant[0]} if variant else {}
            )
        entries.append(item)
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


@pytest.mark.parametrize(
    ("device", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm64"], 1),
        ("linux/arm64/v8", ["linux/aarch64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm/v7", ["linux/arm"], 0),
        ("linux/arm/v6", ["linux/arm/v5", "linux/arm/v7"], 0),
        ("linux/arm/v8", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/amd64", ["unknown/unknown", "linux/x86_64"], 1),
        ("linux/amd64", [None], 0),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/386", ["linux/amd64", "linux/386"], 1),
        ("linux/riscv64", ["linux/riscv64"], 0),
    ],
)
def test_the_best_manifest_that_the_device_runs_is_chosen(
    device: str, offered: list[str | None], chosen: int
) -> None:
    index = parse_index(index_of(*offered))
    assert select_platform(index, Platform.parse(device)).digest == digest_of(str(chosen).encode())


@pytest.mark.parametrize(
    ("device", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "windows/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm"]),
        ("linux/arm64", ["linux/arm/v7"]),
        ("linux/amd64", ["linux/amd64/v3"]),
        ("linux/amd64", ["unknown/unknown"]),
        ("linux/amd64", []),
    ],
)
def test_no_manifest_for_the_platform_names_both(device: str, offered: list[str]) -> None:
    with pytest.raises(PlatformError) as caught:
        select_platform(parse_index(index_of(*offered)), Platform.parse(device))
    assert f"no image for {device}" in str(caught.value)
    for name in offered:
        assert name in str(caught.value) or name.startswith("unknown")


def test_the_platform_of_this_machine_can_be_spelled() -> None:
    assert Platform.parse(str(host_platform())) == host_platform()
    for text in ("linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/a b", ""):
        with pytest.raises(PlatformError):
            Platform.parse(text)


# --- images -----------------------------------------------------------------------------------------------------------


def pair(**change: Any) -> tuple[bytes, bytes]:
    inner = encode(config(**change))
    outer = manifest(config=descriptor(OCI_CONFIG, digest_of(inner), len(inner)))
    return encode(outer), inner


def test_an_image_is_assembled_with_everything_a_container_inherits() -> None:
    settings: dict[str, object] = {
        "Entrypoint": ["/run"],
        "Cmd": None,
        "Env": ["B=2", "A=1"],
        "WorkingDir": "",
        "User": "1000:1000",
        "StopSignal": "",
        "Volumes": {"/b": {}, "/a": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"z": "1", "a": "2"},
    }
    outer, inner = pair(config=settings)
    image = assemble(A, outer, inner, platform=Platform.parse("linux/amd64"))
    assert image.index == A
    assert image.manifest == digest_of(outer)
    assert image.config == digest_of(inner)
    assert (image.entrypoint, image.command) == (("/run",), None)
    assert (image.environment, image.working_dir, image.user) == (("B=2", "A=1"), "/", "1000:1000")
    assert (image.volumes, image.exposed_ports, image.stop_signal) == (("/a", "/b"), ("80/tcp",), None)
    assert image.labels == (("a", "2"), ("z", "1"))
    assert image.layers[0].chain_id == image.layers[0].diff_id == B
    assert decode_image(encode(encode_image(image))) == image


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs": {"type": "layers", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": [str(A), str(B)]}},
        {"rootfs": {"type": "layers", "diff_ids": [f"sha512:{'a' * 128}"]}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:short"]}},
        {"rootfs": {"type": "layers", "diff_ids": [5]}},
        {"rootfs": {"type": "other", "diff_ids": [str(B)]}},
        {"rootfs": None},
        {"os": None},
        {"architecture": None},
        {"config": {"Env": "A=1"}},
        {"config": {"Env": [1]}},
        {"config": {"Cmd": "/bin/sh"}},
        {"config": {"Labels": {"a": 1}}},
        {"config": {"User": 1000}},
        {"config": []},
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    """umoci panics on a wrong number of diff_ids."""
    outer, inner = pair(**change)
    with pytest.raises(VerificationError):
        assemble(A, outer, inner)


def test_a_config_other_than_the_manifest_names_is_refused() -> None:
    outer, inner = pair()
    with pytest.raises(VerificationError, match="digest"):
        assemble(A, outer, inner.replace(b"amd64", b"arm64"))
    with pytest.raises(VerificationError, match="bytes"):
        assemble(A, outer, inner + b" ")


def test_a_pinned_manifest_for_another_platform_names_both() -> None:
    outer, inner = pair(architecture="arm64")
    with pytest.raises(PlatformError, match="no image for linux/amd64, available: linux/arm64"):
        assemble(A, outer, inner, platform=Platform.parse("linux/amd64"))
    outer, inner = pair(architecture="arm", variant="v7")
    with pytest.raises(PlatformError, match="no image for linux/arm/v6, available: linux/arm/v7"):
        assemble(A, outer, inner, platform=Platform.parse("linux/arm/v6"))
    outer, inner = pair(architecture="arm")  # many configs leave out what their index says
    assert assemble(A, outer, inner, platform=Platform.parse("linux/arm/v6")).platform == "linux/arm"


def test_a_pinned_sha512_names_the_manifest_itself() -> None:
    outer, inner = pair()
    pinned = digest_of(outer, "sha512")
    assert assemble(pinned, outer, inner).manifest == pinned


def test_chain_ids_are_those_of_the_specification() -> None:
    assert chain_ids([A]) == (A,)
    assert chain_ids([A, B])[1] == digest_of(f"{A} {B}".encode())
    assert chain_ids([A, B, A])[2] == digest_of(f"{chain_ids([A, B])[1]} {A}".encode())


def test_a_document_of_more_than_four_mebibytes_is_refused() -> None:
    with pytest.raises(InvalidDocumentError):
        parse_config(encode(config(history=["x" * (5 << 20)])))
    assert parse_config(encode(config(history=["x" * 1000])), limits=Limits(document=2000)).diff_ids == (B,)


# --- records ----------------------------------------------------------------------------------------------------------


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_record_with_any_byte_changed_is_no_record(position: int, value: int) -> None:
    record = LayerRecord(A, B, B, None, 5, 6, 7.0)
    data = bytearray(json.dumps(record.encode(), sort_keys=True).encode())
    assert LayerRecord.decode(bytes(data), A) == record
    position %= len(data)
    if data[position] == value:
        return
    data[position] = value
    try:
        assert LayerRecord.decode(bytes(data), A) == record  # only white space can change without meaning
    except InvalidRecordError:
        pass


def test_a_record_of_another_layer_or_version_is_no_record() -> None:
    record = LayerRecord(A, B, B, None, 5, 6, 7.0)
    with pytest.raises(InvalidRecordError, match="is that of"):
        LayerRecord.decode(encode(record.encode()), B)
    with pytest.raises(InvalidRecordError, match="version"):
        LayerRecord.decode(encode(record.encode() | {"version": 2}), A)
