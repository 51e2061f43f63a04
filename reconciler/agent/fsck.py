"""`fsck`: what is wrong in the store, who needs it, and putting it right.

Nothing that is whole is fetched again, and nothing is taken from under a container: a layer that one has mounted is put
aside, and goes with it. What is broken and needed by nobody goes at once. Works beside a running agent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from reconciler.agent.images import open_images
from reconciler.agent.saving import references_of
from reconciler.agent.stock import Stock
from reconciler.engine import replaced, trash
from reconciler.engine.check import BLOB, CONTAINER, IMAGE, LAYER, TAG, Check, Count, Trouble
from reconciler.engine.progress import Listener
from reconciler.engine.pull import Images
from reconciler.errors import NotFoundError, ReconcilerError
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference
from reconciler.state.image import Image


@dataclass(slots=True)
class Finding:
    """What is wrong with one object, why it is needed ("" where nothing needs it), and what came of it.

    `done` says what was done, "" for nothing; `next` what is left to do; `why` why it could not be put right.
    """

    trouble: Trouble
    needed: str
    next: str
    done: str = ""
    why: str = ""
    users: tuple[str, ...] = ()

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "kind": self.trouble.kind,
            "name": self.trouble.name,
            "problem": self.trouble.what,
            "files": list(self.trouble.files),
            "needed_by": self.needed,
            "used_by": list(self.users),
            "done": self.done,
            "failure": self.why,
            "next": self.next,
        }


def check(stock: Stock, told: Callable[[int], object]) -> tuple[list[Finding], Count]:
    """Look through the store, and return what is wrong; nothing is swept meanwhile."""
    looking = Check(stock.layout, stock.store, told)
    with stock.store.adding():
        troubles = list(looking.run())
    return [finding(stock, trouble) for trouble in troubles], looking.count


def finding(stock: Stock, trouble: Trouble) -> Finding:
    """What is wrong, with who needs it."""
    key = (trouble.kind, trouble.name)
    needed = stock.wanted.get(key) or stock.named.get(key) or ""
    if trouble.kind == CONTAINER:
        needed = "it is a container"
    if trouble.kind == LAYER and not needed:
        needed = next(
            (f"image {i.manifest.short} has it" for i in _having(stock, trouble.name) if _kept(stock, i)), ""
        )
    users = replaced.users(stock.layout, trouble.name) if trouble.kind == LAYER else ()
    return Finding(
        trouble, needed, "run: reconciler fsck --repair", users=tuple(one.full_name for one in users)
    )


def _having(stock: Stock, chain: str) -> Iterator[Image]:
    return (
        image for image in stock.store.images() if any(layer.chain_id.hex == chain for layer in image.layers)
    )


def _kept(stock: Stock, image: Image) -> bool:
    keys = [(IMAGE, str(image.index)), (IMAGE, str(image.manifest))]
    return any(key in stock.wanted or key in stock.named for key in keys)


@dataclass(slots=True)
class Repair:
    """Puts findings right, one after the other, each whole or not at all."""

    stock: Stock
    images: Images
    progress: Listener

    def run(self, findings: Sequence[Finding]) -> None:
        """Put right what can be; each finding says what came of it. Lower layers come before those above them."""
        for finding in sorted(findings, key=self._height):
            try:
                finding.done = self._repaired(finding)
                finding.next = ""
            except (ReconcilerError, OSError) as error:
                hint = getattr(error, "hint", "")
                finding.why = f"{error}{f' ({hint})' if hint else ''}"
                finding.next = "have its registry, or a bundle with it, at hand, and run fsck --repair again"
            if finding.done and finding.users:
                names = " ".join(finding.users)
                finding.next = f"running with the damaged copy until then: reconciler restart {names}"

    def _height(self, finding: Finding) -> int:
        """Blobs first, then layers from the bottom, then what is made of them."""
        if finding.trouble.kind != LAYER:
            return 0 if finding.trouble.kind in (BLOB, IMAGE, TAG) else 1000
        heights = (
            number
            for image in _having(self.stock, finding.trouble.name)
            for number, layer in enumerate(image.layers, 1)
            if layer.chain_id.hex == finding.trouble.name
        )
        return next(heights, 1)

    def _repaired(self, finding: Finding) -> str:
        trouble = finding.trouble
        match trouble.kind:
            case "blob":
                return self._blob(trouble.name)
            case "image":
                return self._image(trouble.name)
            case "layer":
                return self._layer(trouble.name, finding)
            case "tag":
                self.stock.store.discard(self.stock.layout.tags / trouble.name)
                return "dropped: the image stays, give it a name again"
            case _:
                return self._container(trouble.name)

    # --- documents ---------------------------------------------------------------------------------------------------

    def _blob(self, name: str) -> str:
        layout, store = self.stock.layout, self.stock.store
        algorithm, _, rest = name.partition(":")
        self.stock.store.discard(layout.blobs / algorithm / rest)
        try:
            digest = Digest.parse(name)
        except InvalidReferenceError:
            return "dropped"
        for image in store.images():
            if digest in (image.index, image.manifest, image.config):
                self._fetch_documents(image)
                return "fetched again"
        return "dropped: nothing here is made of it"

    def _fetch_documents(self, image: Image) -> None:
        said: ReconcilerError | None = None
        for reference in self._references(image):
            try:
                _, documents = self.images.documents(reference)
            except ReconcilerError as error:
                said = said or error
                continue
            with self.stock.store.adding():
                for digest, data in documents.items():
                    if not self.stock.store.has_blob(digest):
                        self.stock.store.ingest([data], digest, len(data))
            return
        raise said or NotFoundError(f"image {image.manifest.short}: nobody knows where it came from")

    def _references(self, image: Image) -> list[Reference]:
        """Where to ask for it; bundles are asked by digest alone, so that some name will do for them."""
        return references_of(self.stock, image) or [Reference("localhost", "fsck", None, image.index)]

    def _image(self, name: str) -> str:
        store = self.stock.store
        known = store.resolved(Digest.parse(name)) if name.count(":") == 1 and len(name) > 64 else None
        if known is not None:
            self._fetch_documents(known)
            return "fetched again"
        store.discard(self.stock.layout.resolved / f"{name.replace(':', '-', 1)}.json")
        for reference in self._wanted(name):
            self.images.resolve(reference)
            return "resolved again"
        return "dropped: it is found again when it is asked for"

    def _wanted(self, digest: str) -> Iterator[Reference]:
        """The references by which specs and containers ask for that digest."""
        texts = [c.reference for app in self.stock.desired.apps.values() for c in app.containers.values()]
        texts += [u.reference for app in self.stock.desired.apps.values() for u in app.unresolved]
        texts += [record.reference for record in self.stock.records]
        return (Reference.parse(text) for text in texts if text.endswith(f"@{digest}"))

    # --- layers ------------------------------------------------------------------------------------------------------

    def _layer(self, chain: str, finding: Finding) -> str:
        if not finding.needed:
            return self._drop_layer(chain)
        said: ReconcilerError | None = None
        for image in _having(self.stock, chain):
            layer = next(layer for layer in image.layers if layer.chain_id.hex == chain)
            for reference in self._references(image):
                try:
                    self.images.replace(image, layer, reference, self.progress)
                except ReconcilerError as error:
                    said = said or error
                    continue
                return "fetched again"
        raise said or NotFoundError(f"layer {chain[:12]}: no image here is known to have it")

    def _drop_layer(self, chain: str) -> str:
        layout, store = self.stock.layout, self.stock.store
        with store.exclusive():
            if len(chain) == 64:
                store.remove_layer(Digest("sha256", chain))
            for suffix in (".json", ".files", ""):
                trash.discard(layout.layers / f"{chain}{suffix}", layout.trash)
        return "dropped: nothing needs it"

    def _container(self, container_id: str) -> str:
        for record in self.stock.records:
            if record.id != container_id:
                continue
            for image in self.stock.store.images():
                if str(image.manifest) == record.manifest:
                    self.images.pull(image, Reference.parse(record.reference), self.progress)
                    return "its image was pulled again"
        raise NotFoundError("the agent mends it from its copy, or makes it again, when it starts")


def repair(stock: Stock, findings: Sequence[Finding], progress: Listener) -> None:
    """Put right what can be, from bundles, mirrors and registries; and throw away what nothing uses any more."""
    with closing(open_images(stock.layout, stock.device, stock.store)) as images:
        Repair(stock, images, progress).run(findings)
    replaced.release(stock.layout)
    stock.store.empty_trash()
