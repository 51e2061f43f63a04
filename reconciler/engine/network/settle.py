"""Which subnets and addresses are leased: to networks as they are declared, around what the host itself routes.

A subnet that a spec declares is had or refused; one that was chosen gives way to it, and to a route that the host got
since, as long as no container has an address of it. Every change is durable before anything uses it.
"""

import socket
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

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
    """A network as it is declared, and the members that need an address in it. None: it stays as it was declared.

    `members6` are those of them that need one of IPv6, too.
    """

    declared: Network | None = None
    members: Sequence[str] = ()
    members6: Sequence[str] = ()

    def lease(self, key: str, found: NetworkLease | None) -> Network | None:
        """What the lease has to say of the declaration."""
        if self.declared is None:
            return found.declared if found is not None else None
        return None if self.declared == Network(key) else self.declared


def is_there(network: Network, lease: NetworkLease | None) -> bool:
    """Whether the lease has what the network declares."""
    if lease is None:
        return False
    return (
        network.subnet in ("", str(lease.subnet))
        and network.subnet6 in ("", str(lease.subnet6))
        and (lease.subnet6 is not None or not network.ipv6)
    )


def conflict(
    network: Network,
    leases: Mapping[str, NetworkLease],
    routes: Sequence[HostRoute],
    host: bridge.Found,
    instance: str,
) -> str:
    """Why a declared subnet can't be had now, or an empty string."""
    said: list[IPv4Network | IPv6Network] = []
    if network.subnet:
        said.append(IPv4Network(network.subnet))
    if network.subnet6:
        said.append(IPv6Network(network.subnet6))
    found = (_conflict(network, subnet, leases, routes, host, instance) for subnet in said)
    return next((reason for reason in found if reason), "")


def _conflict(
    network: Network,
    subnet: IPv4Network | IPv6Network,
    leases: Mapping[str, NetworkLease],
    routes: Sequence[HostRoute],
    host: bridge.Found,
    instance: str,
) -> str:
    own = {
        link.index for name, link in host.links.items() if read_bridge_label(link.alias, instance) is not None
    }
    for route in routes:
        if (
            address.blocks(route.destination)
            and route.link not in own
            and _overlap(route.destination, subnet)
        ):
            return f"its subnet {subnet} overlaps the host's route {route.destination}"
    for key, lease in leases.items():
        theirs = lease.subnet if subnet.version == 4 else lease.subnet6
        other = lease.network(key)
        is_declared = other.subnet if subnet.version == 4 else other.subnet6
        if key == network.key or (owner_of(key) == network.owner and is_declared):
            continue  # which of those that an app declares comes first is for the plan to say
        if theirs is not None and _overlap(theirs, subnet) and host.ports.get(key):
            return f"its subnet {subnet} overlaps {theirs}, in which containers of {shown(key)} are"
    return ""


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one.version == other.version and one.overlaps(other)


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
    declared: list[IPv4Network | IPv6Network] = []
    for key, wish in wanted.items():
        lease, said = leases.get(key), wish.lease(key, leases.get(key)) or Network(key)
        if said.subnet or said.subnet6:
            there = is_there(said, lease) and bridge_name(instance, key) in host.links
            if not there and (reason := conflict(said, leases, routes, host, instance)):
                raise BlockedError(f"{shown(key)}: {reason}", hint="remove that, or declare another subnet")
            declared += [IPv4Network(said.subnet)] if said.subnet else []
            declared += [IPv6Network(said.subnet6)] if said.subnet6 else []
        if lease is not None and (reason := _moves(instance, key, said, lease, routes, host)):
            if host.ports.get(key):
                raise BlockedError(f"{shown(key)}: {reason}", hint=f"remove that route, or {_STOP}")
            moving.add(key)
    for key, lease in leases.items():
        said = (wanted[key].lease(key, lease) if key in wanted else None) or Network(key)
        for subnet, owns in ((lease.subnet, said.subnet), (lease.subnet6, said.subnet6)):
            if owns or subnet is None or not any(_overlap(subnet, one) for one in declared):
                continue
            if host.ports.get(key):
                raise BlockedError(f"{shown(key)}: its subnet {subnet} is declared by another", hint=_STOP)
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
    """Why the network can't keep its subnets, or its own addresses in them; or an empty string."""
    held: list[IPv4Network | IPv6Network] = []
    if said.subnet:
        gateway = IPv4Address(said.gateway) if said.gateway else address.gateway(IPv4Network(said.subnet))
        if (IPv4Network(said.subnet), gateway) != (lease.subnet, lease.gateway):
            return f"its subnet {lease.subnet} is to be {said.subnet} by its declaration"
    elif lease.declared is not None and lease.declared.subnet:
        return f"its subnet {lease.subnet} is not declared any more"
    else:
        held.append(lease.subnet)
    if reason := _moves6(said, lease):
        return reason
    if lease.subnet6 is not None and not said.subnet6:
        held.append(lease.subnet6)
    if bridge_name(instance, key) in host.links:
        return ""
    rivals = (
        f"its subnet {subnet} overlaps the host's route {route.destination}"
        for route in routes
        for subnet in held
        if address.blocks(route.destination) and _overlap(route.destination, subnet)
    )
    return next(rivals, "")


def _moves6(said: Network, lease: NetworkLease) -> str:
    """Why the network can't keep what it has of IPv6; one that apps share has it, or has it not, from one moment on."""
    if said.subnet6:
        subnet = IPv6Network(said.subnet6)
        gateway = IPv6Address(said.gateway6) if said.gateway6 else address.gateway6(subnet)
        same = (subnet, gateway) == (lease.subnet6, lease.gateway6)
        return "" if same else f"its subnet {lease.subnet6} is to be {subnet} by its declaration"
    if not said.owner:
        return ""
    if lease.declared is not None and lease.declared.subnet6:
        return f"its subnet {lease.subnet6} is not declared any more"
    if said.ipv6 is (lease.subnet6 is None):
        return f"it is {'to have' if said.ipv6 else 'not to have'} IPv6 by its declaration"
    return ""


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

    def has(key: str, wish: Wish) -> bool:
        lease, is_connected = known[key], lambda name: connected(key, name)
        return (
            (wish.lease(key, lease) or Network(key)).ipv6 is (lease.subnet6 is not None)
            and all(_has(lease.addresses, lease, name, is_connected) for name in wish.members)
            and (
                lease.subnet6 is None
                or all(_has(lease.addresses6, lease, name, is_connected) for name in wish.members6)
            )
        )

    if not any(key in moving for key in known) and all(
        key in known and wish.lease(key, known[key]) == known[key].declared and has(key, wish)
        for key, wish in wanted.items()
    ):
        return known

    def add(leases: Leases) -> Mapping[str, NetworkLease]:
        for key in [key for key in leases if key in moving]:
            if key not in wanted:
                del leases[key]

        # Those that say which subnet they have come first: what is chosen is chosen around them.
        def chooses(key: str) -> tuple[bool, bool]:
            said = wanted[key].lease(key, leases.get(key)) or Network(key)
            return not said.subnet, not said.subnet6

        for key in sorted(wanted, key=chooses):
            wish, found = wanted[key], leases.get(key)
            said = wish.lease(key, found)
            if found is None or key in moving:
                others = [lease.subnet for name, lease in leases.items() if name != key]
                chosen = said.subnet if said is not None else ""
                subnet = IPv4Network(chosen) if chosen else _choose(instance, key, others, routes)
                found = NetworkLease(subnet, declared=said)
            found = _with_subnet6(replace(found, declared=said), instance, key, leases, routes)
            for name in wish.members:
                found = _with_address(found, key, name, connected)
            for name in wish.members6 if found.subnet6 is not None else ():
                found = _with_address6(found, key, name, connected)
            leases[key] = found
        return leases

    return file.change(add)


def _choose(
    instance: str, key: str, taken: Iterable[IPv4Network], routes: Sequence[HostRoute]
) -> IPv4Network:
    there = [route.destination for route in routes if isinstance(route.destination, IPv4Network)]
    return address.choose_subnet(taken=taken, host_routes=there, seed=f"{instance}/{key}")


def _with_subnet6(
    lease: NetworkLease,
    instance: str,
    key: str,
    leases: Mapping[str, NetworkLease],
    routes: Sequence[HostRoute],
) -> NetworkLease:
    """The lease with the subnet of IPv6 that is declared, or one that is chosen, or none where none is declared."""
    said = lease.network(key)
    if said.ipv6 is (lease.subnet6 is not None):
        return lease
    if not said.ipv6:
        return replace(lease, subnet6=None, addresses6={})
    if said.subnet6:
        return replace(lease, subnet6=IPv6Network(said.subnet6))
    taken = [other.subnet6 for name, other in leases.items() if name != key and other.subnet6 is not None]
    there = [route.destination for route in routes if isinstance(route.destination, IPv6Network)]
    return replace(lease, subnet6=address.choose_subnet6(taken, there, instance, f"{instance}/{key}"))


_Addresses = TypeVar("_Addresses", IPv4Address, IPv6Address)


def _has(
    addresses: Mapping[str, IPv4Address] | Mapping[str, IPv6Address],
    lease: NetworkLease,
    name: str,
    connected: Callable[[str], bool],
) -> bool:
    """Whether the member has, among these, an address that it may keep."""
    have = addresses.get(name)
    if have is None:
        return False
    fixed: Mapping[str, IPv4Address | IPv6Address] = lease.fixed if have.version == 4 else lease.fixed6
    own = lease.gateway if have.version == 4 else lease.gateway6
    right = fixed[name] == have if name in fixed else have != own and have not in fixed.values()
    return right or connected(name)


def _with_address(lease: NetworkLease, key: str, name: str, connected: Connected) -> NetworkLease:
    """The lease with an address for the member: the one that it asks for, or has, or one that nobody asks for."""
    if _has(lease.addresses, lease, name, lambda name: connected(key, name)):
        return lease
    others = _others(lease.addresses, key, name, lease.fixed.get(name), connected)
    if name in lease.fixed:
        return replace(lease, addresses={**others, name: lease.fixed[name]})
    kept = [lease.gateway, *lease.fixed.values()]
    return replace(lease, addresses={**others, name: address.allocate(lease.subnet, others, name, kept)})


def _with_address6(lease: NetworkLease, key: str, name: str, connected: Connected) -> NetworkLease:
    """The same for IPv6, of a network that has it, and a member that has an address of IPv4."""
    if lease.subnet6 is None or _has(lease.addresses6, lease, name, lambda name: connected(key, name)):
        return lease
    others = _others(lease.addresses6, key, name, lease.fixed6.get(name), connected)
    if name in lease.fixed6:
        return replace(lease, addresses6={**others, name: lease.fixed6[name]})
    kept = [address.gateway6(lease.subnet6), *lease.fixed6.values()]
    kept += [lease.gateway6] if lease.gateway6 is not None else []
    found = address.allocate6(lease.subnet6, others, name, lease.addresses[name], kept)
    return replace(lease, addresses6={**others, name: found})


def _others(
    addresses: Mapping[str, _Addresses],
    key: str,
    name: str,
    fixed: _Addresses | None,
    connected: Connected,
) -> dict[str, _Addresses]:
    """The addresses of the others, without that of one that has what the member asks for, and does not run."""
    others = {other: leased for other, leased in addresses.items() if other != name}
    holder = next((other for other, leased in others.items() if leased == fixed), None)
    if holder is not None:
        held_by = full_name(key, holder)
        if connected(key, holder):
            raise BlockedError(
                f"{full_name(key, name)}: its address {fixed} is that of {held_by}, which runs",
                hint=f"run: reconciler restart {held_by}, which then gets another one",
            )
        del others[holder]  # it gets another one when it is made
    return others


def recover(instance: str) -> Leases:
    """The leases as the kernel's links tell them, for when the file is lost; what was declared is not among that."""
    with netlink.Socket(netlink.ROUTE) as sock:
        links = bridge.links(sock)
        host_addresses = bridge.addresses(sock)
        host_addresses6 = bridge.addresses(sock, socket.AF_INET6)
    found: Leases = {}
    for link in links:
        key = read_bridge_label(link.alias, instance)
        if key is None or link.name != bridge_name(instance, key):
            continue
        for own in host_addresses:
            if own.link == link.index:
                subnet = IPv4Network((str(own.address), own.prefix_length), strict=False)
                other = own.address != address.gateway(subnet)
                found[key] = NetworkLease(
                    subnet, {}, Network(key, gateway=str(own.address)) if other else None
                )
        for own in host_addresses6:
            if own.link == link.index and not own.address.is_link_local and key in found:
                found[key] = _recovered6(found[key], key, own)
    for _, label in bridge.links_of(instance, None, links):
        subnet = IPv4Network((label.address, address.SUBNET_PREFIX), strict=False)
        lease = found.setdefault(label.key, NetworkLease(subnet))
        if label.address in lease.subnet:
            lease = replace(lease, addresses={**lease.addresses, label.member: label.address})
            found[label.key] = _with_address6(lease, label.key, label.member, lambda key, name: True)
    return dict(sorted(found.items()))


def _recovered6(lease: NetworkLease, key: str, own: bridge.HostAddress) -> NetworkLease:
    """The lease of a network whose bridge has this address; who has which in it follows from those of IPv4."""
    subnet = IPv6Network((str(own.address), own.prefix_length), strict=False)
    gateway = "" if own.address == address.gateway6(subnet) else str(own.address)
    declared = replace(lease.network(key), ipv6=True, gateway6=gateway)
    return replace(lease, declared=declared, subnet6=subnet)
