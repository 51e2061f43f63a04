"""What signatures say: every form that counts, everything that does not, and whatever bytes come along."""

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.trust.claim import Form, Material, claim, pae
from reconciler.engine.trust.keys import PublicKey, read_key
from reconciler.engine.trust.verify import load, vouches
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest
from tests.images import sha256
from tests.signing import (
    BUNDLE,
    Signer,
    b64,
    bundle,
    envelope,
    message,
    payload,
    statement,
)

CONTENT = b'{"schemaVersion": 2}'
IMAGE = sha256(CONTENT)
OTHER = sha256(b"another")


@cache
def p256() -> Signer:
    return Signer()


def read() -> bytes:
    return CONTENT


def key_of(signer: Signer, tmp: Any) -> PublicKey:
    return read_key(str(signer.public(tmp / "key.pub")))


def by_tag(data: bytes, signature: str | None = None, signer: Signer | None = None) -> Material:
    return Material(Form.TAG, data, b64((signer or p256()).sign(data)) if signature is None else signature)


def by_bundle(data: bytes) -> Material:
    return Material(Form.BUNDLE, data)


def signed(**change: Any) -> Material:
    return by_bundle(bundle(dsseEnvelope=envelope(p256(), statement(IMAGE, **change))))


SIGNERS: dict[str, Callable[[], Signer]] = {
    "p256": p256,
    "p384": lambda: Signer(ec.generate_private_key(ec.SECP384R1())),
    "p384-sha384": lambda: Signer(ec.generate_private_key(ec.SECP384R1()), hashed="sha384"),
    "p521": lambda: Signer(ec.generate_private_key(ec.SECP521R1())),
    "p521-sha512": lambda: Signer(ec.generate_private_key(ec.SECP521R1()), hashed="sha512"),
    "rsa": lambda: Signer(rsa.generate_private_key(65537, 2048)),
    "ed25519": lambda: Signer(ed25519.Ed25519PrivateKey.generate()),
}


@pytest.mark.parametrize("name", SIGNERS)
def test_each_kind_of_key_vouches_in_each_form_for_the_image_and_no_other(name: str, tmp_path: Any) -> None:
    signer = SIGNERS[name]()
    key, stranger = key_of(signer, tmp_path), Signer()
    forms = [
        by_tag(payload(IMAGE), signer=signer),
        by_bundle(bundle(dsseEnvelope=envelope(signer, statement(IMAGE)))),
        by_bundle(bundle(messageSignature=message(signer, CONTENT))),
    ]
    for material in forms:
        said = claim(material, IMAGE, read)
        assert vouches(key, said)
        assert not vouches(PublicKey("", read_key(str(stranger.public(tmp_path / "other"))).der), said)
        broken = bytearray(said.signature)
        broken[-1] ^= 1
        assert not vouches(key, type(said)(said.message, bytes(broken)))
        assert not vouches(key, type(said)(said.message + b" ", said.signature))
        with pytest.raises(VerificationError, match=r"expected sha256:|digest is"):
            claim(material, OTHER, read)


@pytest.mark.parametrize(
    ("signer", "verifier"),
    [
        (lambda: Signer(hashed="sha384"), None),
        (lambda: Signer(rsa.generate_private_key(65537, 2048), pss=True), None),
        (lambda: Signer(rsa.generate_private_key(65537, 2048), hashed="sha512"), None),
        (lambda: Signer(rsa.generate_private_key(65537, 2048)), p256),
        (p256, lambda: Signer(rsa.generate_private_key(65537, 2048))),
        (p256, lambda: Signer(ed25519.Ed25519PrivateKey.generate())),
        (lambda: Signer(ed25519.Ed25519PrivateKey.generate()), p256),
    ],
    ids=[
        "p256-sha384",
        "rsa-pss",
        "rsa-sha512",
        "rsa-for-ecdsa",
        "ecdsa-for-rsa",
        "ecdsa-for-ed25519",
        "ed25519-for-ecdsa",
    ],
)
def test_the_algorithm_is_the_keys_own(
    signer: Callable[[], Signer], verifier: Callable[[], Signer] | None, tmp_path: Any
) -> None:
    made = signer()
    key = key_of(verifier() if verifier else made, tmp_path)
    assert not vouches(key, claim(by_tag(payload(IMAGE), signer=made), IMAGE, read))


def test_the_encoding_before_signing_is_the_published_one() -> None:
    # The example of the specification (secure-systems-lab/dsse, protocol.md)
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


GOOD = payload(IMAGE)
TWICE = GOOD[:-1] + b',"critical":{"type":"x"}}'
BAD_TAGS: dict[str, tuple[Material, str]] = {
    "another image": (by_tag(payload(OTHER)), "signs 'sha256:"),
    "a digest in capitals": (
        by_tag(payload(IMAGE, image={"docker-manifest-digest": str(IMAGE).upper()})),
        "expected sha256:",
    ),
    "another type": (by_tag(payload(IMAGE, type="atomic container signature")), "type is 'atomic"),
    "no image": (by_tag(payload(IMAGE, image=None)), "image is missing"),
    "a key twice": (by_tag(TWICE), "appears twice"),
    "not JSON": (by_tag(b"{"), "not a valid JSON"),
    "a list": (by_tag(b"[]"), "expected an object"),
    "nested deeply": (by_tag(b'{"a":' * 100 + b"1" + b"}" * 100), "nested deeper"),
    "too large": (by_tag(GOOD + b" " * (64 << 10)), "expected at most 65536"),
    "cut off": (by_tag(GOOD, b64(p256().sign(GOOD))[:-3]), "not base64"),
    "url-safe": (by_tag(GOOD, "_-_-"), "not base64"),
    "no padding": (by_tag(GOOD, "YQ"), "not base64"),
    "spaces": (by_tag(GOOD, "YQ ="), "not base64"),
    "bits left over": (by_tag(GOOD, "YR=="), "bits are left over"),
    "empty": (by_tag(GOOD, ""), "not base64"),
    "a long signature": (by_tag(GOOD, b64(b"x" * 3000)), "expected at most 2048"),
}


@pytest.mark.parametrize("name", BAD_TAGS)
def test_a_payload_that_does_not_sign_this_image_is_refused(name: str) -> None:
    material, said = BAD_TAGS[name]
    with pytest.raises(VerificationError, match=said.replace("(", r"\(")):
        claim(material, IMAGE, read)


def changed(**change: Any) -> Material:
    document = json.loads(bundle(dsseEnvelope=envelope(p256(), statement(IMAGE))))
    return by_bundle(json.dumps(document | change).encode())


def enveloped(**change: Any) -> Material:
    return by_bundle(bundle(dsseEnvelope=envelope(p256(), statement(IMAGE)) | change))


BAD_BUNDLES: dict[str, tuple[Material, str]] = {
    "an older form": (changed(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"), "mediaType"),
    "a certificate": (changed(verificationMaterial={"certificate": {"rawBytes": "YQ=="}}), "keyless"),
    "no material": (changed(verificationMaterial=None), "verificationMaterial is missing"),
    "both contents": (changed(messageSignature={"signature": "YQ=="}), "either a dsseEnvelope"),
    "no content": (changed(dsseEnvelope=None), "either a dsseEnvelope"),
    "another payload": (enveloped(payloadType="text/plain"), "payloadType is"),
    "no signature": (enveloped(signatures=[]), "0 signatures"),
    "two signatures": (enveloped(signatures=[{"sig": "YQ=="}] * 2), "2 signatures"),
    "a payload cut off": (enveloped(payload="YWJjZ"), "not base64"),
    "another statement": (signed(_type="https://example.org/Statement"), "_type is"),
    "an SBOM": (signed(predicateType="https://spdx.dev/Document"), "predicateType is"),
    "provenance": (signed(predicateType="https://slsa.dev/provenance/v1"), "predicateType is"),
    "no subject": (signed(subject=[]), "signs nothing"),
    "another subject": (signed(subject=[{"digest": {"sha256": OTHER.hex}}]), "signs '"),
    "a subject's name": (signed(subject=[{"name": str(IMAGE), "digest": {"sha1": "0"}}]), "signs nothing"),
    "no digest": (signed(subject=[{"name": "x"}]), "digest is missing"),
    "too large": (by_bundle(b" " * (300 << 10)), "expected at most"),
    "a message about something else": (
        by_bundle(bundle(messageSignature=message(p256(), b"something else"))),
        "is of something else",
    ),
    "an unknown hash": (
        by_bundle(
            bundle(
                messageSignature=message(p256(), CONTENT)
                | {"messageDigest": {"algorithm": "MD5", "digest": "YQ=="}}
            )
        ),
        "algorithm is 'MD5'",
    ),
}


@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_a_bundle_that_does_not_sign_this_image_is_refused(name: str) -> None:
    material, said = BAD_BUNDLES[name]
    with pytest.raises(VerificationError, match=said):
        claim(material, IMAGE, read)


def test_of_several_subjects_one_is_enough_and_both_base64_alphabets_are_read(tmp_path: Any) -> None:
    data = statement(
        IMAGE, subject=[{"digest": {"sha256": OTHER.hex}}, {"digest": {"sha256": IMAGE.hex}}], note="?>?>~~"
    )
    made = envelope(p256(), data)
    sent = made | {
        "payload": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "signatures": [{"sig": made["signatures"][0]["sig"].replace("+", "-").replace("/", "_")}],
    }
    said = claim(by_bundle(bundle(dsseEnvelope=sent)), IMAGE, read)
    assert vouches(key_of(p256(), tmp_path), said)


def test_a_message_whose_image_was_changed_is_refused() -> None:
    with pytest.raises(VerificationError, match="digest is"):
        claim(by_bundle(bundle(messageSignature=message(p256(), CONTENT))), IMAGE, lambda: b"changed")


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    ["critical", "image", "docker-manifest-digest", "type", "mediaType", "verificationMaterial", "publicKey",
     "dsseEnvelope", "payload", "payloadType", "signatures", "sig", "messageSignature", "messageDigest"]
)  # fmt: skip
SHAPED: Any = st.recursive(
    JSON | st.sampled_from([BUNDLE, str(IMAGE), "cosign container image signature", "YQ=="]),
    lambda inner: st.dictionaries(WORDS, inner, max_size=5) | st.lists(inner, max_size=2),
    max_leaves=15,
)


@given(st.sampled_from(list(Form)), st.binary(max_size=200) | SHAPED, st.text(max_size=40))
def test_whatever_comes_is_refused_by_name(form: Form, content: Any, signature: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(VerificationError):
        claim(Material(form, data, signature), IMAGE, read)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_of_a_signed_payload_is_vouched_for(place: int, change: int) -> None:
    material = by_tag(GOOD)
    data = bytearray(GOOD)
    data[place % len(data)] ^= change
    key = PublicKey("", _der())
    try:
        said = claim(Material(Form.TAG, bytes(data), material.signature), IMAGE, read)
    except VerificationError:
        return
    assert not vouches(key, said)


@cache
def _der() -> bytes:
    lines = p256().pem.decode().splitlines()[1:-1]
    return base64.b64decode("".join(lines))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (lambda: ec.generate_private_key(ec.SECP256K1()), "ECDSA over secp256k1"),
        (lambda: rsa.generate_private_key(65537, 1024), "RSA with 1024 bits"),
    ],
)
def test_other_and_weak_keys_are_refused(key: Callable[[], Any], said: str, tmp_path: Any) -> None:
    with pytest.raises(VerificationError, match=said):
        load(key_of(Signer(key()), tmp_path))
    with pytest.raises(VerificationError, match="no public key that can be read"):
        load(PublicKey("x.pub", b"\x30\x03\x02\x01\x01"))


def test_sha512_digests_are_signed_by_bundles() -> None:
    digest = Digest("sha512", "1" * 128)
    material = by_bundle(bundle(dsseEnvelope=envelope(p256(), statement(digest))))
    assert claim(material, digest, read).signature
    with pytest.raises(VerificationError):
        claim(material, IMAGE, read)
