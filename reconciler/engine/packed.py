"""Blobs as they were packed: what the store has only unpacked has to be fetched once more, to be given to others.

Asked in this order: the store, bundles, the registries that the image is known by. Every blob is verified on its way.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from reconciler.engine import fetch, oci_layout
from reconciler.engine.fetch import BundleError, Meter
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.progress import Listener, Phase, Progress
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.store import Store
from reconciler.errors import NotFoundError, VerificationError
from reconciler.spec.reference import Reference
from reconciler.state.image import Layer

_REPORT_EVERY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """One place that may have the blob; `open` gives its bytes, not verified, or raises."""

    name: str
    open: Callable[[], Iterator[bytes]]


class Packed:
    """Where packed layers are had. `registry` None: none is asked."""

    def __init__(self, store: Store, bundles: Bundles, registry: Registry | None) -> None:
        self._store = store
        self._bundles = bundles
        self._registry = registry
        self._silent: set[str] = set()

    def sources(self, layer: Layer, references: Sequence[Reference]) -> Iterator[Source]:
        """The places to ask for a layer, best first."""
        if self._store.has_blob(layer.digest):
            yield Source("the store", lambda: self._from_store(layer))
        for file in self._bundles.copies(layer.digest):
            yield Source("a bundle", partial(fetch.from_bundle, file, layer, Meter()))
        registry = self._registry
        if registry is None:
            return
        for reference in references:
            name = f"{reference.registry}/{reference.repository}"
            # Names without a registry are localhost's
            if reference.registry == "localhost" or name in self._silent:
                continue
            meter = Meter()
            asked = fetch.Source(registry, reference, layer, time.sleep)
            yield Source(name, partial(fetch.from_registry, asked, meter))
            if not meter.done:
                self._silent.add(name)  # no more of its patience for each further layer
            elif meter.others:  # one of them may have lied: once more without those
                again = replace(asked, without=frozenset(meter.others))
                yield Source(name, partial(fetch.from_registry, again, Meter()))

    def _from_store(self, layer: Layer) -> Iterator[bytes]:
        with self._store.open_blob(layer.digest) as file:
            yield from oci_layout.chunks(file)

    def fetch(self, layer: Layer, references: Sequence[Reference], into: Path, progress: Listener) -> None:
        """Write the packed layer to the file `into`, verified, from the first place that has it whole.

        NotFoundError, with what each place said, where none has.
        """
        said: list[str] = []
        for source in self.sources(layer, references):
            try:
                with into.open("wb") as file:
                    for chunk in _heard(fetch.verified(source.open(), layer), layer, progress):
                        file.write(chunk)
            except (RegistryError, VerificationError, BundleError, FileNotFoundError) as error:
                said.append(f"{source.name}: {error}")
                continue
            progress(Progress(layer.digest, layer.size, layer.size, Phase.DONE))
            return
        raise NotFoundError(
            f"layer {layer.digest.short}: nothing that is asked has it as it was packed", hint="; ".join(said)
        )


def _heard(chunks: Iterable[bytes], layer: Layer, progress: Listener) -> Iterator[bytes]:
    done = reported = 0
    for chunk in chunks:
        done += len(chunk)
        if done - reported >= _REPORT_EVERY:
            reported = done
            progress(Progress(layer.digest, done, layer.size, Phase.DOWNLOADING))
        yield chunk
