"""What is wrong in the store, found by reading all of it: blobs by their digests, layers by the index that was written
while they were unpacked, records by their form, and what containers are made from. Changes nothing.

Of a layer the content of its files is compared, and that none is missing. What the index does not have is not compared:
modes, owners, times, links, and files that somebody has added.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine import record, tags
from reconciler.engine.imagerecord import InvalidRecordError, LayerRecord, decode_image
from reconciler.engine.inventory import ALGORITHMS
from reconciler.engine.layout import Layout
from reconciler.engine.mend import everything
from reconciler.engine.store import Store
from reconciler.engine.tree import shown
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError

BLOB: Final = "blob"
LAYER: Final = "layer"
IMAGE: Final = "image"
TAG: Final = "tag"
CONTAINER: Final = "container"

_CHUNK: Final = 1 << 20
_SHOWN: Final = 5

Told = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One object that is not what it should be. `name` is a digest for blobs and images, a hex chain id for layers, a
    file for names, an id for containers; `what` says what is wrong, `files` which files of a layer are.
    """

    kind: str
    name: str
    what: str
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class Count:
    """How many objects were looked at, and the bytes of them."""

    objects: int = 0
    bytes: int = 0


class Check:
    """Looks through one store. `told` hears of every number of bytes read; `count` goes along."""

    def __init__(self, layout: Layout, store: Store, told: Told = lambda _: None) -> None:
        self._layout = layout
        self._store = store
        self._told = told
        self.count = Count()

    def run(self) -> Iterator[Trouble]:
        """Yield everything that is wrong, in the order in which it is best repaired: what others need first."""
        yield from self._blobs()
        yield from self._images()
        yield from self._layers()
        yield from self._tags()
        yield from self._containers()

    def _read(self, size: int) -> None:
        self.count.bytes += size
        self._told(size)

    # --- blobs and what is known of images ---------------------------------------------------------------------------

    def _blobs(self) -> Iterator[Trouble]:
        for algorithm, length in ALGORITHMS.items():
            for name in _names(self._layout.blobs / algorithm):
                self.count.objects += 1
                path = self._layout.blobs / algorithm / name
                if len(name) != length or not path.is_file() or path.is_symlink():
                    yield Trouble(BLOB, f"{algorithm}:{name}", "is no blob: something else lies there")
                elif (found := self._digest(path, algorithm)) != name:
                    yield Trouble(BLOB, f"{algorithm}:{name}", f"is damaged: its digest is {found[:12]}")

    def _digest(self, path: Path, algorithm: str) -> str:
        digest = hashlib.new(algorithm)
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    self._read(len(chunk))
        except OSError as error:  # EIO is what damage often looks like
            return f"not to be had: {error.strerror}"
        return digest.hexdigest()

    def _images(self) -> Iterator[Trouble]:
        for name in _names(self._layout.resolved):
            self.count.objects += 1
            digest = name.removesuffix(".json").replace("-", ":", 1)
            try:
                image = decode_image((self._layout.resolved / name).read_bytes())
                if str(image.index) != digest:
                    raise InvalidRecordError(f"is that of {image.index}")
            except (OSError, InvalidRecordError) as error:
                yield Trouble(IMAGE, digest, f"its record can't be read: {str(error)[:100]}")
                continue
            for what, blob in (("manifest", image.manifest), ("config", image.config)):
                if not self._store.has_blob(blob):
                    yield Trouble(IMAGE, digest, f"its {what} {blob.short} is missing")

    # --- layers ------------------------------------------------------------------------------------------------------

    def _layers(self) -> Iterator[Trouble]:
        chains: dict[str, None] = {}
        for name in _names(self._layout.layers):
            chains[name.removesuffix(".json").removesuffix(".files")] = None
        for chain in chains:
            self.count.objects += 1
            yield from self._layer(chain)

    def _layer(self, chain: str) -> Iterator[Trouble]:
        path = self._layout.layers / chain
        if not (self._layout.layers / f"{chain}.json").exists():
            with self._store.committing():  # one that has just come in has its record by now
                pass
        try:
            chain_id = Digest.parse(f"sha256:{chain}")
            LayerRecord.decode((self._layout.layers / f"{chain}.json").read_bytes(), chain_id)
        except FileNotFoundError:
            yield Trouble(
                LAYER, chain, "has no record: half of a pull that was interrupted, or its record is lost"
            )
            return
        except (OSError, InvalidRecordError, InvalidReferenceError) as error:
            yield Trouble(LAYER, chain, f"its record can't be read: {str(error)[:100]}")
            return
        if not path.is_dir() or path.is_symlink():
            yield Trouble(LAYER, chain, "its directory is missing")
            return
        try:
            files = list(self._store.damaged_files(chain_id, self._read))
        except (OSError, VerificationError) as error:
            yield Trouble(LAYER, chain, f"its file index can't be read: {str(error)[:100]}")
            return
        if files:
            names = tuple(shown(file) for file in files[:_SHOWN])
            more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
            count = "a file is" if len(files) == 1 else f"{len(files)} files are"
            yield Trouble(LAYER, chain, f"{count} not what was unpacked: {', '.join(names)}{more}", names)

    # --- names and containers ----------------------------------------------------------------------------------------

    def _tags(self) -> Iterator[Trouble]:
        for name in _names(self._layout.tags):
            self.count.objects += 1
            if tags.read(self._layout.tags / name) is None:
                yield Trouble(TAG, name, "the file of a name that was given by hand can't be read")

    def _containers(self) -> Iterator[Trouble]:
        for container_id in everything(self._layout):
            self.count.objects += 1
            try:
                found = record.read_checked(self._layout, container_id)
            except (FileNotFoundError, NotADirectoryError):
                continue  # one in the making, or what is left of one
            except (OSError, ReconcilerError) as error:
                yield Trouble(CONTAINER, container_id, f"its record can't be read: {str(error)[:100]}")
                continue
            for chain in found.layers:
                if not (self._layout.layers / chain).is_dir():
                    yield Trouble(
                        CONTAINER, container_id, f"{found.full_name} is made from layer {chain[:12]}, missing"
                    )


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
