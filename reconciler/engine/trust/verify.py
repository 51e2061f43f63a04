"""Does a key vouch for these bytes? The algorithm follows from the key alone, never from what is verified.

The algorithms are those that cosign signs with: ECDSA over P-256, P-384 and P-521, RSA PKCS#1 v1.5 with SHA-256 from
2048 bits on, and pure Ed25519. cryptography is imported with the first verification: it takes 11 MB, and an agent
without trust in its settings, or with nothing new to verify, has no use for it.
"""

from typing import Any, Final

from reconciler.engine.trust.claim import Claim
from reconciler.engine.trust.keys import KeyFileError, PublicKey

_KINDS: Final = "ECDSA (P-256, P-384, P-521), RSA from 2048 bits, or Ed25519"
_RSA_SMALLEST: Final = 2048
_RSA_LARGEST: Final = 16_384


def vouches(key: PublicKey, claim: Claim) -> bool:
    """Return whether `key` has made the signature of `claim`; KeyFileError where it is no key for that."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    loaded = load(key)
    attempts: list[tuple[Any, ...]]
    match loaded:
        case ec.EllipticCurvePublicKey():
            attempts = [(ec.ECDSA(algorithm),) for algorithm in _hashes(loaded.curve.name)]
        case rsa.RSAPublicKey():
            attempts = [(padding.PKCS1v15(), SHA256())]
        case ed25519.Ed25519PublicKey():
            attempts = [()]
        case _:
            return False
    for attempt in attempts:
        try:
            loaded.verify(claim.signature, claim.message, *attempt)
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


def _hashes(curve: str) -> list[Any]:
    """cosign signs payloads with SHA-256 on every curve, and bundles with the hash of the curve's own size."""
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

    match curve:
        case "secp384r1":
            return [SHA256(), SHA384()]
        case "secp521r1":
            return [SHA256(), SHA512()]
    return [SHA256()]


def load(key: PublicKey) -> Any:
    """Return the key as cryptography has it, or raise KeyFileError: not a key, of another kind, or too small."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        loaded = load_der_public_key(key.der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"key {key.path}: is no public key that can be read, expected {_KINDS}") from error
    match loaded:
        case ec.EllipticCurvePublicKey() if loaded.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
            return loaded
        case rsa.RSAPublicKey() if _RSA_SMALLEST <= loaded.key_size <= _RSA_LARGEST:
            return loaded
        case ed25519.Ed25519PublicKey():
            return loaded
        case ec.EllipticCurvePublicKey():
            found = f"ECDSA over {loaded.curve.name}"
        case rsa.RSAPublicKey():
            found = f"RSA with {loaded.key_size} bits"
        case _:
            found = type(loaded).__name__.removesuffix("PublicKey")
    raise KeyFileError(f"key {key.path}: is {found}, expected {_KINDS}")
