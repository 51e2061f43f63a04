"""Published ports as values: what each one maps, and which of them cannot go together.

Pure. The table of all ports of a device is one value, because it is replaced as a whole.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from reconciler.errors import BlockedError, ReconcilerError
from reconciler.state.desired import replicated

Address = IPv4Address | IPv6Address
ANY = IPv4Address("0.0.0.0")
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True, slots=True)
class PortMapping:
    """Traffic to `host_ip`:`published` of this host goes to `address`:`target`; both are of IPv4, or both of IPv6.

    The host ip 0.0.0.0 means all addresses of IPv4, and :: all of IPv6.

    `network` is the key of the network that `address` is in, "" for the app's own, or where that is not known.
    With `balance` it goes to those of the container's replicas that are `serving`, in turn; without, to this one alone.
    """

    app: str
    container: str
    host_ip: Address
    published: int
    target: int
    protocol: str
    address: Address
    balance: bool = False
    serving: bool = True
    network: str = field(default="", compare=False)

    def __str__(self) -> str:
        host_ip = f"[{self.host_ip}]" if self.version == 6 else str(self.host_ip)
        return f"{host_ip}:{self.published}/{self.protocol}"

    def __lt__(self, other: "PortMapping") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, str, int, int, int, int, str, int, bool, bool]:
        """As the fields are; addresses of two kinds have no order of their own."""
        where, to = int(self.host_ip), int(self.address)
        what = self.published, self.target, self.protocol
        return self.app, self.container, self.version, where, *what, to, self.balance, self.serving

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.host_ip.version

    @property
    def everywhere(self) -> bool:
        """It is a port of every address of its kind that the host has."""
        return self.host_ip.is_unspecified

    @property
    def owner(self) -> str:
        return f"{self.app}/{self.container}"

    @property
    def key(self) -> tuple[Address, str, int]:
        """The port of the host that it is about."""
        return self.host_ip, self.protocol, self.published

    def shares(self, other: "PortMapping") -> bool:
        """Whether both are of replicas of one container that share their ports, and not of one and the same."""
        return (
            self.balance
            and other.balance
            and self.container != other.container
            and (self.app, replicated(self.container)) == (other.app, replicated(other.container))
        )

    def overlaps(self, other: "PortMapping") -> bool:
        """Whether both want the same port of the same address, as two sockets could not have it.

        Replicas that share a port do not exclude each other.
        """
        if self != other and self.key == other.key and self.shares(other):
            return False
        return (
            (self.published, self.protocol) == (other.published, other.protocol)
            and self.version == other.version
            and (self.host_ip == other.host_ip or self.everywhere or other.everywhere)
        )


class PortTable:
    """All published ports, in one order for one content; made of valid mappings that do not overlap."""

    __slots__ = ("mappings",)

    def __init__(self, mappings: Iterable[PortMapping]) -> None:
        """Sort the mappings; ReconcilerError for one that is no port, BlockedError for two that overlap."""
        self.mappings = tuple(sorted(set(mappings)))
        same_port: dict[tuple[int, str], list[PortMapping]] = {}
        for mapping in self.mappings:
            if mapping.protocol not in PROTOCOLS:
                raise ReconcilerError(f"{mapping.owner}: port {mapping}: expected tcp or udp")
            if not (0 < mapping.published < 65536 and 0 < mapping.target < 65536):
                raise ReconcilerError(
                    f"{mapping.owner}: port {mapping} to {mapping.target}: expected 1 to 65535"
                )
            if mapping.version != mapping.address.version:
                raise ReconcilerError(f"{mapping.owner}: port {mapping} can't lead to {mapping.address}")
            others = same_port.setdefault((mapping.published, mapping.protocol), [])
            for other in others:
                if mapping.overlaps(other):
                    raise BlockedError(
                        f"{mapping.owner}: port {mapping} is already published by {other.owner} as {other}",
                        hint="give one of them another port, or another host ip",
                    )
            others.append(mapping)

    def __iter__(self) -> Iterator[PortMapping]:
        return iter(self.mappings)

    def __len__(self) -> int:
        return len(self.mappings)


def salvage(mappings: Iterable[PortMapping]) -> PortTable:
    """The table of those mappings that are valid and do not overlap an earlier one: of a table that somebody edited."""
    kept = PortTable(())
    for mapping in sorted(mappings):
        try:
            kept = PortTable([*kept, mapping])
        except ReconcilerError:
            continue
    return kept


Serves = Callable[[PortMapping], bool]


def served(ports: PortTable, look: Callable[[], Serves]) -> PortTable:
    """The same ports, those that replicas share as they are served now; `look` is asked only where there are any."""
    if not any(port.balance for port in ports):
        return ports
    serves = look()
    return PortTable(replace(port, serving=serves(port)) if port.balance else port for port in ports)
