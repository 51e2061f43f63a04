"""The bridge of a network: made, repaired, filled with the links that are still there, and taken away.

Reading comes first and changes nothing. A bridge has a fixed hardware address, the gateway's IPv4 address, and lets
the host reach its containers from 127.0.0.1 (route_localnet, on the bridge alone; the ruleset guards it). IPv6 is off
on it where its network has none; a container's router advertisement must never change the host's routes
(CVE-2020-10749).
"""

import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from reconciler.engine.network.names import (
    LinkLabel,
    bridge_label,
    bridge_name,
    hardware_address,
    read_link_label,
    shown,
)
from reconciler.engine.network.sysctl import NO_KERNEL_IPV6, exists, write_value
from reconciler.errors import BlockedError
from reconciler.linux import netlink, rtnetlink
from reconciler.linux.rtnetlink import (
    DEVCONF6_ACCEPT_RA,
    DEVCONF6_ACCEPT_REDIRECTS,
    DEVCONF6_DISABLE_IPV6,
    DEVCONF_FORWARDING,
    DEVCONF_ROUTE_LOCALNET,
    Link,
)

_DEFAULT_MTU = 1500
_EVERYTHING = IPv4Network("0.0.0.0/0")
_SMALLEST_MTU = 576  # RFC 791: what every host must accept; less on the way out is somebody's mistake
_SMALLEST_MTU6 = 1280  # RFC 8200, 5: the kernel takes IPv6 off a link with less


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of a link of this host."""

    link: int
    address: IPv4Address | IPv6Address
    prefix_length: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A unicast route of this host, of any table but `local`."""

    destination: IPv4Network | IPv6Network
    link: int
    metric: int
    main: bool


@dataclass(frozen=True, slots=True)
class Bridge:
    """What the bridge of the network with this key must be; `subnet6` is None where it has no IPv6."""

    instance: str
    network: str
    subnet: IPv4Network
    mtu: int
    gateway: IPv4Address
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None

    @property
    def name(self) -> str:
        return bridge_name(self.instance, self.network)


@dataclass(frozen=True, slots=True)
class Found:
    """This host's links and addresses at one moment: by name, and the host's ends of an instance's links by network.

    `addresses6` are those of IPv6, as far as they were asked for.
    """

    links: Mapping[str, Link]
    addresses: Sequence[HostAddress]
    ports: Mapping[str, Sequence[tuple[Link, LinkLabel]]]
    addresses6: Sequence[HostAddress] = ()


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
            now = [HostAddress(a.index, ip_address(a.address), a.prefix_length) for a in found if a.address]
            self._bodies = bodies
            if now != self._last:  # a lease of DHCP runs down in each answer
                self._last = now
        return self._last


class Before:
    """What `look` saw before, so that it need not take apart again what is the same. For one instance."""

    __slots__ = ("addresses", "addresses6", "found", "links")

    def __init__(self) -> None:
        self.links = rtnetlink.LinkList()
        self.addresses = AddressList()
        self.addresses6 = AddressList()
        self.found: tuple[Sequence[Link], Found] | None = None


def look(sock: netlink.Socket, instance: str, before: Before | None = None, *, ipv6: bool = False) -> Found:
    """What there is, by one pass over the links and one over the addresses; with `ipv6` another over those of IPv6.

    With `before` it is the very object of last time where the kernel says the same.
    """
    before = before or Before()
    host_links = before.links.read(sock.dump(rtnetlink.get_links()))
    host_addresses = before.addresses.read(sock.dump(rtnetlink.get_addresses()))
    host_addresses6 = before.addresses6.read(
        sock.dump(rtnetlink.get_addresses(socket.AF_INET6)) if ipv6 else []
    )
    last = before.found
    if (
        last is not None
        and last[0] is host_links
        and last[1].addresses is host_addresses
        and last[1].addresses6 is host_addresses6
    ):
        return last[1]
    ports: dict[str, list[tuple[Link, LinkLabel]]] = {}
    for link, label in links_of(instance, None, host_links):
        ports.setdefault(label.key, []).append((link, label))
    found = Found({link.name: link for link in host_links}, host_addresses, ports, host_addresses6)
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


def addresses(sock: netlink.Socket, family: int = socket.AF_INET) -> list[HostAddress]:
    return AddressList().read(sock.dump(rtnetlink.get_addresses(family)))


def routes(sock: netlink.Socket, *, ipv6: bool = False) -> list[HostRoute]:
    """The host's routes of IPv4, and with `ipv6` those of IPv6 after them."""
    bodies = sock.dump(rtnetlink.get_routes())
    if ipv6:
        bodies += sock.dump(rtnetlink.get_routes(socket.AF_INET6))
    return [
        HostRoute(
            ip_network((route.destination, route.prefix_length)),
            route.link,
            route.metric,
            route.table == rtnetlink.TABLE_MAIN,
        )
        for route in map(rtnetlink.read_route, bodies)
        if route.unicast and not route.cloned and route.table != rtnetlink.TABLE_LOCAL
    ]


def uplink_mtu(sock: netlink.Socket, known_routes: Sequence[HostRoute] | None = None) -> int:
    """The MTU of the link that the best default route leaves by; 1500 where there is no default route.

    A larger one inside than outside stalls connections wherever path MTU discovery is filtered.
    """
    defaults = [
        route
        for route in (routes(sock) if known_routes is None else known_routes)
        if route.main and route.destination == _EVERYTHING and route.link
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


def mtu_for(uplink: int, *, ipv6: bool) -> int:
    """The MTU of a bridge beside an uplink with that."""
    return max(uplink, _SMALLEST_MTU6) if ipv6 else uplink


def faults(
    wanted: Bridge,
    link: Link | None,
    host_addresses: Sequence[HostAddress],
    host_addresses6: Sequence[HostAddress] = (),
) -> tuple[str, ...]:
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
    if wanted.subnet6 is not None:
        mine = [(a.address, a.prefix_length) for a in host_addresses6 if a.link == link.index]
        if (wanted.gateway6, wanted.subnet6.prefixlen) not in mine:
            found.append(f"bridge has no address {wanted.gateway6}")
        if link.setting6(DEVCONF6_DISABLE_IPV6) != 0:
            found.append("bridge has IPv6 off")
        elif link.setting6(DEVCONF6_ACCEPT_RA) != 0 or link.setting6(DEVCONF6_ACCEPT_REDIRECTS) != 0:
            found.append("bridge believes router advertisements or redirects")
    elif link.setting6(DEVCONF6_DISABLE_IPV6) == 0:
        found.append("bridge has IPv6 on")
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
    right = link is not None and not faults(wanted, link, host.addresses, host.addresses6)
    if right and link is not None and link.mtu == wanted.mtu:
        return
    mac = hardware_address(wanted.gateway)
    if link is None:
        sock.request(rtnetlink.new_bridge(wanted.name, mtu=wanted.mtu, mac=mac))
        link = find(sock, wanted.name)
        if link is None:
            raise OSError(errno.ENODEV, f"bridge {wanted.name} vanished while it was made")
    _set_ipv6(wanted)
    own = [rtnetlink.new_address(link.index, wanted.gateway.packed, wanted.subnet.prefixlen)]
    if wanted.subnet6 is not None and wanted.gateway6 is not None:
        own.append(rtnetlink.new_address(link.index, wanted.gateway6.packed, wanted.subnet6.prefixlen))
    sock.request(
        rtnetlink.set_link(
            link.index,
            mac=mac if link.address != mac else None,
            mtu=wanted.mtu,
            alias=bridge_label(wanted.instance, wanted.network),
            devconf={DEVCONF_ROUTE_LOCALNET: 1, DEVCONF_FORWARDING: 1},
        ),
        *own,
        rtnetlink.set_link(link.index, up=True),
    )
    for port, label in host.ports.get(wanted.network, ()):
        if port.master != link.index or not port.up:
            try:
                connect(sock, link.index, port, label.address)
            except OSError as error:
                if error.errno != errno.ENODEV:  # its container ended meanwhile
                    raise


def _set_ipv6(wanted: Bridge) -> None:
    """Turn IPv6 on or off on a bridge, before it is up: off takes away the addresses, too.

    It believes nobody there who says that he is a router. Its addresses are not asked for (accept_dad): they would not
    work for a second, and a container could say that it has them. Whether it forwards is said for the whole host, and
    not here: to say that of one link takes away the routes that others learned (rt6_purge_dflt_routers, net/ipv6).
    """
    settings = f"net/ipv6/conf/{wanted.name}"
    if wanted.subnet6 is None:
        if exists(f"{settings}/disable_ipv6"):  # not on a kernel without IPv6
            write_value(f"{settings}/disable_ipv6", "1")
        return
    if not exists(f"{settings}/disable_ipv6"):
        raise BlockedError(f"{shown(wanted.network)}: this kernel has no IPv6", hint=NO_KERNEL_IPV6)
    for name in ("accept_ra", "accept_redirects", "accept_dad", "disable_ipv6"):
        write_value(f"{settings}/{name}", "0")


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


def neighbour_entries(
    app_bridge: int, port: int, address: IPv4Address, address6: IPv6Address | None = None
) -> list[bytes]:
    """The requests that say where `address` is: its port to the bridge, its hardware address to the host.

    The second spares the first packet a question, and a restarted container the second that the host waits before it
    asks again for an address that did not answer while the container was away.
    """
    mac = hardware_address(address)
    return [
        rtnetlink.new_forwarding_entry(port, mac),
        rtnetlink.new_neighbour(app_bridge, address.packed, mac),
        *([] if address6 is None else [rtnetlink.new_neighbour(app_bridge, address6.packed, mac)]),
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
