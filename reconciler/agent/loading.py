"""`load` and `bundle ingest`: images of an archive, or of a layout, come into the store, each blob and layer verified.

Works beside a running agent, by the store's own locks. What comes in is what its digest says; what a name means is
another matter (CVE-2026-53489 and its kin): a name that a spec pins to something else is never given, and who loads an
archive by hand is told of every name that meant another image before.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.agent import client
from reconciler.agent.images import open_images
from reconciler.agent.stock import Stock, pinned_elsewhere
from reconciler.config import Device
from reconciler.engine import instance, tags
from reconciler.engine.archived import Archived
from reconciler.engine.layout import Layout
from reconciler.engine.oci_layout import Holder
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.progress import Progress
from reconciler.engine.store import Store
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.spec.reference import Digest, Reference
from reconciler.state.desired import Desired
from reconciler.state.image import Image


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came in: the image, the names it has got by it, and what there is to say of others."""

    image: Image
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "digest": str(self.image.index),
            "manifest": str(self.image.manifest),
            "config": str(self.image.config),
            "platform": self.image.platform,
            "names": list(self.names),
            "notes": list(self.notes),
        }


@contextmanager
def opened(layout: Layout, holder: str) -> Iterator[Store]:
    """The store, made where there is none; beside an agent if one runs, else with the state lock held."""
    instance.prepare(layout)
    store = Store(layout)
    store.prepare()
    if client.running(layout):
        yield store
        return
    with instance.StateLock(layout, f"reconciler {holder}"):
        yield store


@dataclass(frozen=True, slots=True)
class Loading:
    """How to load: into which store, from which bundle alone, for which platform ("" for the device's).

    With `moves` a name that is given to another image moves, as Docker's `load` has it; else it stays where it is.
    """

    layout: Layout
    device: Device
    store: Store
    source: Path | Holder
    called: str
    platform: str = ""
    moves: bool = True

    def load(self, found: Sequence[Archived], progress: Callable[[Progress], None]) -> Iterator[Loaded]:
        """Bring each image in, whole, and yield it; what came before a failure stays.

        Raises NotFoundError where a blob is neither there nor here, VerificationError where it is damaged there.
        """
        platform = Platform.parse(self.platform) if self.platform else host_platform()
        images = open_images(self.layout, self.device, self.store, platform, only=[self.source])
        with closing(images):
            for one in found:
                first, *others = self._called(one)
                try:
                    image = images.resolve(first)
                    for other in others:
                        images.admit(other)
                    images.collect(first)
                    images.pull(image, first, progress)
                except ReconcilerError as error:
                    raise self._explained(error, one, (first, *others)) from error
                loaded = self._named(image, one.names)
                problems = [images.trust.verdict(reference).problem for reference in (first, *others)]
                yield replace(loaded, notes=(*filter(None, problems), *loaded.notes))

    def _called(self, one: Archived) -> list[Reference]:
        """What the image is, for rules about signatures: what the archive calls it, else what specs that pin it do."""
        found = []
        for text in one.names:
            try:
                found.append(replace(Reference.parse(tags.full_name(text)), digest=one.digest))
            except UsageError:
                continue  # it gets no such name either
        if not found and self.device.trust:
            found = _pinning(Stock(self.layout, self.device, self.store).desired, one.digest)
        return found or [Reference("localhost", "loaded", None, one.digest)]

    def _explained(
        self, error: ReconcilerError, one: Archived, called: Iterable[Reference]
    ) -> ReconcilerError:
        what = ", ".join(one.names) or one.digest.short
        text = str(error)
        for reference in called:
            text = text.replace(f"image {reference}: ", "")
        hint = error.hint
        if isinstance(error, NotFoundError):
            text, hint = f"{text}, and not here", "the bundle was made for a device that has it: make it anew"
        return type(error)(f"{self.called}: image {what}: {text}", hint=hint)

    def _named(self, image: Image, wanted: Iterable[str]) -> Loaded:
        given, notes = [], []
        with self.store.adding(), self.store.claims:
            stock = Stock(self.layout, self.device, self.store)
            for text in wanted:
                if ":" not in text and "/" not in text:
                    notes.append(
                        f"it is called {text!r} there, which is the tag of no name: use its digest, or tag it"
                    )
                    continue
                try:
                    name = tags.full_name(text)
                except UsageError as error:
                    notes.append(f"not called so: {error}")
                    continue
                reason = pinned_elsewhere(stock, name, image)
                before = tags.find(self.layout, name)
                other = before is not None and before.digest not in (image.index, image.manifest)
                if reason:
                    notes.append(f"{name}: not renamed: {reason}")
                elif other and not self.moves:
                    notes.append(f"{name}: stays with {before.digest}" if before else "")
                else:
                    if other and before is not None:
                        notes.append(f"{name}: meant {before.digest} before")
                    tags.give(self.layout, name, image.index)
                    given.append(name)
        return Loaded(image, tuple(given), tuple(notes))


def _pinning(desired: Desired, digest: Digest) -> list[Reference]:
    """By which references what should run pins this digest."""
    apps = desired.apps.values()
    texts = {container.reference for app in apps for container in app.containers.values()}
    texts |= {item.reference for app in apps for item in app.unresolved}
    return [Reference.parse(text) for text in sorted(texts) if text.endswith(f"@{digest}")]
