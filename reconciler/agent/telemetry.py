"""What the world is told: the loop's listener that feeds console, status and metrics, and serves them.

Everything is derived from turns and outcomes. Serving never waits for the loop and never walks a disk: sizes
that need a walk are measured on a thread of their own, at most every ten minutes, and only while somebody
asks.
"""

import os
import platform
import resource
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from reconciler.agent.loop import Listener, Turn
from reconciler.agent.parts import Parts
from reconciler.engine import cgroup, logs, volumes
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.usage import Meter, Usage
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome, PullImage
from reconciler.report import status
from reconciler.report.action import action_of
from reconciler.report.events import EventLog
from reconciler.report.server import serve_tcp, serve_unix
from reconciler.report.tally import Tally
from reconciler.report.telemetry import Process, StoreSizes, Traffic
from reconciler.report.telemetry import Telemetry as Values
from reconciler.report.wsgi import Handler, api_application, metrics_application
from reconciler.state.observed import Container, Running

_MEASURE_EVERY = 600.0
_EMPTY: dict[str, Any] = {
    "items": [],
    "revision": "",
    "generation": 0,
    "steps": [],
    "blocked": [],
    "problems": [],
}


class Telemetry:
    """Hears of everything, tells the console, and keeps what is served."""

    def __init__(self, parts: Parts, console: Listener, *, source: str, branch: str = "") -> None:
        self._parts = parts
        self._console = console
        self._source = source
        self._branch = branch
        self.tally = Tally()
        self._events = EventLog(parts.layout.events)
        self._turn: Turn | None = None
        self._document: tuple[int, dict[str, Any]] = (0, _EMPTY)
        self._meters: dict[str, Meter] = {}
        self._lock = threading.Lock()
        self._sizes: tuple[float, dict[str, int], dict[tuple[str, str], int], dict[str, int]] = (
            0.0,
            {},
            {},
            {},
        )
        self._measuring = False
        self._began = time.time()

    # --- from the loop and its lanes ---------------------------------------------------------------------------------

    def turn(self, turn: Turn) -> None:
        self._turn = turn
        apps = frozenset(turn.intent.desired.apps)
        self.tally.turn(_result(turn), turn.seconds, turn.now.wall, turn.observed, apps)
        if not self._branch:
            self.tally.read(turn.now.wall, problem=bool(turn.intent.source_problem))
        self._console.turn(turn)

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
        )
        self._console.outcome(outcome)

    def lane(self, end: LaneEnd) -> None:
        if end.app:
            self.tally.lane(end.seconds)
        self._console.lane(end)

    def broken_turn(self, text: str) -> None:
        self.tally.broken_turn()
        self._events.append(time.time(), "failed", "device", f"turn: {text}")
        self._console.broken_turn(text)

    def problem(self, text: str) -> None:
        self._events.append(time.time(), "failed", "device", text)
        self._console.problem(text)

    # --- status and metrics ------------------------------------------------------------------------------------------

    def status(self, turn: Turn) -> dict[str, Any]:
        """The status document of a turn."""
        intent = turn.intent
        return status.document(
            intent.desired,
            turn.observed,
            turn.plan,
            turn.now,
            problems=intent.problems,
            busy=turn.busy,
            revision=intent.revision,
            generation=turn.generation,
            source_problem=intent.source_problem,
            source_stale=intent.source_stale,
            guard=intent.guard,
            adhoc={"agent": "running"},
        )

    def values(self) -> Values:
        """What one scrape tells, from the last turn and from the containers' cgroups as they are now."""
        with self._lock:
            turn = self._turn
            document = self._current(turn)
            running = [] if turn is None else [c for same in turn.observed.containers.values() for c in same]
            usage, traffic = self._usage(running)
            self._measure_if_old()
            _, sizes, volume_sizes, uppers = self._sizes
            images = self._parts.images
            return Values(
                version=version("reconciler"),
                python=platform.python_version(),
                kernel=platform.release(),
                architecture=platform.machine(),
                device=self._parts.device.name,
                source=self._source,
                branch=self._branch,
                status=document,
                counters=self.tally.counters(),
                spec_errors=status.errors(turn.intent.problems) if turn is not None else 0,
                download_bytes=_download_bytes(turn),
                usage=usage,
                traffic=traffic,
                upper_bytes=uppers,
                volumes=_orphans(turn, volume_sizes),
                store=_store(turn, sizes),
                requests=dict(images.requests),
                pulled=dict(images.received),
                process=self._process(),
            )

    def _current(self, turn: Turn | None) -> dict[str, Any]:
        if turn is not None and self._document[0] != turn.number:
            self._document = (turn.number, self.status(turn))
        return self._document[1]

    def _usage(self, containers: list[Container]) -> tuple[dict[str, Usage], dict[str, Traffic]]:
        alive = {c.id: c for c in containers if isinstance(c.phase, Running)}
        for gone in self._meters.keys() - alive.keys():
            self._meters.pop(gone).close()
        hierarchies = Hierarchies.detect() if alive.keys() - self._meters.keys() else None
        usage: dict[str, Usage] = {}
        traffic: dict[str, Traffic] = {}
        for identity, container in alive.items():
            if identity not in self._meters and hierarchies is not None:
                group = cgroup.open_existing(hierarchies, self._parts.cgroup_parent, identity)
                if group is None:
                    continue
                self._meters[identity] = Meter(group)
            usage[container.full_name] = self._meters[identity].read()
            if isinstance(container.phase, Running):
                found = read_traffic(container.phase.pid)
                if found is not None:
                    traffic[container.full_name] = found
        return usage, traffic

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

    # --- sizes that need a walk ---------------------------------------------------------------------------

    def _measure_if_old(self) -> None:
        if self._measuring or (time.monotonic() - self._sizes[0] < _MEASURE_EVERY and self._sizes[0]):
            return
        self._measuring = True
        threading.Thread(target=self._measure, name="measure", daemon=True).start()

    def _measure(self) -> None:
        layout = self._parts.layout
        turn = self._turn
        found = [] if turn is None else [c for same in turn.observed.containers.values() for c in same]
        try:
            uppers = {c.full_name: volumes.tree_size(layout.upper(c.id)) for c in found}
            by_volume = {
                (volume.app, volume.name): volumes.size(layout, volume.app, volume.name)
                for volume in volumes.volumes(layout)
            }
            sizes = {
                "upper": sum(uppers.values()),
                "volumes": sum(by_volume.values()),
                "logs": sum(logs.size(layout.log(c.id)) for c in found),
                "partial": volumes.tree_size(layout.partial),
            }
            self._sizes = (time.monotonic(), sizes, by_volume, uppers)
        finally:
            self._measuring = False

    # --- serving -----------------------------------------------------------------------------------------------------

    def serve(self, stack: ExitStack, routes: Mapping[tuple[str, str], Handler]) -> str:
        """Serve the socket and the metrics until `stack` is left; return where the metrics are, "" if they are off."""
        stack.callback(self._close_meters)
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

    def _close_meters(self) -> None:
        for meter in self._meters.values():
            meter.close()

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


def _download_bytes(turn: Turn | None) -> int:
    if turn is None:
        return 0
    missing = {
        layer.chain_id: layer.size
        for step in turn.plan.steps
        if isinstance(step, PullImage)
        for layer in step.image.layers
        if layer.chain_id.hex not in turn.observed.store.layers
    }
    return sum(missing.values())


def _orphans(
    turn: Turn | None, sizes: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], tuple[int, bool]]:
    apps = turn.intent.desired.apps if turn is not None else {}
    return {
        (app, name): (size, app not in apps or name not in apps[app].volumes)
        for (app, name), size in sizes.items()
    }


def _store(turn: Turn | None, sizes: Mapping[str, int]) -> StoreSizes | None:
    if turn is None:
        return None
    store = turn.observed.store
    by_kind = {kind: sum(o.size for o in store.objects if o.kind == kind) for kind in ("layer", "blob")}
    used = {c.image for same in turn.observed.containers.values() for c in same}
    images = [o for o in store.objects if o.kind == "image"]
    blobs = [o for o in store.objects if o.kind == "blob"]
    wanted = {
        digest
        for app in turn.intent.desired.apps.values()
        for container in app.containers.values()
        for digest in (
            str(container.image.index),
            str(container.image.manifest),
            str(container.image.config),
        )
    } | used
    return StoreSizes(
        sizes={"layers": by_kind["layer"], "blobs": by_kind["blob"], **sizes},
        free=store.free,
        total=store.size,
        images=_by_use(images, wanted),
        blobs=_by_use(blobs, wanted),
    )


def _by_use(objects: list[Any], wanted: set[str]) -> dict[str, int]:
    used = sum(item.name in wanted for item in objects)
    return {"used": used, "unused": len(objects) - used}


def read_traffic(pid: int) -> Traffic | None:
    """The counters of eth0 as process `pid` sees them, None where there is no such process or link."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, figures = line.partition(":")
        if name.strip() == "eth0":
            n = [int(figure) for figure in figures.split()]
            return Traffic(n[0], n[1], n[2], n[3], n[8], n[9], n[10], n[11])
    return None
