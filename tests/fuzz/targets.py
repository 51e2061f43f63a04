"""The parsers that strangers feed, each as a function of bytes, with what it is to be fed to begin with.

A target raises nothing but what its parser promises; anything else is a finding, and becomes a case in the tests of
that parser. `tests/unit/engine/test_fuzz_wire.py` gives each some hundred inputs in every run, `make fuzz` as many as
time allows.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from reconciler.engine.image import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    is_index,
    parse_config,
    parse_index,
    parse_manifest,
)
from reconciler.engine.limits import Limits
from reconciler.engine.registry.auth import Challenge, challenge_of
from reconciler.engine.registry.client import range_start
from reconciler.engine.registry.endpoint import retry_after
from reconciler.engine.tar import Reader
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.errors import VerificationError
from reconciler.spec.reference import InvalidReferenceError, Reference
from tests.images import directory, file, hard_link, symlink, tar

_DIGEST: Final = "sha256:" + "a" * 64
_ENTRY: Final = {"mediaType": OCI_LAYER + "+gzip", "digest": _DIGEST, "size": 3}


@dataclass(frozen=True)
class Target:
    """`run` raises only for a finding; `seeds` are inputs that get far."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _short(error: Exception, most: int) -> None:
    assert len(str(error)) < most


def _documents(data: bytes) -> None:
    for parse in (parse_manifest, parse_index, parse_config):
        try:
            parse(data)
        except VerificationError as error:
            _short(error, 1000)
    try:
        is_index(data, subject="x", limits=Limits())
    except VerificationError:
        pass


def _reference(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        found = Reference.parse(text)
    except InvalidReferenceError as error:
        _short(error, 2000)
        return
    assert str(found) == text
    assert Reference.parse(str(found)) == found
    assert ".." not in found.repository.split("/")
    assert text.isascii()
    assert text.isprintable()


def _challenge(data: bytes) -> None:
    headers = data.decode("latin-1").split("\n")
    found = challenge_of(headers)
    if isinstance(found, Challenge):
        assert 0 < len(found.realm) <= 2048
        assert len(found.service) <= 2048


def _range(data: bytes) -> None:
    found = range_start(data.decode("latin-1"))
    assert found is None or 0 <= found < 10**19


def _retry(data: bytes) -> None:
    assert 0 <= retry_after(data.decode("latin-1"), 30.0) <= 30


def _tar(data: bytes) -> None:
    limits = Limits(entries=1000, header=1 << 16)
    pieces = io.BytesIO(data)
    reader = Reader(iter(lambda: pieces.read(700), b""), limits)
    try:
        for _ in reader:
            for offset, piece in reader.data():
                assert offset >= 0
                assert piece
        reader.drain()
    except InvalidLayerError as error:
        _short(error, 2000)


TARGETS: Final[Mapping[str, Target]] = {
    "documents": Target(
        _documents,
        (
            _json(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "config": {"mediaType": OCI_CONFIG, "digest": _DIGEST, "size": 2},
                    "layers": [_ENTRY],
                }
            ),
            _json(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_INDEX,
                    "manifests": [
                        {
                            **_ENTRY,
                            "mediaType": OCI_MANIFEST,
                            "platform": {"os": "linux", "architecture": "amd64"},
                        }
                    ],
                }
            ),
            _json(
                {
                    "os": "linux",
                    "architecture": "amd64",
                    "config": {"Cmd": ["a"], "Env": ["A=b"], "User": "1", "Volumes": {"/v": {}}},
                    "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
                }
            ),
        ),
    ),
    "reference": Target(
        _reference,
        (
            f"ghcr.io/a/b:1.5@{_DIGEST}".encode(),
            b"localhost:5000/x__y/z-1:tag",
            b"[::1]:5000/a@sha512:" + b"b" * 128,
        ),
    ),
    "challenge": Target(
        _challenge,
        (
            b'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a:pull"',
            b'Basic realm="x"\nbearer realm=https://a/ , service="a\\"b"',
        ),
    ),
    "content-range": Target(_range, (b"bytes 0-9/10", b"bytes 5-9/*", b"bytes */10")),
    "retry-after": Target(
        _retry, (b"120", b"Wed, 21 Oct 2015 07:28:00 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"-1")
    ),
    "tar": Target(
        _tar,
        (
            tar([directory("d"), file("d/f", b"x" * 600), symlink("l", "d/f"), hard_link("h", "d/f")]),
            tar([file("n" * 300, b"y", mtime=1.5)]),  # type: ignore[arg-type]
        ),
    ),
}
