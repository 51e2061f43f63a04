"""Anonymous tokens: what a 401 asks for, and where it may be fetched.

Follows the distribution specification's token authentication, with the parts that let a registry misuse its client
left out: the scope is ours, never the challenge's; the realm is held to the rules of redirects; no credentials exist
yet, so none can leak (CVE-2020-15157). Pure: the client does the fetching.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from reconciler.engine.document import InvalidDocumentError, parse
from reconciler.engine.registry.errors import RefusedError, address

_MAX_HEADER: Final = 8192
_MAX_TOKEN: Final = 16_384
_TOKEN_LIMIT: Final = 1 << 18
_SCHEME: Final = re.compile(r"\s*([A-Za-z]+)\s*", re.ASCII)
_PARAMETER: Final = re.compile(
    r'\s*([A-Za-z_]{1,32})\s*=\s*(?:"((?:[^"\\]|\\.){0,2048})"|([^\s",]{1,2048}))\s*(?:,|$)'
)
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A Bearer challenge: where to ask for a token, and for which service."""

    realm: str
    service: str


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the monotonic time from which it is no longer used."""

    text: str
    expires: float


def bearer_challenge(headers: Iterable[str]) -> Challenge | None:
    """Return the first usable Bearer challenge of WWW-Authenticate `headers`, or None where there is none.

    Parses one challenge per header, as every registry sends it; whatever doesn't fit the grammar is no challenge.
    """
    for number, header in enumerate(headers):
        if number >= 8 or len(header) > _MAX_HEADER:
            return None
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


def token_url(challenge: Challenge, repository: str, *, secure: bool, request: str) -> str:
    """Return the address of the token, or raise RefusedError. `secure` says that the registry itself is on https."""
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
    query = urlencode({"service": challenge.service, "scope": f"repository:{repository}:pull"})
    return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}?{parts.query + '&' if parts.query else ''}{query}"


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
