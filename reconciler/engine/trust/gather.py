"""Signatures of one image, found one by one on a shelf: the tag form first, then bundles, the newest first.

What is malformed, about another image, or too much, is noted and passed over: one bad signature beside a good one means
nothing, as with cosign. A search is bounded in what it looks at, whoever fills the shelf.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from reconciler.engine.document import Object, parse
from reconciler.engine.limits import Limits
from reconciler.engine.registry.errors import UnreachableRegistryError
from reconciler.engine.trust.claim import (
    BUNDLE,
    BUNDLE_LIMIT,
    PAYLOAD_LIMIT,
    SIGN_PREDICATE,
    SIMPLE_SIGNING,
    Form,
    Material,
)
from reconciler.engine.trust.shelf import Shelf, described, signature_tag
from reconciler.errors import ReconcilerError
from reconciler.spec.reference import Digest

MOST: Final = 32  # signatures of an image that are looked at, of each form and at each place
_MOST_NOTES: Final = 8
_LIMIT: Final = Limits().document
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


@dataclass(slots=True)
class Search:
    """What a search came to beside signatures: how many there were, and what was in the way, in words.

    `transient`: a place could not be asked, and may be later.
    """

    found: int = 0
    notes: list[str] = field(default_factory=list)
    transient: bool = False

    def note(self, error: ReconcilerError) -> None:
        """Keep what went wrong; not all of it where it is much."""
        self.transient = self.transient or error.transient
        self.say(str(error))

    def say(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < _MOST_NOTES:
            self.notes.append(text)


def gather(shelf: Shelf, digest: Digest, search: Search) -> Iterator[Material]:
    """Yield what lies on `shelf` as signatures of `digest`, for others to judge; what is wrong is noted, not raised."""
    for find in (_tagged, _referring):
        try:
            yield from find(shelf, digest, search)
        except UnreachableRegistryError as error:
            search.note(error)
            return  # it would not answer the next question either, after as long a wait
        except ReconcilerError as error:
            search.note(error)


def _tagged(shelf: Shelf, digest: Digest, search: Search) -> Iterator[Material]:
    tag = signature_tag(digest)
    if not tag:
        return
    for data in shelf.tagged(tag):
        document = parse(data, subject=f"{shelf.name}: {tag}", limit=_LIMIT)
        layers = [
            layer
            for layer in document.children("layers") or []
            if layer.text("mediaType") == SIMPLE_SIGNING and layer.child("annotations") is not None
        ]
        search.found += len(layers)
        for layer in _newest(layers, search, shelf):
            material = _each(search, lambda layer=layer: _payload(shelf, layer))  # type: ignore[misc]
            if material is not None:
                yield material


def _payload(shelf: Shelf, layer: Object) -> Material | None:
    notes = layer.required_child("annotations")
    if notes.has(_CERTIFICATE):
        layer.fail("made with a certificate, not with a key: keyless signatures are not checked")
    signature = notes.required_text(_SIGNATURE)
    if layer.required_integer("size") > PAYLOAD_LIMIT:
        layer.fail(f"a payload of more than {PAYLOAD_LIMIT} bytes")
    return Material(Form.TAG, shelf.blob(described(layer), PAYLOAD_LIMIT), signature)


def _referring(shelf: Shelf, digest: Digest, search: Search) -> Iterator[Material]:
    found = [
        entry
        for entry in shelf.referring(digest)
        if _predicate(entry) in (None, SIGN_PREDICATE)  # of attestations there may be many, and large ones
    ]
    for entry in _newest(found, search, shelf):
        material = _each(search, lambda entry=entry: _bundle(shelf, entry, digest))  # type: ignore[misc]
        if material is not None:
            search.found += 1
            yield material


def _predicate(holder: Object) -> str | None:
    notes = holder.child("annotations")
    return notes.text(_PREDICATE) if notes is not None else None


def _bundle(shelf: Shelf, entry: Object, digest: Digest) -> Material | None:
    """The bundle behind a descriptor; None where it belongs to another image, as most of a layout's do."""
    own = described(entry)
    document = parse(shelf.manifest(own), subject=f"{shelf.name}: referrer {own.short}", limit=_LIMIT)
    subject = document.child("subject")
    if subject is None or described(subject) != digest or _predicate(document) not in (None, SIGN_PREDICATE):
        return None
    layers = [layer for layer in document.children("layers") or [] if layer.text("mediaType") == BUNDLE]
    if len(layers) != 1:
        document.fail(f"{len(layers)} bundles, expected one")
    if layers[0].required_integer("size") > BUNDLE_LIMIT:
        layers[0].fail(f"a bundle of more than {BUNDLE_LIMIT} bytes")
    return Material(Form.BUNDLE, shelf.blob(described(layers[0]), BUNDLE_LIMIT))


def _newest(found: list[Object], search: Search, shelf: Shelf) -> list[Object]:
    """The last ones, since whoever signs adds at the end, in an order that begins with the newest."""
    if len(found) > MOST:
        search.say(f"{shelf.name}: {len(found)} signatures, of which the last {MOST} were looked at")
    return found[: -MOST - 1 : -1]


def _each(search: Search, read: Callable[[], Material | None]) -> Material | None:
    try:
        return read()
    except ReconcilerError as error:
        search.note(error)
        return None
