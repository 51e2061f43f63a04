"""What the world is told: the loop's listener that feeds console, status and metrics, and serves them.

Everything is derived from turns and outcomes. Serving never waits for the loop and never walks a disk: `gauges` reads
what containers use at that moment, `sizes` measures on a thread of its own.
"""

import os
import platform
import resource
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from reconciler.agent.gauges import Gauges, traffic
from reconciler.agent.parts import Parts
from reconciler.agent.scrub import Scrub
from reconciler.agent.sizes import Sizes
from reconciler.agent.turn import Listener, Turn
from reconciler.engine import clock
from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome, Plan, PullImage, Step
from reconciler.report import status
from reconciler.report.action import action_of
from reconciler.report.container import rfc3339
from reconciler.report.events import Ends, EventLog, append_end, attributes
from reconciler.report.peer import PeerApplication
from reconciler.report.server import serve_tcp, serve_unix
from reconciler.report.status import NOTHING_LIVE, Live
from reconciler.report.tally import Tally
from reconciler.report.telemetry import Care, Process, StoreSizes
from reconciler.report.telemetry import Telemetry as Values
from reconciler.report.wsgi import Handler, api_application, metrics_application
from reconciler.state.observed import Container, Now

_PROBLEMS = 5  # of the agent's own, that status shows ...
_RECENT = 3600.0  # ... for so many seconds
_STALL = 3  # intervals without a turn
_EMPTY: dict[str, Any] = {
    "items": [],
    "revision": "",
    "generation": 0,
    "steps": [],
    "blocked": [],
    "problems": [],
}


@dataclass(frozen=True)
class _Told:
    """What a scrape tells that does not change within a turn."""

    number: int = 0
    document: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    spec_errors: int = 0
    download_bytes: int = 0
    generations: Mapping[str, int] = field(
        default_factory=lambda: {"current": 0, "desired": 0, "last_good": 0}
    )
    registries: frozenset[str] = frozenset()
    store: StoreSizes | None = None


class Telemetry:
    """Hears of everything, tells the console, and keeps what is served."""

    def __init__(self, parts: Parts, console: Listener, *, source: str, branch: str = "") -> None:
        self._parts = parts
        self._console = console
        self._source = source
        self._branch = branch
        self.tally = Tally()
        self._events = EventLog(parts.layout.events)
        self._ends = Ends(parts.layout.events)
        self._turn: Turn | None = None
        self._told = _Told()
        self._gauges = Gauges(parts.layout, parts.cgroup_parent)
        self._sizes = Sizes(parts.layout)
        self._lock = threading.Lock()
        self._problems: deque[tuple[float, str]] = deque(maxlen=_PROBLEMS)
        self._began = time.time()
        parts.images.trust.listener = self._trusted
        self.scrub: Scrub | None = None
        self.peers: PeerApplication | None = None

    # --- from the loop and its lanes ---------------------------------------------------------------------------------

    def turn(self, turn: Turn) -> None:
        self._turn = turn
        apps = frozenset(app.name for app in turn.intent.desired.apps.values())
        self.tally.turn(_result(turn), turn.seconds, turn.now.wall, turn.observed, apps)
        if not self._branch:
            problem = bool(turn.intent.source_problem)
            self.tally.read(turn.intent.revision, turn.seconds["read"], turn.now.wall, problem=problem)
        for mended in turn.mended:
            if mended.app:
                self.tally.drifted(mended.app, "unexpected")
        self._alive(turn=True)
        for container in self._ends.new(turn.observed, turn.busy):
            append_end(self._events, time.time(), container)
        self._console.turn(turn)

    def _trusted(self, reference: str, text: str) -> None:
        self._events.append(time.time(), "trust", reference, text)

    def _alive(self, *, turn: bool) -> None:
        self.tally.alive(time.monotonic(), _STALL * self._parts.device.interval, turn=turn)

    def outcome(self, outcome: Outcome) -> None:
        self.tally.outcome(outcome)
        if isinstance(outcome.step, PullImage) and not outcome.error:
            self.tally.verified("ok")
        elif outcome.unverified:
            self.tally.verified("bad")
        self._events.append(
            time.time(),
            "failed" if outcome.error else action_of(outcome.step) or "record",
            outcome.step.app or "device",
            f"{outcome.step}: {outcome.error}" if outcome.error else str(outcome.step),
            **attributes(outcome.step),
        )
        self._console.outcome(outcome)

    def lane(self, end: LaneEnd) -> None:
        if end.app:
            self.tally.lane(end.seconds)
        self._console.lane(end)

    def broken_turn(self, text: str) -> None:
        self.tally.broken_turn()
        self._alive(turn=True)
        self._events.append(time.time(), "failed", "device", f"turn: {text}")
        self._console.broken_turn(text)

    def noted(self, kind: str, subject: str, text: str) -> None:
        self._events.append(time.time(), kind, subject, text)
        self._console.noted(kind, subject, text)

    def problem(self, text: str) -> None:
        self._problems.append((time.monotonic(), f"{rfc3339(time.time())} {text}"))
        self._events.append(time.time(), "failed", "device", text)
        self._console.problem(text)

    # --- status and metrics ------------------------------------------------------------------------------------------

    def status(self, turn: Turn, doing: Mapping[str, Step], retries: Mapping[str, float]) -> dict[str, Any]:
        """The status document of a turn, with what has become of it since: `doing` and `retries` are the loop's."""
        now = Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
        pulls = self._parts.pulls.now()
        with self._lock:
            usage = self._gauges.usage(containers_of(turn))
        said = {
            app: status.pull_sentence(step.reference, pulls.get(step.reference), now)
            if isinstance(step, PullImage)
            else str(step)
            for app, step in doing.items()
        }
        plan = status.recounted(turn.plan, turn.now, now)
        notes = (*self._recent(), *self._traffic(turn))
        return self._document(turn, plan, now, Live(usage=usage, doing=said, retries=retries), notes)

    def _document(
        self, turn: Turn, plan: Plan, now: Now, live: Live, notes: Sequence[str] = ()
    ) -> dict[str, Any]:
        intent = turn.intent
        return status.document(
            intent.desired,
            turn.observed,
            plan,
            now,
            problems=intent.problems,
            busy=turn.busy,
            revision=intent.revision,
            generation=turn.generation,
            source_problem=intent.source_problem,
            source_stale=intent.source_stale,
            guard=intent.guard,
            live=live,
            notes=notes,
            adhoc={"agent": "running"},
        )

    def _recent(self) -> list[str]:
        """What went wrong with the agent's own affairs lately, each once, the newest last."""
        since = time.monotonic() - _RECENT
        return list(dict.fromkeys(text for moment, text in tuple(self._problems) if moment >= since))

    def _traffic(self, turn: Turn) -> list[str]:
        """What other people's firewalls drop of the containers' traffic."""
        if not turn.observed.network.traces:
            return []
        try:
            blockers = self._parts.networks.forward_blockers()
        except ReconcilerError as error:
            return [str(error)]
        return [f"{blocker}; {blocker.hint}" for blocker in blockers]

    def values(self) -> Values:
        """What one scrape tells, from the last turn and from the containers as they are now."""
        self._alive(turn=False)
        with self._lock:
            turn = self._turn
            told = self._current(turn)
            found = containers_of(turn)
            measured = self._sizes.get(found)
            images = self._parts.images
            return Values(
                version=version("reconciler"),
                python=platform.python_version(),
                kernel=platform.release(),
                architecture=platform.machine(),
                device=self._parts.device.name,
                source=self._source,
                branch=self._branch,
                status=told.document,
                counters=self.tally.counters(signatures=images.trust.results),
                spec_errors=told.spec_errors,
                download_bytes=told.download_bytes,
                generations=told.generations,
                usage=self._gauges.usage(found),
                traffic=traffic(found),
                upper_bytes=measured.uppers,
                log_bytes=self._gauges.written(found),
                volumes=_orphans(turn, measured.volumes),
                volume_limits=_volume_limits(turn),
                care=_care(self._parts.store, self.scrub),
                store=_with_sizes(told.store, measured.kinds),
                registries=told.registries,
                requests=dict(images.requests),
                pulled=dict(images.received),
                peer_bytes=self.peers.sent if self.peers is not None else None,
                clock_synchronized=clock.synchronized(),
                process=self._process(),
            )

    def _current(self, turn: Turn | None) -> _Told:
        if turn is not None and self._told.number != turn.number:
            self._told = _Told(
                number=turn.number,
                document=self._document(turn, turn.plan, turn.now, NOTHING_LIVE, self._recent()),
                spec_errors=status.errors(turn.intent.problems),
                download_bytes=_download_bytes(turn),
                generations=_generations(turn),
                registries=_registries(turn),
                store=_store(turn),
            )
        return self._told

    def _process(self) -> Process:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm", encoding="ascii") as file:
            virtual, resident = (int(pages) * resource.getpagesize() for pages in file.read().split()[:2])
        return Process(
            cpu_seconds=used.ru_utime + used.ru_stime,
            resident=resident,
            virtual=virtual,
            descriptors=len(os.listdir("/proc/self/fd")),
            max_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            started=self._began,
        )

    # --- serving -----------------------------------------------------------------------------------------------------

    def serve(self, stack: ExitStack, routes: Mapping[tuple[str, str], Handler]) -> str:
        """Serve the socket and the metrics until `stack` is left; return where the metrics are, "" if they are off."""
        stack.callback(self._close_gauges)
        api = serve_unix(self._parts.layout.agent_socket, api_application(routes))
        stack.callback(api.close)
        address = self._parts.device.metrics.address
        if address is None:
            return ""
        metrics = serve_tcp(
            *address, metrics_application(self.values, page=self._page, problem=self._problem)
        )
        stack.callback(metrics.close)
        return metrics.address

    def _close_gauges(self) -> None:
        with self._lock:
            self._gauges.close()

    def _page(self) -> str:
        return "reconciler: metrics are at /metrics, health at /healthz\n"

    def _problem(self) -> str:
        turn = self._turn
        if turn is None:
            return "no turn yet"
        late = time.clock_gettime(time.CLOCK_BOOTTIME) - turn.now.boottime
        allowed = 3 * self._parts.device.interval + 60
        return f"the last turn was {late:.0f} s ago" if late > allowed else ""


def _result(turn: Turn) -> str:
    if turn.intent.source_problem or turn.observed.failures:
        return "error"
    if turn.plan.steps:
        return "changed"
    return "blocked" if turn.plan.blocked else "unchanged"


def containers_of(turn: Turn | None) -> list[Container]:
    """Every container that a turn found."""
    return [] if turn is None else [c for same in turn.observed.containers.values() for c in same]


def _download_bytes(turn: Turn) -> int:
    missing = {
        layer.chain_id: layer.size
        for step in turn.plan.steps
        if isinstance(step, PullImage)
        for layer in step.image.layers
        if layer.chain_id.hex not in turn.observed.store.layers
    }
    return sum(missing.values())


def _generations(turn: Turn) -> dict[str, int]:
    """A generation is written once everything of it is up: so far, the one applied last is the last good one, too."""
    applied = {(app.name, app.digest) for kept in turn.generations[-1:] for app in kept.apps}
    wanted = {(app.name, app.digest) for app in turn.intent.desired.apps.values()}
    pending = wanted != applied or bool(turn.intent.stale)
    number = turn.generation
    return {"current": number, "desired": number + pending, "last_good": number}


def _registries(turn: Turn) -> frozenset[str]:
    """Those that images are wanted from, known or not."""
    apps = turn.intent.desired.apps.values()
    references = {c.reference for app in apps for c in app.containers.values()}
    references |= {item.reference for app in apps for item in app.unresolved}
    return frozenset(reference.partition("/")[0] for reference in references)


def _orphans(
    turn: Turn | None, sizes: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], tuple[int, bool]]:
    apps = turn.intent.desired.apps.values() if turn is not None else ()
    wanted = {(app.name, volume) for app in apps for volume in app.volumes}
    return {volume: (size, volume not in wanted) for volume, size in sizes.items()}


def _volume_limits(turn: Turn | None) -> dict[tuple[str, str], int]:
    found = turn.observed.volume_limits if turn is not None else {}
    return {
        (app, volume): limit for (app, _, volume), limit in ((n.partition("/"), v) for n, v in found.items())
    }


def _store(turn: Turn) -> StoreSizes:
    store = turn.observed.store
    by_kind = {kind: sum(o.size for o in store.objects if o.kind == kind) for kind in ("layer", "blob")}
    images = [o.name for o in store.objects if o.kind == "image"]
    blobs = [o.name for o in store.objects if o.kind == "blob"]
    used = {c.image for c in containers_of(turn)}
    used |= {
        digest
        for app in turn.intent.desired.apps.values()
        for container in app.containers.values()
        for digest in (
            str(container.image.index),
            str(container.image.manifest),
            str(container.image.config),
        )
    }
    pinned = {blob for kept in turn.generations for app in kept.apps for blob in app.blobs} - used
    return StoreSizes(
        sizes={"layers": by_kind["layer"], "blobs": by_kind["blob"]},
        free=store.free,
        total=store.size,
        images=_by_use(images, used, pinned),
        blobs=_by_use(blobs, used, pinned),
    )


def _by_use(names: list[str], used: set[str], pinned: set[str]) -> dict[str, int]:
    """How many are wanted or run, are kept for a generation that could be gone back to, and neither."""
    found = {"used": sum(name in used for name in names), "pinned": sum(name in pinned for name in names)}
    return {**found, "unused": len(names) - sum(found.values())}


def _care(store: Store, scrub: Scrub | None) -> Care:
    checked = store.session.checked
    doubted = {"whole": checked.layers - checked.wrong, "wrong": checked.wrong}
    if scrub is None:
        return Care(doubted=doubted)
    state = scrub.state
    return Care(state.corrupt(), state.finished, scrub.read, scrub.repairs, doubted)


def _with_sizes(store: StoreSizes | None, measured: Mapping[str, int]) -> StoreSizes | None:
    return None if store is None else replace(store, sizes={**store.sizes, **measured})
