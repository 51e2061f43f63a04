"""Which subnets and addresses are leased: to networks as they are declared, around what the host itself routes.

A subnet that a spec declares is had or refused; one that was chosen gives way to it, and to a route that the host got
since, as long as no container has an address of it. Every change is durable before anything uses it.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from reconciler.engine.network import address, bridge
from reconciler.engine.network.bridge import HostRoute
from reconciler.engine.network.leases import LeaseFile, Leases, NetworkLease
from reconciler.engine.network.names import bridge_name, full_name, read_bridge_label, shown
from reconciler.errors import BlockedError
from reconciler.linux import netlink
from reconciler.state.network import Network, owner_of

Connected = Callable[[str, str], bool]
"""Whether a member, by network and name, has an address that must not be taken from it."""

_STOP = "stop its containers: they get other addresses then"


@dataclass(frozen=True, slots=True)
class Wish:
    """A network as it is declared, and the members that need an address in it. None: it stays as it was declared."""

    declared: Network | None = None
    members: Sequence[str] = ()

    def lease(self, key: str, found: NetworkLease | None) -> Network | None:
        """What the lease has to say of the declaration."""
        if self.declared is None:
            return found.declared if found is not None else None
        return None if self.declared == Network(key) else self.declared


def conflict(
    network: Network,
    leases: Mapping[str, NetworkLease],
    routes: Sequence[HostRoute],
    host: bridge.Found,
    instance: str,
) -> str:
    """Why a declared subnet can't be had now, or an empty string."""
    if not network.subnet:
        return ""
    subnet = IPv4Network(network.subnet)
    own = {
        link.index for name, link in host.links.items() if read_bridge_label(link.alias, instance) is not None
    }
    for route in routes:
        if address.blocks(route.destination) and route.link not in own and route.destination.overlaps(subnet):
            return f"its subnet {subnet} overlaps the host's route {route.destination}"
    for key, lease in leases.items():
        if key == network.key or (owner_of(key) == network.owner and lease.network(key).subnet):
            continue  # which of those that an app declares comes first is for the plan to say
        if lease.subnet.overlaps(subnet) and host.ports.get(key):
            return f"its subnet {subnet} overlaps {lease.subnet}, in which containers of {shown(key)} are"
    return ""


def settle(
    file: LeaseFile,
    instance: str,
    wanted: Mapping[str, Wish],
    routes: Sequence[HostRoute],
    host: bridge.Found,
) -> tuple[Mapping[str, NetworkLease], frozenset[str]]:
    """The leases, and the keys of those networks whose subnet is another one than before.

    BlockedError where a subnet can't be had, or can't change since containers have its addresses.
    """
    leases = file.read()
    moving: set[str] = set()
    declared: list[IPv4Network] = []
    for key, wish in wanted.items():
        lease, said = leases.get(key), wish.lease(key, leases.get(key)) or Network(key)
        if said.subnet:
            subnet = IPv4Network(said.subnet)
            there = lease is not None and lease.subnet == subnet and bridge_name(instance, key) in host.links
            if not there and (reason := conflict(said, leases, routes, host, instance)):
                raise BlockedError(f"{shown(key)}: {reason}", hint="remove that, or declare another subnet")
            declared.append(subnet)
        if lease is not None and (reason := _moves(instance, key, said, lease, routes, host)):
            if host.ports.get(key):
                raise BlockedError(f"{shown(key)}: {reason}", hint=f"remove that route, or {_STOP}")
            moving.add(key)
    for key, lease in leases.items():
        owns = key in wanted and (wanted[key].lease(key, lease) or Network(key)).subnet
        if not owns and any(lease.subnet.overlaps(subnet) for subnet in declared):
            if host.ports.get(key):
                raise BlockedError(
                    f"{shown(key)}: its subnet {lease.subnet} is declared by another", hint=_STOP
                )
            moving.add(key)
    in_use = {key: {label.member for _, label in host.ports.get(key, ())} for key in wanted}
    found = lease_all(
        file,
        instance,
        wanted,
        routes,
        moving=moving,
        connected=lambda key, name: name in in_use.get(key, ()),
    )
    return found, frozenset(moving)


def _moves(
    instance: str,
    key: str,
    said: Network,
    lease: NetworkLease,
    routes: Sequence[HostRoute],
    host: bridge.Found,
) -> str:
    """Why the network can't keep its subnet, or its own address in it; or an empty string."""
    if said.subnet:
        gateway = IPv4Address(said.gateway) if said.gateway else address.gateway(IPv4Network(said.subnet))
        same = (IPv4Network(said.subnet), gateway) == (lease.subnet, lease.gateway)
        return "" if same else f"its subnet {lease.subnet} is to be {said.subnet} by its declaration"
    if lease.declared is not None and lease.declared.subnet:
        return f"its subnet {lease.subnet} is not declared any more"
    if bridge_name(instance, key) in host.links:
        return ""
    rivals = (
        route.destination
        for route in routes
        if address.blocks(route.destination) and route.destination.overlaps(lease.subnet)
    )
    return next((f"its subnet {lease.subnet} overlaps the host's route {rival}" for rival in rivals), "")


def lease_all(
    file: LeaseFile,
    instance: str,
    wanted: Mapping[str, Wish],
    routes: Sequence[HostRoute] = (),
    *,
    moving: Container[str] = (),
    connected: Connected = lambda key, name: True,
) -> Mapping[str, NetworkLease]:
    """The leases, with a subnet for each network of `wanted` (another one if `moving`) and an address for each member.

    Durable when this returns, by one write, or by none where nothing is missing. A member that is `connected` (asked by
    key and name) keeps the address that it has.
    """
    known = file.read()

    def has(key: str, name: str) -> bool:
        return _has(known[key], name, lambda name: connected(key, name))

    if not any(key in moving for key in known) and all(
        key in known
        and wish.lease(key, known[key]) == known[key].declared
        and all(has(key, name) for name in wish.members)
        for key, wish in wanted.items()
    ):
        return known

    def add(leases: Leases) -> Mapping[str, NetworkLease]:
        for key in [key for key in leases if key in moving]:
            if key not in wanted:
                del leases[key]
        # Those that say which subnet they have come first: what is chosen is chosen around them.
        for key in sorted(
            wanted, key=lambda key: not (wanted[key].lease(key, leases.get(key)) or Network(key)).subnet
        ):
            wish, found = wanted[key], leases.get(key)
            said = wish.lease(key, found)
            if found is None or key in moving:
                others = [lease.subnet for name, lease in leases.items() if name != key]
                chosen = said.subnet if said is not None else ""
                subnet = IPv4Network(chosen) if chosen else _choose(instance, key, others, routes)
                found = NetworkLease(subnet, declared=said)
            found = replace(found, declared=said)
            for name in wish.members:
                found = _with_address(found, key, name, connected)
            leases[key] = found
        return leases

    return file.change(add)


def _choose(
    instance: str, key: str, taken: Iterable[IPv4Network], routes: Sequence[HostRoute]
) -> IPv4Network:
    return address.choose_subnet(
        taken=taken, host_routes=[route.destination for route in routes], seed=f"{instance}/{key}"
    )


def _has(lease: NetworkLease, name: str, connected: Callable[[str], bool]) -> bool:
    """Whether the member has an address that it may keep."""
    have = lease.addresses.get(name)
    if have is None:
        return False
    fixed = lease.fixed
    right = fixed[name] == have if name in fixed else have != lease.gateway and have not in fixed.values()
    return right or connected(name)


def _with_address(lease: NetworkLease, key: str, name: str, connected: Connected) -> NetworkLease:
    """The lease with an address for the member: the one that it asks for, or has, or one that nobody asks for."""
    if _has(lease, name, lambda name: connected(key, name)):
        return lease
    others = {other: leased for other, leased in lease.addresses.items() if other != name}
    fixed = lease.fixed
    if name in fixed:
        holder = next((other for other, leased in others.items() if leased == fixed[name]), None)
        if holder is not None:
            held_by = full_name(key, holder)
            if connected(key, holder):
                raise BlockedError(
                    f"{full_name(key, name)}: its address {fixed[name]} is that of {held_by}, which runs",
                    hint=f"run: reconciler restart {held_by}, which then gets another one",
                )
            del others[holder]  # it gets another one when it is made
        return replace(lease, addresses={**others, name: fixed[name]})
    kept = [lease.gateway, *fixed.values()]
    return replace(lease, addresses={**others, name: address.allocate(lease.subnet, others, name, kept)})


def recover(instance: str) -> Leases:
    """The leases as the kernel's links tell them, for when the file is lost; what was declared is not among that."""
    with netlink.Socket(netlink.ROUTE) as sock:
        links = bridge.links(sock)
        host_addresses = bridge.addresses(sock)
    found: Leases = {}
    for link in links:
        key = read_bridge_label(link.alias, instance)
        if key is None or link.name != bridge_name(instance, key):
            continue
        for own in host_addresses:
            if own.link == link.index:
                subnet = IPv4Network((own.address, own.prefix_length), strict=False)
                other = own.address != address.gateway(subnet)
                found[key] = NetworkLease(
                    subnet, {}, Network(key, gateway=str(own.address)) if other else None
                )
    for _, label in bridge.links_of(instance, None, links):
        subnet = IPv4Network((label.address, address.SUBNET_PREFIX), strict=False)
        lease = found.setdefault(label.key, NetworkLease(subnet))
        if label.address in lease.subnet:
            found[label.key] = replace(lease, addresses={**lease.addresses, label.member: label.address})
    return dict(sorted(found.items()))
