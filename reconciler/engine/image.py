"""OCI and Docker image documents to values: index, manifest, config, and the `Image` they add up to.

Follows the OCI image specification 1.1 and Docker's image manifest version 2, schema 2. The type of a document is read
from its structure and must agree with every place that declares it (descriptor, Content-Type, `mediaType`), so that
nobody else can read the same bytes as something different (CVE-2021-41190). Pure: bytes in, values or errors out.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from reconciler.engine.document import InvalidDocumentError, Object, parse
from reconciler.engine.limits import Limits
from reconciler.engine.platform import Platform, PlatformError
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError
from reconciler.state.image import Image, Layer

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYER_TYPES: Final = {
    OCI_LAYER: "tar",
    OCI_LAYER + "+gzip": "gzip",
    OCI_LAYER + "+zstd": "zstd",
    DOCKER_LAYER: "tar",
    DOCKER_LAYER + ".gzip": "gzip",
    DOCKER_LAYER + ".zstd": "zstd",
}
# Content types that say nothing about the document: static file servers send them.
_VAGUE_TYPES: Final = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: what it says it is, its digest and its size in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """An image index (Docker: manifest list): one descriptor per platform, in the document's order."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What an image config says about the root file system and the defaults of a container."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    environment: tuple[str, ...]
    working_dir: str
    user: str
    stop_signal: str | None
    volumes: tuple[str, ...]
    exposed_ports: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """The digest of `data`."""
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def check(data: bytes, expected: Digest, *, subject: str) -> None:
    """Raise VerificationError unless `data` has the digest `expected`."""
    found = digest_of(data, expected.algorithm)
    if found != expected:
        raise VerificationError(f"{subject}: digest is {found}, expected {expected}")


def compression(media_type: str) -> str:
    """How a layer of `media_type` says it is packed: tar, gzip or zstd."""
    return _LAYER_TYPES[media_type]


# --- documents ----------------------------------------------------------------------------------------------------


def _digest(holder: Object, text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidReferenceError as error:
        raise InvalidDocumentError(f"{holder.subject}: {error}") from error


def _descriptor(item: Object) -> Descriptor:
    size = item.required_integer("size")
    if not 0 <= size < 1 << 63:
        item.fail(f"size {size} is out of range")
    found = item.child("platform")
    platform = None
    if found is not None:
        platform = Platform.normalised(
            found.text("os") or "", found.text("architecture") or "", found.text("variant") or ""
        )
    return Descriptor(
        item.required_text("mediaType"), _digest(item, item.required_text("digest")), size, platform
    )


def _open(
    data: bytes, subject: str, limits: Limits, kinds: frozenset[str], declared: Sequence[str]
) -> Object:
    """Parse and check that every declaration of the document's type agrees with `kinds`, the types of its structure."""
    document = parse(data, subject=subject, limit=limits.document)
    version = document.integer("schemaVersion")
    if version == 1:
        document.fail("Docker schema 1 manifest: not supported, it can't be verified; push the image again")
    if version != 2:
        document.fail(f"schemaVersion is {version}, expected 2")
    inner = document.text("mediaType")
    if inner is not None and inner not in kinds:
        document.fail(f"mediaType is {inner[:100]!r}, which does not fit the document's structure")
    for claim in declared:
        claim = claim.split(";", 1)[0].strip().lower()
        if claim not in _VAGUE_TYPES and (claim not in kinds or (inner is not None and claim != inner)):
            document.fail(
                f"declared as {claim[:100]!r}, but is {inner or min(kinds)!r} (CVE-2021-41190: refused)"
            )
    return document


def is_index(data: bytes, *, subject: str, limits: Limits = _LIMITS) -> bool:
    """Tell an index from a manifest by structure; a document that has parts of both is refused (CVE-2021-41190)."""
    document = parse(data, subject=subject, limit=limits.document)
    index = document.has("manifests")
    if index and (document.has("layers") or document.has("config")):
        document.fail("has both manifests and layers or config: ambiguous (CVE-2021-41190), refused")
    if document.integer("schemaVersion") == 1 or document.has("fsLayers"):
        document.fail("Docker schema 1 manifest: not supported, it can't be verified; push the image again")
    return index


def parse_index(
    data: bytes, *, subject: str = "index", declared: Sequence[str] = (), limits: Limits = _LIMITS
) -> Index:
    """Return the index in `data`, or raise InvalidDocumentError. `declared`: the types that its carriers gave it."""
    document = _open(data, subject, limits, INDEX_TYPES, declared)
    if document.has("layers") or document.has("config"):
        document.fail("has both manifests and layers or config: ambiguous (CVE-2021-41190), refused")
    items = document.children("manifests")
    if items is None:
        document.fail("manifests is missing")
    if document.has("artifactType"):
        document.fail("an artifact, not an image")
    return Index(tuple(_descriptor(item) for item in items))


def _layer(item: Object, limits: Limits) -> Descriptor:
    found = _descriptor(item)
    if item.has("urls") or "nondistributable" in found.media_type or ".foreign." in found.media_type:
        item.fail("a foreign layer (fetched from elsewhere): refused")
    if found.media_type not in _LAYER_TYPES:
        item.fail(f"media type {found.media_type[:100]!r} is not a layer that can be unpacked")
    if found.size > limits.packed:
        item.fail(f"{found.size} bytes, expected at most {limits.packed}")
    return found


def parse_manifest(
    data: bytes, *, subject: str = "manifest", declared: Sequence[str] = (), limits: Limits = _LIMITS
) -> Manifest:
    """Return the image manifest in `data`, or raise InvalidDocumentError; artifacts and foreign layers are refused."""
    document = _open(data, subject, limits, MANIFEST_TYPES, declared)
    if document.has("manifests"):
        document.fail("has both manifests and layers or config: ambiguous (CVE-2021-41190), refused")
    config = _descriptor(document.required_child("config"))
    if document.has("artifactType") or config.media_type not in _CONFIG_TYPES:
        kind = document.text("artifactType") or config.media_type
        document.fail(f"an artifact of type {kind[:100]!r}, not an image")
    if config.size > limits.document:
        document.fail(f"config of {config.size} bytes, expected at most {limits.document}")
    items = document.children("layers")
    if items is None:
        document.fail("layers is missing")
    if not items:
        document.fail("the image has no layers")
    if len(items) > limits.layers:
        document.fail(f"{len(items)} layers, overlayfs stacks at most {limits.layers}")
    return Manifest(config, tuple(_layer(item, limits) for item in items))


def parse_config(data: bytes, *, subject: str = "image config", limits: Limits = _LIMITS) -> Config:
    """Return the image config in `data`, or raise InvalidDocumentError."""
    document = parse(data, subject=subject, limit=limits.document)
    rootfs = document.required_child("rootfs")
    if rootfs.required_text("type") != "layers":
        rootfs.fail("type is not layers")
    diff_ids = tuple(_digest(rootfs, text) for text in rootfs.texts("diff_ids") or ())
    if any(diff_id.algorithm != "sha256" for diff_id in diff_ids):
        rootfs.fail("diff_ids: only sha256 is supported")
    inner = document.child("config") or Object(f"{subject}: config", {})
    labels = inner.child("Labels") or Object(f"{subject}: Labels", {})
    return Config(
        platform=Platform.normalised(
            document.required_text("os"),
            document.required_text("architecture"),
            document.text("variant") or "",
        ),
        diff_ids=diff_ids,
        entrypoint=inner.texts("Entrypoint"),
        command=inner.texts("Cmd"),
        environment=inner.texts("Env") or (),
        working_dir=inner.text("WorkingDir") or "/",
        user=inner.text("User") or "",
        stop_signal=inner.text("StopSignal") or None,
        volumes=_keys(inner, "Volumes"),
        exposed_ports=_keys(inner, "ExposedPorts"),
        labels=tuple(sorted((key, labels.required_text(key)) for key in labels.fields)),
    )


def _keys(holder: Object, key: str) -> tuple[str, ...]:
    found = holder.child(key)
    return () if found is None else tuple(sorted(found.fields))


# --- from documents to an image --------------------------------------------------------------------------------------


def select_platform(index: Index, platform: Platform, *, subject: str = "image") -> Descriptor:
    """Return the descriptor that suits `platform` best, or raise PlatformError naming what is there.

    The highest variant that the device runs wins, then the first in the document (OCI image index, "manifests"). An
    entry without a platform, and a nested index, are taken only if nothing else fits; what they hold is checked later.
    """
    usable = [item for item in index.manifests if item.media_type in MANIFEST_TYPES | INDEX_TYPES]
    best: Descriptor | None = None
    for item in usable:
        if item.platform is None or not platform.runs(item.platform):
            continue
        if best is None or _level(item) > _level(best):
            best = item
    if best is not None:
        return best
    for item in usable:
        if item.platform is None or not item.platform.os:
            return item
    raise wrong_platform(subject, platform, (item.platform for item in usable))


def _level(item: Descriptor) -> tuple[int, int]:
    return (item.platform.level if item.platform else None) or (0, 0)


def wrong_platform(subject: str, wanted: Platform, available: Iterable[Platform | None]) -> PlatformError:
    """The error for an image that has nothing for `wanted`."""
    found = sorted({str(item) for item in available if item is not None and item.os != "unknown"})
    return PlatformError(
        f"{subject}: no image for {wanted}, available: {', '.join(found)[:500] or 'nothing'}",
        hint="pin the digest of an index, or of the manifest for this device's platform",
    )


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """Name each layer together with all below it (OCI image config, "Layer ChainID")."""
    found: list[Digest] = []
    for diff_id in diff_ids:
        found.append(digest_of(f"{found[-1]} {diff_id}".encode()) if found else diff_id)
    return tuple(found)


def assemble(
    pinned: Digest,
    manifest_bytes: bytes,
    config_bytes: bytes,
    *,
    platform: Platform | None = None,
    manifest_digest: Digest | None = None,
    limits: Limits = _LIMITS,
) -> Image:
    """Return the image that a manifest and its config add up to, or raise VerificationError or PlatformError.

    `pinned` is the digest in the spec; `manifest_digest` that of `manifest_bytes`, which the caller has verified (left
    out: computed). With `platform`, an image for another one is refused. The config is verified against the manifest.
    """
    if manifest_digest is None:
        own = digest_of(manifest_bytes, pinned.algorithm)
        manifest_digest = own if own == pinned else digest_of(manifest_bytes)
    subject = f"image {pinned.short}"
    manifest = parse_manifest(manifest_bytes, subject=f"{subject}: manifest", limits=limits)
    if len(config_bytes) != manifest.config.size:
        raise VerificationError(
            f"{subject}: config of {len(config_bytes)} bytes, expected {manifest.config.size}"
        )
    check(config_bytes, manifest.config.digest, subject=f"{subject}: config")
    config = parse_config(config_bytes, subject=f"{subject}: config", limits=limits)
    if platform is not None:
        found = config.platform
        # A config often leaves out the variant that its index gave; only one that is there can be wrong.
        same = (platform.os, platform.architecture) == (found.os, found.architecture)
        if not same or (found.variant and not platform.runs(found)):
            raise wrong_platform(subject, platform, [found])
    if len(config.diff_ids) != len(manifest.layers):
        raise VerificationError(
            f"{subject}: {len(config.diff_ids)} diff_ids for {len(manifest.layers)} layers, expected one each"
        )
    layers = tuple(
        Layer(item.digest, item.size, item.media_type, diff_id, chain_id)
        for item, diff_id, chain_id in zip(
            manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
        )
    )
    return Image(
        index=pinned,
        manifest=manifest_digest,
        config=manifest.config.digest,
        layers=layers,
        platform=str(config.platform),
        entrypoint=config.entrypoint,
        command=config.command,
        environment=config.environment,
        working_dir=config.working_dir,
        user=config.user,
        stop_signal=config.stop_signal,
        volumes=config.volumes,
        exposed_ports=config.exposed_ports,
        labels=config.labels,
    )
