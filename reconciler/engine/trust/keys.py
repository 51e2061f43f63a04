"""Public keys from the files that device.yaml names: read strictly, told apart by their fingerprints.

A file is a regular file of one PEM block `PUBLIC KEY` (RFC 7468, RFC 5280 SubjectPublicKeyInfo), as cosign and openssl
write it. Which algorithm it is for is found out when it verifies something: reading needs no cryptography, so that an
agent whose images are all known to be signed loads none.
"""

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from reconciler.errors import VerificationError

_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_LIMIT: Final = 16 << 10  # an RSA key of 16384 bits takes 3 kB
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s(.*?)-----END \1-----", re.DOTALL)
_ANOTHER: Final = {
    b"RSA PUBLIC KEY": "run: openssl rsa -RSAPublicKey_in -in {path} -pubout",
    b"CERTIFICATE": "run: openssl x509 -in {path} -pubkey -noout",
}


class KeyFileError(VerificationError):
    """A file that should hold a public key can't be read, or holds something else; the message names it."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key: where it was read, and its SubjectPublicKeyInfo as DER."""

    path: str
    der: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and the digest of the DER form in hexadecimal: `openssl pkey -pubin -outform DER | sha256sum`."""
        return f"SHA256:{hashlib.sha256(self.der).hexdigest()}"


def read_key(path: str) -> PublicKey:
    """Return the key in the file `path`, or raise KeyFileError."""
    return PublicKey(path, _parsed(path, _content(path)))


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(f"key {path}: {(error.strerror or '').lower()}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) or mode & _WRITABLE:
        os.close(fd)
        if not stat.S_ISREG(mode):
            raise KeyFileError(f"key {path}: is no regular file")
        raise KeyFileError(f"key {path}: others than its owner may write it", hint=f"run: chmod go-w {path}")
    with open(fd, "rb") as file:
        try:
            data = file.read(_LIMIT + 1)
        except OSError as error:
            raise KeyFileError(f"key {path}: {(error.strerror or '').lower()}") from error
    if len(data) > _LIMIT:
        raise KeyFileError(f"key {path}: more than {_LIMIT} bytes, expected one public key")
    return data


def _parsed(path: str, data: bytes) -> bytes:
    blocks = list(_BLOCK.finditer(data))
    if len(blocks) != 1 or data.count(b"-----BEGIN ") != 1:
        found = f"{data.count(b'-----BEGIN ')} PEM blocks"
        raise KeyFileError(f"key {path}: {found}, expected one: BEGIN PUBLIC KEY")
    kind, body = blocks[0][1], blocks[0][2]
    if kind != b"PUBLIC KEY":
        hint = _ANOTHER.get(kind, "")
        if kind.endswith(b"PRIVATE KEY"):
            hint = "keep it off devices; its public half: cosign public-key, or openssl pkey -pubout"
        raise KeyFileError(
            f"key {path}: holds a {kind.decode('ascii')}, expected a PUBLIC KEY", hint=hint.format(path=path)
        )
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"key {path}: not base64 between BEGIN and END") from error


class Keys:
    """Key files, each read again only where the file is another one now. Not for several threads at once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, PublicKey | KeyFileError]] = {}

    def read(self, paths: Iterable[str]) -> tuple[list[PublicKey], list[KeyFileError]]:
        """Return the keys in `paths`, and what is wrong with the other files."""
        found: list[PublicKey] = []
        wrong: list[KeyFileError] = []
        for path in paths:
            now = stamp(path)
            known = self._known.get(path)
            if known is None or known[0] != now:
                try:
                    known = now, read_key(path)
                except KeyFileError as error:
                    known = now, error
                self._known[path] = known
            if isinstance(known[1], PublicKey):
                found.append(known[1])
            else:
                wrong.append(known[1])
        return found, wrong


def stamp(path: str) -> object:
    """What changes when the file is replaced or written to; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
