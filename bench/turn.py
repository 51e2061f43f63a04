"""The cost of looking: a turn over 1000 unchanged specs, fifty of which have a container, and reading them afresh.

In this process, so that nothing but the loop's own work is measured. The other specs name an image that nobody has:
they are read, planned and held up in every turn.
"""

import time
from contextlib import ExitStack

from bench.many import COUNT, all_up, names, write_specs
from bench.measure import BenchError, Figure, boottime, until
from bench.report import Row
from bench.session import Session
from bench.subject import Instance
from reconciler.agent.intent import Reader
from reconciler.agent.loop import Agent
from reconciler.agent.parts import Parts
from reconciler.agent.resolver import Resolver
from reconciler.agent.turn import Turn
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome
from reconciler.source.directory import DirectorySource

_SPECS = 1000
_TURNS = 20
_ABSENT = f"127.0.0.1:9/absent:1@sha256:{'0' * 64}"  # port 9: nobody listens on it in the place


class _Silent:
    """A listener that hears nothing."""

    def turn(self, turn: Turn) -> None:
        """Ignore it."""

    def outcome(self, outcome: Outcome) -> None:
        """Ignore it."""

    def lane(self, end: LaneEnd) -> None:
        """Ignore it."""

    def problem(self, text: str) -> None:
        """Ignore it."""

    def noted(self, kind: str, subject: str, text: str) -> None:
        """Ignore it."""

    def broken_turn(self, text: str) -> None:
        """Ignore it."""


def run(session: Session) -> list[Row]:
    with session.instance() as instance:
        write_specs(instance, session, names())
        began = boottime()
        instance.start()
        all_up(session, instance, began, names())
        instance.stop()
        for number in range(COUNT, _SPECS):
            instance.spec(f"s{number:04}", _held(number))
        with instance.parts() as parts:
            first, warm, walls = _turns(instance, parts, session)
            cold = [_cold(instance, parts) for _ in range(session.rounds(5))]
    return [
        Row(
            "turn/warm",
            f"turn over {_SPECS} unchanged specs, {COUNT} running: CPU",
            "ms",
            Figure(tuple(warm)),
        ),
        Row("turn/wall", "the same: wall", "ms", Figure(tuple(walls))),
        Row("turn/cold", f"reading {_SPECS} specs afresh, known before: CPU", "ms", Figure(tuple(cold))),
        Row(
            "turn/first",
            f"first turn with {_SPECS - COUNT} new specs (kept as last good): wall",
            "ms",
            Figure((first,)),
        ),
    ]


def _held(number: int) -> str:
    return (
        f"apiVersion: reconciler/v1\nkind: App\nname: s{number:04}\ncontainers:\n  main:\n    image: {_ABSENT}\n"
        f'    command: [run, --number, "{number}"]\n    environment: {{NUMBER: "{number}", MODE: held}}\n'
        f"    limits: {{memory: 64Mi, cpus: 250m, pids: 64}}\n    restart: on-failure:5\n"
    )


def _turns(instance: Instance, parts: Parts, session: Session) -> tuple[float, list[float], list[float]]:
    """The wall time of the first turn, CPU and wall time of later ones; all in milliseconds."""
    with ExitStack() as stack:
        agent = Agent(parts, DirectorySource(instance.specs), _Silent())
        stack.callback(agent.close)
        began = time.monotonic()
        agent.turn()
        first = time.monotonic() - began
        until(lambda: agent.turn().finished, timeout=30, message="an idle turn", step=0.5)
        for _ in range(3):
            turn = agent.turn()
        if turn.plan.steps or len(turn.plan.blocked) < _SPECS - COUNT:
            raise BenchError(f"not an idle turn: {[str(step) for step in turn.plan.steps[:3]]}")
        cpu, wall = [], []
        for _ in range(max(5, session.rounds(_TURNS))):
            before, began = time.process_time(), time.monotonic()
            agent.turn()
            cpu.append(1e3 * (time.process_time() - before))
            wall.append(1e3 * (time.monotonic() - began))
    return 1e3 * first, cpu, wall


def _cold(instance: Instance, parts: Parts) -> float:
    """Milliseconds of CPU for a reader that has never read anything; images are known."""
    resolver = Resolver(None, parts.store, lambda: None, background=False)
    try:
        reader = Reader(parts.layout, parts.device, DirectorySource(instance.specs), resolver)
        before = time.process_time()
        reader.read()
        return 1e3 * (time.process_time() - before)
    finally:
        resolver.close()
