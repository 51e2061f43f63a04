"""The network as found, as values: what `Networks.observe` returns. Pure; nothing here looks anything up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from reconciler.engine.network import bridge
from reconciler.engine.network.bridge import Bridge
from reconciler.engine.network.leases import NetworkLease
from reconciler.engine.network.names import LinkLabel
from reconciler.engine.network.ports import PortMapping
from reconciler.linux.rtnetlink import Link
from reconciler.state.network import Network


@dataclass(frozen=True, slots=True)
class AppNetwork:
    """A network, ready for use; `app` is its key."""

    app: str
    subnet: IPv4Network
    gateway: IPv4Address
    bridge: str
    mtu: int
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class AppObserved:
    """A network as found, and how it was declared. `faults` say in words what `ensure` has to repair.

    `addresses` are the leases by member (see `names.member`). `attached` are the members with a link that is up and on
    the bridge; `detached` those with a link that is not. `subnet6`, `gateway6` and `addresses6` are of IPv6.
    """

    subnet: IPv4Network
    bridge: str
    bridge_present: bool
    gateway: IPv4Address
    faults: tuple[str, ...] = ()
    addresses: Mapping[str, IPv4Address] = field(default_factory=dict)
    attached: frozenset[str] = frozenset()
    detached: frozenset[str] = frozenset()
    declared: Network | None = None
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    addresses6: Mapping[str, IPv6Address] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class NetworkObserved:
    """All networks of this instance as found, by key.

    `ports` is what the kernel's table maps, None where there is no table. `ruleset_intact` says that the table is ours,
    unchanged, and made for the networks and ports that there are. `host_addresses` are this host's own.
    """

    apps: Mapping[str, AppObserved] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] | None = None
    ruleset_intact: bool = True
    host_addresses: frozenset[IPv4Address | IPv6Address] = frozenset()


def networks_found(
    instance: str, leases: Mapping[str, NetworkLease], host: bridge.Found, general: tuple[str, ...]
) -> dict[str, AppObserved]:
    """The networks that are leased, by key, as this host shows them; `general` are faults of all."""
    found: dict[str, AppObserved] = {}
    for key, lease in sorted(leases.items()):
        wanted = Bridge(instance, key, lease.subnet, 0, lease.gateway, lease.subnet6, lease.gateway6)
        link = host.links.get(wanted.name)
        attached, detached = _sort_out(link, host.ports.get(key, ()))
        found[key] = AppObserved(
            subnet=lease.subnet,
            bridge=wanted.name,
            bridge_present=link is not None,
            gateway=lease.gateway,
            faults=(*bridge.faults(wanted, link, host.addresses, host.addresses6), *general),
            addresses=lease.addresses,
            attached=attached,
            detached=detached - attached,
            declared=lease.declared,
            subnet6=lease.subnet6,
            gateway6=lease.gateway6,
            addresses6=lease.addresses6,
        )
    return found


def _sort_out(
    own_bridge: Link | None, links: Sequence[tuple[Link, LinkLabel]]
) -> tuple[frozenset[str], frozenset[str]]:
    """The members of these links that are connected to the bridge, and those that are not."""
    works: set[str] = set()
    broken: set[str] = set()
    for link, label in links:
        on_bridge = own_bridge is not None and link.master == own_bridge.index and link.up
        (works if on_bridge else broken).add(label.member)
    return frozenset(works), frozenset(broken)
