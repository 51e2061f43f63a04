"""Signatures for others: as entries of an OCI layout that goes to a device which no registry reaches.

Written as cosign writes them, from what was found: payloads under their tag, bundles as they are, with the image as
their subject. What a key needs goes along; a payload's certificate and its entry in a transparency log do not. Pure.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from reconciler.engine.image import OCI_CONFIG, OCI_MANIFEST, digest_of
from reconciler.engine.trust.claim import BUNDLE, SIGN_PREDICATE, SIMPLE_SIGNING, Form, Material
from reconciler.engine.trust.shelf import signature_tag
from reconciler.spec.reference import Digest

_EMPTY: Final = "application/vnd.oci.empty.v1+json"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


def carried(
    materials: Sequence[Material], digest: Digest, subject: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[Digest, bytes]]:
    """Return the entries of index.json and the blobs for these signatures of the image `digest`.

    `subject` is the image's own descriptor.
    """
    blobs: dict[Digest, bytes] = {}
    entries: list[dict[str, Any]] = []
    payloads = [one for one in materials if one.form is Form.TAG]
    tag = signature_tag(digest)
    if payloads and tag:
        layers = [
            {**_blob(blobs, SIMPLE_SIGNING, one.data), "annotations": {_SIGNATURE: one.signature}}
            for one in payloads
        ]
        rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
        config = {"architecture": "", "config": {}, "os": "", "rootfs": rootfs}
        manifest = _manifest(config=_blob(blobs, OCI_CONFIG, _spelled(config)), layers=layers)
        entries.append({**_blob(blobs, OCI_MANIFEST, manifest), "annotations": {_REF_NAME: tag}})
    described = {key: subject[key] for key in ("mediaType", "digest", "size")}
    for one in materials:
        if one.form is Form.BUNDLE:
            manifest = _manifest(
                artifactType=BUNDLE,
                config=_blob(blobs, _EMPTY, b"{}"),
                layers=[_blob(blobs, BUNDLE, one.data)],
                subject=described,
                annotations={_PREDICATE: SIGN_PREDICATE},
            )
            entries.append({**_blob(blobs, OCI_MANIFEST, manifest), "artifactType": BUNDLE})
    return entries, blobs


def _manifest(**fields: Any) -> bytes:
    return _spelled({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **fields})


def _blob(blobs: dict[Digest, bytes], kind: str, data: bytes) -> dict[str, Any]:
    digest = digest_of(data)
    blobs[digest] = data
    return {"mediaType": kind, "digest": str(digest), "size": len(data)}


def _spelled(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
