"""Networks as they are declared, and the places of containers in them. Pure."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A network as it is declared. Its `key` is the app's name for the network that every app has, `app/name` for any
    other of it, and `/name` for one that apps share.

    `subnet` and `gateway` are "" where the device chooses. Nothing leaves or enters an `internal` one. `fixed` are the
    addresses that containers ask for, by name: they may change while the network stays.
    """

    key: str
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def owner(self) -> str:
        """See `owner_of`."""
        return owner_of(self.key)

    def same(self, other: "Network") -> bool:
        """Return whether one can become the other with its containers in it."""
        return replace(self, fixed=()) == replace(other, fixed=())


def owner_of(network: str) -> str:
    """Return the app that a network belongs to, by its key: "" for one that apps share."""
    return network.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's place in a network (without its `fixed`): with `address`, or "" for one that is chosen."""

    network: Network
    address: str = ""
