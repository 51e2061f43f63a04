"""The images that cold pulls are measured with: a small one, a base, an application in gzip and zstd, a huge layer.

Made from what is in the Debian base image, so that they compress like real ones, and kept where the tests keep theirs.
"""

import gzip
import importlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine.image import OCI_LAYER
from reconciler.spec.reference import Digest
from tests.images import (
    Built,
    Item,
    LayerBlob,
    OciLayout,
    cached,
    debian_base,
    directory,
    file,
    layer,
    layers_of,
    sha256,
)

_SMALL_FILE: Final = 16 << 10
_APP_LAYERS: Final = 4  # above the base
_APP_ENTRIES: Final = 11_400  # in each of them
_COPIES: Final = 3  # of the base's content in the huge layer
_RANDOM: Final = 150 << 20  # bytes in it that no packing makes smaller


@dataclass(frozen=True, slots=True)
class Subject:
    """An image to pull: its name, those of its rows, what people call it, and how it is made, once."""

    name: str
    wall: str
    cpu: str
    what: str
    build: Callable[[], Built]

    def described(self) -> str:
        """What it is, with its packed size as it really is."""
        size = sum(item.stat().st_size for item in layer_files(self.build()))
        return f"{self.what} ({size / 1e6:.0f} MB packed)"


def layer_files(image: Built) -> list[Path]:
    """The files of the image's layers, lowest first."""
    blobs = image.layout / "blobs" / "sha256"
    manifest: dict[str, list[dict[str, str]]] = json.loads((blobs / image.digest.hex).read_bytes())
    return [blobs / item["digest"].partition(":")[2] for item in manifest["layers"]]


def _built(name: str, layers: Callable[[], list[LayerBlob]]) -> Built:
    def build(path: Path) -> None:
        digest = OciLayout(path).image(layers(), config={"Cmd": ["/bin/true"]}, tag=name)
        (path / "digest").write_text(str(digest))

    path = cached(f"bench-{name}.oci", build)
    return Built(path, Digest.parse((path / "digest").read_text()), name)


def _content() -> Iterator[bytes]:
    """The regular files of the base, as they stand in its archive."""
    (packed,) = layer_files(debian_base())
    with tarfile.open(packed, "r|gz") as archive:
        for info in archive:
            found = archive.extractfile(info) if info.isreg() else None
            if found is not None:
                yield found.read()


def _small() -> list[LayerBlob]:
    """Two thirds of it packs well, one third does not: a megabyte in all, once packed."""
    noise = random.Random(1).randbytes(700 << 10)
    text = b"".join(data for data, _ in zip(_content(), range(120), strict=False))[: 1 << 20]
    items = [directory("./bin"), file("./bin/true", noise, 0o755), file("./text", text)]
    return [layer(items)]


def _app() -> list[LayerBlob]:
    """The base, and four layers of many small files, as packages of an interpreter are."""
    small = [data for data in _content() if len(data) <= _SMALL_FILE]
    layers = [*layers_of(debian_base())]
    for number in range(_APP_LAYERS):
        items: list[Item] = [directory("./opt"), directory(f"./opt/part-{number}")]
        shuffled = random.Random(number).choices(small, k=_APP_ENTRIES)
        for index, data in enumerate(shuffled):
            if index % 40 == 0:
                items.append(directory(f"./opt/part-{number}/{index // 40}"))
            items.append(file(f"./opt/part-{number}/{index // 40}/file-{index}.py", data))
        layers.append(layer(items))
    return layers


def _zstd() -> list[LayerBlob]:
    """The layers of the application, packed anew."""
    zstd = importlib.import_module("backports.zstd")
    repacked = []
    for path in layer_files(_application()):
        archive = gzip.decompress(path.read_bytes())
        repacked.append(LayerBlob(zstd.compress(archive, 3), f"{OCI_LAYER}+zstd", sha256(archive)))
    return repacked


def _huge() -> list[LayerBlob]:
    items = [directory("./data")]
    for copy in range(_COPIES):
        items.append(directory(f"./data/{copy}"))
        items += [file(f"./data/{copy}/{index}", data) for index, data in enumerate(_content())]
    noise = random.Random(2)
    items += [
        file(f"./data/noise-{index}", noise.randbytes(10 << 20)) for index in range(_RANDOM // (10 << 20))
    ]
    return [layer(items, level=1)]


def _application() -> Built:
    return _built("app", _app)


SUBJECTS: Final = (
    Subject("small", "pull/small/wall", "pull/small/cpu", "one small layer", lambda: _built("small", _small)),
    Subject("base", "pull/base/wall", "pull/base/cpu", "Debian base", debian_base),
    Subject("app", "pull/app/wall", "pull/app/cpu", "application, 5 layers", _application),
    Subject("zstd", "pull/zstd/wall", "pull/zstd/cpu", "the same in zstd", lambda: _built("zstd", _zstd)),
    Subject("huge", "pull/huge/wall", "pull/huge/cpu", "one huge layer", lambda: _built("huge", _huge)),
)
QUICK: Final = ("small", "base")
