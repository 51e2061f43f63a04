"""Where a repository can be had: at its mirrors, in their order, and at last at its own registry.

A mirror that fails is left alone for a while, longer each time, so that one that is down costs a pull its time limit
once and not for every layer. The registry itself is always asked in the end.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reconciler.engine.registry.errors import CredentialsError, RegistryError

ORIGIN: Final = "origin"
MIRROR: Final = "mirror"
_REST_FIRST: Final = 30.0
_REST_LAST: Final = 600.0


@dataclass(frozen=True, slots=True)
class Place:
    """A repository at a registry; `source` says whether that is its own (origin) or a mirror."""

    registry: str
    repository: str
    source: str

    @property
    def is_mirror(self) -> bool:
        return self.source == MIRROR


class Places:
    """The places of every repository. Thread-safe. `mirrors` are HOST or HOST/PREFIX by the host they stand for."""

    def __init__(self, mirrors: Mapping[str, Sequence[str]]) -> None:
        self._mirrors = mirrors
        self._resting: dict[str, tuple[int, float]] = {}  # failures in a row, and until when, by mirror
        self._lock = threading.Lock()

    def of(self, registry: str, repository: str, now: float) -> list[Place]:
        """Where to ask at `now` (monotonic), first to last; the last one is the registry itself."""
        found = []
        with self._lock:
            for name in self._mirrors.get(registry, ()):
                host, _, prefix = name.partition("/")
                if self._resting.get(host, (0, 0.0))[1] <= now:
                    found.append(Place(host, f"{prefix}/{repository}" if prefix else repository, MIRROR))
        return [*found, Place(registry, repository, ORIGIN)]

    def failed(self, place: Place, error: Exception, now: float) -> None:
        """Leave a mirror alone for a while, unless it only does not have this, or does not give it to us."""
        if not place.is_mirror or isinstance(error, CredentialsError):
            return
        if isinstance(error, RegistryError) and 400 <= error.status < 500 and error.status != 429:
            return
        asked = error.retry_after if isinstance(error, RegistryError) else 0.0
        with self._lock:
            failures = self._resting.get(place.registry, (0, 0.0))[0]
            rest = max(asked, min(_REST_LAST, _REST_FIRST * 2.0**failures))
            self._resting[place.registry] = failures + 1, now + rest

    def worked(self, place: Place) -> None:
        """A mirror has answered as it should: the next failure is its first."""
        with self._lock:
            self._resting.pop(place.registry, None)
