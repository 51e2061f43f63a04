"""What a signature says, in both of cosign's forms, and the very bytes that it was made over.

*Tag*: a simple-signing payload (containers/image, docs/containers-signature.5.md), signed as it is. *Bundle*: a
Sigstore bundle 0.3 (sigstore/protobuf-specs, sigstore_bundle.proto) with a DSSE envelope around an in-toto statement,
or with a message signature over the image's own manifest. Everything in them is a stranger's word until a key has
vouched for it, and then one thing counts: that it is about this digest, and meant as a signature of an image. Pure.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from reconciler.engine.document import Object, parse
from reconciler.engine.image import check
from reconciler.spec.reference import Digest

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
IN_TOTO: Final = "application/vnd.in-toto+json"
COSIGN_TYPE: Final = "cosign container image signature"
_BUNDLES: Final = frozenset({BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3"})
_STATEMENTS: Final = frozenset({"https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1"})
_HASHES: Final = {"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}
_MAX_SIGNATURE: Final = 2048  # bytes; RSA with 16384 bits
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}|[A-Za-z0-9_-]*={0,2}", re.ASCII)

PAYLOAD_LIMIT: Final = 64 << 10
BUNDLE_LIMIT: Final = 256 << 10


class Form(StrEnum):
    """How a signature lies beside its image: under a tag of its own, or as a bundle that refers to the image."""

    TAG = "tag"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class Material:
    """A signature as it was found: a payload with its `signature` in base64, or a bundle that has its own."""

    form: Form
    data: bytes
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The bytes that were signed, and the signature; what they say has been looked at."""

    message: bytes
    signature: bytes


def claim(material: Material, digest: Digest, content: Callable[[], bytes]) -> Claim:
    """Return what `material` has signed of the image `digest`, or raise VerificationError.

    It is raised where it is malformed, about another image, or not meant as the signature of an image. `content`
    returns the image's own document, for the one form that is a signature of that.
    """
    if material.form is Form.TAG:
        return _simple(material, digest)
    return _bundle(material.data, digest, content)


# --- the tag form ---------------------------------------------------------------------------------------------------


def _simple(material: Material, digest: Digest) -> Claim:
    document = parse(material.data, subject="signature payload", limit=PAYLOAD_LIMIT)
    critical = document.required_child("critical")
    kind = critical.required_text("type")
    if kind != COSIGN_TYPE:
        critical.fail(f"type is {kind[:80]!r}, expected {COSIGN_TYPE!r}")
    signed = critical.required_child("image").required_text("docker-manifest-digest")
    if signed != str(digest):
        critical.fail(f"signs {signed[:140]!r}, expected {digest}")
    # As in Go's StdEncoding, which cosign uses: the standard alphabet, with padding
    signature = _decoded(document, "signature", material.signature, url_safe=False)
    return Claim(material.data, _sized(document, signature))


# --- the bundle form ------------------------------------------------------------------------------------------------


def _bundle(data: bytes, digest: Digest, content: Callable[[], bytes]) -> Claim:
    document = parse(data, subject="bundle", limit=BUNDLE_LIMIT)
    kind = document.required_text("mediaType")
    if kind not in _BUNDLES:
        document.fail(f"mediaType is {kind[:80]!r}, expected {BUNDLE}")
    material = document.required_child("verificationMaterial")
    if material.child("publicKey") is None:
        material.fail("made with a certificate, not with a key: keyless signatures are not checked")
    envelope, message = document.child("dsseEnvelope"), document.child("messageSignature")
    if (envelope is None) is (message is None):
        document.fail("expected either a dsseEnvelope or a messageSignature")
    if envelope is not None:
        return _envelope(envelope, digest)
    return _message(document.required_child("messageSignature"), digest, content)


def _envelope(envelope: Object, digest: Digest) -> Claim:
    kind = envelope.required_text("payloadType")
    if kind != IN_TOTO:
        envelope.fail(f"payloadType is {kind[:80]!r}, expected {IN_TOTO}")
    payload = _decoded(envelope, "payload", envelope.required_text("payload"))
    signatures = envelope.children("signatures") or []
    if len(signatures) != 1:  # sigstore_bundle.proto: "MUST contain exactly one signature"
        envelope.fail(f"{len(signatures)} signatures, expected one")
    signature = _decoded(signatures[0], "sig", signatures[0].required_text("sig"))
    _check_statement(payload, digest)
    return Claim(pae(kind, payload), _sized(envelope, signature))


def pae(kind: str, payload: bytes) -> bytes:
    """The pre-authentication encoding, which is what is signed (DSSE 1.0, protocol.md, "Signature Definition")."""
    spelled = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(spelled), spelled, len(payload), payload)


def _check_statement(payload: bytes, digest: Digest) -> None:
    statement = parse(payload, subject="statement", limit=BUNDLE_LIMIT)
    kind = statement.required_text("_type")
    if kind not in _STATEMENTS:
        statement.fail(f"_type is {kind[:80]!r}, expected an in-toto statement")
    predicate = statement.required_text("predicateType")
    if predicate != SIGN_PREDICATE:
        # The same key signs attestations: that an SBOM exists does not say that the image may run
        statement.fail(f"predicateType is {predicate[:80]!r}, expected {SIGN_PREDICATE}")
    signed = [
        subject.required_child("digest").text(digest.algorithm)
        for subject in statement.children("subject") or []
    ]
    if digest.hex not in signed:
        shown = ", ".join(repr(one[:140]) for one in signed[:3] if one is not None)
        statement.fail(f"signs {shown or 'nothing'}, expected {digest}")


def _message(message: Object, digest: Digest, content: Callable[[], bytes]) -> Claim:
    data = content()
    check(data, digest, subject="image")
    hashed = message.child("messageDigest")
    if hashed is not None:
        name = hashed.required_text("algorithm")
        if name not in _HASHES:
            hashed.fail(f"algorithm is {name[:40]!r}, expected {', '.join(_HASHES)}")
        if (
            _decoded(hashed, "digest", hashed.required_text("digest"))
            != hashlib.new(_HASHES[name], data).digest()
        ):
            hashed.fail(f"is of something else, expected {digest}")
    return Claim(data, _sized(message, _decoded(message, "signature", message.required_text("signature"))))


# --- base64 ---------------------------------------------------------------------------------------------------------


def _decoded(holder: Object, key: str, text: str, *, url_safe: bool = True) -> bytes:
    """Decode base64 strictly: nothing but its alphabet, no bits left over.

    Of JSON made from protocol buffers and in DSSE both alphabets are valid, with padding or without; else the standard
    one with padding is.
    """
    if _BASE64.fullmatch(text) is None or (not url_safe and (len(text) % 4 or {"-", "_"} & {*text})):
        holder.fail(f"{key}: not base64")
    bare = text.rstrip("=")
    if not bare or len(bare) % 4 == 1 or ("=" in text and len(text) % 4):
        holder.fail(f"{key}: not base64, or cut off")
    try:
        data = base64.b64decode(bare.translate({45: 43, 95: 47}) + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error as error:
        holder.fail(f"{key}: not base64: {error}")
    if base64.b64encode(data).decode().rstrip("=") != bare.translate({45: 43, 95: 47}):
        holder.fail(f"{key}: not base64: bits are left over")
    return data


def _sized(holder: Object, signature: bytes) -> bytes:
    if len(signature) > _MAX_SIGNATURE:
        holder.fail(f"a signature of {len(signature)} bytes, expected at most {_MAX_SIGNATURE}")
    return signature
