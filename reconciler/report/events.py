"""The event log: what the agent did and saw, and what was run beside containers, one JSON object per line, bounded.

Two files at most: the one being written and its predecessor, each up to half of the limit. Nothing is written where
nothing happens. Losing the last lines in a power cut is no harm (the truth is elsewhere), so nothing is synced; a torn
last line is skipped by the reader and closed off by the next writer. Shims write to the same files (shim.execlog).
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final, assert_never

from reconciler.plan.restart import ending
from reconciler.plan.steps import (
    ChangeNetwork,
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    ForgetContainer,
    LimitVolume,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.shim import eventfile
from reconciler.state.observed import Container, Created, Exited, Lost, Observed, Running

MAX_BYTES: Final = 2 * 1024 * 1024
_MAX_LINE: Final = 8 * 1024
_MAX_TEXT: Final = 1024


class EventLog:
    """Appends events to `path`; `limit` is the size of both files together, in bytes. Thread-safe.

    A log that can't be written (a full disk) loses events and counts them in `lost`: it must stop nobody from working.
    A directory in its place is renamed to NAME.corrupt-TIME.
    """

    def __init__(self, path: Path, *, limit: int = MAX_BYTES) -> None:
        self._path = path
        self._half = limit // 2
        self._lock = threading.Lock()
        self._last: dict[str, Any] | None = None
        self.lost = 0

    def append(
        self, wall: float, kind: str, subject: str, message: str, **more: str | float | bool | None
    ) -> bool:
        """Write one event, unless it is the same as the last one but for its time; return whether it was written."""
        event: dict[str, Any] = {
            "kind": kind,
            "subject": subject,
            "message": message[:_MAX_TEXT],
            **_cut(more),
        }
        with self._lock:
            if event == self._last:
                return False
            line = json.dumps(
                {"time": round(wall, 3), **event}, separators=(",", ":"), ensure_ascii=True
            ).encode()
            if len(line) > _MAX_LINE:
                line = json.dumps(
                    {"time": round(wall, 3), "kind": kind, "subject": subject[:200], "cut": True}
                ).encode()
            try:
                if self._path.is_dir():
                    self._path.rename(self._path.with_name(f"{self._path.name}.corrupt-{time.time_ns()}"))
                eventfile.append(str(self._path), line + b"\n", self._half)
            except OSError:
                self.lost += 1
                return False
            self._last = event
            return True


def _cut(more: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in more.items()}


def previous_of(path: Path) -> Path:
    """The predecessor of the event log at `path`."""
    return path.with_name(f"{path.name}.1")


def parse_event(line: bytes) -> dict[str, Any] | None:
    """One line of the log; None for one that is no event (torn, damaged)."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("time"), int | float):
        return None
    return event


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Every event that is kept, oldest first; lines that are no event (torn, damaged) are left out."""
    for file in (previous_of(path), path):
        try:
            data = file.read_bytes()
        except (FileNotFoundError, IsADirectoryError):  # the next event puts a directory aside
            continue
        for line in data.split(b"\n"):
            event = parse_event(line)
            if event is not None:
                yield event


# --- what events tell ----------------------------------------------------------------------------------------------


def attributes(step: Step) -> dict[str, str]:
    """What a step is about: `container`, `id` and `image`, as far as it has them."""
    match step:
        case CreateContainer():
            return {"container": step.desired.name, "image": step.desired.reference}
        case StopContainer() | RemoveContainer() | UpdateContainer() | RecordExit():
            return {"container": step.container, "id": step.id}
        case StartContainer() | ForgetContainer():
            return {"container": step.container}
        case PullImage():
            return {"image": step.reference}
        case CreateVolume() | LimitVolume():
            return {"volume": f"{step.app}/{step.volume}"}
        case ConfigureNetwork() | ChangeNetwork() | RemoveNetwork() | CollectGarbage():
            return {}
        case _:
            assert_never(step)


class Ends:
    """Finds the containers that have ended since the last look; whoever has an `exit` in the log already is known."""

    def __init__(self, path: Path) -> None:
        self._known = {str(event.get("id")) for event in read_events(path) if event.get("kind") == "exit"}

    def new(self, observed: Observed, busy: Set[str]) -> Iterator[Container]:
        """Yield each container whose end was not there before; `busy` are the apps with a lane running.

        One that is being made or removed has no shim, and is not lost for that.
        """
        ended = [
            container
            for same in observed.containers.values()
            for container in same
            if isinstance(container.phase, Exited)
            or (isinstance(container.phase, Lost) and container.app not in busy)
        ]
        known, self._known = self._known, {container.id for container in ended}
        for container in ended:
            if container.id not in known:
                yield container


def append_end(log: EventLog, wall: float, container: Container) -> None:
    """Write that `container` has ended, and how."""
    facts: dict[str, str | float | bool | None] = {"container": container.name, "id": container.id}
    match container.phase:
        case Exited(record):
            code = record.code if record.signal is None else 128 + (record.signal or 0)
            how = f"{ending(record)}"
            log.append(
                wall,
                "exit",
                container.app,
                f"{container.full_name}: {how}",
                **facts,
                exit_code=code,
                oom=record.oom,
                memory_peak=record.peak,
            )
        case Lost(reason):
            log.append(wall, "exit", container.app, f"{container.full_name}: lost: {reason}", **facts)
        case Created() | Running():
            pass
        case _:
            assert_never(container.phase)
