"""Registries that want to know who asks: the scriptable registry behind basic authentication, or a token server.

Both follow the distribution specification, as skopeo proves; what they are asked is kept for tests.
"""

import base64
import json
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.registry import FakeRegistry, Request, Wire

USER, SECRET = "device-7", "hunter2-Secret"
# The same for docker-registry: bcrypt, of few rounds.
HTPASSWD = f"{USER}:$2b$04$yhDF3/a699dsEV7CsCUrreo3ddZpUfuDsaq8lCwkcgZ6cw9g.bRne\n"
IDENTITY = "identity-Token-0123456789abcdefghij"


def basic(user: str = USER, secret: str = SECRET) -> str:
    """The Authorization header of basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def packed(user: str = USER, secret: str = SECRET) -> str:
    """The value of `auth` in a file of credentials."""
    return basic(user, secret).removeprefix("Basic ")


def wants_password(fake: FakeRegistry, authorization: str = "") -> None:
    """Have `fake` answer only who sends the user's password."""

    def guarded(request: Request, wire: Wire) -> None:
        if request.headers.get("authorization") == (authorization or basic()):
            fake.answer(request, wire)
        else:
            wire.respond(401, b"", {"WWW-Authenticate": 'Basic realm="registry"'})

    fake.scripts["/v2/*"] = guarded


@dataclass
class TokenServer:
    """A token server for `fake`, served by `at` (by itself, if none is given).

    A token is good for one repository and for `uses` requests. `asked` keeps the queries and forms.
    """

    fake: FakeRegistry
    at: FakeRegistry | None = None
    uses: int = 1_000_000
    anonymous: bool = False
    tokens: dict[str, tuple[str, int]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        server = self.at or self.fake
        self.realm = f"{server.url}/token"
        self.fake.scripts["/v2/*"] = self._guarded
        server.scripts["/token"] = self._token

    def _guarded(self, request: Request, wire: Wire) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        scope, left = self.tokens.get(token, ("", 0))
        repository = request.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        if left > 0 and (not repository or scope == f"repository:{repository}:pull"):
            self.tokens[token] = scope, left - 1
            self.fake.answer(request, wire)
            return
        wanted = f'Bearer realm="{self.realm}",service="registry.test"'
        if repository:
            wanted += f',scope="repository:{repository}:pull"'
        wire.respond(401, b"", {"WWW-Authenticate": wanted})

    def _token(self, request: Request, wire: Wire) -> None:
        text = request.body.decode() if request.method == "POST" else urlsplit(request.path).query
        query = {key: values[0] for key, values in parse_qs(text).items()}
        self.asked.append(query)
        known = request.headers.get("authorization") == basic() if request.method == "GET" else False
        if request.method == "POST":
            known = query.get("refresh_token") == IDENTITY and query.get("grant_type") == "refresh_token"
        if not known and not (self.anonymous and "authorization" not in request.headers):
            wire.respond(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}')
            return
        token = secrets.token_urlsafe(48)
        self.tokens[token] = query.get("scope", ""), self.uses
        key = "access_token" if request.method == "POST" else "token"
        answer = {key: token, "expires_in": 300}
        wire.respond(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
