"""The scrub: reads the whole store in the background, a little at a time, to find what a disk has damaged by itself.

So many bytes a day as `store.scrub` says, in small pieces over the day and the whole once a day at most, on a thread
that gets the processor and the disk when nobody else wants them, and past the page cache. What is wrong is told, and
put right by the means of `fsck --repair`, unless `store.repair` is off; where that fails it is tried again, less and
less often, and at the next pass.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, Protocol

from reconciler.agent import afterboot, fsck
from reconciler.agent.parts import Parts
from reconciler.agent.stock import Stock
from reconciler.engine import scrubbed
from reconciler.engine.check import Check, Trouble
from reconciler.engine.progress import Progress
from reconciler.errors import ReconcilerError
from reconciler.linux import scheduling

_DAY: Final = 86_400.0
_PIECES: Final = 1440  # of a day
_RETRIES: Final = (60.0, 600.0, 3600.0, 6 * 3600.0)  # after a repair that failed; then at the next pass


class Heard(Protocol):
    """Who is told what comes of it."""

    def noted(self, kind: str, subject: str, text: str) -> None:
        """Something was done."""

    def problem(self, text: str) -> None:
        """Something is wrong."""


class _Stopped(Exception):
    """The agent ends."""


class Scrub:
    """Looks after one store while the agent runs; `state`, `read` and `repairs` are for metrics.

    `read` counts bytes since the start, `repairs` (result) repairs that went well ("success") or not ("error").
    """

    def __init__(self, parts: Parts, heard: Heard, *, day: float = _DAY) -> None:
        self._parts = parts
        self._heard = heard
        self._budget = parts.device.store.scrub
        self._day = day
        self._piece = day / _PIECES  # seconds
        self._stopped = threading.Event()
        self._owed = 0
        self._kept = time.monotonic()
        self._tries: dict[tuple[str, str], tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self.state = scrubbed.read(parts.layout)
        self.read = 0
        self.repairs = {"success": 0, "error": 0}

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and keep on the disk how far it has come."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(2)
        if self.state.at is not None:
            self._keep(durable=True)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        scheduling.background()
        try:
            afterboot.check(self._parts.store, self._parts.layout, self._stopped, self._heard.noted)
        except (OSError, ReconcilerError) as error:
            self._heard.problem(f"check after boot: {error}")
        try:
            self._again()
            while self._budget:
                try:
                    self._pass()
                except (
                    OSError,
                    ReconcilerError,
                ) as error:  # a disk that fails is said, and not asked more often
                    self._heard.problem(f"scrub: {error}")
                    self._wait(60 * self._piece)
        except _Stopped:
            return

    def _again(self) -> None:
        """Look once more at what was wrong when the agent was stopped."""
        for kind, name in list(self.state.wrong):
            self._object(kind, name, pace=False)

    def _pass(self) -> None:
        """Read everything that is left of this pass, and wait for the next."""
        if self.state.at is None:
            rest = self.state.finished + self._day - time.time()
            self._wait(min(max(rest, self._piece), self._day))
            self.state = replace(self.state, began=time.time(), bytes=0)
        left = self.state.at
        looking = Check(self._parts.layout, self._parts.store)
        for kind, name in sorted(looking.objects()):
            if left is not None and (kind, name) < left:
                continue
            if (kind, name) != left:
                self.state = replace(self.state, at=(kind, name), files=0)
            self._object(kind, name, pace=True)
            self._repair_due()
        gone = [key for key in self.state.wrong if key not in set(looking.objects())]
        for key in gone:
            self.state = self.state.with_wrong(*key, "")
        self.state = replace(self.state, at=None, files=0, finished=time.time())
        self._keep(durable=True)
        corrupt = len(self.state.wrong)
        self._heard.noted(
            "scrubbed", "store", f"{self.state.bytes} bytes read, all of it; {corrupt} objects are wrong now"
        )

    def _object(self, kind: str, name: str, *, pace: bool) -> None:
        """Look at one object; what seems wrong is looked at once more, while nothing can be swept away."""
        told = self._pace if pace else self._count
        begin = self.state.files if pace else 0
        if not any(self._look(kind, name, told, begin, self._passed if pace else lambda _: None)):
            if begin == 0 and (kind, name) in self.state.wrong:
                self.state = self.state.with_wrong(kind, name, "")
            return
        with self._parts.store.adding():
            found = list(self._look(kind, name, self._count))
        self._settle(kind, name, found)

    def _look(
        self,
        kind: str,
        name: str,
        told: Callable[[int], object],
        begin: int = 0,
        passed: Callable[[int], object] = lambda _: None,
    ) -> Iterator[Trouble]:
        looking = Check(self._parts.layout, self._parts.store, told)
        return looking.one(kind, name, begin=begin, passed=passed)

    def _settle(self, kind: str, name: str, found: list[Trouble]) -> None:
        """Say what is wrong, and put it right if that is wanted."""
        if not found:
            return
        what = found[0].what
        if (kind, name) not in self.state.wrong:
            self._heard.noted("damaged", f"{kind} {name}", what)
            self._heard.problem(f"store: {kind} {name[:19]} {what}; see: reconciler fsck")
        self.state = self.state.with_wrong(kind, name, what)
        if self._parts.device.store.repair:
            self._repair(found[0])

    def _repair(self, trouble: Trouble) -> None:
        key = (trouble.kind, trouble.name)
        stock = Stock(self._parts.layout, self._parts.device, self._parts.store, sizes=False)
        finding = fsck.finding(stock, trouble)
        try:
            fsck.repair(stock, [finding], _unheard)
        except (ReconcilerError, OSError) as error:
            finding.why = str(error)
        if finding.done and not any(self._look(*key, self._count)):
            self._tries.pop(key, None)
            self.repairs["success"] += 1
            self.state = self.state.with_wrong(*key, "")
            self._heard.noted(
                "repaired", f"{trouble.kind} {trouble.name}", f"{finding.done}; {finding.next}".strip("; ")
            )
            return
        self.repairs["error"] += 1
        tries = self._tries.get(key, (0, 0.0))[0]
        self._heard.noted(
            "damaged", f"{trouble.kind} {trouble.name}", f"could not be repaired: {finding.why}"
        )
        pause = _RETRIES[tries] if tries < len(_RETRIES) else float("inf")
        self._tries[key] = (tries + 1, time.monotonic() + pause)

    def _repair_due(self) -> None:
        """Try those repairs once more whose pause is over."""
        now = time.monotonic()
        for key in [key for key, (_, due) in self._tries.items() if due <= now]:
            self._object(*key, pace=False)
            if key not in self.state.wrong:
                self._tries.pop(key, None)

    # --- time, and how far it is -------------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self.read += size
        if self._stopped.is_set():
            raise _Stopped

    def _pace(self, size: int) -> None:
        """Count, and wait once a piece is read: so many bytes as a day has of them."""
        self._count(size)
        self.state = replace(self.state, bytes=self.state.bytes + size)
        self._owed += size
        if self._owed >= self._budget / _PIECES:
            self._keep(durable=time.monotonic() - self._kept >= self._day)
            self._wait(self._owed * self._day / self._budget)
            self._owed = 0
            self._repair_due()

    def _passed(self, files: int) -> None:
        self.state = replace(self.state, files=files)

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _Stopped

    def _keep(self, *, durable: bool) -> None:
        layout = self._parts.layout
        try:
            scrubbed.write(layout.scrub_progress, self.state, durable=False)
            if durable:
                scrubbed.write(layout.scrub, self.state, durable=True)
                self._kept = time.monotonic()
        except OSError:
            return  # it begins where it is known to have been


def _unheard(progress: Progress) -> None:
    """Nobody waits for it."""
