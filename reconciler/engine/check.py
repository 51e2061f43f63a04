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
from reconciler.engine.platter import Platter
from reconciler.engine.store import Store
from reconciler.engine.tree import shown
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError

BLOB: Final = "blob"
LAYER: Final = "layer"
IMAGE: Final = "image"
TAG: Final = "tag"
CONTAINER: Final = "container"

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
        self._platter = Platter()
        self.count = Count()

    def run(self) -> Iterator[Trouble]:
        """Yield everything that is wrong, in the order in which it is best repaired: what others need first."""
        for kind, name in self.objects():
            yield from self.one(kind, name)

    def objects(self) -> Iterator[tuple[str, str]]:
        """Yield the kind and name of everything that is there, in that order."""
        layout = self._layout
        for algorithm in ALGORITHMS:
            yield from ((BLOB, f"{algorithm}:{name}") for name in _names(layout.blobs / algorithm))
        yield from (
            (IMAGE, name.removesuffix(".json").replace("-", ":", 1)) for name in _names(layout.resolved)
        )
        chains = (name.removesuffix(".json").removesuffix(".files") for name in _names(layout.layers))
        yield from ((LAYER, chain) for chain in dict.fromkeys(chains))
        yield from ((TAG, name) for name in _names(layout.tags))
        yield from ((CONTAINER, container_id) for container_id in everything(layout))

    def one(
        self, kind: str, name: str, *, begin: int = 0, passed: Callable[[int], object] = lambda _: None
    ) -> Iterator[Trouble]:
        """Yield what is wrong with one object. Of a layer the first `begin` files are left out; see `damaged`."""
        self.count.objects += 1
        match kind:
            case "blob":
                return self._blob(*name.split(":", 1))
            case "image":
                return self._image(name)
            case "layer":
                return self._layer(name, begin, passed)
            case "tag":
                return self._tag(name)
            case _:
                return self._container(name)

    def _read(self, size: int) -> None:
        self.count.bytes += size
        self._told(size)

    # --- blobs and what is known of images ---------------------------------------------------------------------------

    def _blob(self, algorithm: str, name: str) -> Iterator[Trouble]:
        path = self._layout.blobs / algorithm / name
        if len(name) != ALGORITHMS[algorithm] or not path.is_file() or path.is_symlink():
            if path.exists() or path.is_symlink():
                yield Trouble(BLOB, f"{algorithm}:{name}", "is no blob: something else lies there")
        elif (found := self._digest(path, algorithm)) != name:
            yield Trouble(BLOB, f"{algorithm}:{name}", f"is damaged: its digest is {found[:12]}")

    def _digest(self, path: Path, algorithm: str) -> str:
        digest = hashlib.new(algorithm)
        try:
            with path.open("rb", buffering=0) as file:
                self._platter.read(file.fileno(), digest.update, self._read)
        except OSError as error:  # EIO is what damage often looks like
            return f"not to be had: {error.strerror}"
        return digest.hexdigest()

    def _image(self, digest: str) -> Iterator[Trouble]:
        try:
            image = decode_image((self._layout.resolved / f"{digest.replace(':', '-', 1)}.json").read_bytes())
            if str(image.index) != digest:
                raise InvalidRecordError(f"is that of {image.index}")
        except FileNotFoundError:
            return  # it has gone meanwhile
        except (OSError, InvalidRecordError) as error:
            yield Trouble(IMAGE, digest, f"its record can't be read: {str(error)[:100]}")
            return
        for what, blob in (("manifest", image.manifest), ("config", image.config)):
            if not self._store.has_blob(blob):
                yield Trouble(IMAGE, digest, f"its {what} {blob.short} is missing")

    # --- layers ------------------------------------------------------------------------------------------------------

    def _layer(self, chain: str, begin: int, passed: Callable[[int], object]) -> Iterator[Trouble]:
        path = self._layout.layers / chain
        if not (self._layout.layers / f"{chain}.json").exists():
            with self._store.committing():  # one that has just come in has its record by now
                pass
        try:
            chain_id = Digest.parse(f"sha256:{chain}")
            LayerRecord.decode((self._layout.layers / f"{chain}.json").read_bytes(), chain_id)
        except FileNotFoundError:
            if not any((self._layout.layers / f"{chain}{more}").exists() for more in ("", ".files")):
                return  # it has gone meanwhile
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
            files = list(self._store.damaged_files(chain_id, self._read, begin=begin, passed=passed))
        except (OSError, VerificationError) as error:
            yield Trouble(LAYER, chain, f"its file index can't be read: {str(error)[:100]}")
            return
        if files:
            names = tuple(shown(file) for file in files[:_SHOWN])
            more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
            count = "a file is" if len(files) == 1 else f"{len(files)} files are"
            yield Trouble(LAYER, chain, f"{count} not what was unpacked: {', '.join(names)}{more}", names)

    # --- names and containers ----------------------------------------------------------------------------------------

    def _tag(self, name: str) -> Iterator[Trouble]:
        path = self._layout.tags / name
        if tags.read(path) is None and path.exists():
            yield Trouble(TAG, name, "the file of a name that was given by hand can't be read")

    def _container(self, container_id: str) -> Iterator[Trouble]:
        try:
            found = record.read_checked(self._layout, container_id)
        except (FileNotFoundError, NotADirectoryError):
            return  # one in the making, or what is left of one
        except (OSError, ReconcilerError) as error:
            yield Trouble(CONTAINER, container_id, f"its record can't be read: {str(error)[:100]}")
            return
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
