"""What people want of a single container, by hand, beside what its spec says: held stopped, started anew, run once.

A wish is a level, not an event: it says how things should be until it is changed, survives the agent, and can be
compared with what is there at any time. Values only.
"""

from dataclasses import dataclass
from enum import Enum


class Goal(Enum):
    """How far a container is to come: to its program, to just before its first instruction, or to its end."""

    RUNNING = "running"
    CREATED = "created"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Wish:
    """`turn` counts the starts that were asked for, and a container remembers the turn that it was made in.

    One of an earlier turn that has ended is started anew, whatever its restart policy says; one that still runs is
    replaced if `force`. `grace` replaces the stop grace period for what the wish itself stops; 0 kills at once.
    `auto_remove` takes the container away after its end (ad-hoc ones only). `reason` says why it is held stopped.
    """

    goal: Goal = Goal.RUNNING
    turn: int = 0
    force: bool = False
    grace: float | None = None
    auto_remove: bool = False
    reason: str = ""
