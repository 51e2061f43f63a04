"""What the store holds, as a plan looks at it in every turn: made again only where a directory has changed.

The figures come from records and single directory listings, never from walking a layer. Reads only.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.layout import Layout
from reconciler.spec.reference import Digest
from reconciler.state import observed

Files = Mapping[str, os.stat_result]

ALGORITHMS: Final = {"sha256": 64, "sha512": 128}  # and the length of their digests in hex


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: bytes and the wall time of its last change or use."""

    digest: Digest
    size: int
    last_used: float


def blobs(listings: Iterable[Files]) -> tuple[Blob, ...]:
    """The blobs, by digest, of the listings of the directories of ALGORITHMS."""
    found = []
    for (algorithm, length), files in zip(ALGORITHMS.items(), listings, strict=True):
        for name, status in files.items():
            if len(name) == length:
                found.append(Blob(Digest(algorithm, name), status.st_size, status.st_mtime))
    return tuple(sorted(found, key=lambda blob: blob.digest))


@dataclass(frozen=True, slots=True)
class _Counted:
    """What these listings, and what is kept of earlier containers, came to."""

    listings: tuple[Files, ...]
    previous: tuple[observed.StoredObject, ...]
    layers: frozenset[str]
    objects: tuple[observed.StoredObject, ...]


class Inventory:
    """The store's inventory. `listing` gives a directory's files, the same object while nothing in it changes;
    `layers` the records of the complete layers of such a listing.
    """

    def __init__(
        self,
        layout: Layout,
        listing: Callable[[Path], Files],
        layers: Callable[[Files], Mapping[Digest, LayerRecord]],
    ) -> None:
        self._layout = layout
        self._listing = listing
        self._layers = layers
        self._last: _Counted | None = None

    def observe(self) -> observed.Store:
        """Everything collectable, and the room left."""
        layout = self._layout
        listings = (
            self._listing(layout.layers),
            self._listing(layout.resolved),
            *(self._listing(layout.blobs / algorithm) for algorithm in ALGORITHMS),
        )
        previous = tuple(self._previous())
        last = self._last
        if (
            last is None
            or last.previous != previous
            or any(a is not b for a, b in zip(last.listings, listings, strict=True))
        ):
            last = self._last = self._count(listings, previous)
        room = os.statvfs(layout.state)
        return observed.Store(
            layers=last.layers,
            objects=last.objects,
            free=room.f_bavail * room.f_frsize,
            size=room.f_blocks * room.f_frsize,
        )

    def _count(self, listings: tuple[Files, ...], previous: tuple[observed.StoredObject, ...]) -> _Counted:
        records, resolved, *by_algorithm = listings
        stored = observed.StoredObject
        layers = self._layers(records)
        objects = [
            stored("layer", chain_id.hex, record.size, records[f"{chain_id.hex}.json"].st_mtime)
            for chain_id, record in layers.items()
        ]
        objects += [
            stored("blob", str(blob.digest), blob.size, blob.last_used) for blob in blobs(by_algorithm)
        ]
        for name, status in resolved.items():
            digest = name.removesuffix(".json").replace("-", ":", 1)
            objects.append(stored("image", digest, status.st_size, status.st_mtime))
        objects += previous
        return _Counted(
            listings,
            previous,
            frozenset(chain_id.hex for chain_id in layers),
            tuple(sorted(objects, key=lambda item: (item.kind, item.name))),
        )

    def _previous(self) -> Iterator[observed.StoredObject]:
        """What is kept of containers that ran before: its logs are what it costs."""
        root = self._layout.previous_root
        for app in self._listing(root):
            for name, status in self._listing(root / app).items():
                logs = self._listing(self._layout.previous(app, name) / "log")
                size = sum(log.st_size for log in logs.values())
                yield observed.StoredObject("previous", f"{app}/{name}", size, status.st_mtime)
