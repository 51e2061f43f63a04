"""What a 401 asks for, how it is answered, and who may be told credentials.

Follows the distribution specification's token authentication, with the parts that let a registry misuse its client
left out: the scope is ours, never the challenge's; the realm is held to the rules of redirects; credentials go to the
registry's own host, or to a realm that is known or configured for it, and nowhere else (CVE-2020-15157,
go-containerregistry 2193). Pure: the endpoint does the fetching.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlencode, urlsplit

from reconciler.engine.document import InvalidDocumentError, parse
from reconciler.engine.registry.credentials import Credential, IdentityToken, Password, host_of
from reconciler.engine.registry.errors import RefusedError, address

_MAX_HEADER: Final = 8192
_MAX_TOKEN: Final = 16_384
_TOKEN_LIMIT: Final = 1 << 18
_SCHEME: Final = re.compile(r"\s*([A-Za-z]+)\s*", re.ASCII)
_PARAMETER: Final = re.compile(
    r'\s*([A-Za-z_]{1,32})\s*=\s*(?:"((?:[^"\\]|\\.){0,2048})"|([^\s",]{1,2048}))\s*(?:,|$)'
)
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_CLIENT: Final = "reconciler"
# Registries whose token server is known to be on another host.
REALMS: Final[Mapping[str, frozenset[str]]] = {
    "docker.io": frozenset({"auth.docker.io"}),
    "registry.gitlab.com": frozenset({"gitlab.com"}),
}


@dataclass(frozen=True, slots=True)
class Challenge:
    """A Bearer challenge: where to ask for a token, and for which service."""

    realm: str
    service: str


@dataclass(frozen=True, slots=True)
class Basic:
    """A challenge to send user and password themselves (RFC 7617)."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the monotonic time from which it is no longer used."""

    text: str = field(repr=False)
    expires: float


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """How a token is asked for: GET, with `authorization` where there are credentials, or POST of `form`."""

    url: str
    authorization: str = field(default="", repr=False)
    form: bytes = field(default=b"", repr=False)


def challenge_of(headers: Iterable[str]) -> Challenge | Basic | None:
    """Return what WWW-Authenticate `headers` ask for: the first usable Bearer challenge, else Basic, else None.

    Bearer goes first because it sends the registry a token, not the password. Parses one challenge per header, as
    every registry sends it; whatever doesn't fit the grammar is no challenge.
    """
    given = [header for _, header in zip(range(8), headers, strict=False) if len(header) <= _MAX_HEADER]
    bearer = _bearer(given)
    if bearer is not None:
        return bearer
    return Basic() if any(re.match(r"\s*basic(\s|$)", header, re.I | re.A) for header in given) else None


def _bearer(headers: Iterable[str]) -> Challenge | None:
    for header in headers:
        scheme = _SCHEME.match(header)
        if scheme is None or scheme[1].lower() != "bearer":
            continue
        found: dict[str, str] = {}
        position = scheme.end()
        while position < len(header):
            parameter = _PARAMETER.match(header, position)
            if parameter is None:
                break
            value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
            found.setdefault(parameter[1].lower(), value)
            position = parameter.end()
        else:
            if realm := found.get("realm"):
                return Challenge(realm, found.get("service", ""))
    return None


def token_request(
    challenge: Challenge,
    repository: str,
    credential: Credential | None,
    *,
    registry: str,
    base: str,
    realms: Iterable[str] = (),
    insecure: Iterable[str] = (),
    request: str,
) -> TokenRequest:
    """Return how to ask for a token to pull from `repository` ("" for no scope), or raise RefusedError.

    `base` is the registry's own scheme and host. With credentials the realm must be there, or on a host[:port] of
    `realms` or of the known ones; and on https, unless it is one of the `insecure` hosts.
    """
    secure = base.startswith("https:")
    where, parts = address(challenge.realm), _realm(challenge, secure=secure, request=request)
    if isinstance(credential, Password | IdentityToken):
        own = f"{parts.scheme}://{parts.netloc}".lower() == base.lower()
        allowed = {*REALMS.get(host_of(registry), ()), *(host.lower() for host in realms)}
        if not own and parts.netloc.lower() not in allowed:
            raise RefusedError(
                request,
                f"token realm {where}: on another host, which is not sent credentials",
                hint=f"if it may have them, write in device.yaml: "
                f"registries: {{realms: {{{registry}: [{parts.netloc}]}}}}",
            )
        if not own and parts.scheme != "https" and parts.netloc.lower() not in insecure:
            raise RefusedError(request, f"token realm {where}: not https, which is not sent credentials")
    asked = {"service": challenge.service, **({"scope": _scope(repository)} if repository else {})}
    place = f"{parts.scheme}://{parts.netloc}{parts.path or '/'}"
    if isinstance(credential, IdentityToken):
        # OAuth2, as Docker's registries do it (distribution, "Docker Registry v2 Bearer token specification")
        form = {
            "grant_type": "refresh_token",
            "client_id": _CLIENT,
            "refresh_token": credential.text,
            **asked,
        }
        url = f"{place}?{parts.query}" if parts.query else place
        return TokenRequest(url, form=urlencode(form).encode())
    authorization = ""
    if isinstance(credential, Password):
        asked["account"] = credential.user
        authorization = credential.basic
    url = f"{place}?{parts.query + '&' if parts.query else ''}{urlencode(asked)}"
    return TokenRequest(url, authorization)


def _scope(repository: str) -> str:
    return f"repository:{repository}:pull"


def _realm(challenge: Challenge, *, secure: bool, request: str) -> SplitResult:
    """Return the realm's parts, or raise RefusedError. `secure` says that the registry itself is on https."""
    try:
        parts = urlsplit(challenge.realm)
        host, user = parts.hostname, parts.username
        _ = parts.port
    except ValueError as error:
        raise RefusedError(request, "token realm: not an address") from error
    where = address(challenge.realm)
    if not _VISIBLE.fullmatch(challenge.realm) or not host:
        raise RefusedError(request, "token realm: not an address")
    if user is not None or "@" in parts.netloc or parts.fragment:
        raise RefusedError(request, f"token realm {where}: with a user part or fragment, refused")
    if parts.scheme != "https" and (secure or parts.scheme != "http"):
        raise RefusedError(request, f"token realm {where}: not https, refused")
    return parts


def parse_token(data: bytes, *, now: float, request: str) -> Token:
    """Return the token in a token server's answer, or raise RefusedError. Without a lifetime it lives for a minute."""
    try:
        document = parse(data, subject="token answer", limit=_TOKEN_LIMIT)
        text = document.text("token") or document.text("access_token") or ""
        lifetime = document.integer("expires_in") or 60
    except InvalidDocumentError as error:
        raise RefusedError(request, str(error)) from error
    if not _VISIBLE.fullmatch(text) or len(text) > _MAX_TOKEN:
        raise RefusedError(request, "token answer: holds no usable token")
    return Token(text, now + 0.8 * max(10, min(lifetime, 3600)))
