"""The network as found, as values: what `Networks.observe` returns. Pure; nothing here looks anything up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from reconciler.engine.network.ports import PortMapping


@dataclass(frozen=True, slots=True)
class AppNetwork:
    """An app's network, ready for use."""

    app: str
    subnet: IPv4Network
    gateway: IPv4Address
    bridge: str
    mtu: int


@dataclass(frozen=True, slots=True)
class AppObserved:
    """An app's network as found. `faults` say in words what `ensure` has to repair.

    `addresses` are the leases by container. `attached` are the containers with a link that is up and on the bridge;
    `detached` those with a link that is not.
    """

    subnet: IPv4Network
    bridge: str
    bridge_present: bool
    faults: tuple[str, ...] = ()
    addresses: Mapping[str, IPv4Address] = field(default_factory=dict)
    attached: frozenset[str] = frozenset()
    detached: frozenset[str] = frozenset()

    @property
    def healthy(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class NetworkObserved:
    """All networks of this instance as found.

    `ports` is what the kernel's table maps, None where there is no table. `ruleset_intact` says that the table is ours,
    unchanged, and made for the networks and ports that there are. `host_addresses` are this host's own.
    """

    apps: Mapping[str, AppObserved] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] | None = None
    ruleset_intact: bool = True
    host_addresses: frozenset[IPv4Address] = frozenset()
