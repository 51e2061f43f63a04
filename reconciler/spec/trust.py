"""Whose signature an image needs, in the device's own file: rules by repository, the first that matches counts.

Pure, as `spec.device` is.
"""

import re
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault
from reconciler.spec.fields import Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.reference import Reference
from reconciler.spec.values import describe, each, path, text

_HOST: Final = re.compile(r"[A-Za-z0-9*?.-]+(?::[0-9*?]+)?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?")
_PATH: Final = re.compile(r"[a-z0-9*?._-]+")
_MAX_LENGTH: Final = 255
_MAX_KEYS: Final = 16
_HUB: Final = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


def _pattern(value: object) -> str:
    """Return HOST or HOST/PREFIX, with `*` and `?` for what is within a component."""
    found = text(value)
    host, *rest = found.split("/")
    if "://" in found:
        raise Fault(
            f"must be HOST[/PREFIX], not {quote(found)}",
            hint=f"write {found.partition('://')[2].rstrip('/')}",
        )
    if "@" in found or (rest and ":" in rest[-1]):
        raise Fault(f"must be a repository, without tag and digest, not {quote(found)}")
    if (
        len(found) > _MAX_LENGTH
        or _HOST.fullmatch(host) is None
        or any(_PATH.fullmatch(part) is None for part in rest)
    ):
        raise Fault(f"must be HOST[:PORT][/PREFIX], with * and ? within a component, not {quote(found)}")
    if not {".", ":", "*", "?"} & {*host} and host != "localhost":
        raise Fault(
            f"must begin with the host of a registry, not {quote(found)}", hint=f"write docker.io/{found}"
        )
    return found


def matches(pattern: str, reference: Reference) -> bool:
    """Return whether `pattern` is about the repository of `reference`: it, or a prefix of whole components, matches.

    Hosts are compared as DNS has it, without regard to case, and by one name where a registry has several: who may
    write specs must not get around a rule by how a host is spelt.
    """
    return _compiled(pattern).fullmatch(f"{_host(reference.registry)}/{reference.repository}") is not None


def _host(name: str) -> str:
    found = name.lower().removesuffix(":443")
    return "docker.io" if found in _HUB else found


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> "re.Pattern[str]":
    host, slash, prefix = pattern.partition("/")
    whole = re.escape(_host(host) + slash + prefix)
    return re.compile(whole.replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + "(?:/.*)?")


def _keys(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        hint = f"write [{value}]" if isinstance(value, str) and value.startswith("/") else ""
        raise Fault(f"must be a list, not {describe(value)}", hint=hint)
    if not 1 <= len(value) <= _MAX_KEYS:
        raise Fault(f"must name from 1 to {_MAX_KEYS} files, not {len(value)}")
    return tuple(each(value, path))


_PATHS: Final = {
    "type": "array",
    "items": {"type": "string", "pattern": "^/"},
    "minItems": 1,
    "maxItems": _MAX_KEYS,
}
Keys = Annotated[tuple[str, ...], PlainValidator(_keys), WithJsonSchema(_PATHS)]
Pattern = Annotated[str, PlainValidator(_pattern), WithJsonSchema({"type": "string"})]


class TrustRule(Part):
    """Whose signature the images of some repositories need."""

    match: Annotated[
        Pattern,
        Doc(
            "The repositories that it is about: HOST, or HOST/PREFIX for those that begin so; `*` and `?` match within "
            "a component, so that `*` is every image.",
            "pattern",
            "ghcr.io/acme",
        ),
    ]
    keys: Annotated[
        Keys,
        Doc(
            "Files with a public key each (PEM, as cosign and openssl write it): ECDSA P-256, P-384 or P-521, RSA from "
            "2048 bits, Ed25519. A signature by one of them is enough.",
            "list",
            "[/etc/reconciler/ci.pub]",
        ),
    ]
    mode: Annotated[
        Literal["require", "warn"],
        Doc(
            "`require`: an image that none of them has signed is not brought here, and no container is made from it. "
            "`warn`: it is used, and that is said.",
            "require, warn",
            "warn",
        ),
    ] = "require"
