"""`save`: images that are here become one archive, which Docker, podman, skopeo and `load` read.

The archive has the image's own bytes, so that its digests stay what specs pin, as far as somebody has them: the store,
a bundle, its registry. A layer of which there is nothing but what was unpacked is packed anew, and its image is then
another one, by digest: that is said. The archive is an OCI layout, with Docker's list of the same files beside it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

from reconciler.agent.images import open_images
from reconciler.agent.stock import Stock, completed
from reconciler.engine import outgoing
from reconciler.engine.image import DOCKER_LAYER, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from reconciler.engine.outgoing import Outgoing
from reconciler.engine.packed import Packed
from reconciler.engine.progress import Listener
from reconciler.engine.repack import pack
from reconciler.engine.store import Store
from reconciler.engine.trust.carry import carried
from reconciler.engine.trust.record import Records
from reconciler.errors import NotFoundError
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference
from reconciler.state.image import Image, Layer

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_WHOLE_NAME: Final = "io.containerd.image.name"


@dataclass(slots=True)
class Saving:
    """What goes into one archive; `note` hears what has to be said."""

    stock: Stock
    out: Outgoing
    progress: Listener
    note: Callable[[str], object]
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _docker: list[dict[str, Any]] = field(default_factory=list)

    def save(self, texts: Sequence[str]) -> None:
        """Save the images that these names and digests mean, or raise: nothing is whole before the end.

        NotFoundError where one is not here whole, VerificationError where it is damaged.
        """
        wanted: dict[Digest, tuple[Image, list[str]]] = {}
        for text in texts:
            image = self.stock.find(text)
            name = _name_of(text, self.stock.names.get(str(image.manifest), ()))
            known = wanted.setdefault(image.manifest, (image, []))[1]
            known += [name] if name and name not in known else []
        store = self.stock.store
        with store.adding(), closing(open_images(self.stock.layout, self.stock.device, store)) as images:
            for image, names in wanted.values():
                self._image(images.packed, image, names)
        self.out.finish({"index.json": outgoing.index(self._entries), "manifest.json": self._docker})

    def _image(self, packed: Packed, image: Image, names: list[str]) -> None:
        store = self.stock.store
        if any(not store.has_layer(layer.chain_id) for layer in image.layers):
            raise NotFoundError(
                f"image {image.manifest.short}: is not here whole", hint=f"run: reconciler pull {_any(names)}"
            )
        references = references_of(self.stock, image)
        config, manifest = store.read_blob(image.config), store.read_blob(image.manifest)
        described = json.loads(manifest)["layers"]
        diff_ids = [str(layer.diff_id) for layer in image.layers]
        for number, layer in enumerate(image.layers):
            if self.out.has(layer.digest):
                continue
            try:
                packed.fetch(layer, references, self.out.spool, self.progress)
                self.out.take(layer.digest)
            except NotFoundError as error:
                digest, size = self._anew(store, layer)
                kind = DOCKER_LAYER if "docker" in layer.media_type else OCI_LAYER
                described[number] = {"mediaType": kind, "digest": str(digest), "size": size}
                diff_ids[number] = str(digest)
                self.note(f"{error}; packed anew from its files")
        if diff_ids != [str(layer.diff_id) for layer in image.layers]:
            config, manifest = _another(config, manifest, described, diff_ids)
            self.note(
                f"image {_any(names) or image.manifest.short}: saved as {digest_of(manifest)}, which is another digest"
            )
            digests = digest_of(manifest), digest_of(manifest), digest_of(config)
        else:
            digests = self._top(store, image), image.manifest, image.config
        self._documents(digests, config, manifest, names, described)

    def _top(self, store: Store, image: Image) -> Digest:
        """The index that the image was asked by, written, where the store has it; else the manifest."""
        if image.index == image.manifest:
            return image.manifest
        try:
            data = store.read_blob(image.index)
        except FileNotFoundError:
            return image.manifest
        if not self.out.has(image.index):
            self.out.put(image.index, data)
        return image.index

    def _anew(self, store: Store, layer: Layer) -> tuple[Digest, int]:
        digest, size = hashlib.sha256(), 0
        with self.out.spool.open("wb") as file:
            for chunk in pack(store.layer_path(layer.chain_id), store.layer_index(layer.chain_id)):
                digest.update(chunk)
                size += file.write(chunk)
        found = Digest("sha256", digest.hexdigest())
        self.out.take(found)
        return found, size

    def _documents(
        self,
        digests: tuple[Digest, Digest, Digest],
        config: bytes,
        manifest: bytes,
        names: list[str],
        described: list[dict[str, Any]],
    ) -> None:
        """Write config and manifest, and note the image in both lists; `digests`: top, manifest, config."""
        top, own, inner = digests
        for digest, data in ((inner, config), (own, manifest)):
            if not self.out.has(digest):
                self.out.put(digest, data)
        size, kind = len(manifest), json.loads(manifest).get("mediaType") or OCI_MANIFEST
        if top != own:
            index = self.stock.store.read_blob(top)
            size, kind = len(index), json.loads(index).get("mediaType") or OCI_INDEX
        entry = {"mediaType": kind, "digest": str(top), "size": size}
        self._entries += [
            {**entry, "annotations": {_WHOLE_NAME: name, _REF_NAME: name}} for name in names
        ] or [entry]
        self._sign(top, entry)
        self._docker.append(
            {
                "Config": _place(inner),
                "RepoTags": names,
                "Layers": [_place(Digest.parse(layer["digest"])) for layer in described],
            }
        )

    def _sign(self, digest: Digest, entry: dict[str, Any]) -> None:
        """Let the signatures that are kept with the image go along."""
        entries, blobs = carried(Records(self.stock.layout).read(digest).materials, digest, entry)
        self._entries += [one for one in entries if one not in self._entries]
        for own, data in blobs.items():
            if not self.out.has(own):
                self.out.put(own, data)


def references_of(stock: Stock, image: Image) -> list[Reference]:
    """What registries may call the image, the name that was used last first; each with its digest."""
    found = []
    for name in reversed(stock.names.get(str(image.manifest), ())):
        try:
            found.append(Reference.parse(f"{name}@{image.index}"))
        except InvalidReferenceError:
            continue
    return found


def _name_of(text: str, known: Sequence[str]) -> str:
    """The whole name by which `text` means an image that is `known` so; "" where it is a digest, or has no tag."""
    name = text.partition("@")[0]
    whole = (one for one in (name, completed(name)) if one in known)
    return next((one for one in whole if ":" in one.rpartition("/")[2]), "")


def _another(
    config: bytes, manifest: bytes, described: list[dict[str, Any]], diff_ids: list[str]
) -> tuple[bytes, bytes]:
    """The config and the manifest of an image whose layers were packed anew."""
    new = json.loads(config)
    new["rootfs"]["diff_ids"] = diff_ids
    data = json.dumps(new, separators=(",", ":"), ensure_ascii=False).encode()
    document = json.loads(manifest)
    document["config"] |= {"digest": str(digest_of(data)), "size": len(data)}
    document["layers"] = described
    return data, json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _place(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _any(names: Sequence[str]) -> str:
    return names[0] if names else ""
