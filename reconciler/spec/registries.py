"""How a device reaches registries, in its own file: which over plain http, with whose certificates, by which mirrors.

Pure, as `spec.device` is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault
from reconciler.spec.fields import Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.reference import InvalidReferenceError, Reference
from reconciler.spec.values import OptionalPath, describe, each, entries, path, text

ANY: Final = "*"  # every registry
_HOST: Final = re.compile(
    r"[A-Za-z0-9](?:[-A-Za-z0-9.]{0,251}[A-Za-z0-9])?(?::[1-9][0-9]{0,4})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?"
)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: further authorities, and the certificate that this device shows, with its key."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


def _registry(value: object) -> str:
    found = text(value)
    if _HOST.fullmatch(found) is None:
        raise Fault(f"must be the host[:port] of a registry, not {quote(found)}")
    return found


def _prefix(value: object) -> str:
    """Return HOST or HOST/PREFIX."""
    found = text(value)
    host, slash, prefix = found.partition("/")
    if _HOST.fullmatch(host) is None or (slash and not _is_repository(prefix)):
        hint = f"write {found.partition('://')[2].rstrip('/')}" if "://" in found else ""
        raise Fault(f"must be HOST[:PORT] or HOST[:PORT]/PREFIX, not {quote(found)}", hint=hint)
    return found


def _is_repository(found: str) -> bool:
    try:
        Reference.parse(f"localhost/{found}:latest")
    except InvalidReferenceError:
        return False
    return ":" not in found and "@" not in found


def _certificates(value: object) -> dict[str, Certificates]:
    """Return the files for each registry; ANY stands for every one."""
    if not isinstance(value, dict):
        return {ANY: Certificates(ca=path(value))}
    return entries(
        value, lambda key, item: (key if key == ANY else _registry(key), _files(item, shown=key != ANY))
    )


def _files(value: object, *, shown: bool) -> Certificates:
    """Return the files of one entry; a certificate of this device's may be `shown` to one registry only."""
    if not isinstance(value, dict):
        return Certificates(ca=path(value))

    def file(key: str, item: object) -> tuple[str, str]:
        if key not in ("ca", "cert", "key"):
            raise Fault(f"{quote(key)} is none of ca, cert, key", subject=False, at_key=True)
        if key != "ca" and not shown:
            raise Fault("is for a registry by its name: not every one is shown it", at_key=True)
        return key, path(item)

    files = entries(value, file)
    if ("cert" in files) is not ("key" in files):
        raise Fault("must have both cert and key, or neither")
    return Certificates(**files)


def _by_registry(value: object, read: Callable[[object], str]) -> dict[str, tuple[str, ...]]:
    """Return a list of what `read` takes for each registry."""

    def listed(key: object, items: object) -> tuple[str, tuple[str, ...]]:
        name = _registry(key)
        if not isinstance(items, tuple | list):
            raise Fault(f"must be a list, not {describe(items)}")
        return name, tuple(each(items, read))

    return entries(value, listed)


_STRING: Final = WithJsonSchema({"type": "string"})
_PATH: Final = {"type": "string", "pattern": "^/"}
_FILES: Final = {
    "type": "object",
    "properties": {"ca": _PATH, "cert": _PATH, "key": _PATH},
    "additionalProperties": False,
}
Registry = Annotated[str, PlainValidator(_registry), _STRING]
_LISTS: Final = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}
Realms = Annotated[
    dict[str, tuple[str, ...]],
    PlainValidator(lambda value: _by_registry(value, _registry)),
    WithJsonSchema(_LISTS),
]
Mirrors = Annotated[
    dict[str, tuple[str, ...]],
    PlainValidator(lambda value: _by_registry(value, _prefix)),
    WithJsonSchema(_LISTS),
]
Prefix = Annotated[str, PlainValidator(_prefix), _STRING]
Authorities = Annotated[
    dict[str, Certificates],
    PlainValidator(_certificates),
    WithJsonSchema(
        {"anyOf": [_PATH, {"type": "object", "additionalProperties": {"anyOf": [_PATH, _FILES]}}]}
    ),
]


class Registries(Part):
    """How registries are reached."""

    insecure: Annotated[
        tuple[Registry, ...],
        Doc("Registries that may be spoken to over plain HTTP.", "list", '["registry.lan:5000"]', "`[]`"),
    ] = ()
    ca: Annotated[
        Authorities,
        Doc(
            "Further certificate authorities: a PEM file for all registries; or a map from each, or `*`, to its PEM "
            "file, or to `{ca, cert, key}` with the certificate that this device shows it. Only its owner may read a "
            "key.",
            "path or map",
            "{registry.lan: {ca: /etc/r/ca.pem, cert: /etc/r/me.pem, key: /etc/r/me.key}}",
            "the system's alone",
        ),
    ] = Field(default_factory=dict)
    allow: Annotated[
        tuple[Prefix, ...],
        Doc(
            "Where specs may have images from: HOST, or HOST/PREFIX for repositories that begin so.",
            "list",
            "[ghcr.io/acme, registry.lan]",
            "`[]`: anywhere",
        ),
    ] = ()
    authfile: Annotated[
        OptionalPath,
        Doc(
            "A file of credentials in the form of Docker's config.json: `auths`, `credHelpers`, `credsStore`. Nobody "
            "but its owner may read it. What `reconciler login` keeps is asked after it.",
            "path",
            "/etc/reconciler/auth.json",
            "none",
        ),
    ] = None
    realms: Annotated[
        Realms,
        Doc(
            "Token servers on other hosts that may be sent the credentials of a registry. Its own host may have them, "
            "and what is known of docker.io and registry.gitlab.com.",
            "map of lists",
            '{"registry.lan:5000": [auth.lan]}',
            "`{}`",
        ),
    ] = Field(default_factory=dict)
    mirrors: Annotated[
        Mirrors,
        Doc(
            "What is asked before a registry, in this order, for tags too: HOST, or HOST/PREFIX before the names of "
            "repositories. Each has credentials and certificates of its own. Where one fails the next goes on.",
            "map of lists",
            "{docker.io: [mirror.lan/hub]}",
            "`{}`",
        ),
    ] = Field(default_factory=dict)
