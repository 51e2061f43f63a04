"""Where signatures lie beside an image: in its repository at a registry, or in an OCI layout with it.

Both are asked the same three things. What comes back is bytes, of which documents and blobs that were asked for by
digest are verified; nothing is judged here. Reads only.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

from reconciler.engine.archive import Archive
from reconciler.engine.document import InvalidDocumentError, Object, parse
from reconciler.engine.image import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, check
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Directory, Holder, read_index
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.places import Place
from reconciler.engine.trust.claim import BUNDLE
from reconciler.errors import NotFoundError, VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError

_LIMIT: Final = Limits().document
_PAGES: Final = 4
_UNSAID: Final = 1024  # manifests of a layout that are read to learn what they refer to
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_SIGNATURES: Final = "dev.cosignproject.cosign/sigs"  # the `kind` of what `cosign save` has written
_NO_REFERRERS: Final = (400, 404, 405, 406)  # what registries say that do not have this part of the API
_NAME: Final = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?", re.ASCII)


def signature_tag(digest: Digest) -> str:
    """The tag that cosign gives to the signatures of an image; "" where such a tag would be too long for one."""
    return f"{digest.algorithm}-{digest.hex}.sig" if digest.algorithm == "sha256" else ""


def fallback_tag(digest: Digest) -> str:
    """The tag of the index of what refers to an image, where a registry does not list that (1.1, "Referrers Tag")."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def is_beside(entry: Object) -> bool:
    """Return whether an entry of a layout's index is what lies beside an image, and none itself."""
    notes = entry.child("annotations")
    name = (notes.text(_REF_NAME) or "") if notes is not None else ""
    artifact = entry.has("artifactType") or (notes is not None and notes.text("kind") == _SIGNATURES)
    return artifact or _NAME.fullmatch(name.rpartition(":")[2]) is not None


class Shelf(Protocol):
    """One place with what belongs to an image. Raises RegistryError, VerificationError or NotFoundError."""

    @property
    def name(self) -> str:
        """What messages and records call it."""
        ...

    def tagged(self, tag: str) -> Iterator[bytes]:
        """Yield the documents that are called `tag`; none where there is none."""
        ...

    def referring(self, digest: Digest) -> Iterator[Object]:
        """Yield descriptors of Sigstore bundles that say they refer to `digest`."""
        ...

    def manifest(self, digest: Digest) -> bytes:
        """Return a document by its digest, verified."""
        ...

    def blob(self, digest: Digest, limit: int) -> bytes:
        """Return a blob by its digest, verified, of at most `limit` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class RegistryShelf:
    """A repository at a registry, or at a mirror of it."""

    registry: Registry
    place: Place

    @property
    def name(self) -> str:
        return f"{self.place.registry}/{self.place.repository}"

    def tagged(self, tag: str) -> Iterator[bytes]:
        try:
            yield self.registry.read(self.place, f"manifests/{tag}", limit=_LIMIT).data
        except RegistryError as error:
            if error.status != 404:
                raise

    def referring(self, digest: Digest) -> Iterator[Object]:
        path = f"referrers/{digest}?artifactType={quote(BUNDLE, safe='')}"
        for _ in range(_PAGES):
            try:
                found = self.registry.read(self.place, path, limit=_LIMIT)
            except RegistryError as error:
                if error.status not in _NO_REFERRERS:
                    raise
                break
            if found.media_type.partition(";")[0].strip() != OCI_INDEX:
                break  # a page for people, from something that is no such registry
            yield from _bundles(parse(found.data, subject=f"{self.name}: referrers", limit=_LIMIT))
            following = urlsplit(found.next)
            start = f"/v2/{self.place.repository}/"
            if not following.query or not following.path.startswith(f"{start}referrers/"):
                return
            path = f"{following.path.removeprefix(start)}?{following.query}"
        else:
            return
        for data in self.tagged(fallback_tag(digest)):
            yield from _bundles(parse(data, subject=f"{self.name}: {fallback_tag(digest)}", limit=_LIMIT))

    def manifest(self, digest: Digest) -> bytes:
        data = self.registry.read(self.place, f"manifests/{digest}", limit=_LIMIT).data
        check(data, digest, subject=f"{self.name}: signature {digest.short}")
        return data

    def blob(self, digest: Digest, limit: int) -> bytes:
        data = self.registry.read(self.place, f"blobs/{digest}", limit=limit).data
        check(data, digest, subject=f"{self.name}: signature {digest.short}")
        return data


@dataclass(frozen=True, slots=True)
class LayoutShelf:
    """An OCI layout: a bundle's directory, or an archive. It remembers what it read of documents, by their digests."""

    holder: Holder
    _types: dict[Digest, str | None] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        match self.holder:
            case Directory(path):
                return str(path)
            case Archive() as archive:
                return archive.name
        return "a bundle"

    def tagged(self, tag: str) -> Iterator[bytes]:
        for entry, notes in self._entries():
            called = (notes.text(_REF_NAME) or "").rpartition(":")[2]
            if called == tag or (tag.endswith(".sig") and notes.text("kind") == _SIGNATURES):
                yield self.manifest(described(entry))

    def referring(self, digest: Digest) -> Iterator[Object]:
        for data in self.tagged(fallback_tag(digest)):
            yield from _bundles(parse(data, subject=f"{self.name}: {fallback_tag(digest)}", limit=_LIMIT))
        unsaid = 0
        for entry, _ in self._entries():
            kind = entry.text("artifactType")
            if kind is None and entry.text("mediaType") in MANIFEST_TYPES and unsaid < _UNSAID:
                unsaid += 1
                kind = self._artifact_type(entry)
            if kind == BUNDLE:
                yield entry

    def _artifact_type(self, entry: Object) -> str | None:
        digest = described(entry)
        if digest not in self._types:
            try:
                data = self.manifest(digest)
                self._types[digest] = parse(data, subject=self.name, limit=_LIMIT).text("artifactType")
            except (NotFoundError, VerificationError):
                return None
        return self._types[digest]

    def manifest(self, digest: Digest) -> bytes:
        return self.blob(digest, _LIMIT)

    def blob(self, digest: Digest, limit: int) -> bytes:
        file = self.holder.blob(digest)
        if file is None:
            raise NotFoundError(f"{self.name}: signature {digest.short} is not there")
        with file:
            data = bytearray()
            while len(data) <= limit and (chunk := file.read(1 << 16)):
                data += chunk
        if len(data) > limit:
            raise InvalidDocumentError(f"{self.name}: signature {digest.short}: more than {limit} bytes")
        check(bytes(data), digest, subject=f"{self.name}: signature {digest.short}")
        return bytes(data)

    def _entries(self) -> Iterator[tuple[Object, Object]]:
        index = _index(self.holder)
        for entry in (index.children("manifests") or []) if index is not None else []:
            yield entry, entry.child("annotations") or Object(entry.subject, {})


def _index(holder: Holder) -> Object | None:
    match holder:
        case Directory(path):
            try:
                return read_index(path)
            except NotFoundError:
                return None  # a stick that is not plugged in
        case Archive() as archive:
            data = archive.read("index.json", _LIMIT)
            return None if data is None else parse(data, subject=f"{archive.name}: index.json", limit=_LIMIT)
    return None


def _bundles(index: Object) -> Iterator[Object]:
    if index.text("mediaType") not in (None, *INDEX_TYPES):
        index.fail("is no index")
    for item in index.children("manifests") or []:
        if item.text("artifactType") == BUNDLE:
            yield item


def described(entry: Object) -> Digest:
    """The digest of a descriptor, or InvalidDocumentError."""
    try:
        return Digest.parse(entry.required_text("digest"))
    except InvalidReferenceError as error:
        raise InvalidDocumentError(f"{entry.subject}: {error}") from error
