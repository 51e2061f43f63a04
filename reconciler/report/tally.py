"""The counters: what has happened since the agent started, told by events from any thread.

They begin at zero, so that a first failure is an increase and not the birth of a series. What concerns a container goes
when the container goes. A turn, an outcome or a fetch is told once, by the agent; nobody else writes here.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.plan.steps import (
    CollectGarbage,
    Outcome,
    PullImage,
    UpdateContainer,
)
from reconciler.report.action import ACTIONS, action_of
from reconciler.report.exposition import Histogram
from reconciler.source.git import Fetch
from reconciler.state.observed import Container, Exited, Lost, Observed, Running

RESULTS: Final = ("success", "error")
TURNS: Final = ("unchanged", "changed", "error", "blocked")
PHASES: Final = ("observe", "plan", "apply")
FETCHES: Final = ("success", "rewound", "error", "unchanged")
RESTARTS: Final = ("exit", "oom", "unhealthy", "manual", "update")
DRIFT: Final = ("missing", "stopped", "config", "rootfs", "unexpected")
VERIFIED: Final = ("ok", "missing", "bad")
GARBAGE: Final = ("layer", "blob", "image", "previous")

_FETCH_BOUNDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0)
_TURN_BOUNDS: Final = (0.001, 0.005, 0.015, 0.05, 0.25, 1.0, 5.0, 30.0, 300.0)
NO_PULL: Final = Histogram.empty((1.0, 5.0, 15.0, 60.0, 300.0, 1800.0))


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters at one moment. Times are wall seconds, 0 for never; keys as in the names of the labels."""

    fetches: Mapping[str, int] = field(default_factory=dict)
    fetch_seconds: Histogram = Histogram.empty(_FETCH_BOUNDS)  # noqa: RUF009 - frozen
    last_fetch: float = 0.0
    turns: Mapping[str, int] = field(default_factory=dict)
    turn_seconds: Mapping[str, Histogram] = field(default_factory=dict)
    last_turn: float = 0.0
    actions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    restarts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    drift: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pulls: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pull_seconds: Mapping[str, Histogram] = field(default_factory=dict)
    gc_runs: Mapping[str, int] = field(default_factory=dict)
    gc_bytes: int = 0
    gc_removed: Mapping[str, int] = field(default_factory=dict)
    verified: Mapping[str, int] = field(default_factory=dict)
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A container as it was in the last turn."""

    id: str
    fingerprint: str
    running: bool
    created: float
    turn: int


class Tally:
    """Counts events. Thread-safe, and quick enough for the loop and the lanes to call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetches: Counter[str] = Counter()
        self._fetch_seconds = Histogram.empty(_FETCH_BOUNDS)
        self._last_fetch = 0.0
        self._revision: str | None = None
        self._turns: Counter[str] = Counter()
        self._turn_seconds = {phase: Histogram.empty(_TURN_BOUNDS) for phase in PHASES}
        self._last_turn = 0.0
        self._actions: Counter[tuple[str, str]] = Counter()
        self._restarts: dict[str, Counter[str]] = {}
        self._drift: Counter[tuple[str, str]] = Counter()
        self._pulls: Counter[tuple[str, str]] = Counter()
        self._pull_seconds: dict[str, Histogram] = {}
        self._gc_runs: Counter[str] = Counter()
        self._gc_bytes = 0
        self._gc_removed: Counter[str] = Counter()
        self._verified: Counter[str] = Counter()
        self._stalls = 0
        self._alive: float | None = None
        self._stalled = False
        self._seen: dict[str, _Seen] = {}

    def turn(
        self, result: str, seconds: Mapping[str, float], wall: float, observed: Observed, apps: frozenset[str]
    ) -> None:
        """Count a turn: `result` is one of TURNS, `seconds` by phase; `apps` are those of which series remain."""
        with self._lock:
            self._turns[result] += 1
            for phase, value in seconds.items():
                if phase in self._turn_seconds:
                    self._turn_seconds[phase] = self._turn_seconds[phase].observe(value)
            if result != "error":
                self._last_turn = wall
            self._compare(observed)
            for key in [key for key in self._drift if key[0] not in apps]:
                del self._drift[key]

    def broken_turn(self) -> None:
        """Count a turn that came to nothing: nothing is known of what it saw."""
        with self._lock:
            self._turns["error"] += 1

    def _compare(self, observed: Observed) -> None:
        """Find what came to pass between two turns: a container of a name that has another id was restarted."""
        now: dict[str, _Seen] = {}
        for name, same in observed.containers.items():
            have = same[-1]
            now[name] = _Seen(
                have.id, have.fingerprint, isinstance(have.phase, Running), have.created, have.turn
            )
            restarts = self._restarts.setdefault(name, Counter())
            before = self._seen.get(name)
            # An ad-hoc container keeps its id: that it was made again shows by when it was.
            if before is not None and (before.id, before.created) != (have.id, have.created):
                restarts[_why_restarted(before, have, observed)] += 1
            elif before is not None and before.running and isinstance(have.phase, Lost):
                self._drift[have.app, "missing"] += 1
        for name, before in self._seen.items():
            # Between a removal and the next creation there may be a turn without the container.
            if name not in now and name in observed.previous:
                now[name] = before
        self._seen = now
        for name in self._restarts.keys() - now.keys():
            del self._restarts[name]

    def outcome(self, outcome: Outcome) -> None:
        """Count one performed step."""
        step = outcome.step
        result = "error" if outcome.error else "success"
        with self._lock:
            action = action_of(step)
            if action:
                self._actions[action, result] += 1
            match step:
                case PullImage():
                    registry = step.reference.partition("/")[0]
                    self._pulls[registry, result] += 1
                    known = self._pull_seconds.get(registry, NO_PULL)
                    self._pull_seconds[registry] = known.observe(outcome.seconds)
                case CollectGarbage():
                    self._gc_runs[result] += 1
                    if not outcome.error:
                        for item in step.objects:
                            self._gc_removed[item.kind] += 1
                            self._gc_bytes += item.size
                case UpdateContainer() if "network" in step.changes and not outcome.error:
                    self._drift[step.app, "config"] += 1
                case _:
                    pass

    def drifted(self, app: str, kind: str) -> None:
        """Count drift that was found and repaired outside of a lane; `kind` is one of DRIFT."""
        with self._lock:
            self._drift[app, kind] += 1

    def lane(self, seconds: float) -> None:
        """Count the time that it took to apply one app's steps."""
        with self._lock:
            self._turn_seconds["apply"] = self._turn_seconds["apply"].observe(seconds)

    def fetch(self, fetch: Fetch) -> None:
        """Count a look at the source's remote."""
        with self._lock:
            self._fetches[fetch.result] += 1
            self._fetch_seconds = self._fetch_seconds.observe(fetch.seconds)
            if fetch.result != "error":
                self._last_fetch = fetch.at

    def read(self, revision: str, seconds: float, wall: float, *, problem: bool) -> None:
        """Count a reading of a source that needs no fetching (a directory)."""
        with self._lock:
            if problem:
                result = "error"
            else:
                result = "unchanged" if revision == self._revision else "success"
                self._revision, self._last_fetch = revision, wall
            self._fetches[result] += 1
            self._fetch_seconds = self._fetch_seconds.observe(seconds)

    def verified(self, result: str) -> None:
        """Count an image whose content was checked: one of VERIFIED."""
        with self._lock:
            self._verified[result] += 1

    def alive(self, monotonic: float, allowed: float, *, turn: bool) -> None:
        """Count a stall, once, where the loop has not come round for more than `allowed` seconds.

        Called at the end of each turn, and with `turn` false by whoever looks in between: a loop that hangs for ever
        is counted, too. The clock is one that stands still while the device sleeps.
        """
        with self._lock:
            if self._alive is not None and not self._stalled and monotonic - self._alive > allowed:
                self._stalled = True
                self._stalls += 1
            if turn:
                self._alive, self._stalled = monotonic, False

    def counters(self, *, signatures: Mapping[str, int] | None = None) -> Counters:
        """All counters now; the known labels are there from the beginning, at zero.

        `signatures` are verifications of signatures, which are counted where they are made, by their result.
        """
        with self._lock:
            return Counters(
                fetches=_from_zero(self._fetches, FETCHES),
                fetch_seconds=self._fetch_seconds,
                last_fetch=self._last_fetch,
                turns=_from_zero(self._turns, TURNS),
                turn_seconds=dict(self._turn_seconds),
                last_turn=self._last_turn,
                actions={(a, r): self._actions[a, r] for a in ACTIONS for r in RESULTS},
                restarts={name: _from_zero(found, RESTARTS) for name, found in self._restarts.items()},
                drift=dict(self._drift),
                pulls={
                    (registry, r): self._pulls[registry, r] for registry, _ in self._pulls for r in RESULTS
                },
                pull_seconds=dict(self._pull_seconds),
                gc_runs=_from_zero(self._gc_runs, RESULTS),
                gc_bytes=self._gc_bytes,
                gc_removed=_from_zero(self._gc_removed, GARBAGE),
                verified=_from_zero(self._verified + Counter(signatures or {}), VERIFIED),
                stalls=self._stalls,
            )


def _why_restarted(before: _Seen, have: Container, observed: Observed) -> str:
    """The label `reason` of a restart: another fingerprint is an update, else how the predecessor ended."""
    if before.fingerprint != have.fingerprint:
        return "update"
    if before.turn < have.turn:
        return "manual"
    previous = observed.previous.get(have.full_name)
    record = previous.record if previous is not None else None
    if record is None and isinstance(have.phase, Exited):
        record = have.phase.record
    return "oom" if record is not None and record.oom else "exit"


def _from_zero(found: Counter[str], known: tuple[str, ...]) -> dict[str, int]:
    return {**dict.fromkeys(known, 0), **found}
