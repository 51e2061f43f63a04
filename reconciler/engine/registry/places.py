"""Where a repository can be had: at peers, at its mirrors, in their order, and at last at its own registry.

A peer or mirror that fails is left alone for a while, longer each time, so that one that is down costs a pull its time
limit once and not for every layer. The registry itself is always asked in the end.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reconciler.engine.registry.errors import CredentialsError, RegistryError

ORIGIN: Final = "origin"
MIRROR: Final = "mirror"
PEER: Final = "peer"
ANYTHING: Final = "reconciler"  # the repository of a peer: it goes by digests, and is told no names
_REST_FIRST: Final = 30.0
_REST_LAST: Final = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """A repository at a registry; `source` says whether that is its own (origin), a mirror or a peer."""

    registry: str
    repository: str
    source: str

    @property
    def is_origin(self) -> bool:
        return self.source == ORIGIN

    @property
    def is_peer(self) -> bool:
        return self.source == PEER

    def __str__(self) -> str:
        """How people are told of it: `origin`, or which mirror or peer."""
        return self.source if self.is_origin else f"{self.source} {self.registry}"


class Places:
    """The places of every repository. Thread-safe.

    `mirrors` are HOST or HOST/PREFIX by the host they stand for, `peers` the hosts of devices that may have anything.
    """

    def __init__(self, mirrors: Mapping[str, Sequence[str]], peers: Sequence[str] = ()) -> None:
        self._mirrors = mirrors
        self._peers = peers
        self._resting: dict[
            tuple[str, str], tuple[int, float]
        ] = {}  # failures in a row, until when, by place
        self._lock = threading.Lock()

    def of(self, registry: str, repository: str, now: float, *, by_digest: bool = True) -> list[Place]:
        """Where to ask at `now` (monotonic), first to last; the last one is the registry itself.

        What is not asked for by digest, peers are not asked for: nobody could tell whether they are right.
        """
        asked = [Place(host, ANYTHING, PEER) for host in self._peers if by_digest and host != registry]
        for name in self._mirrors.get(registry, ()):
            host, _, prefix = name.partition("/")
            asked.append(Place(host, f"{prefix}/{repository}" if prefix else repository, MIRROR))
        with self._lock:
            found = [place for place in asked if self._resting.get(_key(place), (0, 0.0))[1] <= now]
        return [*found, Place(registry, repository, ORIGIN)]

    def failed(self, place: Place, error: Exception, now: float) -> None:
        """Leave a peer or mirror alone for a while, unless it only does not have this, or does not give it to us."""
        if place.is_origin:
            return
        if isinstance(error, RegistryError) and (
            error.status == 404 or (not place.is_peer and _lacks(error))
        ):
            return
        asked = error.retry_after if isinstance(error, RegistryError) else 0.0
        with self._lock:
            failures = self._resting.get(_key(place), (0, 0.0))[0]
            rest = max(asked, min(_REST_LAST, _REST_FIRST * 2.0**failures))
            self._resting[_key(place)] = failures + 1, now + rest

    def worked(self, place: Place) -> None:
        """It has answered as it should: the next failure is its first."""
        with self._lock:
            self._resting.pop(_key(place), None)


def _lacks(error: RegistryError) -> bool:
    """Whether it only does not give this, or not to us."""
    return isinstance(error, CredentialsError) or (400 <= error.status < 500 and error.status != 429)


def _key(place: Place) -> tuple[str, str]:
    return place.source, place.registry
