"""What proves to a registry who asks, and the files that hold it: Docker's config.json, containers-auth.json.

Both name registries by host, the second one parts of them (`host/team`) too; the longest name that fits is the one that
counts. A secret has no `repr`, and no error here quotes what a file holds. Pure: `keyring` reads the files.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from reconciler.engine.document import InvalidDocumentError, Object, parse
from reconciler.engine.registry.errors import KeyringError

LIMIT: Final = 1 << 20
HUB: Final = "docker.io"
_HUB_NAMES: Final = frozenset({HUB, "index.docker.io", "registry-1.docker.io"})
# By this name Docker's helpers know its registry (docker/cli, registry.IndexServer).
_HUB_SERVER: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # the user of an identity token (docker-credential-helpers, "TokenUsername")
_PROGRAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,16384}")


@dataclass(frozen=True, slots=True)
class Password:
    """A user and a password, for basic authentication and for asking a token server."""

    user: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """An OAuth2 refresh token, which a token server exchanges for bearer tokens."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegistryToken:
    """A bearer token that the registry itself takes (`registrytoken` in Docker's file)."""

    text: str = field(repr=False)


Credential = Password | IdentityToken | RegistryToken


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says: credentials by host or host/prefix, and helper programs by host; `store` is for all hosts."""

    auths: Mapping[str, Credential]
    helpers: Mapping[str, str]
    store: str = ""

    def helper(self, registry: str) -> str:
        """The X of the docker-credential-X that keeps the credentials of `registry`; "" for none."""
        return self.helpers.get(host_of(registry), self.store)

    def find(self, registry: str, repository: str) -> Credential | None:
        """The credentials of the longest name that `registry`/`repository` is in."""
        return next(
            (self.auths[key] for key in _names(registry, repository) if key in self.auths),
            None,
        )


def host_of(registry: str) -> str:
    """The one name of a registry: lower case, and docker.io for all of its names."""
    found = registry.lower()
    return HUB if found in _HUB_NAMES else found


def server_of(registry: str) -> str:
    """How Docker's helper programs are asked for `registry`."""
    found = host_of(registry)
    return _HUB_SERVER if found == HUB else found


def key_of(name: str) -> str:
    """Return the key that stands for a host, host/prefix or Docker's https://host/v1/ in a file."""
    scheme, separator, rest = name.rpartition("://")
    host, _, path = rest.partition("/")
    path = "" if separator and scheme in ("http", "https") else path.strip("/")
    return f"{host_of(host)}/{path}" if path and path not in ("v1", "v2") else host_of(host)


def _names(registry: str, repository: str) -> Iterator[str]:
    parts = [host_of(registry), *filter(None, repository.split("/"))]
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])


def parse_file(data: bytes, where: str) -> ConfigFile:
    """Return what a file of Docker's or containers' form says, or raise KeyringError that names `where`.

    Keys that say nothing of credentials are nobody's business here.
    """
    try:
        document = parse(data, subject="", limit=LIMIT)
        auths = document.child("auths") or Object("auths", {})
        found: dict[str, Credential] = {}
        for name in auths.fields:
            entry = auths.child(name)
            credential = _credential(entry, where, name) if entry is not None else None
            if credential is not None:
                found[key_of(name)] = credential
        helpers = document.child("credHelpers") or Object("credHelpers", {})
        programs = {key_of(name): helpers.text(name) or "" for name in helpers.fields}
        store = document.text("credsStore") or ""
    except InvalidDocumentError as error:
        raise KeyringError(where, f"not a file of credentials: {str(error).removeprefix(': ')}") from None
    for program in (*programs.values(), store):
        if program and _PROGRAM.fullmatch(program) is None:
            raise KeyringError(where, "names a helper that can be no program docker-credential-NAME")
    return ConfigFile(found, programs, store)


def _credential(entry: Object, where: str, name: str) -> Credential | None:
    def fail(what: str) -> NoReturn:
        raise KeyringError(where, f"auths: {name[:100]}: {what}")

    user, secret = entry.text("username") or "", entry.text("password") or ""
    if packed := entry.text("auth"):
        try:
            text = base64.b64decode(packed, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            fail("auth is not base64 of USER:PASSWORD")
        user, colon, secret = text.partition(":")
        if not colon:
            fail("auth is not base64 of USER:PASSWORD")
    identity = entry.text("identitytoken") or (secret if user == _TOKEN_USER else "")
    token = identity or entry.text("registrytoken") or ""
    if token:
        if _VISIBLE.fullmatch(token) is None:
            fail("holds a token that is none")
        return IdentityToken(token) if identity else RegistryToken(token)
    return Password(user, secret) if user or secret else None


def parse_answer(data: bytes, program: str) -> Credential:
    """Return the credentials in a helper program's answer, or raise KeyringError that names the program."""
    try:
        answer = parse(data, subject="", limit=LIMIT)
        user, secret = answer.text("Username") or "", answer.text("Secret") or ""
    except InvalidDocumentError as error:
        raise KeyringError(program, "its answer is not JSON with Username and Secret") from error
    if not secret:
        raise KeyringError(program, "its answer has no Secret")
    if user == _TOKEN_USER:
        if _VISIBLE.fullmatch(secret) is None:
            raise KeyringError(program, "its answer holds no usable token")
        return IdentityToken(secret)
    return Password(user, secret)


def document_of(auths: Mapping[str, Credential]) -> dict[str, object]:
    """The document of containers-auth.json that holds `auths`; passwords only, which is all that is ever logged in."""
    return {
        "auths": {
            key: {"auth": item.basic.removeprefix("Basic ")}
            for key, item in sorted(auths.items())
            if isinstance(item, Password)
        }
    }
