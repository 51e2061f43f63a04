"""What verbs ask of a running agent, as routes of its socket: plain JSON in, plain JSON out.

Each route is called on a thread of the server; it wakes the loop and waits, or does work that is safe beside the loop.
Failures are raised as ReconcilerErrors, and the server turns them into an answer with the exit code.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from reconciler.agent import pulling, reading, stock
from reconciler.agent.loop import Agent
from reconciler.agent.parts import Parts
from reconciler.agent.turn import Turn
from reconciler.agent.verbs import Verb, Verbs
from reconciler.engine import volumes
from reconciler.engine.progress import Progress
from reconciler.engine.record import records
from reconciler.errors import BlockedError, TimedOutError, UsageError
from reconciler.spec.reference import Reference

_WAITING: Final = 5  # of the eight threads of the server
_LONGEST_WAIT: Final = 86400 * 7

Route = Callable[[Mapping[str, Any]], dict[str, Any]]


class Requests:
    """The routes over one agent; `status` renders the status document of a turn."""

    def __init__(self, agent: Agent, parts: Parts, status: Callable[[Turn], dict[str, Any]]) -> None:
        self._agent = agent
        self._parts = parts
        self._status = status
        self._pulling: dict[str, Progress] = {}
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._verbs = Verbs(agent, parts, self._note)

    def routes(self) -> dict[tuple[str, str], Route]:
        """(method, path) -> function."""
        return {
            ("GET", "/v1/status"): self.status,
            ("POST", "/v1/reconcile"): self.reconcile,
            ("POST", "/v1/pull"): self.pull,
            ("GET", "/v1/progress"): self.progress,
            ("POST", "/v1/gc"): self.collect_garbage,
            ("POST", "/v1/images/tag"): self.tag,
            ("POST", "/v1/images/remove"): self.remove_image,
            ("POST", "/v1/volumes/create"): self.create_volume,
            ("POST", "/v1/volumes/remove"): self.remove_volume,
            ("POST", "/v1/prune"): self.prune,
            **{
                ("POST", f"/v1/containers/{name}"): self._by_hand(verb)
                for name, verb in self._verbs.by_name().items()
            },
        }

    def _by_hand(self, verb: Verb) -> Route:
        def route(body: Mapping[str, Any]) -> dict[str, Any]:
            with self._slot():
                self._pulling.clear()
                return verb(body)

        return route

    def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The status document of the last turn."""
        turn = self._agent.last or self._agent.wait_for(lambda _: True, 10.0)
        if turn is None:
            raise TimedOutError("agent: has not had its first turn yet")
        return self._status(turn)

    def reconcile(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have a turn now; with `wait` set to `tried` or `converged`, answer once that is so."""
        timeout = _seconds(body, "timeout", 300.0)
        wait, allow_empty = _text(body, "wait"), _flag(body, "allow_empty")
        if wait not in ("", "tried", "converged"):
            raise UsageError(f"wait: {wait!r} is not tried or converged")
        with self._slot():
            before = self._agent.reconcile(allow_empty=allow_empty)
            conditions: dict[str, Callable[[Turn], bool]] = {
                "": lambda turn: turn.number > before,
                "tried": lambda turn: turn.number > before and turn.finished,
                "converged": lambda turn: turn.number > before and turn.converged,
            }
            # Who waits for the end goes on waiting while a turn comes to nothing; the others are told.
            after = None if wait == "converged" else before
            turn = self._agent.wait_for(conditions[wait], timeout, after=after)
        if turn is None:
            raise TimedOutError(
                f"reconcile: not {wait or 'begun'} after {timeout:g} s", hint="run: reconciler status"
            )
        return summary(turn)

    def pull(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Fetch an image, verify and unpack it."""
        reference, bundle = _text(body, "reference"), _text(body, "bundle")
        platform = _text(body, "platform")
        if not bundle:
            Reference.parse(reference)
        parts = self._parts
        with self._slot():
            self._pulling.clear()
            place = pulling.Place(parts.layout, parts.device, parts.store, parts.images)
            pulled = pulling.pull(place, reference, self._note, bundle=bundle, platform=platform)
        self._agent.wake()
        return dict(pulled.document())

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Be one of those who make a thread of the server wait; the others are for quick questions."""
        if not self._waiting.acquire(blocking=False):
            raise BlockedError(
                f"agent: {_WAITING} others wait for it already", hint="try again later", transient=True
            )
        try:
            yield
        finally:
            self._waiting.release()

    def _note(self, progress: Progress) -> None:
        self._pulling[str(progress.layer)] = progress

    def progress(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """How far the layers are that somebody asked for by `pull`."""
        return {
            "layers": [
                {
                    "layer": layer,
                    "done": progress.done,
                    "total": progress.total,
                    "phase": str(progress.phase),
                    "resumed": progress.resumed,
                    "source": progress.source,
                }
                for layer, progress in list(self._pulling.items())
            ]
        }

    def collect_garbage(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Delete what nothing wants any more, now."""
        explained = reading.explain_garbage(self._parts.layout, self._parts.device)
        removed, reclaimed = reading.collect(self._parts, explained)
        return {"removed": removed, "bytes": reclaimed}

    def tag(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Give an image a name."""
        return {"name": stock.tag(self._parts, _text(body, "source"), _text(body, "target"))}

    def remove_image(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take a name from an image, and with its last one the image."""
        return stock.remove_image(self._parts, _text(body, "name"), force=_flag(body, "force"))

    def create_volume(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a volume that no spec declares."""
        labels = body.get("labels", {})
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise UsageError("labels: expected an object of strings")
        return {"name": create_volume(self._parts, _text(body, "name"), labels)}

    def prune(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take away what a person has looked at and agreed to, as far as it may still go."""
        gone = stock.carry_out(self._parts, *stock.order_from(body))
        self._agent.wake()
        return {"removed": stock.removed(gone)}

    def remove_volume(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Delete a volume that nothing uses or wants."""
        app, _, name = _text(body, "name").partition("/")
        remove_volume(self._parts, app, name, wanted=self._wanted(app))
        return {"removed": f"{app}/{name}"}

    def _wanted(self, app: str) -> tuple[str, ...]:
        turn = self._agent.last
        desired = turn.intent.desired.app(app) if turn is not None else None
        return desired.volumes if desired is not None else ()


def create_volume(parts: Parts, text: str, labels: Mapping[str, str]) -> str:
    """Make the volume APP/NAME, or NAME of no app, and return its whole name; succeeds if it is there."""
    app, name = volumes.split(text)
    with parts.store.claims:
        volumes.create(parts.layout, app, name, labels=labels)
    return f"{app}/{name}"


def remove_volume(parts: Parts, app: str, name: str, *, wanted: tuple[str, ...]) -> None:
    """Delete the volume, or refuse: containers that mount it, or a spec that declares it."""
    with parts.store.claims:
        users = [
            record.full_name
            for record in records(parts.layout)
            if record.app == app and name in record.volumes
        ]
        if name in wanted and not users:
            users = [f"the spec of {app}"]
        volumes.remove(parts.layout, app, name, users=tuple(users))
    parts.store.empty_trash()


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key}: expected a string")
    return value


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key}: expected true or false")
    return value


def _seconds(body: Mapping[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_WAIT:
        raise UsageError(f"{key}: expected seconds, at most {_LONGEST_WAIT}")
    return float(value)


def summary(turn: Turn) -> dict[str, Any]:
    """What `apply` reports of a turn."""
    return {
        "turn": turn.number,
        "generation": turn.generation,
        "converged": turn.converged,
        "blocked": [
            {"app": item.app, "container": item.container, "reason": item.reason}
            for item in turn.plan.blocked
        ],
        "failures": {
            app or "device": f"{failure.step}: {failure.error}"
            for app, failure in turn.observed.failures.items()
        },
        "stale": dict(turn.intent.stale),
        "errors": sum(problem.severity == "error" for problem in turn.intent.problems),
        "problem": turn.intent.source_problem or turn.intent.guard,
    }
