"""The packed bytes of one layer, from wherever they are, each byte once and in order.

Sources are tried in order: bundles, peers, mirrors, then the registry. A transfer that breaks off goes on where it was
(Range), as often as it makes progress, also at the next place; the digest at the end is that of the whole, whatever
the pieces were, also those that an earlier agent has kept. Verifying happens in the stream, so that nothing is read
beyond the size that the manifest gives.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from reconciler.engine import oci_layout
from reconciler.engine.downloads import Kept
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RefusedError, RegistryError
from reconciler.engine.registry.places import Place
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Reference
from reconciler.state.image import Layer


class AbandonedError(ReconcilerError):
    """Nobody waits for this layer any more."""

    transient = True


@dataclass(slots=True)
class Meter:
    """What a transfer has done so far, read by others for progress and metrics. Bytes, all of them packed ones."""

    done: int = 0  # of the layer, from its start
    resumed: int = 0  # of them, after the transfer had broken off
    source: str = ""  # where they come from now: bundle, peer, mirror or origin
    resumes: int = 0  # times that it had broken off
    trouble: str = ""  # why it is waiting, or waited last
    arrived: Counter[tuple[str, str]] = field(default_factory=Counter)  # by source and kind: full or resumed
    kept: bool = False  # whether some of it was here from an earlier transfer
    others: set[Place] = field(default_factory=set)  # peers and mirrors that some of them came from
    finished: Place | None = None  # the peer or mirror that it came to its end at
    shares: Counter[str] = field(default_factory=Counter)  # by the words for the place
    public: bool | None = None  # whether all of them were given without being told who asks

    def take(self, count: int, place: str = "") -> None:
        """Count `count` bytes more, from `place`, or from what `source` says."""
        self.done += count
        self.resumed += count if self.resumes else 0
        self.arrived[self.source, "resumed" if self.resumes else "full"] += count
        self.shares[place or self.source] += count


def verified(chunks: Iterable[bytes], layer: Layer) -> Iterator[bytes]:
    """Pass `chunks` on, then raise VerificationError unless they were exactly the blob that `layer` names."""
    found = hashlib.new(layer.digest.algorithm)
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > layer.size:
            raise VerificationError(
                f"layer {layer.digest.short}: longer than the {layer.size} bytes it should have"
            )
        found.update(chunk)
        yield chunk
    if total != layer.size:
        raise VerificationError(f"layer {layer.digest.short}: {total} bytes, expected {layer.size}")
    if found.hexdigest() != layer.digest.hex:
        raise VerificationError(
            f"layer {layer.digest.short}: digest is {layer.digest.algorithm}:{found.hexdigest()},"
            f" expected {layer.digest}"
        )


class BundleError(ReconcilerError):
    """A bundle's copy can't be read to its end: the stick was pulled out, or is worn out."""

    transient = True


def from_bundle(file: IO[bytes], layer: Layer, meter: Meter) -> Iterator[bytes]:
    """Yield the packed layer from a bundle's copy of it, and close that.

    BundleError where reading fails (EIO, ESTALE).
    """
    meter.source = "bundle"
    with file:
        while True:
            try:
                chunk = file.read(oci_layout.CHUNK)
            except OSError as error:
                raise BundleError(f"layer {layer.digest.short}: bundle: {error.strerror}") from error
            if not chunk:
                return
            meter.take(len(chunk))
            yield chunk


@dataclass(frozen=True, slots=True)
class Source:
    """A layer at its registry, its mirrors and peers but those in `without`; `pause` waits before the next try."""

    registry: Registry
    reference: Reference
    layer: Layer
    pause: Callable[[float], object]
    without: Collection[Place] = ()


def from_registry(source: Source, meter: Meter, kept: Kept | None = None) -> Iterator[bytes]:
    """Yield the packed layer: what is `kept` from there, the rest from others and at last from the registry itself.

    Where one place fails the next goes on from there. Raises RegistryError, of the registry itself.
    """
    if kept is not None and kept.end:
        meter.resumes += 1
        meter.kept = True
        meter.public = False  # nobody knows any more who gave it
        yield from _from_anywhere(source, meter, kept, kept.offset)
        for chunk in kept.read():
            meter.done += len(chunk)
            yield chunk
    yield from _from_anywhere(source, meter, kept, source.layer.size)


def _from_anywhere(source: Source, meter: Meter, kept: Kept | None, until: int) -> Iterator[bytes]:
    if meter.done >= until:
        return
    registry, reference, layer = source.registry, source.reference, source.layer
    *others, origin = registry.places(reference.registry, reference.repository)
    for place in others:
        if place in source.without:
            continue
        try:
            yield from _from_place(source, place, meter, kept, until)
            if meter.done >= until:
                meter.finished = place
                return
            meter.trouble = (
                f"{place.registry}: layer {layer.digest.short}: {meter.done} bytes of {layer.size}"
            )
            registry.failed(place, VerificationError(meter.trouble))
        except RegistryError as error:
            registry.failed(place, error)
            meter.trouble = str(error)
    yield from _from_place(source, origin, meter, kept, until)


def _from_place(source: Source, place: Place, meter: Meter, kept: Kept | None, until: int) -> Iterator[bytes]:
    """Yield the packed layer up to byte `until` from one place, going on with Range where a transfer breaks off.

    A transient failure is tried again after a pause, from where it was; the count starts anew with every progress, up
    to the client's limit of resumptions, but a peer has a few tries in all. What is not the registry itself is not
    tried again where it makes no progress. Raises RegistryError.
    """
    layer, patience = source.layer, source.registry.patience
    attempt = 0
    while True:
        begun = meter.done
        try:
            last = until if until < layer.size else None
            with source.registry.blob(place, layer.digest, offset=begun, until=last) as transfer:
                meter.source = place.source
                shown = str(place)
                skip = (
                    begun - transfer.offset
                )  # a server that ignores Range starts over: read past what we have
                for chunk in transfer.chunks:
                    fresh = chunk[skip:] if skip > 0 else chunk
                    skip -= len(chunk) - len(fresh)
                    if last is not None:
                        fresh = fresh[: last - meter.done]
                    if not fresh:
                        continue
                    if not place.is_origin:
                        meter.others.add(place)
                    meter.public = transfer.public and meter.public is not False
                    if kept is not None:
                        kept.take(fresh, meter.done)
                    meter.take(len(fresh), shown)
                    yield fresh
                    if meter.done == last:
                        return
            enough = meter.done == begun or place.is_peer or meter.resumes >= patience.resumes
            if meter.done >= until or enough:
                return  # complete, or as much as the server says there is: `verified` decides
            meter.resumes += 1
        except RegistryError as error:
            if place.is_origin and (error.status == 416 or (isinstance(error, RefusedError) and begun)):
                raise VerificationError(f"layer {layer.digest.short}: can't be resumed: {error}") from error
            if meter.done > begun:
                attempt = 0 if not place.is_peer else attempt  # others are near: it is not worth the waiting
                meter.resumes += 1
            elif not place.is_origin:
                raise
            if not error.transient or attempt >= len(patience.retries) or meter.resumes > patience.resumes:
                raise
            meter.trouble = str(error)
            source.pause(patience.pause(attempt, error.retry_after))
            attempt += 1
