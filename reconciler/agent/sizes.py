"""Sizes that need a walk over the disk: measured on a thread of their own, at most every ten minutes, and only while
somebody asks.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.engine import logs, volumes
from reconciler.engine.layout import Layout
from reconciler.engine.snapshot import Uppers
from reconciler.state.observed import Container

_EVERY: Final = 600.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes by kind, by (app, volume), and of writable layers by full name."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    volumes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    uppers: Mapping[str, int] = field(default_factory=dict)


class Sizes:
    """Measures one state directory in the background."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._at: float | None = None
        self._measuring = False
        self._measured = Measured()

    def get(self, containers: Iterable[Container]) -> Measured:
        """What was measured last, at once; a new measurement begins if that is old."""
        if not self._measuring and (self._at is None or time.monotonic() - self._at >= _EVERY):
            self._measuring = True
            threading.Thread(
                target=self._measure, args=(list(containers),), name="measure", daemon=True
            ).start()
        return self._measured

    def _measure(self, containers: list[Container]) -> None:
        layout = self._layout
        try:
            writable = Uppers(layout)
            uppers = {c.full_name: volumes.tree_size(writable.paths(c.id)[0]) for c in containers}
            by_volume = {
                (volume.app, volume.name): volumes.size(layout, volume.app, volume.name)
                for volume in volumes.volumes(layout)
            }
            kinds = {
                "upper": sum(uppers.values()),
                "volumes": sum(by_volume.values()),
                "logs": sum(logs.size(layout.log(c.id)) for c in containers),
                "partial": volumes.tree_size(layout.partial) + volumes.tree_size(layout.downloads),
            }
            self._measured = Measured(kinds, by_volume, uppers)
        finally:  # a disk that fails is not walked more often than one that works
            self._at = time.monotonic()
            self._measuring = False
