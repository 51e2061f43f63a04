"""Images: resolve what a digest means, and bring its layers here, verified and unpacked.

The order is that of architecture.md: a layer is unpacked aside, both its digests are checked, and only then does it get
its name. Layers of one image, and of several, are fetched side by side on two pairs of threads for each registry, so
that one that hangs holds up only what comes from it; the same layer is never fetched twice at once from one registry.
Nothing here decides that an image is wanted.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from reconciler.config import TrustRule
from reconciler.engine import doubt, downloads, shared
from reconciler.engine.addition import Adder, Addition
from reconciler.engine.bundlepath import BundlePath
from reconciler.engine.estimate import DOUBT, Estimate
from reconciler.engine.jobs import Job, Jobs
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Bundles, Holder
from reconciler.engine.packed import Packed
from reconciler.engine.platform import Platform
from reconciler.engine.progress import Listener, Phase, Progress
from reconciler.engine.registry.client import Registry
from reconciler.engine.resolve import Resolver
from reconciler.engine.room import Room
from reconciler.engine.store import Store
from reconciler.engine.trust.claim import Material
from reconciler.engine.trust.gate import Trust, Verdict
from reconciler.engine.trust.gather import Search
from reconciler.engine.trust.record import Records
from reconciler.engine.trust.shelf import LayoutShelf, RegistryShelf, Shelf
from reconciler.errors import BlockedError
from reconciler.spec.reference import Digest, Reference
from reconciler.state.image import Image, Layer

__all__ = ["Images", "Listener", "Phase", "Progress"]

_WORKERS: Final = 2  # each with a helper that downloads and inflates


def _ignore(progress: Progress) -> None:
    """Listen to nothing."""


class Images:
    """The images of one state directory. Thread-safe: several lanes pull at once.

    `requests` counts registry answers by (registry, code class), `received` packed bytes by (registry, source, kind),
    source being origin, mirror, peer or bundle and kind full or resumed: for metrics.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        registry: Registry | None = None,
        bundles: Sequence[Path | BundlePath | Holder] = (),
        offline: bool = False,
        platform: Platform,
        limits: Limits | None = None,
        keep_blobs: bool = False,
        trust: Sequence[TrustRule] = (),
    ) -> None:
        """With `offline` no registry is asked: what no bundle has is NotFoundError, what it has damaged is no more.

        `keep_blobs`: the packed form of layers stays in the store, beside the unpacked one. `trust` are the rules about
        signatures: nothing is resolved, nor pulled, that they refuse.
        """
        limits = limits or Limits()
        self._store = store
        self._layout = layout
        self._platform = platform
        self._room = Room(layout, limits)
        self._registry = registry or Registry()
        available = self._bundles = Bundles(bundles)
        self._offline = offline
        asked = None if offline else self._registry
        self._resolver = Resolver(store, available, asked, platform, limits)
        self._estimate = Estimate(store, available, asked)
        self._adder = Adder(store, layout, available, asked, limits, keep=keep_blobs)
        self.trust = Trust(trust, Records(layout))
        self._shelved: dict[int, LayoutShelf] = {}  # by what they are shelves of, which stays as long as this
        self._jobs: dict[str, Jobs[Digest]] = {}  # by registry
        self._seen: dict[Digest, Image] = {}
        self._lock = threading.Lock()

    def add_bundle(self, directory: Path) -> None:
        """Look into one more OCI layout from now on."""
        self._bundles.add(directory)

    def look_again(self) -> None:
        """A bundle has appeared: whoever waits for a registry between two tries looks there first."""
        self._bundles.news += 1

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        return self._registry.requests

    @property
    def received(self) -> Counter[tuple[str, str, str]]:
        return self._adder.received

    def close(self) -> None:
        """Give up what is being pulled, and every connection."""
        with self._lock:
            everything = [*self._jobs.values()]
        for jobs in everything:
            jobs.stop()
        self._registry.close()

    # --- resolving -------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference, *, vouched: bool = False) -> Image:
        """Return what the pinned digest means for this platform, and keep its documents and the answer.

        From the store if it was resolved before; else from bundles or the registry. Raises VerificationError,
        PlatformError or RegistryError. `vouched`: it is part of an index that was admitted already.
        """
        known = self._known(reference)
        if known is not None and self._store.resolved(known.index) is not None:
            if not vouched:
                self.admit(reference)
            return known
        image, documents, public = self._resolver.resolve(reference, time.sleep)
        if not vouched:
            self.admit(reference, documents)
        try:
            with self._store.adding():
                for digest in self._store.ingest_documents(documents):
                    if digest in public:
                        shared.mark(self._layout.blob(digest))
                self._store.remember(image)
        except OSError as error:
            raise self._room.explain(
                error, sum(map(len, documents.values())), f"image {reference}"
            ) from error
        return image

    def documents(self, reference: Reference) -> tuple[Image, dict[Digest, bytes]]:
        """Return the image and the documents that make it, verified, for who gives them to others; writes nothing."""
        image, documents, _ = self._resolver.resolve(reference, time.sleep)
        return image, documents

    @property
    def packed(self) -> Packed:
        """Where its layers are had as they were packed."""
        return Packed(self._store, self._bundles, None if self._offline else self._registry)

    def resolve_without_storing(self, reference: Reference) -> Image:
        """Return the same, and write nothing; what was found is remembered in memory only. For `plan`."""
        known, documents = self._known(reference), None
        if known is None:
            known, documents, _ = self._resolver.resolve(reference, time.sleep)
        self.admit(reference, documents, keep=False)
        with self._lock:
            self._seen[known.index] = known
        return known

    def admit(
        self,
        reference: Reference,
        documents: Mapping[Digest, bytes] | None = None,
        *,
        keep: bool = True,
        afresh: bool = False,
    ) -> Verdict:
        """Return who vouches for the image that `reference` pins, or raise UntrustedImageError; see `Trust.admit`.

        Signatures are looked for in the bundles, then at mirrors, then at the registry. `documents` are those that are
        at hand.
        """

        def content() -> bytes:
            digest = reference.digest
            if digest is not None and documents is not None and digest in documents:
                return documents[digest]
            return self._resolver.document(reference, time.sleep)

        return self.trust.admit(
            reference, content, lambda: self._shelves(reference), keep=keep, afresh=afresh
        )

    def collect(self, reference: Reference) -> None:
        """Keep what bundles have of signatures of the image, for later: they are not here to be asked again."""
        if reference.digest is not None:
            content = partial(self._resolver.document, reference, time.sleep)
            self.trust.collect(reference.digest, content, self._layouts)

    def signatures(self, reference: Reference) -> tuple[list[Material], list[str]]:
        """Return the signatures of the image, from wherever they are, whoever made them, and what was in the way."""
        search, digest = Search(), reference.digest
        if digest is None:
            return [], []
        content = partial(self._resolver.document, reference, time.sleep)
        found = self.trust.signatures(digest, content, lambda: self._shelves(reference), search)
        return found, search.notes

    def _layouts(self) -> Iterator[Shelf]:
        for holder in self._bundles.holders:
            yield self._shelved.setdefault(id(holder), LayoutShelf(holder))

    def _shelves(self, reference: Reference) -> Iterator[Shelf]:
        yield from self._layouts()
        if self._offline:
            return
        for place in self._registry.places(reference.registry, reference.repository, by_digest=False):
            yield RegistryShelf(self._registry, place)

    def _known(self, reference: Reference) -> Image | None:
        if reference.digest is None:
            return None
        image = self._store.resolved(reference.digest) or self._seen.get(reference.digest)
        if image is None:
            return None
        found = Platform.parse(image.platform)
        same = (found.os, found.architecture) == (self._platform.os, self._platform.architecture)
        return image if same else None

    def is_here(self, reference: Reference) -> bool:
        """Return whether the image that the pinned digest means is complete on this disk; asks nobody."""
        known = self._known(reference)
        if known is not None:
            with self._store.adding():
                self._vet(known)
        return known is not None and self._store.resolved(known.index) is not None and not self.missing(known)

    def digest(self, reference: Reference) -> Digest:
        """Ask the registry what a tag means now; for people who want to pin it."""
        return self._resolver.digest(reference, time.sleep)

    # --- pulling ---------------------------------------------------------------------------------------------------

    def missing(self, image: Image) -> tuple[Layer, ...]:
        """Return the layers of `image` that a pull would fetch, lowest first."""
        return tuple(layer for layer in image.layers if not self._store.has_layer(layer.chain_id))

    def pull(
        self, image: Image, reference: Reference, progress: Listener = _ignore, *, vouched: bool = False
    ) -> None:
        """Bring every missing layer of `image` here; afterwards the image is complete.

        `progress` is called from several threads. Succeeds at once where nothing is missing. Raises RegistryError,
        VerificationError, BlockedError (disk full); layers that were complete by then stay. `vouched` as for `resolve`.
        """
        if not vouched:
            self.admit(reference)
        with self._store.adding():
            self._vet(image)
            while missing := self.missing(image):
                self._demand(self._needed(missing, reference), f"image {reference}")
                if self._add(image, missing, reference, progress):
                    break
            self._store.touch(image)

    def _vet(self, image: Image) -> None:
        """Read the layers of `image` that came in before the power went: what is wrong is not here any more."""
        doubt.vet(self._store, self._layout, (layer.chain_id for layer in image.layers))

    def _needed(self, missing: Sequence[Layer], reference: Reference) -> int:
        """The bytes that `missing` take at the least; what they say of themselves is asked where the disk is small."""
        packed = sum(layer.size for layer in missing)
        if packed * DOUBT < self._room.free:
            return packed
        return sum(self._estimate.unpacked(layer, reference) for layer in missing)

    def _demand(self, needed: int, what: str) -> None:
        """Raise BlockedError unless `needed` bytes fit in, if need be by giving up what broken transfers have left."""
        try:
            self._room.demand(needed, what)
        except BlockedError:
            downloads.clear(self._layout)
            self._room.demand(needed, what)

    def replace(
        self,
        image: Image,
        layer: Layer,
        reference: Reference,
        progress: Listener = _ignore,
    ) -> None:
        """Bring `layer` here once more; what is in its place is put aside, where containers go on using it.

        The layers below it have to be whole. Raises what `pull` raises, and leaves everything as it was then.
        """
        layers = image.layers[: image.layers.index(layer) + 1]
        with self._store.adding():
            self._demand(self._needed((layer,), reference), f"layer {layer.digest.short}")
            wanted = Addition(layers, reference, None, progress)
            self._adder.replace(wanted, Job(layer.chain_id, lambda _: None))

    def _add(self, image: Image, missing: Sequence[Layer], reference: Reference, progress: Listener) -> bool:
        """Add `missing`, lowest first. False if a layer failed that another pull was adding, perhaps from elsewhere."""
        with self._lock:
            running = self._jobs.setdefault(reference.registry, Jobs(_WORKERS))
        jobs: list[tuple[Job[Digest], bool]] = []
        below: Job[Digest] | None = None
        try:
            for layer in missing:
                layers = image.layers[: image.layers.index(layer) + 1]
                wanted = Addition(layers, reference, below, progress)
                jobs.append(running.join(layer.chain_id, partial(self._adder.add, wanted)))
                below = jobs[-1][0]
            for job, fresh in jobs:
                job.done.wait()
                if job.error is not None:
                    if not fresh:
                        return False
                    raise job.error
        finally:
            for job, _ in jobs:
                running.leave(job)
        return True
