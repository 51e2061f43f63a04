"""The status document: for every app whether it is as desired (sync), how it is (health), and why.

Pure: the values of one turn in, plain JSON values out. `status`, `ps`, the agent's socket and the page show this one
document, so that they can't disagree. Keys are never renamed within v1; new ones may be added.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from reconciler.engine.progress import Pulling
from reconciler.engine.usage import Usage
from reconciler.plan.restart import countdown, ending
from reconciler.plan.steps import (
    Blocked,
    Plan,
    Step,
)
from reconciler.report.action import action_of
from reconciler.report.container import container, rfc3339
from reconciler.report.tables import GREEN, RED, YELLOW, Column, duration, short_digest, short_reference, size
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.marks import ERROR, Problem, printable
from reconciler.state.desired import App, Desired
from reconciler.state.observed import Exited, Lost, Now, Observed

SYNC: Final = ("synced", "out_of_sync", "unknown")
HEALTH: Final = ("healthy", "progressing", "degraded", "suspended", "missing")
START: Final = "run: reconciler agent SPECS, or systemctl start reconciler"
STALE: Final = "keeps running its last good spec: "


@dataclass(frozen=True, slots=True)
class Live:
    """What changes between two turns, read when somebody asks.

    `agent` is whether there is one to perform the plan. `usage` is by full name. By app: `doing` is what its lane is in
    the middle of, `retries` the seconds until its image is looked up again.
    """

    agent: bool = True
    usage: Mapping[str, Usage] = field(default_factory=dict)
    doing: Mapping[str, str] = field(default_factory=dict)
    retries: Mapping[str, float] = field(default_factory=dict)


NOTHING_LIVE: Final = Live()


def document(
    desired: Desired,
    observed: Observed,
    plan: Plan,
    now: Now,
    *,
    problems: Sequence[Problem] = (),
    busy: frozenset[str] = frozenset(),
    revision: str = "",
    generation: int = 0,
    source_problem: str = "",
    source_stale: str = "",
    guard: str = "",
    live: Live = NOTHING_LIVE,
    notes: Sequence[str] = (),
    adhoc: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the status of the device. Total: every combination of phases, blocks and failures has a row.

    `busy` are the apps with a lane running, `problems` what is wrong in the specs, `source_problem` why the source
    can't be read, `source_stale` why it is older than it should be, `guard` why nothing shrinks, `notes` what went
    wrong with the agent's own affairs. `adhoc` is merged in at the top level (the agent's own facts, such as its
    addresses). A plan that is older than `now` has been `recounted` before.
    """
    found: dict[str, set[str]] = defaultdict(set)
    steps: dict[str | None, list[Step]] = defaultdict(list)
    blocked: dict[str, list[Blocked]] = defaultdict(list)
    for full_name in observed.containers:
        found[full_name.partition("/")[0]].add(full_name)
    for step in plan.steps:
        steps[step.app].append(step)
    for block in plan.blocked:
        blocked[block.app].append(block)
    names = {lane.partition("/")[0] for lane in desired.apps.keys() | desired.held.keys()} | found.keys()
    working = {lane.partition("/")[0] for lane in busy}
    items = [
        _app(name, desired, observed, found[name], steps[name], blocked[name], now, name in working, live)
        for name in sorted(names)
    ]
    declared = [item for item in items if item["name"] != ADHOC]
    waiting = any(item["sync"] != "synced" or item["health"] == "progressing" for item in declared)
    todo = [part for part in (*plan.steps, *plan.blocked) if part.app != ADHOC]
    return {
        "apiVersion": "reconciler/v1",
        "kind": "Status",
        "time": rfc3339(now.wall),
        "revision": revision,
        "generation": generation,
        "converged": not (todo or waiting or source_problem),
        "source": {"problem": source_problem, "stale": source_stale},
        "guard": guard,
        "problems": [_problem(problem) for problem in problems],
        "notes": [printable(note) for note in notes],
        "steps": [str(step) for step in plan.steps],
        "pending": dict(Counter(action for step in plan.steps if (action := action_of(step)))),
        "blocked": [_blocked(item, now) for item in plan.blocked if not item.app],
        **(adhoc or {}),
        "items": items,
    }


# --- apps ----------------------------------------------------------------------------------------------------------


def _app(
    name: str,
    desired: Desired,
    observed: Observed,
    found: Set[str],
    steps: Sequence[Step],
    blocked: Sequence[Blocked],
    now: Now,
    busy: bool,
    live: Live,
) -> dict[str, Any]:
    wanted = desired.app(name)
    full_names = set(found)
    if wanted is not None:
        full_names |= {container.full_name for container in wanted.containers.values()}
        full_names |= {f"{name}/{item.container}" for item in wanted.unresolved}
    containers = [
        container(
            full, wanted, observed, blocked, steps if live.agent else (), busy, now, live.usage.get(full)
        )
        for full in sorted(full_names)
    ]
    failure = next(
        (found for lane, found in sorted(observed.failures.items()) if lane.partition("/")[0] == name), None
    )
    sync = _sync(name, desired, blocked, steps, busy)
    ended, look = _end(observed, sorted(full_names))
    lost = "" if live.agent else _lost(observed, sorted(full_names))
    reason = lost or _reason(name, desired, blocked, steps, live) or ended
    hint = START if lost else _hint(wanted, blocked, live) or (look if reason == ended else "")
    return {
        "name": name,
        "path": wanted.path if wanted is not None else "",
        "digest": wanted.digest if wanted is not None else "",
        "sync": sync,
        "health": _health(containers, blocked, (bool(steps) and live.agent) or busy),
        "reason": reason,
        "hint": hint,
        "stale": wanted.stale if wanted is not None else desired.held.get(name, ""),
        "wanted": wanted is not None,
        "replicas": dict(wanted.replicas) if wanted is not None else {},
        "busy": busy,
        "steps": [str(step) for step in steps],
        "blocked": [_blocked(item, now) for item in blocked],
        "failure": None
        if failure is None
        else {
            "step": failure.step,
            "error": failure.error,
            "hint": failure.hint,
            "count": failure.count,
            "transient": failure.transient,
        },
        "containers": containers,
    }


def _sync(name: str, desired: Desired, blocked: Sequence[Blocked], steps: Sequence[Step], busy: bool) -> str:
    """A container that waits for its next restart is in sync: its spec is applied, it is its health that is bad."""
    wanted = desired.app(name)
    if wanted is None:
        held = name in desired.held or desired.hold_all
        return "unknown" if held else "out_of_sync"
    held_up = [item for item in blocked if not _is_back_off(item)]
    return "out_of_sync" if wanted.stale or wanted.unresolved or steps or busy or held_up else "synced"


def recounted(plan: Plan, planned: Now, now: Now) -> Plan:
    """The same plan, its countdowns as they are now: what was said when it was made is not said for minutes."""

    def again(item: Blocked) -> Blocked:
        if item.until is None:
            return item
        said, left = (f"in {countdown(item.until, time.boottime)}" for time in (planned, now))
        return replace(item, reason=item.reason.replace(said, left)) if said != left else item

    return replace(plan, blocked=tuple(again(item) for item in plan.blocked))


def pull_sentence(reference: str, pulling: Pulling | None, now: Now) -> str:
    """What is told of a pull under way: how much of what was missing is here, or why it waits for its next try."""
    name = f"pulling {short_reference(reference)}"
    if pulling is None:
        return name
    layer = min(pulling.complete + 1, pulling.layers)
    text = f"{name}: {size(pulling.done)} of {size(pulling.total)}, layer {layer} of {pulling.layers}"
    if not pulling.trouble:
        return text
    return f"{text}; {pulling.trouble}; next try in {countdown(pulling.until, now.boottime)}"


def _is_back_off(item: Blocked) -> bool:
    """Restarts wait per container and for a time; what holds up an update has no container, or no time."""
    return bool(item.container) and item.until is not None


def _health(containers: Sequence[Mapping[str, Any]], blocked: Sequence[Blocked], working: bool) -> str:
    states = {container["state"] for container in containers}
    failed = any(
        container["state"] == "exited" and (container["exit_code"] not in (0, None) or container["oom"])
        for container in containers
    )
    if "held" in states and not failed and "backoff" not in states:
        return "suspended"
    if "backoff" in states or failed or (blocked and not working):
        alive = "running" in states or "backoff" in states or "exited" in states
        absent = any(item.degraded for item in blocked)
        return "degraded" if alive or absent or not containers else "missing"
    if working or "starting" in states:
        return "progressing"
    if "waiting" in states:
        return "degraded" if states & {"running", "exited"} else "missing"
    return "healthy"


def _reason(
    name: str, desired: Desired, blocked: Sequence[Blocked], steps: Sequence[Step], live: Live
) -> str:
    """The one sentence that `status` shows: what is in the way first, then what is being done."""
    wanted = desired.app(name)
    retry = f"; next try in {countdown(live.retries[name], 0.0)}" if name in live.retries else ""
    if wanted is not None and wanted.stale:
        return f"{STALE}{wanted.stale}{retry}"
    if name in desired.held:
        return desired.held[name]
    for item in blocked:
        if not _is_back_off(item):
            return f"{item.container}: {item.reason}{retry}" if item.container else item.reason
    for item in blocked:
        return f"{item.container}: {item.reason}"
    doing = live.doing.get(name, "") or (str(steps[0]) if steps else "")
    if wanted is None:
        removed = "no spec wants it any more; it is being removed"
        return desired.hold_all or (f"{removed}: {doing}" if doing else removed)
    return doing


def _hint(wanted: App | None, blocked: Sequence[Blocked], live: Live) -> str:
    """What a person can do about the reason; "" where there is nothing to do but wait."""
    if wanted is not None and wanted.stale:
        if wanted.stale.startswith(f"{wanted.path}:"):
            return f"correct {wanted.path}; `reconciler validate` checks it"
        return "to try now: reconciler apply" if wanted.name in live.retries else ""
    held_up = [item for item in blocked if not _is_back_off(item)] or blocked
    return held_up[0].hint if held_up else ""


def _lost(observed: Observed, full_names: Iterable[str]) -> str:
    """What no agent is there to make again."""
    for full_name in full_names:
        for have in observed.containers.get(full_name, ())[-1:]:
            if isinstance(have.phase, Lost):
                return f"{full_name.partition('/')[2]}: {have.phase.reason}"
    return ""


def _end(observed: Observed, full_names: Iterable[str]) -> tuple[str, str]:
    """How the first container ended that ended badly, where nothing else is in the way, and what to look at.

    Nobody starts it again.
    """
    for full_name in full_names:
        for have in observed.containers.get(full_name, ())[-1:]:
            if isinstance(have.phase, Exited) and (have.phase.record.code != 0 or have.phase.record.oom):
                how = f"{full_name.partition('/')[2]}: {ending(have.phase.record)}"
                return how, f"run: reconciler logs {full_name}"
    return "", ""


# --- small parts ---------------------------------------------------------------------------------------------------


def _blocked(item: Blocked, now: Now) -> dict[str, Any]:
    return {
        "container": item.container,
        "reason": item.reason,
        "hint": item.hint,
        "seconds": round(max(0.0, item.until - now.boottime), 1) if item.until is not None else None,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "where": str(problem.mark),
        "file": printable(problem.mark.file),
        "line": problem.mark.line,
        "column": problem.mark.column,
        "severity": problem.severity,
        "message": printable(problem.message),
        "hint": printable(problem.hint),
    }


# --- what tables show ----------------------------------------------------------------------------------------------


def containers(status: Mapping[str, Any], *, everything: bool = False) -> list[dict[str, Any]]:
    """Return the containers of a status document, as `ps` lists them; those that ended for good with `everything`."""
    return [
        container
        for item in status["items"]
        for container in item["containers"]
        if everything or container["state"] not in ("exited", "created")
    ]


def ps_columns(*, now: float, truncate: bool = True) -> tuple[Column, ...]:
    """The columns of `ps` at the wall time `now`; `truncate` is off for --no-trunc."""

    def field(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda item: str(ps_fields(item, now=now, truncate=truncate)[key])

    return (
        Column("NAME", field("Names")),
        Column("STATUS", field("Status"), paint=lambda item: _PAINTS.get(str(item["state"]), "")),
        Column(
            "HEALTH",
            lambda item: "-" if item["health"] == "none" else str(item["health"]),
            paint=lambda item: _PAINTS.get(str(item["health"]), ""),
        ),
        Column("RESTARTS", lambda item: str(item["restarts"])),
        Column("AGE", field("Age")),
        Column("PORTS", field("Ports")),
        Column("IMAGE", field("Image")),
        Column("ID", field("ID"), wide=True),
        Column("PID", lambda item: str(item["pid"] or "-"), wide=True),
        Column("DIGEST", field("Digest"), wide=True),
        Column("CPU", _cpu, wide=True),
        Column("MEM", _memory, wide=True),
        Column("PEAK", lambda item: _size(item["memory_peak"]), wide=True),
    )


def ps_fields(item: Mapping[str, Any], *, now: float, truncate: bool = True) -> dict[str, Any]:
    """What `ps --format` may name: the fields of `-o json`, and those that Docker has, with its names."""
    created = item["created"]
    age = duration(now - datetime.fromisoformat(created).timestamp()) if created else "-"
    image, identity, digest = str(item["image"]), str(item["id"]), str(item["digest"])
    return {
        **item,
        "ID": short_digest(identity) if truncate else identity,
        "Names": item["name"],
        "Image": short_reference(image) if truncate else image,
        "Digest": short_digest(digest) if truncate else digest,
        "Status": item["status"],
        "State": item["state"],
        "Ports": ", ".join(item["ports"]),
        "Labels": ",".join(f"{key}={value}" for key, value in item.get("labels", {}).items()),
        "Mounts": ",".join(item.get("volumes", ())),
        "CreatedAt": created or "",
        "RunningFor": f"{age} ago" if created else "",
        "Age": age,
    }


_PAINTS: Final = {
    "running": GREEN,
    "healthy": GREEN,
    "synced": GREEN,
    "starting": YELLOW,
    "held": YELLOW,
    "paused": YELLOW,
    "waiting": YELLOW,
    "progressing": YELLOW,
    "out_of_sync": YELLOW,
    "backoff": RED,
    "unhealthy": RED,
    "degraded": RED,
    "missing": RED,
}


def _cpu(item: Mapping[str, Any]) -> str:
    """100% is one core, as ps(1) and `docker stats` count."""
    cores = (item.get("usage") or {}).get("cpu")
    return "-" if cores is None else f"{cores * 100:.1f}%"


def _size(count: int | None) -> str:
    return "-" if count is None else size(count)


def _memory(item: Mapping[str, Any]) -> str:
    memory = (item.get("usage") or {}).get("memory")
    return "-" if memory is None else size(memory)


APP_COLUMNS: Final = (
    Column("APP", lambda item: str(item["name"])),
    Column("SYNC", lambda item: str(item["sync"]), paint=lambda item: _PAINTS.get(str(item["sync"]), "")),
    Column(
        "HEALTH", lambda item: str(item["health"]), paint=lambda item: _PAINTS.get(str(item["health"]), "")
    ),
    Column(
        "CONTAINERS",
        lambda item: f"{sum(c['state'] == 'running' for c in item['containers'])}/{len(item['containers'])}",
    ),
    Column("REASON", lambda item: "; ".join(filter(None, (str(item["reason"]), str(item["hint"]))))),
    Column("FILE", lambda item: str(item["path"]), wide=True),
)


def errors(problems: Iterable[Problem]) -> int:
    """Count the problems that are errors."""
    return sum(problem.severity == ERROR for problem in problems)
