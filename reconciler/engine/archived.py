"""Which images an archive has: an OCI image layout packed as tar, or what `docker save` writes.

Docker's form has no manifest (`manifest.json` is a list of files): one is made of the files' own digests, the same for
the same files. Names are what the archive says; whether anything is called so is not decided here. Reads only.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine.archive import Archive, InvalidArchiveError, Member
from reconciler.engine.document import Object, parse, parse_list
from reconciler.engine.image import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    digest_of,
)
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import read_index
from reconciler.engine.trust.shelf import is_beside
from reconciler.spec.reference import Digest, InvalidReferenceError

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_WHOLE_NAME: Final = "io.containerd.image.name"
_PACKED: Final = {b"\x1f\x8b\x08": ".gzip", b"\x28\xb5\x2f": ".zstd"}
_HEX: Final = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Archived:
    """An image of an archive: the digest to resolve, and what the archive calls it."""

    digest: Digest
    names: tuple[str, ...]


def images(archive: Archive) -> tuple[Archived, ...]:
    """The images of `archive`, in its order; InvalidArchiveError or InvalidDocumentError where it has none, or half.

    Of an archive that has both forms the OCI layout is what counts, and the list's names are added to its images.
    """
    docker, oci = archive.found.get("manifest.json"), archive.found.get("index.json")
    if docker is None and oci is None:
        raise InvalidArchiveError(
            f"{archive.name}: neither index.json nor manifest.json is in it",
            hint="what is expected is an OCI layout as tar, or what `docker save` writes",
        )
    listed = _docker(archive) if docker is not None else ()
    if oci is None:
        return listed
    found = _oci(archive)
    if not found:
        return listed
    by_config = {_config(archive, image.digest): image.names for image in listed}
    return tuple(_with(image, by_config.get(_config(archive, image.digest), ())) for image in found)


def _with(image: Archived, names: tuple[str, ...]) -> Archived:
    """Whole names instead of a tag alone, which says nothing where the other form says more."""
    return Archived(image.digest, names or image.names)


def _config(archive: Archive, digest: Digest) -> str:
    """The digest of the config of a manifest that is there; another one where it is an index."""
    file = archive.blob(digest)
    if file is None:
        return str(digest)
    with file:
        document = parse(
            file.read(_LIMITS.document + 1), subject=f"{archive.name}: {digest.short}", limit=_LIMITS.document
        )
    config = document.child("config")
    return (config.text("digest") if config is not None else None) or str(digest)


# --- OCI ------------------------------------------------------------------------------------------------------------


def images_of(directory: Path) -> tuple[Archived, ...]:
    """The images of the layout in `directory`; NotFoundError where it is none."""
    return _listed_by(read_index(directory))


def _oci(archive: Archive) -> tuple[Archived, ...]:
    subject = f"{archive.name}: index.json"
    data = archive.read("index.json", _LIMITS.document) or b""
    return _listed_by(parse(data, subject=subject, limit=_LIMITS.document))


def _listed_by(index: Object) -> tuple[Archived, ...]:
    names: dict[Digest, list[str]] = {}
    for entry in index.children("manifests") or []:
        if entry.required_text("mediaType") not in INDEX_TYPES | MANIFEST_TYPES or is_beside(entry):
            continue  # a signature, an attestation, or another artifact
        digest = _digest(entry, entry.required_text("digest"))
        notes = entry.child("annotations")
        name = (notes.text(_WHOLE_NAME) or notes.text(_REF_NAME)) if notes is not None else None
        known = names.setdefault(digest, [])
        if name and name not in known:
            known.append(name)
    return tuple(Archived(digest, tuple(known)) for digest, known in names.items())


def _digest(holder: Object, text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidReferenceError as error:
        raise InvalidArchiveError(f"{holder.subject}: {error}") from error


# --- Docker's -------------------------------------------------------------------------------------------------------


def _docker(archive: Archive) -> tuple[Archived, ...]:
    subject = f"{archive.name}: manifest.json"
    data = archive.read("manifest.json", _LIMITS.document) or b""
    return tuple(
        _listed(archive, entry) for entry in parse_list(data, subject=subject, limit=_LIMITS.document)
    )


def _listed(archive: Archive, entry: Object) -> Archived:
    place = entry.required_text("Config")
    config = archive.read(place, _LIMITS.document)
    if config is None:
        entry.fail(f"Config: {place[:100]!r} is not in the archive")
    own = _HEX.fullmatch(place)
    if own is not None and digest_of(config).hex != own[1]:
        raise InvalidArchiveError(
            f"{entry.subject}: Config: {place[:100]} has the digest {digest_of(config)}, expected sha256:{own[1]}"
        )
    layers = [_layer(archive, entry, path) for path in entry.texts("Layers") or ()]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": len(config), "digest": str(digest_of(config))},
            "layers": layers,
        },
        separators=(",", ":"),
    ).encode()
    archive.add(digest_of(config), config)
    archive.add(digest_of(manifest), manifest)
    return Archived(digest_of(manifest), entry.texts("RepoTags") or ())


def _layer(archive: Archive, entry: Object, path: str) -> dict[str, object]:
    member: Member | None = archive.member(path)
    if member is None:
        entry.fail(f"Layers: {path[:100]!r} is not in the archive")
    with archive.open(member) as file:
        packed = _PACKED.get(file.read(3), "")
    return {"mediaType": DOCKER_LAYER + packed, "size": member.size, "digest": str(member.digest)}
