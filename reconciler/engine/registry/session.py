"""Who one registry is told that we are: the Authorization headers for its repositories, found out by being asked.

A repository that wants none is sent none. What was found is used until it expires, is refused, or the credentials of
this device change; then everything is found out anew.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconciler.engine.registry import auth
from reconciler.engine.registry.auth import Basic, Challenge, TokenRequest
from reconciler.engine.registry.credentials import Password, RegistryToken
from reconciler.engine.registry.errors import CredentialsError, address
from reconciler.engine.registry.keyring import Credentials, Found

_MAX_GRANTS: Final = 256


@dataclass(frozen=True, slots=True)
class Grant:
    """An Authorization header that a repository was content with, and until when (monotonic) it is used.

    `named`: it says who asks; a token can be had for nothing.
    """

    header: str = field(repr=False)
    expires: float
    named: bool


NOTHING: Final = Grant("", 0.0, named=False)


class Session:
    """The grants of one registry. Thread-safe.

    `base` is its scheme and host. `fetch(subject, request)` asks a token server and returns what it says, or raises
    RegistryError; `realms` may have the credentials, `insecure` hosts may have them over plain http.
    """

    def __init__(
        self,
        registry: str,
        base: str,
        credentials: Credentials,
        fetch: Callable[[str, TokenRequest], bytes],
        *,
        realms: Sequence[str] = (),
        insecure: frozenset[str] = frozenset(),
    ) -> None:
        self._registry = registry
        self._base = base
        self._credentials = credentials
        self._fetch = fetch
        self._realms = realms
        self._insecure = insecure
        self._grants: dict[str, Grant] = {}
        self._version: object = None
        self._lock = threading.Lock()

    def grant(self, repository: str) -> Grant:
        """What to send at once; NOTHING where none is known to be wanted."""
        version = self._credentials.version()
        with self._lock:
            if version != self._version:
                self._grants.clear()
                self._version = version
            grant = self._grants.get(repository)
        return grant if grant is not None and grant.expires > time.monotonic() else NOTHING

    def answer(self, request: str, repository: str, headers: Sequence[str], refused: str) -> Grant:
        """Return what answers a 401 with WWW-Authenticate `headers`; `refused` is what was sent, if any.

        Raises CredentialsError where nothing can be answered, KeyringError, RefusedError, and what `fetch` raises.
        """
        challenge = auth.challenge_of(headers)
        found = self._credentials.find(self._registry, repository)
        if found is not None and isinstance(found.credential, RegistryToken):
            return self._keep(request, repository, f"Bearer {found.credential.text}", found, refused)
        match challenge:
            case Challenge():
                token = self._token(request, repository, challenge, found)
                return self._grant(repository, f"Bearer {token.text}", token.expires, found is not None)
            case Basic() if found is not None and isinstance(found.credential, Password):
                return self._keep(request, repository, found.credential.basic, found, refused)
            case Basic() if found is not None:
                raise CredentialsError(
                    request, 401, f"the registry wants a password, and {found.origin} has a token"
                )
            case _:
                raise CredentialsError(
                    request, 401, "the registry needs credentials", hint=self.advice(repository, 401)
                )

    def advice(self, repository: str, status: int) -> str:
        """What to do about an answer of 401 or 403: whose credentials were sent, or how to give some."""
        found = self._credentials.find(self._registry, repository)
        if found is not None and status == 401:
            return f"the registry does not take the credentials of {found.origin}"
        if found is not None:
            return f"the credentials of {found.origin} do not let it be pulled, or it is not there"
        return f"the image is private or not there; with an account: reconciler login {self._registry}"

    def _keep(self, request: str, repository: str, header: str, found: Found, refused: str) -> Grant:
        """A header that is no token of a server's: sent again it would be refused again."""
        if header == refused:
            raise CredentialsError(
                request, 401, f"the registry does not take the credentials of {found.origin}"
            )
        return self._grant(repository, header, float("inf"), True)

    def _token(self, request: str, repository: str, challenge: Challenge, found: Found | None) -> auth.Token:
        where = f"{request}: token from {address(challenge.realm)}"
        wanted = auth.token_request(
            challenge,
            repository,
            found.credential if found is not None else None,
            registry=self._registry,
            base=self._base,
            realms=self._realms,
            insecure=self._insecure,
            request=request,
        )
        try:
            data = self._fetch(where, wanted)
        except CredentialsError as error:
            if found is None:
                hint = (
                    f"the image is private or not there; with an account: reconciler login {self._registry}"
                )
                raise CredentialsError(
                    where, error.status, "no token without credentials", hint=hint
                ) from error
            raise CredentialsError(
                where, error.status, f"no token for the credentials of {found.origin}"
            ) from error
        return auth.parse_token(data, now=time.monotonic(), request=where)

    def _grant(self, repository: str, header: str, expires: float, named: bool) -> Grant:
        with self._lock:
            if len(self._grants) >= _MAX_GRANTS:
                self._grants.clear()
            grant = self._grants[repository] = Grant(header, expires, named)
        return grant
