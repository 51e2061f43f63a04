"""What a pull tells of itself while it runs, and a board of all that run. How it looks is the listener's affair."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from reconciler.spec.reference import Digest

if TYPE_CHECKING:
    from reconciler.state.image import Layer


class Phase(StrEnum):
    """Where a layer stands."""

    DOWNLOADING = "downloading"
    WAITING = "waiting"  # the transfer failed, and is tried again after a pause
    UNPACKING = "unpacking"  # everything has arrived, files are still being written
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One layer's progress: packed bytes, of them `resumed` after a transfer had broken off.

    While it waits: `until` which moment of the boot clock, and what went wrong in `trouble`. `source` is where the
    bytes come from now: origin, mirror, peer or bundle. At the end `shares` are the bytes from each place, in words.
    """

    layer: Digest
    done: int
    total: int
    phase: Phase
    resumed: int = 0
    until: float = 0.0
    trouble: str = ""
    source: str = ""
    shares: tuple[tuple[str, int], ...] = ()


Listener = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Pulling:
    """How far one image is: packed bytes, and layers that are `complete`, of those that were missing at its start.

    `until` and `trouble` are those of a layer that waits for its next try, 0 and "" where none does.
    """

    done: int
    total: int
    complete: int
    layers: int
    until: float = 0.0
    trouble: str = ""


class Pulls:
    """The pulls that are under way. It hears of every layer, and passes that on to `listener`. Thread-safe.

    A layer that several images need is fetched once: what is heard of it counts for each of them.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[Layer, ...]] = {}
        self._heard: dict[Digest, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._heard[progress.layer] = progress
        self._listener(progress)

    @contextmanager
    def pulling(self, reference: str, missing: "Sequence[Layer]") -> Iterator[None]:
        """Show the image while the block runs; `missing` are the layers that it lacks."""
        with self._lock:
            self._forget()
            self._wanted[reference] = tuple(missing)
        try:
            yield
        finally:
            with self._lock:
                self._wanted.pop(reference, None)
                self._forget()

    def now(self) -> Mapping[str, Pulling]:
        """Every pull that is under way, by reference."""
        with self._lock:
            return {reference: self._sum(layers) for reference, layers in self._wanted.items() if layers}

    def _forget(self) -> None:
        """Let go of what was heard of layers that no pull is about: a late word of one that is over says nothing."""
        needed = {layer.digest for layers in self._wanted.values() for layer in layers}
        for digest in self._heard.keys() - needed:
            del self._heard[digest]

    def _sum(self, layers: "Sequence[Layer]") -> Pulling:
        heard = [self._heard.get(layer.digest) for layer in layers]
        told = [progress for progress in heard if progress is not None]
        waiting = [progress for progress in told if progress.phase is Phase.WAITING]
        first = min(waiting, key=lambda progress: progress.until, default=None)
        return Pulling(
            done=sum(progress.done for progress in told),
            total=sum(layer.size for layer in layers),
            complete=sum(progress.phase is Phase.DONE for progress in told),
            layers=len(layers),
            until=first.until if first is not None else 0.0,
            trouble=first.trouble if first is not None else "",
        )
