"""How the store writes down what it knows: a layer's record and a resolved image, as JSON with a checksum.

Read back strictly: a record that a failing disk has changed by one bit must not name another layer. Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from reconciler.engine.document import InvalidDocumentError, Object, parse
from reconciler.engine.image import digest_of
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest, InvalidReferenceError
from reconciler.state.image import Image, Layer

_VERSION: Final = 1
_LIMIT: Final = 4 << 20


class InvalidRecordError(VerificationError):
    """A record of the store can't be read: it is treated as absent, and made again."""


def seal(value: Mapping[str, object]) -> dict[str, object]:
    """Return `value` with the format's version and a checksum."""
    return {"version": _VERSION, **value, "check": _check(value)}


def _check(value: Mapping[str, object]) -> str:
    return digest_of(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hex[:16]


def unseal(data: bytes, subject: str) -> Object:
    """Return what `seal` was given, from JSON, or raise InvalidRecordError."""
    try:
        document = parse(data, subject=subject, limit=_LIMIT)
        value = {key: item for key, item in document.fields.items() if key not in ("version", "check")}
        if document.required_integer("version") != _VERSION:
            document.fail("written by another version")
        if document.required_text("check") != _check(value):
            document.fail("damaged")
    except InvalidDocumentError as error:
        raise InvalidRecordError(str(error)) from error
    return document


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What is known of an unpacked layer. Its existence on disk is what makes the layer complete.

    `digest` is that of the packed blob it came from, `diff_id` that of the archive; `size` counts bytes of file
    content, `entries` files, directories and links; `created` is wall time in seconds; `boot` is the boot of the
    device in which it came in, empty in records of releases that did not write it.
    """

    chain_id: Digest
    diff_id: Digest
    digest: Digest
    parent: Digest | None
    size: int
    entries: int
    created: float
    boot: str = ""

    def encode(self) -> dict[str, object]:
        return seal(
            {
                "chain_id": str(self.chain_id),
                "diff_id": str(self.diff_id),
                "digest": str(self.digest),
                "parent": None if self.parent is None else str(self.parent),
                "size": self.size,
                "entries": self.entries,
                "created": int(self.created),
                "boot": self.boot,
            }
        )

    @classmethod
    def decode(cls, data: bytes, expected: Digest) -> "LayerRecord":
        """Return the record in `data` of the layer `expected`, or raise InvalidRecordError."""
        document = unseal(data, f"layer record {expected.short}")
        parent = document.text("parent")
        try:
            record = cls(
                Digest.parse(document.required_text("chain_id")),
                Digest.parse(document.required_text("diff_id")),
                Digest.parse(document.required_text("digest")),
                None if parent is None else Digest.parse(parent),
                document.required_integer("size"),
                document.required_integer("entries"),
                document.required_integer("created"),
                document.text("boot") or "",
            )
        except (InvalidDocumentError, InvalidReferenceError) as error:
            raise InvalidRecordError(str(error)) from error
        if record.chain_id != expected:
            raise InvalidRecordError(f"layer record {expected.short}: is that of {record.chain_id}")
        return record


def _plain(value: object) -> object:
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Layer):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(Layer)}
    return value


def encode_image(image: Image) -> dict[str, object]:
    """Return `image` as values for JSON."""
    return seal({item.name: _plain(getattr(image, item.name)) for item in fields(Image)})


def decode_image(data: bytes) -> Image:
    """Return the image that `encode_image` wrote, or raise InvalidRecordError."""
    document = unseal(data, "resolved image")
    try:
        layers = document.children("layers") or []
        return Image(
            index=Digest.parse(document.required_text("index")),
            manifest=Digest.parse(document.required_text("manifest")),
            config=Digest.parse(document.required_text("config")),
            layers=tuple(
                Layer(
                    Digest.parse(item.required_text("digest")),
                    item.required_integer("size"),
                    item.required_text("media_type"),
                    Digest.parse(item.required_text("diff_id")),
                    Digest.parse(item.required_text("chain_id")),
                )
                for item in layers
            ),
            platform=document.required_text("platform"),
            entrypoint=document.texts("entrypoint"),
            command=document.texts("command"),
            environment=document.texts("environment") or (),
            working_dir=document.required_text("working_dir"),
            user=document.required_text("user"),
            stop_signal=document.text("stop_signal"),
            volumes=document.texts("volumes") or (),
            exposed_ports=document.texts("exposed_ports") or (),
            labels=_pairs(document),
        )
    except (InvalidDocumentError, InvalidReferenceError) as error:
        raise InvalidRecordError(str(error)) from error


def _pairs(document: Object) -> tuple[tuple[str, str], ...]:
    found = []
    for item in document.array("labels") or []:
        match item:
            case [str(key), str(value)]:
                found.append((key, value))
            case _:
                document.fail("labels: not pairs of strings")
    return tuple(found)
