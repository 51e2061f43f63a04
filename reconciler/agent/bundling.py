"""`bundle create`: an OCI layout with what a device lacks of some images, to be carried to it.

Every blob is the one that a spec pins, byte for byte, so a layer comes as it was packed, from a layout, a mirror or its
registry. What the device has is told by a list that it wrote itself, or read from its state directory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from reconciler.agent.images import open_images
from reconciler.agent.pinning import pinned
from reconciler.agent.specfiles import spec_files
from reconciler.config import Device
from reconciler.engine import outgoing
from reconciler.engine.image import OCI_INDEX, OCI_MANIFEST
from reconciler.engine.layout import Layout
from reconciler.engine.outgoing import Outgoing
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.progress import Listener
from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.engine.trust.carry import carried
from reconciler.errors import NotFoundError, UsageError
from reconciler.spec import pins
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_PLATFORM: Final = "platform"
_LAYER: Final = "layer"
_MAX_LIST: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Have:
    """What a device has: its platform, and the layers (chain ids) that are unpacked there."""

    platform: Platform
    layers: frozenset[Digest]

    def lines(self) -> Iterator[str]:
        """The list as text: a line for the platform, then one for each layer."""
        yield f"{_PLATFORM} {self.platform}"
        for chain_id in sorted(self.layers):
            yield f"{_LAYER} {chain_id}"


def have(layout: Layout) -> Have:
    """What the store of this state directory has, complete."""
    store = Store(layout)
    layers = store.layers() if layout.layers.is_dir() else {}
    return Have(host_platform(), frozenset(layers))


def read_have(text: str) -> Have:
    """What `text` names: a state directory, or a file that `bundle have` wrote; UsageError where it is neither."""
    path = Path(text)
    if path.is_dir():
        if not (path / "layers").is_dir():
            raise UsageError(
                f"--for {text}: is no state directory", hint="write a list there: reconciler bundle have"
            )
        return have(Layout(path.resolve(), path.resolve()))
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LIST + 1)
    except OSError as error:
        raise NotFoundError(f"--for {text}: {(error.strerror or '').lower()}") from error
    platform, layers = host_platform(), set()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        kind, _, value = line.strip().partition(" ")
        try:
            if len(data) > _MAX_LIST or kind not in ("", _PLATFORM, _LAYER):
                raise InvalidReferenceError("is no line of such a list")
            if kind == _LAYER:
                layers.add(Digest.parse(value))
            elif kind == _PLATFORM:
                platform = Platform.parse(value)
        except InvalidReferenceError as error:
            raise UsageError(
                f"--for {text}:{number}: {error}", hint="made by: reconciler bundle have"
            ) from error
    return Have(platform, frozenset(layers))


@dataclass(slots=True)
class Bundling:
    """What goes into one bundle, and what it came to: bytes packed, and bytes that the device has already.

    `signatures` counts what goes along of those, `notes` says what was in their way.
    """

    images: Images
    out: Outgoing
    lacks: Callable[[Digest], bool]
    progress: Listener
    packed: int = 0
    spared: int = 0
    images_in: int = 0
    signatures: int = 0
    notes: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reference: Reference) -> None:
        """Add the image that `reference` pins, as far as it is lacking."""
        image, documents = self.images.documents(reference)
        sources = self.images.packed
        for layer in image.layers:
            if not self.lacks(layer.chain_id):
                self.spared += layer.size
            elif not self.out.has(layer.digest):
                sources.fetch(layer, [reference], self.out.spool, self.progress)
                self.out.take(layer.digest)
                self.packed += layer.size
        for digest, data in documents.items():
            if not self.out.has(digest):
                self.out.put(digest, data)
        name = str(replace(reference, digest=None)) if reference.tag else ""
        top = documents[image.index]
        entry = {
            "mediaType": OCI_MANIFEST if image.index == image.manifest else OCI_INDEX,
            "digest": str(image.index),
            "size": len(top),
        }
        self.entries.append({**entry, **({"annotations": {_REF_NAME: name}} if name else {})})
        self.images_in += 1
        self._sign(reference, image.index, entry)

    def _sign(self, reference: Reference, digest: Digest, entry: dict[str, Any]) -> None:
        """Let the signatures of an image go along: who takes the bundle in may ask for them, and has no registry."""
        found, notes = self.images.signatures(reference)
        self.signatures += len(found)
        self.notes += [f"signatures of {reference}: {note}" for note in notes]
        entries, blobs = carried(found, digest, entry)
        self.entries += [one for one in entries if one not in self.entries]
        for own, data in blobs.items():
            if not self.out.has(own):
                self.out.put(own, data)


def wanted(texts: Sequence[str]) -> list[str]:
    """The references that `texts` come to: an image by its reference, or all of a spec file or a directory of them."""
    found: dict[str, None] = {}
    for text in texts:
        if Path(text).exists() or text.endswith((".yaml", ".yml")):
            files = [file for _, file in spec_files([text])]
            images = pins.texts(files)
            if not images:
                raise NotFoundError(f"{text}: names no image")
            found |= dict.fromkeys(images)
        else:
            found[text] = None
    return list(found)


def create(
    layout: Layout,
    device: Device,
    texts: Sequence[str],
    out: Outgoing,
    has: Have,
    sources: Sequence[Path],
    progress: Listener,
) -> Bundling:
    """Write a bundle of the images that `texts` name, from the layouts `sources` alone, or else as a pull would.

    Raises NotFoundError where a blob is nowhere to be had as it was packed, and what a registry raises.
    """
    images = open_images(layout, device, Store(layout), has.platform, only=sources)
    with closing(images):
        bundle = Bundling(images, out, lambda chain_id: chain_id not in has.layers, progress)
        for text in wanted(texts):
            bundle.add(_pinned(text, images, sources))
    out.finish({"index.json": outgoing.index(bundle.entries)})
    return bundle


def _pinned(text: str, images: Images, sources: Sequence[Path]) -> Reference:
    said: NotFoundError | None = None
    for source in sources if "@" not in text else ():
        try:
            return pinned(text, images.digest, bundle=str(source)).reference
        except NotFoundError as error:
            said = error
    if said is not None:
        raise said
    return pinned(text, images.digest).reference
