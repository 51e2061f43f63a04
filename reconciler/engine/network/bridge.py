"""The bridge of a network: made, repaired, filled with the links that are still there, and taken away.

Reading comes first and changes nothing. A bridge has a fixed hardware address, the gateway's IPv4 address, and lets
the host reach its containers from 127.0.0.1 (route_localnet, on the bridge alone; the ruleset guards it). IPv6 is off
on it: containers have none in this release, and a container's router advertisement must not change the host's routes
(CVE-2020-10749).
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from reconciler.engine.network.names import (
    LinkLabel,
    bridge_label,
    bridge_name,
    hardware_address,
    read_link_label,
    shown,
)
from reconciler.engine.network.sysctl import exists, write_value
from reconciler.errors import BlockedError
from reconciler.linux import netlink, rtnetlink
from reconciler.linux.rtnetlink import DEVCONF_FORWARDING, DEVCONF_ROUTE_LOCALNET, Link

_DEFAULT_MTU = 1500
_SMALLEST_MTU = 576  # RFC 791: what every host must accept; less on the way out is somebody's mistake


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An IPv4 address of a link of this host."""

    link: int
    address: IPv4Address
    prefix_length: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A unicast IPv4 route of this host, of any table but `local`."""

    destination: IPv4Network
    link: int
    metric: int
    main: bool


@dataclass(frozen=True, slots=True)
class Bridge:
    """What the bridge of the network with this key must be."""

    instance: str
    network: str
    subnet: IPv4Network
    mtu: int
    gateway: IPv4Address

    @property
    def name(self) -> str:
        return bridge_name(self.instance, self.network)


@dataclass(frozen=True, slots=True)
class Found:
    """This host's links and addresses at one moment: by name, and the host's ends of an instance's links by network."""

    links: Mapping[str, Link]
    addresses: Sequence[HostAddress]
    ports: Mapping[str, Sequence[tuple[Link, LinkLabel]]]


# --- reading --------------------------------------------------------------------------------------------------------


class AddressList:
    """Reads the addresses of this host again and again: the same list, not to be changed, while they are the same."""

    __slots__ = ("_bodies", "_last")

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._last: list[HostAddress] = []

    def read(self, bodies: list[bytes]) -> list[HostAddress]:
        if bodies != self._bodies:
            found = (rtnetlink.read_address(body) for body in bodies)
            now = [HostAddress(a.index, IPv4Address(a.address), a.prefix_length) for a in found if a.address]
            self._bodies = bodies
            if now != self._last:  # a lease of DHCP runs down in each answer
                self._last = now
        return self._last


class Before:
    """What `look` saw before, so that it need not take apart again what is the same. For one instance."""

    __slots__ = ("addresses", "found", "links")

    def __init__(self) -> None:
        self.links = rtnetlink.LinkList()
        self.addresses = AddressList()
        self.found: tuple[Sequence[Link], Found] | None = None


def look(sock: netlink.Socket, instance: str, before: Before | None = None) -> Found:
    """What there is, by one pass over the links and one over the addresses.

    With `before` it is the very object of last time where the kernel says the same.
    """
    before = before or Before()
    host_links = before.links.read(sock.dump(rtnetlink.get_links()))
    host_addresses = before.addresses.read(sock.dump(rtnetlink.get_addresses()))
    last = before.found
    if last is not None and last[0] is host_links and last[1].addresses is host_addresses:
        return last[1]
    ports: dict[str, list[tuple[Link, LinkLabel]]] = {}
    for link, label in links_of(instance, None, host_links):
        ports.setdefault(label.key, []).append((link, label))
    found = Found({link.name: link for link in host_links}, host_addresses, ports)
    before.found = host_links, found
    return found


def links(sock: netlink.Socket) -> list[Link]:
    return rtnetlink.LinkList().read(sock.dump(rtnetlink.get_links()))


def find(sock: netlink.Socket, name: str) -> Link | None:
    """The link of this name, or None."""
    try:
        return rtnetlink.read_link(sock.get(rtnetlink.get_link(name)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def addresses(sock: netlink.Socket) -> list[HostAddress]:
    return AddressList().read(sock.dump(rtnetlink.get_addresses()))


def routes(sock: netlink.Socket) -> list[HostRoute]:
    found = (rtnetlink.read_route(body) for body in sock.dump(rtnetlink.get_routes()))
    return [
        HostRoute(
            IPv4Network((route.destination, route.prefix_length)),
            route.link,
            route.metric,
            route.table == rtnetlink.TABLE_MAIN,
        )
        for route in found
        if route.unicast and route.table != rtnetlink.TABLE_LOCAL
    ]


def uplink_mtu(sock: netlink.Socket, known_routes: Sequence[HostRoute] | None = None) -> int:
    """The MTU of the link that the best default route leaves by; 1500 where there is no default route.

    A larger one inside than outside stalls connections wherever path MTU discovery is filtered.
    """
    defaults = [
        route
        for route in (routes(sock) if known_routes is None else known_routes)
        if route.main and route.destination.prefixlen == 0 and route.link
    ]
    for route in sorted(defaults, key=lambda route: route.metric):
        try:
            mtu = rtnetlink.read_link(sock.get(rtnetlink.get_link_at(route.link))).mtu
        except OSError as error:
            if error.errno == errno.ENODEV:
                continue
            raise
        return max(mtu, _SMALLEST_MTU)
    return _DEFAULT_MTU


def faults(wanted: Bridge, link: Link | None, host_addresses: Sequence[HostAddress]) -> tuple[str, ...]:
    """What is wrong with the bridge as found, in words; nothing where it is right."""
    if link is None:
        return ("bridge is missing",)
    found = []
    if link.kind != "bridge":
        found.append(f"{wanted.name} is a {link.kind or 'device'}, expected a bridge")
    if not link.up:
        found.append("bridge is down")
    if link.address != hardware_address(wanted.gateway):
        found.append("bridge has another hardware address")
    if link.alias != bridge_label(wanted.instance, wanted.network):
        found.append("bridge has another label")
    mine = [(a.address, a.prefix_length) for a in host_addresses if a.link == link.index]
    if (wanted.gateway, wanted.subnet.prefixlen) not in mine:
        found.append(f"bridge has no address {wanted.gateway}")
    for number, name in ((DEVCONF_ROUTE_LOCALNET, "route_localnet"), (DEVCONF_FORWARDING, "forwarding")):
        if link.setting(number) != 1:
            found.append(f"bridge has {name} off")
    return tuple(found)


def links_of(instance: str, network: str | None, host_links: Sequence[Link]) -> list[tuple[Link, LinkLabel]]:
    """The host's ends of this instance's links (of one network, or of all), with what their labels say.

    A label that does not go with the link's name is somebody else's writing and is passed over.
    """
    labelled = ((link, read_link_label(link.alias, instance)) for link in host_links if link.alias)
    return [
        (link, label)
        for link, label in labelled
        if label is not None and (network is None or label.key == network) and label.name == link.name
    ]


# --- changing -------------------------------------------------------------------------------------------------------


def ensure(sock: netlink.Socket, wanted: Bridge, host: Found) -> None:
    """Make the bridge what it must be, with every link of the network that `host` shows as its port.

    It comes up last, complete; BlockedError where its name belongs to something else.
    """
    link = host.links.get(wanted.name)
    if link is not None and link.kind != "bridge":
        raise BlockedError(
            f"{shown(wanted.network)}: the name {wanted.name} is taken by a {link.kind or 'device'} of somebody else",
            hint=f"remove it: ip link delete {wanted.name}",
        )
    if link is not None and not faults(wanted, link, host.addresses) and link.mtu == wanted.mtu:
        return
    mac = hardware_address(wanted.gateway)
    if link is None:
        sock.request(rtnetlink.new_bridge(wanted.name, mtu=wanted.mtu, mac=mac))
        link = find(sock, wanted.name)
        if link is None:
            raise OSError(errno.ENODEV, f"bridge {wanted.name} vanished while it was made")
    no_ipv6 = f"net/ipv6/conf/{wanted.name}/disable_ipv6"
    if exists(no_ipv6):  # not on a kernel without IPv6
        write_value(no_ipv6, "1")
    sock.request(
        rtnetlink.set_link(
            link.index,
            mac=mac if link.address != mac else None,
            mtu=wanted.mtu,
            alias=bridge_label(wanted.instance, wanted.network),
            devconf={DEVCONF_ROUTE_LOCALNET: 1, DEVCONF_FORWARDING: 1},
        ),
        rtnetlink.new_address(link.index, wanted.gateway.packed, wanted.subnet.prefixlen),
        rtnetlink.set_link(link.index, up=True),
    )
    for port, label in host.ports.get(wanted.network, ()):
        if port.master != link.index or not port.up:
            try:
                connect(sock, link.index, port, label.address)
            except OSError as error:
                if error.errno != errno.ENODEV:  # its container ended meanwhile
                    raise


def connect(sock: netlink.Socket, app_bridge: int, port: Link, address: IPv4Address) -> None:
    """Make the host's end of a link a port of the bridge, and tie its hardware address to that port.

    Hairpin, since br_netfilter translates within the bridge: a container that asks for its own published port gets its
    frame back by the port it came from.
    """
    if port.master != app_bridge or not port.up:
        sock.request(rtnetlink.set_link(port.index, master=app_bridge, up=True))
    sock.request(
        rtnetlink.set_link(port.index, hairpin=True), *neighbour_entries(app_bridge, port.index, address)
    )


def neighbour_entries(app_bridge: int, port: int, address: IPv4Address) -> list[bytes]:
    """The requests that say where `address` is: its port to the bridge, its hardware address to the host.

    The second spares the first packet a question, and a restarted container the second that the host waits before it
    asks again for an address that did not answer while the container was away.
    """
    mac = hardware_address(address)
    return [
        rtnetlink.new_forwarding_entry(port, mac),
        rtnetlink.new_neighbour(app_bridge, address.packed, mac),
    ]


def delete(sock: netlink.Socket, name: str) -> bool:
    """Delete the link of this name; return whether it was there."""
    link = find(sock, name)
    if link is None:
        return False
    try:
        sock.request(rtnetlink.delete_link(link.index))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True
