"""From a pinned digest to an image: the documents, from wherever they are, verified, and put together.

Documents are looked for in the store, then in bundles, then at the registry that the reference names. Where they came
from makes no difference to what is believed: the digest decides.
"""

from collections.abc import Callable
from typing import NamedTuple

from reconciler.engine.image import (
    assemble,
    check,
    digest_of,
    is_index,
    parse_index,
    parse_manifest,
    select_platform,
)
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.platform import Platform
from reconciler.engine.registry.client import Document, Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.store import Store
from reconciler.errors import NotFoundError, ReconcilerError, UsageError, VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference
from reconciler.state.image import Image


class Resolved(NamedTuple):
    """An image, the verified documents that it was made from, and which of them a registry gives to anybody."""

    image: Image
    documents: dict[Digest, bytes]
    public: frozenset[Digest]


class Resolver:
    """Resolves references for one platform. Reads the store, writes nothing."""

    def __init__(
        self, store: Store, bundles: Bundles, registry: Registry | None, platform: Platform, limits: Limits
    ) -> None:
        """`registry` None: what neither the store nor a bundle has is not there."""
        self._store = store
        self._bundles = bundles
        self._registry = registry
        self._platform = platform
        self._limits = limits
        self._named: tuple[Digest, Document] | None = None  # what a name meant last

    def resolve(self, reference: Reference, pause: Callable[[float], object]) -> Resolved:
        """Return the image that `reference` pins, with its documents.

        Raises VerificationError, PlatformError or RegistryError.
        """
        if reference.digest is None:
            raise UsageError(f"image {reference}: no digest", hint=f"run: reconciler digest {reference}")
        documents: dict[Digest, bytes] = {}
        public: set[Digest] = set()
        digest, declared, size = reference.digest, "", None
        for _ in range(self._limits.nesting):
            found = self._manifest(reference, digest, pause)
            data, sent = found.data, found.media_type
            subject = f"image {reference}"
            if size is not None and len(data) != size:
                raise VerificationError(f"{subject}: manifest of {len(data)} bytes, expected {size}")
            documents[digest] = data
            public |= {digest} if found.public else set()
            declarations = (declared, sent)
            if not is_index(data, subject=subject, limits=self._limits):
                break
            index = parse_index(data, subject=subject, declared=declarations, limits=self._limits)
            chosen = select_platform(index, self._platform, subject=subject)
            digest, declared, size = chosen.digest, chosen.media_type, chosen.size
        else:
            raise VerificationError(
                f"image {reference}: more than {self._limits.nesting} documents within one another (limits.nesting)",
                hint="if the image is meant to be so, raise limits.nesting in device.yaml",
            )
        manifest = parse_manifest(data, subject=subject, declared=declarations, limits=self._limits)
        config = self._config(reference, manifest.config.digest, manifest.config.size, pause)
        documents[manifest.config.digest] = config.data
        public |= {manifest.config.digest} if config.public else set()
        image = assemble(
            reference.digest,
            data,
            config.data,
            platform=self._platform,
            manifest_digest=digest,
            limits=self._limits,
        )
        return Resolved(image, documents, frozenset(public))

    def document(self, reference: Reference, pause: Callable[[float], object]) -> bytes:
        """Return the document that `reference` pins, verified; raises what `resolve` raises."""
        if reference.digest is None:
            raise UsageError(f"image {reference}: no digest", hint=f"run: reconciler digest {reference}")
        return self._manifest(reference, reference.digest, pause).data

    def _local(self, digest: Digest) -> bytes | None:
        """Return a document from the store or a bundle if an undamaged copy is there."""
        try:
            return self._store.read_blob(digest)
        except (FileNotFoundError, VerificationError):
            pass  # a damaged one was discarded: fetch it anew
        for data in self._bundles.contents(digest, self._limits.document):
            if digest_of(data, digest.algorithm) == digest:
                return data
        return None

    def _manifest(self, reference: Reference, digest: Digest, pause: Callable[[float], object]) -> Document:
        data = self._local(digest)
        if data is not None:
            return Document(data, "", "", "")
        if self._registry is None:
            raise self._absent(reference, "manifest", digest)
        named = self._named
        if named is not None and named[0] == digest:
            return named[1]
        try:
            return self._registry.manifest(
                reference.registry,
                reference.repository,
                digest,
                limit=self._limits.document,
                accept=lambda one: check(
                    one.data, digest, subject=f"image {reference}: manifest from {one.registry}"
                ),
                pause=pause,
            )
        except RegistryError as error:
            raise self._with_bundle(error, digest) from error

    def _config(
        self, reference: Reference, digest: Digest, size: int, pause: Callable[[float], object]
    ) -> Document:
        data = self._local(digest)
        if data is not None:
            return Document(data, "", "", "")
        if self._registry is None:
            raise self._absent(reference, "config", digest)
        try:
            return self._registry.document(
                reference.registry,
                reference.repository,
                digest,
                limit=size,
                accept=lambda one: check(one, digest, subject=f"image {reference}: config"),
                pause=pause,
            )
        except RegistryError as error:
            raise self._with_bundle(error, digest) from error

    def _absent(self, reference: Reference, what: str, digest: Digest) -> ReconcilerError:
        if self._bundles.has(digest):
            return VerificationError(f"image {reference}: its {what} {digest} is damaged there")
        return NotFoundError(f"image {reference}: its {what} {digest} is not there")

    def _with_bundle(self, error: RegistryError, digest: Digest) -> RegistryError:
        """Say so where a bundle had the document, but not undamaged."""
        if self._bundles.has(digest):
            error.hint = f"a bundle has {digest.short} too, but it is damaged"
        return error

    def digest(self, reference: Reference, pause: Callable[[float], object]) -> Digest:
        """Ask what `reference` means now and return the digest to pin: an index where there is one.

        Mirrors are asked first, for a tag too, as podman and containerd do: who names a mirror trusts it with names.
        """
        wanted = reference.tag if reference.digest is None else reference.digest
        assert wanted is not None  # the grammar of references
        if self._registry is None:
            raise NotFoundError(f"image {reference}: no registry is asked here", hint="name its digest")
        found = self._registry.manifest(
            reference.registry,
            reference.repository,
            wanted,
            limit=self._limits.document,
            accept=lambda one: self._accept(one, wanted, f"image {reference}"),
            pause=pause,
        )
        digest = wanted if isinstance(wanted, Digest) else digest_of(found.data)
        self._named = digest, found  # it is asked for next, by its digest
        return digest

    def _accept(self, found: Document, wanted: Digest | str, subject: str) -> None:
        """Raise VerificationError unless it is a manifest or index, and the one that was asked for, or is claimed."""
        parse = parse_index if is_index(found.data, subject=subject, limits=self._limits) else parse_manifest
        parse(found.data, subject=subject, declared=(found.media_type,), limits=self._limits)
        if isinstance(wanted, Digest):
            check(found.data, wanted, subject=subject)
        elif found.claimed:
            try:
                claimed = Digest.parse(found.claimed)
            except InvalidReferenceError as error:
                raise VerificationError(f"{subject}: Docker-Content-Digest: {error}") from error
            check(found.data, claimed, subject=f"{subject}: Docker-Content-Digest")
