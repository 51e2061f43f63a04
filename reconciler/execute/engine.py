"""What the executor needs of an engine, as a Protocol: one verb per step, each idempotent, with plain values.

`engine.local` satisfies it with the kernel, the tests satisfy it in memory, and both pass one contract
test-suite. Every verb raises a ReconcilerError (or OSError) on failure and leaves behind what a later call
can finish or undo.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from reconciler.state.desired import Container, Settings
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.observed import Published


class Engine(Protocol):
    """The device, as far as steps change it. Verbs may be called from several threads, for different apps."""

    def configure_network(self, networks: Sequence[Network], published: Sequence[Published]) -> None:
        """Make the bridges of `networks` and replace the port table."""

    def pull(self, reference: str, image: Image) -> None:
        """Fetch, verify and unpack; return once every layer is on local disk."""

    def create_volume(self, app: str, volume: str, size_limit: int | None = None) -> None:
        """Make the volume, for `size_limit` bytes at most, if it does not exist."""

    def limit_volume(self, app: str, volume: str, size_limit: int | None) -> None:
        """Have a volume that exists hold that many bytes at most, or all there is room for."""

    def begin_stop(self, container_id: str, signal: str) -> int | None:
        """Ask the program to end; return a descriptor that is readable once it has, None where nothing runs.

        The caller owns the descriptor.
        """

    def finish_stop(self, container_id: str) -> None:
        """Kill what is left of the container and return once nothing of it runs."""

    def remove_container(self, container_id: str, *, keep_previous: bool) -> None:
        """Remove everything of a container, with or without its shim's help."""

    def create_container(self, desired: Container, *, attempt: int, restarts: int) -> None:
        """Make the container up to, but not including, its first instruction; or leave nothing.

        One that has an id of its own keeps its place: if it is there, and does not run, it is made again around the
        files that it wrote, with its log going on, and a failure leaves these.
        """

    def start_container(self, app: str, container: str) -> None:
        """Attach the network and start the program; succeed if it already runs."""

    def update_container(self, container_id: str, settings: Settings, *, reattach: bool) -> None:
        """Change settings in place."""

    def record_exit(self, container_id: str) -> None:
        """Make the exit record durable."""

    def forget_container(self, name: str) -> None:
        """Delete the record of an ad-hoc container, durably."""

    def change_network(self, network: Network) -> None:
        """Make the network as it is declared now, with other addresses where these don't fit; nothing runs in it."""

    def remove_network(self, network: str) -> None:
        """Remove the bridge of the network with this key and release its addresses."""

    def collect(self, kind: str, name: str) -> bool:
        """Delete one object of the store;

        False, and nothing done, if it has come into use since it was listed.
        """


Wake = Callable[[], None]
