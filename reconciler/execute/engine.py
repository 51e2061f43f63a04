"""What the executor needs of an engine, as a Protocol: one verb per step, each idempotent.

`engine.local` satisfies it with the kernel, the tests satisfy it in memory, and both pass one contract
test-suite. Every verb raises a ReconcilerError (or OSError) on failure and leaves behind what a later call can finish
or undo.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from reconciler.plan.steps import (
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    StopContainer,
    UpdateContainer,
)


@dataclass(frozen=True, slots=True)
class Stopping:
    """A container that was asked to end: `pidfd` becomes readable when it has; kill it after `deadline` (monotonic).

    Whoever holds the value owns the descriptor.
    """

    pidfd: int
    deadline: float


class Engine(Protocol):
    """The device, as far as steps change it. Verbs may be called from several threads, for different apps."""

    def configure_network(self, step: ConfigureNetwork) -> None:
        """Make the bridges and replace the port table."""

    def pull(self, step: PullImage) -> None:
        """Fetch, verify and unpack; returns once every layer is on local disk."""

    def create_volume(self, step: CreateVolume) -> None:
        """Make the volume if it does not exist."""

    def begin_stop(self, step: StopContainer) -> Stopping | None:
        """Ask the program to end; None where nothing runs."""

    def finish_stop(self, step: StopContainer) -> None:
        """Kill what is left of the container and return once nothing of it runs."""

    def remove_container(self, step: RemoveContainer) -> None:
        """Remove everything of a container that does not run, with or without its shim's help."""

    def create_container(self, step: CreateContainer) -> None:
        """Make the container up to, but not including, its first instruction; or leave nothing."""

    def start_container(self, step: StartContainer) -> None:
        """Attach the network and start the program; succeeds if it already runs."""

    def update_container(self, step: UpdateContainer) -> None:
        """Change settings in place."""

    def record_exit(self, step: RecordExit) -> None:
        """Make the exit record durable."""

    def remove_network(self, step: RemoveNetwork) -> None:
        """Remove the app's bridge and release its addresses."""

    def collect_garbage(self, step: CollectGarbage) -> None:
        """Delete the listed objects, leaving out any that has come into use since."""


Wake = Callable[[], None]
