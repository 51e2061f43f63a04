"""The registry client: documents and blobs of any registry, over the OCI distribution specification 1.1.

It verifies nothing about content, which is the caller's duty, and everything about behaviour: time, rates, sizes,
redirects, tokens. httpx is imported with the first request, because it costs megabytes and most turns pull nothing.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from reconciler.config import Registries
from reconciler.engine.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from reconciler.engine.registry.credentials import Credential
from reconciler.engine.registry.errors import RefusedError, RegistryError, UnreachableRegistryError
from reconciler.engine.registry.keyring import Credentials, Given, Nobody
from reconciler.engine.registry.patience import Patience
from reconciler.engine.registry.places import ANYTHING, PEER, Place, Places
from reconciler.engine.registry.proxy import Proxies
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest

if TYPE_CHECKING:
    from reconciler.engine.registry.endpoint import Answer, Endpoint

PUBLIC: Final = "Reconciler-Public"  # a header of peers
_ACCEPT: Final = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)", re.ASCII)
_NEXT: Final = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?', re.ASCII)  # RFC 8288
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Document:
    """A document as sent: its bytes, the Content-Type, the digest that the header claims if any, by whom.

    `next` is where the header Link says that more of a list is; "" where it does not. `public`: it was given without
    being told who asks.
    """

    data: bytes
    media_type: str
    claimed: str
    registry: str
    next: str = ""
    public: bool = False


@dataclass(frozen=True, slots=True)
class Transfer:
    """A blob on its way: `chunks` begin at byte `offset` of the blob, perhaps before the one that was asked for.

    `public`: it is given without being told who asks.
    """

    offset: int
    chunks: Iterator[bytes]
    public: bool = False


class Registry:
    """All registries this device talks to. Thread-safe.

    `settings` are device.yaml's, `credentials` what this device knows to say of itself, `proxies` the ways out that its
    environment names. `peers` are other devices (host:port) that are asked first for what is asked for by digest: over
    plain http, by no proxy, told nothing of who asks and for which repository, and led on by no redirect. `requests`
    counts answers by (registry, code): 2xx, 3xx, 401, 404, 429, 4xx, 5xx, or `none`.
    """

    def __init__(
        self,
        settings: Registries | None = None,
        *,
        credentials: Credentials | None = None,
        proxies: Proxies | None = None,
        patience: Patience | None = None,
        peers: Sequence[str] = (),
    ) -> None:
        self.patience = patience or Patience()
        self.requests: Counter[tuple[str, str]] = Counter()
        self._settings = settings or Registries()
        self._credentials = credentials or Nobody()
        self._proxies = proxies or Proxies()
        self._places = Places(self._settings.mirrors, peers)
        self._endpoints: dict[tuple[bool, str], Endpoint] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for endpoint in self._endpoints.values():
                endpoint.close()
            self._endpoints.clear()

    def _endpoint(self, place: Place) -> "Endpoint":
        key = place.is_peer, place.registry
        with self._lock:
            found = self._endpoints.get(key)
            if found is None:
                if place.is_peer:
                    found = self._connect_peer(place.registry)
                else:
                    found = self._connect(place.registry, self._credentials)
                self._endpoints[key] = found
            return found

    def _connect_peer(self, peer: str) -> "Endpoint":
        from reconciler.engine.registry.endpoint import Endpoint

        return Endpoint(
            peer,
            settings=Registries(insecure=(peer,)),
            proxies=Proxies(),
            patience=Patience.for_peers(),
            credentials=Nobody(),
            count=lambda status: self._count(peer, status),
            alone=True,
        )

    def _connect(self, registry: str, credentials: Credentials) -> "Endpoint":
        from reconciler.engine.registry.endpoint import Endpoint

        return Endpoint(
            registry,
            settings=self._settings,
            proxies=self._proxies,
            patience=self.patience,
            credentials=credentials,
            count=lambda status: self._count(registry, status),
        )

    def check(self, registry: str, credential: Credential) -> bool:
        """Return whether the registry asked who is there, once it has taken `credential`; False where it asks nobody.

        Raises CredentialsError where it does not take it, or another RegistryError.
        """
        endpoint = self._connect(registry, Given(credential))
        try:
            answer = endpoint.get("/v2/", "", {})
            answer.response.close()
            return endpoint.asked
        finally:
            endpoint.close()

    def greet(self, peer: str) -> None:
        """Ask a peer whether it is one; RegistryError where it does not answer as such."""
        self._endpoint(Place(peer, ANYTHING, PEER)).get("/v2/", "", {}).response.close()

    def _count(self, registry: str, status: int) -> None:
        code = str(status) if status in (401, 404, 429) else f"{status // 100}xx" if status else "none"
        with self._lock:
            self.requests[registry, code] += 1

    # --- documents -------------------------------------------------------------------------------------------------

    def manifest(
        self,
        registry: str,
        repository: str,
        reference: Digest | str,
        *,
        limit: int,
        accept: Callable[[Document], object],
        pause: Callable[[float], object] = time.sleep,
    ) -> Document:
        """Fetch a manifest or index by digest or tag, from a mirror or the registry itself.

        `accept` raises VerificationError for one that is not what was asked for. Raises that, or RegistryError.
        """

        def fetch(place: Place) -> Document:
            path = f"/v2/{place.repository}/manifests/{reference}"
            endpoint = self._endpoint(place)
            answer = endpoint.get(path, place.repository, {"Accept": _ACCEPT})
            headers = answer.response.headers
            data = endpoint.document(answer, f"{place.registry}: GET {path}", limit)
            kind, claimed = headers.get("content-type", ""), headers.get("docker-content-digest", "")
            if place.is_peer:
                kind = claimed = ""  # it is asked by digest, and nothing else of it is believed
            found = Document(data, kind, claimed, place.registry, public=_is_public(place, answer))
            accept(found)
            return found

        return self._anywhere(registry, repository, fetch, pause, by_digest=isinstance(reference, Digest))

    def document(
        self,
        registry: str,
        repository: str,
        digest: Digest,
        *,
        limit: int,
        accept: Callable[[bytes], object],
        pause: Callable[[float], object] = time.sleep,
    ) -> Document:
        """Fetch a small blob (an image config) whole; as `manifest` does."""

        def fetch(place: Place) -> Document:
            path = f"/v2/{place.repository}/blobs/{digest}"
            endpoint = self._endpoint(place)
            answer = endpoint.get(path, place.repository, {})
            data = endpoint.document(answer, f"{place.registry}: GET {path}", limit)
            accept(data)
            return Document(data, "", "", place.registry, public=_is_public(place, answer))

        return self._anywhere(registry, repository, fetch, pause)

    def read(
        self, place: Place, path: str, *, limit: int, pause: Callable[[float], object] = time.sleep
    ) -> Document:
        """Fetch `/v2/REPOSITORY/path` whole from one place; what is transient is tried again, but at a mirror.

        Nothing is verified. Raises RegistryError.
        """
        whole = f"/v2/{place.repository}/{path}"

        def fetch() -> Document:
            endpoint = self._endpoint(place)
            answer = endpoint.get(whole, place.repository, {"Accept": f"{_ACCEPT}, */*"})
            headers = answer.response.headers
            link = _NEXT.search(headers.get("link", "")[:8192])
            data = endpoint.document(answer, f"{place.registry}: GET {whole.partition('?')[0]}", limit)
            kind = headers.get("content-type", "")
            return Document(data, kind, "", place.registry, link[1] if link is not None else "")

        return self.patiently(fetch, pause) if place.is_origin else fetch()

    # --- places ----------------------------------------------------------------------------------------------------

    def places(self, registry: str, repository: str, *, by_digest: bool = True) -> list[Place]:
        """Where a repository is to be asked for now, first to last; the last is the registry itself."""
        return self._places.of(registry, repository, time.monotonic(), by_digest=by_digest)

    def failed(self, place: Place, error: Exception) -> None:
        """Tell that a place has failed; a peer or mirror is left alone for a while."""
        self._places.failed(place, error, time.monotonic())

    def worked(self, place: Place) -> None:
        """Tell that a place has done what it should."""
        self._places.worked(place)

    def _anywhere(
        self,
        registry: str,
        repository: str,
        call: Callable[[Place], _T],
        pause: Callable[[float], object],
        *,
        by_digest: bool = True,
    ) -> _T:
        """What `call` returns for the first place that does it; only the registry itself is tried again."""
        *others, origin = self.places(registry, repository, by_digest=by_digest)
        said = []
        for place in others:
            try:
                found = call(place)
            except (RegistryError, VerificationError) as error:
                self.failed(place, error)
                said.append(f"{place.source} {error}")
            else:
                self.worked(place)
                return found
        try:
            return self.patiently(lambda: call(origin), pause)
        except RegistryError as error:
            error.hint = "; ".join(filter(None, [error.hint, *said]))
            raise

    def patiently(self, call: Callable[[], _T], pause: Callable[[float], object]) -> _T:
        """Return what `call` returns, trying again after transient failures, with growing pauses."""
        for attempt in range(len(self.patience.retries)):
            try:
                return call()
            except RegistryError as error:
                if not error.transient:
                    raise
                pause(self.patience.pause(attempt, error.retry_after))
        return call()

    # --- blobs -----------------------------------------------------------------------------------------------------

    @contextmanager
    def blob(
        self, place: Place, digest: Digest, *, offset: int = 0, until: int | None = None
    ) -> Iterator[Transfer]:
        """Open a blob from byte `offset` on, or from its start where the registry doesn't do ranges.

        With `until` nothing is asked for from that byte on; more may come all the same.

        The body is raw: no content encoding is undone. Reading it raises UnreachableRegistryError when it breaks off,
        stalls, or falls below the minimum rate. Nothing is tried again here.
        """
        path = f"/v2/{place.repository}/blobs/{digest}"
        request = f"{place.registry}: GET {path}"
        endpoint = self._endpoint(place)
        answer = endpoint.get(path, place.repository, _range(offset, until))
        try:
            start = 0
            if answer.response.status_code == 206:
                found = range_start(answer.response.headers.get("content-range", ""))
                if found is None or found > offset:
                    raise RefusedError(request, "answered with another range than asked for")
                start = found
            elif answer.response.status_code != 200:
                raise RefusedError(request, f"answered {answer.response.status_code} to a request for a blob")
            yield Transfer(start, self._body(endpoint, answer, request), _is_public(place, answer))
        finally:
            answer.response.close()

    def _body(self, endpoint: "Endpoint", answer: "Answer", request: str) -> Iterator[bytes]:
        import httpx

        patience = endpoint.patience
        chunks = answer.response.iter_raw()
        waited, received = 0.0, 0
        try:
            while True:
                before = time.monotonic()
                chunk = endpoint.chunk(chunks, patience.window)
                waited += time.monotonic() - before  # the caller's own time is not the registry's fault
                if not chunk:
                    return
                yield chunk
                received += len(chunk)
                if waited >= patience.window:
                    if received < patience.rate * waited:
                        raise UnreachableRegistryError(
                            request, f"slower than {patience.rate} bytes per second, given up"
                        )
                    waited, received = 0.0, 0
        except httpx.HTTPError as error:
            raise endpoint.failure(request, error) from error


def _is_public(place: Place, answer: "Answer") -> bool:
    """Whether anybody may have it: a peer that gives everything to its own network says so of each blob."""
    return answer.public and (not place.is_peer or answer.response.headers.get(PUBLIC, "") == "1")


def range_start(header: str) -> int | None:
    """The first byte of the range that a Content-Range header tells (RFC 9110, 14.4), None where it tells none."""
    found = _RANGE.fullmatch(header)
    return None if found is None else int(found[1])


def _range(offset: int, until: int | None) -> dict[str, str]:
    last = "" if until is None else str(until - 1)
    return {"Range": f"bytes={offset}-{last}"} if offset or last else {}
