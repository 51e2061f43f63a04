"""What is kept beside an image: who has vouched for it, and the signatures, so that all can be verified again offline.

One small file per digest, replaced whole, with a checksum. A record that can't be read counts as none: then the
signatures are fetched and verified anew, or the image is not used.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine import trash
from reconciler.engine.document import InvalidDocumentError, Object
from reconciler.engine.durable import replace_json
from reconciler.engine.imagerecord import InvalidRecordError, seal, unseal
from reconciler.engine.layout import Layout
from reconciler.engine.trust.claim import Form, Material
from reconciler.spec.reference import Digest

_MOST: Final = 16  # signatures that are kept
_MOST_BYTES: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class Voucher:
    """One verification that went well: by which key (its fingerprint), in which form, found where, and when (wall)."""

    key: str
    form: Form
    source: str
    time: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of the signatures of one digest."""

    vouchers: tuple[Voucher, ...] = ()
    materials: tuple[Material, ...] = ()

    def voucher(self, fingerprints: Mapping[str, object]) -> Voucher | None:
        """The newest verification by one of these keys."""
        return next((one for one in reversed(self.vouchers) if one.key in fingerprints), None)

    def with_material(self, *materials: Material) -> "Kept":
        """The same with more signatures, the first ones first, as far as there is room."""
        found = list(dict.fromkeys((*materials, *self.materials)))[:_MOST]
        while sum(len(one.data) + len(one.signature) for one in found) > _MOST_BYTES:
            found.pop()
        return Kept(self.vouchers, tuple(found))

    def with_voucher(self, voucher: Voucher) -> "Kept":
        """The same, with what has just been verified; one entry for each key."""
        others = tuple(one for one in self.vouchers if one.key != voucher.key)[-_MOST:]
        return Kept((*others, voucher), self.materials)


class Records:
    """The records of one state directory. Read again only where a file has changed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[Digest, tuple[object, Kept]] = {}

    def read(self, digest: Digest) -> Kept:
        """What is kept of `digest`; nothing where there is no record, or a damaged one."""
        path = self._layout.signature(digest)
        try:
            status = path.stat()
            key = status.st_ino, status.st_size, status.st_mtime_ns
            known = self._known.get(digest)
            if known is not None and known[0] == key:
                return known[1]
            kept = _decode(path.read_bytes(), digest)
        except (OSError, InvalidRecordError):
            return Kept()
        self._known[digest] = key, kept
        return kept

    def write(self, digest: Digest, kept: Kept) -> None:
        """Keep it, durably."""
        path = self._layout.signature(digest)
        self._layout.signatures.mkdir(mode=0o700, exist_ok=True)
        if path.is_dir():
            trash.discard(path, self._layout.trash)
        replace_json(path, _encode(digest, kept))

    def path(self, digest: Digest) -> Path:
        """The file of one digest."""
        return self._layout.signature(digest)

    @property
    def directory(self) -> Path:
        return self._layout.signatures


def _encode(digest: Digest, kept: Kept) -> dict[str, object]:
    return seal(
        {
            "digest": str(digest),
            "vouchers": [
                {"key": one.key, "form": one.form.value, "source": one.source, "time": int(one.time)}
                for one in kept.vouchers
            ],
            "signatures": [
                {
                    "form": one.form.value,
                    "data": base64.b64encode(one.data).decode(),
                    "signature": one.signature,
                }
                for one in kept.materials
            ],
        }
    )


def _decode(data: bytes, expected: Digest) -> Kept:
    document = unseal(data, f"signatures of {expected.short}")
    try:
        if document.required_text("digest") != str(expected):
            document.fail(f"are those of {document.text('digest')}")
        return Kept(
            tuple(
                Voucher(
                    item.required_text("key"),
                    _form(item),
                    item.required_text("source"),
                    item.required_integer("time"),
                )
                for item in document.children("vouchers") or []
            ),
            tuple(
                Material(_form(item), _bytes(item, "data"), item.text("signature") or "")
                for item in document.children("signatures") or []
            ),
        )
    except InvalidDocumentError as error:
        raise InvalidRecordError(str(error)) from error


def _form(item: Object) -> Form:
    found = item.required_text("form")
    if found not in list(Form):
        item.fail(f"form is {found!r}")
    return Form(found)


def _bytes(item: Object, key: str) -> bytes:
    try:
        return base64.b64decode(item.required_text(key), validate=True)
    except binascii.Error:
        item.fail(f"{key}: not base64")
