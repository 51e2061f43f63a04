"""What a turn of the loop was, as a value, and who hears of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from reconciler.agent.intent import Intent
from reconciler.engine.mend import Mended
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome, Plan
from reconciler.spec.adhoc import ADHOC
from reconciler.state.generation import Generation
from reconciler.state.observed import Now, Observed


@dataclass(frozen=True)
class Turn:
    """One turn, whole: what was wanted, what was there, what was decided. `seconds` is how long each phase took.

    `generations` are those that are kept, oldest first; `mended` are records that were damaged and are right again.
    """

    number: int
    now: Now
    intent: Intent
    observed: Observed
    plan: Plan
    busy: frozenset[str]
    generations: tuple[Generation, ...] = ()
    mended: tuple[Mended, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """The number of the generation that was applied last, 0 before the first."""
        return self.generations[-1].number if self.generations else 0

    @property
    def finished(self) -> bool:
        """Nothing is left to do for a spec that can be done now; ad-hoc containers are nobody's spec."""
        busy = any(not _is_adhoc(lane) for lane in self.busy)
        return not (
            busy or self.intent.resolving or any(not _is_adhoc(step.lane) for step in self.plan.steps)
        )

    @property
    def converged(self) -> bool:
        """Everything is as the specs want it, and nothing of it waits for anything."""
        waits = any(not _is_adhoc(item.lane) for item in self.plan.blocked)
        return self.finished and not waits and not self.intent.stale


class Listener(Protocol):
    """Hears what happens; every method may be called from any thread and must not block."""

    def turn(self, turn: Turn) -> None:
        """A turn has been planned and dispatched."""

    def outcome(self, outcome: Outcome) -> None:
        """A step has been performed."""

    def lane(self, end: LaneEnd) -> None:
        """A lane is over."""

    def noted(self, kind: str, subject: str, text: str) -> None:
        """Something was done that is no step; `kind` is its word in the events."""

    def problem(self, text: str) -> None:
        """Something that the agent does for itself failed; it goes on, and tries again in a later turn."""

    def broken_turn(self, text: str) -> None:
        """A turn came to nothing: what is there could not be seen, or the device refused; the next one tries again."""


def _is_adhoc(lane: str | None) -> bool:
    return lane is not None and lane.partition("/")[0] == ADHOC
