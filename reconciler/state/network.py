"""Networks as they are declared, and the places of containers in them. Pure."""

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A network as it is declared. Its `key` is the app's name for the network that every app has, `app/name` for any
    other of it, and `/name` for one that apps share.

    `subnet` and `gateway` are "" where the device chooses. Nothing leaves or enters an `internal` one. `fixed` are the
    addresses that containers ask for, by name; these and its `labels` may change while the network stays. With `ipv6`
    it has a subnet of IPv6, too; `subnet6`, `gateway6` and `fixed6` are of that.
    """

    key: str
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    fixed: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    ipv6: bool = False
    subnet6: str = ""
    gateway6: str = ""
    fixed6: tuple[tuple[str, str], ...] = ()

    @property
    def owner(self) -> str:
        """See `owner_of`."""
        return owner_of(self.key)

    def overlaps(self, other: "Network") -> bool:
        """Return whether both declare a subnet, and the same addresses are in both."""
        if self.subnet and other.subnet and IPv4Network(self.subnet).overlaps(IPv4Network(other.subnet)):
            return True
        return bool(self.subnet6 and other.subnet6) and IPv6Network(self.subnet6).overlaps(
            IPv6Network(other.subnet6)
        )

    def same(self, other: "Network") -> bool:
        """Return whether one can become the other with its containers in it."""
        return self._fixed() == other._fixed()

    def _fixed(self) -> "Network":
        # Apps that share a network come and go one by one: that one of them asks for IPv6 there changes it in place.
        return replace(self, fixed=(), fixed6=(), labels=(), ipv6=self.ipv6 and bool(self.owner))


def owner_of(network: str) -> str:
    """Return the app that a network belongs to, by its key: "" for one that apps share."""
    return network.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's place in a network, which has neither `fixed` nor `labels` here.

    `address` is "" where it is chosen, and so is `address6` where the network has IPv6.
    """

    network: Network
    address: str = ""
    address6: str = ""
