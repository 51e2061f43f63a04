"""What the world is told: the loop's listener that feeds the console, the status document and the metrics,
and serves them.

Everything is derived from turns and outcomes; nothing here is asked by the loop, and serving never waits for it.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from reconciler.agent.loop import Listener, Turn
from reconciler.agent.parts import Parts
from reconciler.agent.requests import Route
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome
from reconciler.report import status


class Telemetry:
    """Hears of everything, tells the console, and keeps what is served."""

    def __init__(self, parts: Parts, console: Listener) -> None:
        self._parts = parts
        self._console = console

    def turn(self, turn: Turn) -> None:
        self._console.turn(turn)

    def outcome(self, outcome: Outcome) -> None:
        self._console.outcome(outcome)

    def lane(self, end: LaneEnd) -> None:
        self._console.lane(end)

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
            guard=intent.guard,
            adhoc={"agent": "running"},
        )

    def serve(self, stack: ExitStack, routes: Mapping[tuple[str, str], Route]) -> None:
        """Serve the socket and the metrics until `stack` is left."""
