"""Images by digest: looked up once, remembered for ever, tried again later where that failed.

A look-up may take a network round trip, so it happens on threads of its own and an app waits for its own images only.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.engine.trust.gate import Standing
from reconciler.errors import ReconcilerError
from reconciler.spec.reference import Digest, Reference
from reconciler.state.image import Image, Unresolved

_RETRY_FIRST = 2.0
_RETRY_LAST = 300.0
_LATE = 8  # look-ups that nobody waits for any more, at most


@dataclass
class _Attempt:
    """An image that is not resolved yet: when it may be tried again (monotonic), and why it failed last."""

    running: bool = False
    late: bool = False  # somebody else looks it up by now
    failures: int = 0
    retry_at: float = 0.0
    error: Unresolved = field(default_factory=lambda: Unresolved("looking it up"))


class Resolver:
    """Digest -> image, for ever once known.

    Each registry has threads of its own, so that one that hangs holds up only what comes from it; and what one registry
    says of a digest is not held against the same digest elsewhere. `background` false looks up at once, in the
    caller's thread; without `images` nothing is looked up at all. With `keep` what was found is stored. An image that
    is known is no answer as long as a rule about signatures holds it: it is looked up again, for a signature.
    """

    def __init__(
        self,
        images: Images | None,
        store: Store,
        wake: Callable[[], None],
        *,
        background: bool = True,
        keep: bool = True,
    ) -> None:
        self._images = images
        self._store = store
        self._wake = wake
        self._keep = keep
        self._known: dict[Digest, Image] = {}
        self._attempts: dict[Reference, _Attempt] = {}
        self._asked: dict[Reference, _Attempt] = {}
        self._missing: set[Digest] = set()  # what was asked for, and not known
        self._lock = threading.Lock()
        self._background = background
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._there: frozenset[Digest] = frozenset()  # what the store knew when the reading began
        self._stale = True
        self._stamp: object = None  # what the gate went by when the reading began
        self._late = 0
        self.pending = 0  # how many images were asked for, since `begin`, that are on their way

    def begin(self) -> None:
        """A new reading begins: what it does not ask for need not be tried again."""
        there = self._store.resolved_digests()
        stamp = self._images.trust.stamp() if self._images is not None else None
        with self._lock:
            if stamp != self._stamp:  # another key, or signatures have come: what was refused may be good now
                for attempt in self._attempts.values():
                    attempt.retry_at = 0.0
            self._stamp = stamp
            for reference in [*self._attempts]:
                if reference not in self._asked and not self._attempts[reference].running:
                    del self._attempts[reference]
            self._asked = {}
            self._missing = set()
            self._there = there
            self._stale = False
            self.pending = 0

    def answers_again(self) -> bool:
        """Whether everything that was asked since `begin` would get the answer that it got then.

        Not once a look-up has ended or is due, nor where an image that is waited for has come into the store.
        """
        there = self._store.resolved_digests()
        if self._images is not None and self._images.trust.stamp() != self._stamp:
            return False
        now = time.monotonic()
        with self._lock:
            return (
                not self._stale
                and there.isdisjoint(self._missing)
                and all(attempt.running or now < attempt.retry_at for attempt in self._asked.values())
            )

    def resolve(self, reference: Reference) -> Image | Unresolved:
        """The image, or why it is not known (yet)."""
        digest = reference.digest
        if digest is None:
            return Unresolved(f"{reference}: not pinned by digest", transient=False)
        image = self._known.get(digest)
        if image is None and digest in self._there:
            image = self._store.resolved(digest)
        if image is not None:
            self._known[digest] = image
            standing = self._images.trust.standing(reference) if self._images else Standing.ADMITTED
            if standing is Standing.ADMITTED:
                return image
        else:
            standing = Standing.HELD
            self._missing.add(digest)
        if self._images is None:
            return Unresolved(f"{reference}: not on this device")
        found = self._attempt(self._images, reference, digest)
        return image if image is not None and standing is Standing.UNASKED else found

    def _attempt(self, images: Images, reference: Reference, digest: Digest) -> Image | Unresolved:
        """Look the image up, if it is time to, or say why it is not known."""
        with self._lock:
            attempt = self._attempts.get(reference)
            if attempt is None:
                attempt = self._attempts[reference] = _Attempt()
            self._asked[reference] = attempt
            if not attempt.running and time.monotonic() < attempt.retry_at:
                return attempt.error
            self.pending += 1
            if attempt.running:
                return attempt.error
            attempt.running = True
        if not self._background:
            return self._look_up(images, reference, digest, attempt) or attempt.error
        pools = self._pools
        pool = pools.get(reference.registry)
        if pool is None:
            pool = pools[reference.registry] = ThreadPoolExecutor(2, thread_name_prefix="resolve")
        pool.submit(self._look_up, images, reference, digest, attempt)
        return attempt.error

    def unsigned(self, reference: Reference) -> str:
        """Why nobody vouches for an image that is used all the same; "" where somebody does, or nobody has to."""
        return self._images.trust.unsigned(reference) if self._images is not None else ""

    @property
    def retry_at(self) -> float | None:
        """When the next look-up is due (monotonic), if one has failed of those that were asked for last."""
        with self._lock:
            times = [
                attempt.retry_at
                for reference, attempt in self._asked.items()
                if not attempt.running and reference in self._attempts
            ]
        return min(times, default=None)

    def retries(self) -> dict[Reference, float]:
        """Seconds until the next look-up of each image whose last one failed."""
        now = time.monotonic()
        with self._lock:
            return {
                reference: max(0.0, attempt.retry_at - now)
                for reference, attempt in self._attempts.items()
                if attempt.failures and not attempt.running
            }

    def forget_failures(self) -> None:
        """Try everything again now: somebody asked for it, or it may be had elsewhere.

        A registry that takes its time is not waited for: what is being looked up is looked up once more beside it.
        """
        with self._lock:
            self._stale = True
            for reference, attempt in [*self._attempts.items()]:
                attempt.retry_at = 0.0
                if attempt.running and self._late < _LATE:
                    attempt.late = True
                    self._late += 1
                    del self._attempts[reference]
                    self._pools = {}  # threads of their own; the others end with what they do
        if self._images is not None:
            self._images.trust.forget()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _look_up(
        self, images: Images, reference: Reference, digest: Digest, attempt: _Attempt
    ) -> Image | None:
        error: Unresolved | None = None
        image: Image | None = None
        try:
            image = images.resolve(reference) if self._keep else images.resolve_without_storing(reference)
            self._known[digest] = image
        except ReconcilerError as failure:
            hint = f" ({failure.hint})" if failure.hint else ""
            error = Unresolved(f"{failure}{hint}", failure.transient)
        except OSError as failure:
            error = Unresolved(f"{reference}: {failure}", transient=True)
        with self._lock:
            attempt.running = False
            self._stale = True
            if attempt.late:
                self._late -= 1
            elif error is None:
                self._attempts.pop(reference, None)
            else:
                attempt.error = error
                # Partly by chance: a registry that comes back is not asked by a whole fleet at one moment.
                delay = min(_RETRY_LAST, _RETRY_FIRST * 2**attempt.failures) * random.uniform(1, 1.2)
                attempt.failures += 1
                attempt.retry_at = time.monotonic() + delay
        self._wake()
        return image
