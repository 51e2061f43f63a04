"""Names of images and content: `Digest` and `Reference`, validated once, so that no later code splits strings.

The grammar is the OCI distribution specification's (1.1, "Pulling manifests") and Docker's reference grammar, narrowed
in two places: the registry host is mandatory, and nothing is lower-cased or completed for the user. Pure.
"""

import re
from dataclasses import dataclass
from typing import Final

from reconciler.errors import ReconcilerError

_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})", re.ASCII)
_HOST: Final = re.compile(
    r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
    r"(?::([0-9]{1,5}))?",
    re.ASCII,
)
_REPOSITORY: Final = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII
)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_MAX_LENGTH: Final = 512
_MAX_SHOWN: Final = 200


class InvalidReferenceError(ReconcilerError):
    """The text is not an image reference or a digest in our grammar."""

    exit_code = 3


def _shown(text: str) -> str:
    """Quote a part of what was given: an escape is up to ten characters, and a line is to stay one."""
    return repr(text) if len(text) <= _MAX_SHOWN and text.isprintable() else f"{text[:40]!r}..."


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest: `algorithm` is sha256 or sha512, `hex` is lower case and of the right length."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Return the digest that `text` spells, or raise InvalidReferenceError."""
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise InvalidReferenceError(
                f"digest {text[:80]!r}: not of the form sha256:<64 hex> or sha512:<128 hex>, lower case"
            )
        return cls(match[1] or match[3], match[2] or match[4])

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, as tables show them."""
        return self.hex[:12]


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """An image by name: `registry/repository[:tag][@digest]`; at least one of tag and digest is set."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Return the reference that `text` spells, or raise InvalidReferenceError saying which part is wrong."""
        if len(text) > _MAX_LENGTH:
            raise InvalidReferenceError(f"image {text[:40]!r}...: longer than {_MAX_LENGTH} characters")
        name, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        host, slash, rest = name.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            whole = f"docker.io/{text}" if slash else f"docker.io/library/{text}"
            raise InvalidReferenceError(
                f"image {_shown(text)}: the registry host is missing",
                hint=f"write {whole}"
                if text.isprintable()
                else "",  # a terminal would obey what else it holds
            )
        match = _HOST.fullmatch(host)
        if match is None or (match[1] is not None and not 1 <= int(match[1]) <= 65535):
            raise InvalidReferenceError(f"image {_shown(text)}: {_shown(host)} is not a registry host[:port]")
        repository, colon, tag = rest.partition(":")
        if _REPOSITORY.fullmatch(repository) is None:
            raise InvalidReferenceError(
                f"image {_shown(text)}: {_shown(repository)} is not a repository name (lower case)"
            )
        if colon and _TAG.fullmatch(tag) is None:
            raise InvalidReferenceError(f"image {_shown(text)}: {_shown(tag)} is not a tag")
        if not colon and digest is None:
            raise InvalidReferenceError(f"image {_shown(text)}: neither a tag nor a digest")
        return cls(host, repository, tag if colon else None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


# What stands for the image of a container whose own could not be read, while the rest of it is looked at.
STAND_IN: Final = Reference("stand-in.invalid", "stand-in", None, Digest("sha256", "0" * 64))
