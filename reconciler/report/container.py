"""One container of the status document: its state, Docker's phrase for it, and how its last run ended.

Pure and total: every combination of phase, block, predecessor and step has a row. `report.status` joins the rows.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, assert_never

from reconciler.engine.usage import Usage
from reconciler.plan.restart import ending, next_attempt, ordinal
from reconciler.plan.steps import Blocked, CollectGarbage, ConfigureNetwork, CreateContainer, PullImage, Step
from reconciler.report.tables import age, duration
from reconciler.spec.quantity import format_duration
from reconciler.state.desired import App, RestartPolicy, VolumeMount, called
from reconciler.state.desired import Container as Wanted
from reconciler.state.observed import Container, Created, Exited, Lost, Now, Observed, Running
from reconciler.state.process import ExitRecord
from reconciler.state.wish import Goal, Wish

# What metrics tell apart; what is paused counts as held there, and what was only created as waiting.
STATES: Final = ("running", "starting", "backoff", "exited", "waiting", "held")
COUNTED_AS: Final = {"paused": "held", "created": "waiting"}


def container(
    full_name: str,
    app: App | None,
    observed: Observed,
    blocked: Sequence[Blocked],
    steps: Sequence[Step],
    busy: bool,
    now: Now,
    usage: Usage | None = None,
) -> dict[str, Any]:
    app_name, _, name = full_name.partition("/")
    want = app.containers.get(name) if app is not None else None
    same = observed.containers.get(full_name, ())
    # Of several with one name (a replacement that was interrupted) the newest running one is what people mean.
    have = next(
        (found for found in reversed(same) if isinstance(found.phase, Running)), same[-1] if same else None
    )
    block = next((item for item in blocked if item.container == name), None)
    previous = observed.previous.get(full_name)
    record = _record(have, previous.record if previous is not None else None)
    working = busy or any(_concerns(step, full_name) for step in steps)
    wish = want.wish if want is not None else None
    state = _state(have, block, working, wish)
    attempt = have.attempt if have is not None else previous.attempt if previous is not None else 0
    phase = have.phase if have is not None else None
    running = phase if isinstance(phase, Running) else None
    ended = record if running is None else None
    settings = want.settings if want is not None else have.settings if have is not None else None
    policy = settings.restart if settings is not None else RestartPolicy()
    upcoming = (
        next_attempt(policy, attempt, record, boot=observed.boot) if record is not None else attempt + 1
    )
    unresolved = (
        next((item for item in app.unresolved if item.container == name), None) if app is not None else None
    )
    why = (
        block.reason if block is not None else unresolved.unresolved.reason if unresolved is not None else ""
    )
    return {
        "name": called(app_name, name),
        "app": app_name,
        "container": name,
        "id": have.id if have is not None else want.id if want is not None else "",
        "wanted": want is not None or unresolved is not None,
        "state": state,
        "status": _phrase(have, state, record, block, upcoming, now),
        "reason": why,
        "health": "none",
        "ready": running is not None,
        "usage": None
        if usage is None or running is None
        else {
            "cpu": _average(usage.cpu_seconds, now.boottime - running.since),
            "cpu_seconds": usage.cpu_seconds,
            "memory": usage.memory,
        },
        "pid": running.pid if running is not None else None,
        "created": rfc3339(have.created) if have is not None and have.created else None,
        "started_at": round(running.since_wall, 3) if running is not None else None,
        "started": rfc3339(running.since_wall) if running is not None else None,
        "finished": rfc3339(ended.finished_wall) if ended is not None else None,
        "exit_code": _exit_code(ended),
        "signal": ended.signal if ended is not None else None,
        "oom": ended.oom if ended is not None else False,
        "memory_peak": ended.peak
        if ended is not None
        else usage.memory_max
        if usage is not None and running is not None
        else None,
        "last_exit_code": _exit_code(record),
        "restarts": have.restarts if have is not None else previous.restarts if previous is not None else 0,
        "attempt": attempt,
        "next_start_seconds": round(max(0.0, block.until - now.boottime), 1)
        if block is not None and block.until is not None
        else None,
        "limits": {
            "cpus": settings.limits.cpus / 1000 if settings.limits.cpus is not None else None,
            "memory": settings.limits.memory,
            "pids": settings.limits.pids,
            **({"rootfs": settings.limits.rootfs} if settings.limits.rootfs is not None else {}),
        }
        if settings is not None
        else {},
        "annotations": dict(settings.annotations) if settings is not None else {},
        "ports": [str(port) for port in settings.ports] if settings is not None else [],
        "labels": dict(settings.labels) if settings is not None else {},
        "volumes": [f"{app_name}/{volume}" for volume in _volumes(want, have)],
        "image": _image(want, unresolved.reference if unresolved is not None else ""),
        "digest": str(want.image.manifest) if want is not None else "",
        "config_digest": have.image if have is not None else "",
        "fingerprint": have.fingerprint if have is not None else "",
        "up_to_date": want is not None and have is not None and have.fingerprint == want.fingerprint,
    }


def _average(cpu_seconds: float | None, seconds: float) -> float | None:
    """Cores used on average since the program was started, as ps(1) has it: a moment's use is what `stats` is for."""
    return None if cpu_seconds is None else round(cpu_seconds / max(seconds, 0.001), 4)


def _image(want: Wanted | None, reference: str) -> str:
    return want.reference if want is not None else reference


def _volumes(want: Wanted | None, have: Container | None) -> list[str]:
    if have is not None:
        return sorted(have.volumes)
    mounts = want.identity.mounts if want is not None else ()
    return sorted({mount.volume for mount in mounts if isinstance(mount, VolumeMount)})


def _record(have: Container | None, previous: ExitRecord | None) -> ExitRecord | None:
    """How the last run ended: this container's own end, or its predecessor's."""
    if have is not None and isinstance(have.phase, Exited):
        return have.phase.record
    return previous


def _exit_code(record: ExitRecord | None) -> int | None:
    if record is None:
        return None
    return record.code if record.signal is None else 128 + record.signal


def _concerns(step: Step, full_name: str) -> bool:
    """Whether the step is about this container (a pull is about every container of its app)."""
    match step:
        case CreateContainer():
            return step.desired.full_name == full_name
        case PullImage():
            return step.lane in (full_name, full_name.partition("/")[0])
        case ConfigureNetwork() | CollectGarbage():
            return False
        case _:
            return f"{step.app}/{getattr(step, 'container', '')}" == full_name


def _state(have: Container | None, block: Blocked | None, working: bool, wish: Wish | None) -> str:
    if wish is not None and not (have is not None and isinstance(have.phase, Running)) and not working:
        match wish.goal:
            case Goal.STOPPED:
                return "held" if wish.reason else "exited" if have is not None else "created"
            case Goal.CREATED:
                return "created"
            case Goal.RUNNING:
                pass
            case _:
                assert_never(wish.goal)
    if have is None:
        if block is not None and block.until is not None:
            return "backoff"
        return "starting" if working and block is None else "waiting"
    match have.phase:
        case Running():
            return "paused" if have.paused else "running"
        case Created():
            return "starting" if block is None else "waiting"
        case Exited() | Lost():
            if block is not None:
                return "backoff" if block.until is not None else "waiting"
            return "starting" if working else "exited"
        case _:
            assert_never(have.phase)


def _phrase(
    have: Container | None,
    state: str,
    record: ExitRecord | None,
    block: Blocked | None,
    attempt: int,
    now: Now,
) -> str:
    """The STATUS column, in Docker's words where Docker has them. `attempt` is the number of the next restart."""
    phase = have.phase if have is not None else None
    if state == "backoff" and block is not None and block.until is not None:
        left = format_duration(float(max(0, math.ceil(block.until - now.boottime))))
        how = f", {ending(record)}".replace("(", "").replace(")", "") if record is not None else ""
        return f"Backoff ({ordinal(attempt)}, next in {left}{how})"
    if state == "waiting" and block is not None and block.degraded:
        return f"Degraded: {block.reason}"
    match phase:
        case Running():
            # Boottime, not wall: a clock that was set must not make a container older than the machine.
            paused = " (Paused)" if state == "paused" else ""
            return f"Up {duration(now.boottime - phase.since)}{paused}"
        case Exited(ended):
            how = f" ({ended.reason})" if ended.reason else " (OOM)" if ended.oom else ""
            held = ", held" if state == "held" else ""
            return f"Exited ({_exit_code(ended)}){how} {age(ended.finished_wall, now.wall)}{held}"
        case Created():
            return "Created"
        case Lost():
            return "Lost"
        case None:
            return state.capitalize()
        case _:
            assert_never(phase)


def rfc3339(wall: float) -> str:
    """RFC 3339 in UTC, to the second. A clock beyond the year 9999 is no reason to have no status."""
    try:
        return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "9999-12-31T23:59:59Z" if wall > 0 else "0001-01-01T00:00:00Z"
