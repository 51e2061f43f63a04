"""One registry's connections: requests, redirects, who is asking, deadlines.

Two connection pools per registry. The first goes to the registry itself, wherever the user's configuration says it is,
and is the only one that ever sends a token. The second follows redirects and asks token servers on other hosts: it
reaches only public addresses, ones of the kind that the registry itself has (a LAN registry may point to a LAN storage
server, but not to the loopback services of this device), and realms that are configured. What it sends credentials to
is decided in `auth`; a redirect never has any.
"""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from reconciler.config import Registries
from reconciler.engine.document import InvalidDocumentError, parse
from reconciler.engine.registry import tls
from reconciler.engine.registry.auth import TokenRequest
from reconciler.engine.registry.dial import Clock, Dialler, ForbiddenAddressError, forbid
from reconciler.engine.registry.errors import (
    CertificateError,
    CredentialsError,
    RefusedError,
    RegistryError,
    UnreachableRegistryError,
    address,
)
from reconciler.engine.registry.keyring import Credentials
from reconciler.engine.registry.patience import Patience
from reconciler.engine.registry.proxy import Proxies, Proxy
from reconciler.engine.registry.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONNECTIONS: Final = 16
_KEPT: Final = 4
_KEPT_FOR: Final = 20.0  # seconds
_ERROR_BODY: Final = 4096
_TOKEN_BODY: Final = 1 << 18
_BASE_HEADERS: Final = {
    "User-Agent": "reconciler",
    "Accept-Encoding": "identity",  # httpx would unpack by itself, and the digest is that of the raw bytes (G8)
}
# Alerts by which a server says so (RFC 8446, 6.2); on TLS 1.3 they come with the first answer.
_OUR_CERTIFICATE: Final = ("CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA")
# The name that people write is not where the API is.
_API_HOSTS: Final = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class _Transport(httpx.HTTPTransport):
    """httpx over our own way to dial; httpx has no public way to say so, hence the private attribute."""

    def __init__(
        self,
        context: ssl.SSLContext,
        dialler: Dialler,
        proxy: Proxy | None,
        to_proxy: ssl.SSLContext | None,
    ) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool.close()
        if proxy is None:
            self._pool = httpcore.ConnectionPool(
                ssl_context=context,
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_KEPT,
                keepalive_expiry=_KEPT_FOR,
                network_backend=dialler,
            )
        else:
            self._pool = httpcore.HTTPProxy(
                proxy.url,
                proxy_auth=(proxy.user, proxy.password) if proxy.user or proxy.password else None,
                ssl_context=context,
                proxy_ssl_context=to_proxy,
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_KEPT,
                keepalive_expiry=_KEPT_FOR,
                network_backend=dialler,
            )


@dataclass(frozen=True, slots=True)
class Answer:
    """An open response, its body not read yet; `close` it. `public`: it was given to somebody without a name."""

    response: httpx.Response
    url: str
    public: bool = False


class Endpoint:
    """A registry as one host[:port]. Thread-safe.

    `settings` are device.yaml's. `count` is told of every answer, by status, 0 for none. With `alone` it leads nowhere
    else: no redirect is followed, no challenge answered, and what it says of a failure is not read.
    """

    def __init__(
        self,
        registry: str,
        *,
        settings: Registries,
        proxies: Proxies,
        patience: Patience,
        credentials: Credentials,
        count: Callable[[int], None],
        alone: bool = False,
    ) -> None:
        self.registry = registry
        self.patience = patience
        insecure, realms = frozenset(settings.insecure), settings.realms.get(registry, ())
        scheme = "http" if registry in insecure else "https"
        self._base = f"{scheme}://{_API_HOSTS.get(registry, registry)}"
        self._count = count
        self._clock = Clock()
        self._proxies = proxies
        self._certificates = settings.ca
        mine = settings.ca.get(registry)
        self._known = scheme == "https" and mine is not None and mine.cert is not None  # by its certificate
        self._alone = alone
        self._session = Session(
            registry, self._base, credentials, self._token_answer, realms=realms, insecure=insecure
        )
        self._trusted = frozenset(urlsplit(f"//{realm}").hostname for realm in realms)
        self._dialler = Dialler(self._clock, lambda host, kind: True)
        self._clients: dict[tuple[bool, Proxy | None], httpx.Client] = {}
        self._lock = threading.Lock()

    def _may(self, host: str, kind: str) -> bool:
        """Whether a redirect or a token may lead to an address of this kind."""
        return kind == "public" or kind in self._dialler.seen or host in self._trusted

    def _client(self, url: str) -> httpx.Client:
        """The connections for `url`; ForbiddenAddressError where it names an address that it must not."""
        ours, proxy = self._is_ours(url), self._proxies.of(url)
        if proxy is not None and not ours:
            forbid(urlsplit(url).hostname or "", self._may)
        with self._lock:
            found = self._clients.get((ours, proxy))
            if found is None:
                found = self._clients[ours, proxy] = self._connect(ours, proxy)
            return found

    def _connect(self, ours: bool, proxy: Proxy | None) -> httpx.Client:
        patience = self.patience
        if proxy is not None:
            dialler = Dialler(self._clock, lambda host, kind: True)  # to the proxy itself
        else:
            dialler = self._dialler if ours else Dialler(self._clock, self._may)
        if ours and self._base.startswith("http:"):
            context = tls.unused()
        else:
            context = (tls.own if ours else tls.foreign)(self._certificates, self.registry)
        to_proxy = None
        if proxy is not None and proxy.url.startswith("https:"):
            to_proxy = tls.foreign(self._certificates, self.registry)
        return httpx.Client(
            transport=_Transport(context, dialler, proxy, to_proxy),
            timeout=httpx.Timeout(patience.idle, connect=patience.connect, pool=patience.document),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()

    # --- requests --------------------------------------------------------------------------------------------------

    def get(self, path: str, repository: str, headers: "Mapping[str, str]") -> Answer:
        """Open GET `path` with a 2xx answer, or raise a RegistryError. Who asks is said, and said anew, if needed."""
        request = f"{self.registry}: GET {path.partition('?')[0]}"
        sent = self._session.grant(repository)
        answer = self._follow(request, path, headers, sent.header)
        if answer.response.status_code == 401 and self._is_ours(answer.url) and not self._alone:
            challenges = answer.response.headers.get_list("www-authenticate")
            answer.response.close()
            sent = self._session.answer(request, repository, challenges, sent.header)
            answer = self._follow(request, path, headers, sent.header)
        if answer.response.status_code // 100 != 2:
            raise self._refusal(request, answer, repository)
        return replace(answer, public=not self._known and not sent.named)

    @property
    def asked(self) -> bool:
        """Whether the registry has asked who is there, and was content with the answer."""
        return bool(self._session.grant("").header)

    def _is_ours(self, url: str) -> bool:
        """Whether `url` is on the registry's own scheme, host and port."""
        return url.startswith(self._base + "/")

    def _follow(self, request: str, path: str, headers: "Mapping[str, str]", authorization: str) -> Answer:
        url = self._base + path
        self._clock.deadline = time.monotonic() + self.patience.headers
        try:
            for _ in range(1 if self._alone else 1 + _MAX_REDIRECTS):
                # It goes to the registry's own scheme, host and port, and nowhere else (G3).
                extra = {"Authorization": authorization} if self._is_ours(url) and authorization else {}
                response = self._send(request, url, {**headers, **extra})
                if response.status_code not in _REDIRECTS:
                    return Answer(response, url)
                location = response.headers.get("location", "")
                response.close()
                url = _next(request, url, location)
        finally:
            self._clock.deadline = None
        allowed = f"more than {_MAX_REDIRECTS} redirects" if not self._alone else "a redirect"
        raise RefusedError(request, f"{allowed}: refused")

    def _send(
        self, request: str, url: str, headers: "Mapping[str, str]", form: bytes = b""
    ) -> httpx.Response:
        method, content = ("POST", form) if form else ("GET", None)
        try:
            client = self._client(url)
            prepared = client.build_request(
                method, url, headers={**_BASE_HEADERS, **headers}, content=content
            )
            prepared.headers.pop("cookie", None)
            response = client.send(prepared, stream=True)
        except ForbiddenAddressError as error:
            raise RefusedError(request, f"redirected to {address(url)}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._count(0)
            raise self._failure(request, error) from error
        self._count(response.status_code)
        return response

    def chunk(self, chunks: Iterator[bytes], limit: float) -> bytes:
        """The next piece of a body, b"" at its end; within `limit` seconds, however many reads of the wire it takes."""
        self._clock.deadline = time.monotonic() + limit
        try:
            return next(chunks, b"")
        finally:
            self._clock.deadline = None

    def document(self, answer: Answer, request: str, limit: int) -> bytes:
        """Read a whole answer of at most `limit` bytes within the time for documents, and close it."""
        self._clock.deadline = time.monotonic() + self.patience.document
        data = bytearray()
        try:
            for chunk in answer.response.iter_raw():
                data += chunk
                if len(data) > limit:
                    raise RefusedError(request, f"answer longer than {limit} bytes")
        except httpx.HTTPError as error:
            raise self._failure(request, error) from error
        finally:
            answer.response.close()
            self._clock.deadline = None
        return bytes(data)

    def _token_answer(self, request: str, wanted: TokenRequest) -> bytes:
        """What a token server says to `wanted`, or a RegistryError. A redirect is not followed."""
        headers = {"Accept": "application/json"}
        if wanted.authorization:
            headers["Authorization"] = wanted.authorization
        if wanted.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self._clock.deadline = time.monotonic() + self.patience.headers
        try:
            response = self._send(request, wanted.url, headers, wanted.form)
        finally:
            self._clock.deadline = None
        answer = Answer(response, wanted.url)
        if response.status_code in (401, 403):
            response.close()
            raise CredentialsError(request, response.status_code, "no token")
        if response.status_code // 100 != 2:
            raise self._refusal(request, answer)
        return self.document(answer, request, _TOKEN_BODY)

    # --- failures ----------------------------------------------------------------------------------------------------

    def _refusal(self, request: str, answer: Answer, repository: str = "") -> RegistryError:
        """Turn a 4xx, 5xx or unexpected answer into an error with what the registry says about it."""
        response = answer.response
        status = response.status_code
        data = b""
        if self._alone:
            response.close()
        else:
            with suppress(RegistryError):
                data = self.document(answer, request, _ERROR_BODY)
        detail = _said(data) or response.reason_phrase
        if status in (401, 403) and self._is_ours(answer.url):
            return CredentialsError(request, status, detail, hint=self._session.advice(repository, status))
        if not self._is_ours(answer.url) and "token from" not in request:
            request = f"{request}: redirected to {address(answer.url)}"
        wait = retry_after(response.headers.get("retry-after", ""), self.patience.retry_after)
        return RegistryError(request, status, detail, retry_after=wait)

    def failure(self, request: str, error: Exception) -> RegistryError:
        """Turn a failed transfer into an error; for bodies that the caller reads."""
        return self._failure(request, error)

    def _failure(self, request: str, error: Exception) -> RegistryError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                hint = "give its certificate authority in device.yaml: registries.ca"
                says = f"this device's clock: it says {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
                if "not yet valid" in cause.verify_message:
                    hint = f"set {says}"
                elif "expired" in cause.verify_message:
                    hint = f"check {says}"
                return CertificateError(request, f"certificate: {cause.verify_message}", hint=hint)
            if isinstance(cause, ssl.SSLError) and any(word in str(cause) for word in _OUR_CERTIFICATE):
                hint = f"give this device's in device.yaml: registries: {{ca: {{{self.registry}: {{cert, key}}}}}}"
                return CertificateError(
                    request, f"it does not take our certificate: {cause.reason}", hint=hint
                )
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.ProxyError):
            return UnreachableRegistryError(request, f"the proxy says: {error}")
        if isinstance(error, httpx.TimeoutException):
            return UnreachableRegistryError(request, f"no answer in time {error}".rstrip())
        text = str(error) or type(error).__name__
        hint = ""
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
            hint = f"if it speaks plain http, list {self.registry} in device.yaml: registries.insecure"
        return UnreachableRegistryError(request, text, hint=hint)


def _next(request: str, url: str, location: str) -> str:
    """Return the absolute address of a redirect, or raise RefusedError (G3)."""
    if not location or len(location) > 16_384 or not location.isascii():
        raise RefusedError(request, "a redirect to nowhere")
    try:
        found = urljoin(url, location)
        parts = urlsplit(found)
        host, user = parts.hostname, parts.username
        _ = parts.port
    except ValueError as error:
        raise RefusedError(request, "a redirect to an unreadable address") from error
    if parts.scheme not in ("http", "https") or not host or user is not None or "@" in parts.netloc:
        raise RefusedError(request, f"redirected to {address(found)}: refused")
    if url.startswith("https:") and parts.scheme != "https":
        raise RefusedError(request, f"redirected from https to {address(found)}: refused")
    return found


def _said(data: bytes) -> str:
    """Return the messages in a registry's error document (distribution specification, "Error Codes"), or ""."""
    try:
        errors = parse(data, subject="", limit=_ERROR_BODY).children("errors") or []
        return "; ".join(filter(None, (item.text("message") or item.text("code") for item in errors[:3])))
    except InvalidDocumentError:
        return ""


def retry_after(value: str, longest: float) -> float:
    """Return the seconds that a Retry-After header asks for, between 0 and `longest`."""
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), longest)
    try:
        wanted = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0
    return max(0.0, min(wanted, longest))
