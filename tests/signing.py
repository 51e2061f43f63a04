"""A small cosign for tests: keys of their own, signatures in both forms, put beside an image in a layout or a registry.

Written from the formats, independently of what reads them in the program.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from reconciler.engine.image import OCI_INDEX, OCI_MANIFEST
from reconciler.spec.reference import Digest
from tests.images import Built, sha256
from tests.registry import FakeRegistry, put_blob, put_manifest

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://sigstore.dev/cosign/sign/v1"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_HASHES: dict[str, type[HashAlgorithm]] = {"sha256": SHA256, "sha384": SHA384, "sha512": SHA512}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Signer:
    """A key of its own. `pss` and `hashed` sign otherwise than cosign does."""

    key: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    hashed: str = "sha256"
    pss: bool = False

    @property
    def pem(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> str:
        der = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f"SHA256:{hashlib.sha256(der).hexdigest()}"

    def public(self, path: Path) -> Path:
        """Write the public key into the file `path`."""
        path.write_bytes(self.pem)
        return path

    def sign(self, message: bytes) -> bytes:
        algorithm = _HASHES[self.hashed]()
        match self.key:
            case ec.EllipticCurvePrivateKey():
                return self.key.sign(message, ec.ECDSA(algorithm))
            case rsa.RSAPrivateKey():
                scheme: Any = (
                    padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
                    if self.pss
                    else padding.PKCS1v15()
                )
                return self.key.sign(message, scheme, algorithm)
            case _:
                return self.key.sign(message)


# --- the tag form ---------------------------------------------------------------------------------------------------


def payload(digest: Digest, **change: Any) -> bytes:
    """What `cosign sign` signs; `change` replaces fields of `critical`."""
    critical = {
        "identity": {"docker-reference": "registry.example/app"},
        "image": {"docker-manifest-digest": str(digest)},
        "type": "cosign container image signature",
    } | change
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


@dataclass
class Artifact:
    """A manifest that lies beside an image, and its blobs; `tag` is its name, `about` the image that it refers to."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    tag: str = ""
    about: Digest | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> dict[str, Any]:
        """Its descriptor in an index of what refers to the image."""
        more = {"artifactType": BUNDLE} if self.about is not None else {}
        return {
            "mediaType": OCI_MANIFEST,
            "digest": str(sha256(self.manifest)),
            "size": len(self.manifest),
            **more,
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
        }


def tagged(digest: Digest, signed: Sequence[tuple[bytes, str]], **notes: str) -> Artifact:
    """The manifest of these payloads and signatures (base64), as it lies under the tag of `digest`."""
    blobs = {str(sha256(data)): data for data, _ in signed}
    layers = [
        {
            "mediaType": SIMPLE_SIGNING,
            "digest": str(sha256(data)),
            "size": len(data),
            "annotations": {"dev.cosignproject.cosign/signature": signature, **notes},
        }
        for data, signature in signed
    ]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = json.dumps({"architecture": "", "config": {}, "os": "", "rootfs": rootfs}).encode()
    blobs[str(sha256(config))] = config
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": str(sha256(config)),
        "size": len(config),
    }
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": layers}
    return Artifact(json.dumps(manifest).encode(), blobs, tag=f"{digest.algorithm}-{digest.hex}.sig")


def by_tag(signer: Signer, digest: Digest) -> Artifact:
    """A good signature in the tag form."""
    data = payload(digest)
    return tagged(digest, [(data, b64(signer.sign(data)))])


# --- the bundle form ------------------------------------------------------------------------------------------------


def statement(digest: Digest, **change: Any) -> bytes:
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "app", "digest": {digest.algorithm: digest.hex}}],
        "predicateType": PREDICATE,
        "predicate": {},
    } | change
    return json.dumps(document, separators=(",", ":")).encode()


def envelope(
    signer: Signer, data: bytes, *, kind: str = "application/vnd.in-toto+json", **change: Any
) -> dict[str, Any]:
    signed = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind.encode(), str(len(data)).encode(), data])
    return {
        "payload": b64(data),
        "payloadType": kind,
        "signatures": [{"sig": b64(signer.sign(signed))}],
    } | change


def message(signer: Signer, content: bytes) -> dict[str, Any]:
    digest = {"algorithm": "SHA2_256", "digest": b64(hashlib.sha256(content).digest())}
    return {"messageDigest": digest, "signature": b64(signer.sign(content))}


def bundle(**content: Any) -> bytes:
    """A Sigstore bundle with `dsseEnvelope` or `messageSignature`."""
    material = {"publicKey": {"hint": "whatever"}, "tlogEntries": [{"logIndex": "1"}]}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, **content}).encode()


def referring(digest: Digest, data: bytes, *, subject: Digest | None = None, noted: bool = True) -> Artifact:
    """The manifest of a bundle that refers to the image `digest`, as `cosign sign` of version 3 writes it."""
    notes = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": PREDICATE,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": BUNDLE,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": str(sha256(b"{}")),
            "size": 2,
        },
        "layers": [{"mediaType": BUNDLE, "digest": str(sha256(data)), "size": len(data)}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": str(subject or digest), "size": 1},
        "annotations": notes,
    }
    blobs = {str(sha256(data)): data, str(sha256(b"{}")): b"{}"}
    return Artifact(json.dumps(manifest).encode(), blobs, about=digest, annotations=notes if noted else {})


def by_bundle(signer: Signer, digest: Digest) -> Artifact:
    """A good signature in the bundle form."""
    return referring(digest, bundle(dsseEnvelope=envelope(signer, statement(digest))))


# --- where they lie -------------------------------------------------------------------------------------------------


def referrers(found: Sequence[Artifact]) -> bytes:
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one.entry for one in found]}
    return json.dumps(index).encode()


def into_layout(built: Built, *found: Artifact) -> None:
    """Add them to the layout of an image, as entries of its index."""
    index = json.loads((built.layout / "index.json").read_bytes())
    for one in found:
        for name, data in {**one.blobs, str(sha256(one.manifest)): one.manifest}.items():
            (built.layout / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(data)
        entry = one.entry
        if one.tag:
            entry["annotations"] = {"org.opencontainers.image.ref.name": one.tag}
        index["manifests"].append(entry)
    (built.layout / "index.json").write_text(json.dumps(index))


def serve(fake: FakeRegistry, repository: str, *found: Artifact, api: bool = True) -> None:
    """Let `fake` have them; with `api` it lists what refers to an image, else there is a tag for that."""
    for one in found:
        fake.blobs |= one.blobs
        fake.manifests[str(sha256(one.manifest))] = OCI_MANIFEST, one.manifest
        if one.tag:
            fake.manifests[one.tag] = OCI_MANIFEST, one.manifest
    about = {one.about for one in found if one.about is not None}
    for digest in about:
        data = referrers([one for one in found if one.about == digest])
        if api:
            path = f"/v2/{repository}/referrers/{digest}"
            fake.scripts[path] = lambda _, wire, data=data: wire.respond(  # type: ignore[misc]
                200, data, {"Content-Type": OCI_INDEX}
            )
        else:
            fake.manifests[f"{digest.algorithm}-{digest.hex}"] = OCI_INDEX, data


def push(registry: str, repository: str, *found: Artifact) -> None:
    """Push them to a real registry (host:port, plain HTTP), what refers to an image under the tag for that."""
    for one in found:
        for name, data in one.blobs.items():
            put_blob(registry, repository, Digest.parse(name), data)
        put_manifest(registry, repository, one.tag or str(sha256(one.manifest)), OCI_MANIFEST, one.manifest)
    for digest in {one.about for one in found if one.about is not None}:
        data = referrers([one for one in found if one.about == digest])
        put_manifest(registry, repository, f"{digest.algorithm}-{digest.hex}", OCI_INDEX, data)
