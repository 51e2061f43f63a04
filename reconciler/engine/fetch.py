"""The packed bytes of one layer, from wherever they are, each byte once and in order.

Sources are tried in order: bundles, then the registry. A transfer that breaks off goes on where it was (Range), as
often as it makes progress; the digest at the end is that of the whole, whatever the pieces were. Verifying happens
in the stream, so that nothing is read beyond the size that the manifest gives.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from reconciler.engine import oci_layout
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RefusedError, RegistryError
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Reference
from reconciler.state.image import Layer


class AbandonedError(ReconcilerError):
    """Nobody waits for this layer any more."""

    transient = True


@dataclass(slots=True)
class Meter:
    """What a transfer has done so far, read by others for progress and metrics. Bytes, all of them packed ones."""

    received: int = 0
    resumed: int = 0  # of them, after the transfer had broken off
    source: str = ""  # bundle or origin
    resumes: int = 0  # times that it had broken off
    trouble: str = ""  # why it is waiting, or waited last


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


def from_bundle(bundles: Bundles, layer: Layer, meter: Meter) -> Iterator[bytes]:
    """Yield the packed layer from a bundle; raises FileNotFoundError if it has gone from there."""
    meter.source = "bundle"
    with bundles.open(layer.digest) as file:
        if file is None:
            raise FileNotFoundError(str(layer.digest))
        for chunk in oci_layout.chunks(file):
            meter.received += len(chunk)
            yield chunk


def from_registry(
    registry: Registry,
    reference: Reference,
    layer: Layer,
    meter: Meter,
    *,
    pause: Callable[[float], object],
) -> Iterator[bytes]:
    """Yield the packed layer from its registry, going on with Range where a transfer breaks off.

    A transient failure is tried again after a pause, from where it was; the count starts anew with every progress, up
    to the client's limit of resumptions. Raises RegistryError.
    """
    patience = registry.patience
    done = attempt = 0
    while True:
        begun = done
        try:
            with registry.blob(
                reference.registry, reference.repository, layer.digest, offset=done
            ) as transfer:
                meter.source = "origin"
                skip = (
                    done - transfer.offset
                )  # a server that ignores Range starts over: read past what we have
                for chunk in transfer.chunks:
                    fresh = chunk[skip:] if skip > 0 else chunk
                    skip -= len(chunk) - len(fresh)
                    if not fresh:
                        continue
                    done += len(fresh)
                    meter.received += len(fresh)
                    meter.resumed += len(fresh) if meter.resumes else 0
                    yield fresh
            if done >= layer.size or done == begun or meter.resumes >= patience.resumes:
                return  # complete, or as much as the server says there is: `verified` decides
            meter.resumes += 1
        except RegistryError as error:
            if error.status == 416 or (isinstance(error, RefusedError) and done):
                raise VerificationError(f"layer {layer.digest.short}: can't be resumed: {error}") from error
            if done > begun:
                attempt = 0
                meter.resumes += 1
            if not error.transient or attempt >= len(patience.retries) or meter.resumes > patience.resumes:
                raise
            meter.trouble = str(error)
            pause(max(patience.retries[attempt], error.retry_after))
            attempt += 1
