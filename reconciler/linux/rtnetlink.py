"""rtnetlink: the messages that make and read bridges, veth pairs, addresses, routes and forwarding entries.

Requests are built and answers read by pure functions; netlink.Socket carries them. An address of four bytes is one of
IPv4, one of sixteen bytes of IPv6. It knows no name, no address range and no policy of ours.
"""

import socket
import struct

from reconciler.linux import netlink
from reconciler.linux.netlink import CREATE, EXCLUSIVE, REPLACE, attribute, message, nested, text, u8, u32

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18  # RTM_*, linux/rtnetlink.h
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWNEIGH = 28

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_STATS, _IFLA_STATS64 = 7, 23
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 18, 20, 26, 28, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_PORT_KIND, _IFLA_INFO_PORT_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE = 4
_VETH_INFO_PEER = 1
_IFLA_INET_CONF = 1
_IFLA_INET6_CONF = 2
_EXT_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS, Linux 4.4

IFF_UP = 0x1
DEVCONF_FORWARDING = 1  # IPV4_DEVCONF_*, linux/ip.h
DEVCONF_ROUTE_LOCALNET = 26
DEVCONF6_ACCEPT_RA = 3  # DEVCONF_*, linux/ipv6.h: these count from 0
DEVCONF6_ACCEPT_REDIRECTS = 4
DEVCONF6_DISABLE_IPV6 = 26

_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_NDA_DST, _NDA_LLADDR = 1, 2

_RTM_F_CLONED = 0x200
_RTPROT_BOOT = 3
_SCOPE_UNIVERSE = 0
_RTN_UNICAST = 1
TABLE_MAIN = 254
TABLE_LOCAL = 255
_NUD_REACHABLE, _NUD_NOARP = 0x02, 0x40
_NTF_MASTER = 0x04
_NTF_STICKY = 0x40  # Linux 4.20

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")


class Link:
    """A network interface as the kernel describes it; `devconf` holds its IPv4 settings by DEVCONF_ number, `devconf6`

    those of IPv6 by DEVCONF6_ number.
    """

    __slots__ = ("address", "alias", "devconf", "devconf6", "index", "kind", "master", "mtu", "name", "up")

    def __init__(
        self,
        *,
        index: int,
        name: str,
        kind: str,
        up: bool,
        mtu: int,
        master: int,
        address: bytes,
        alias: str,
        devconf: tuple[int, ...],
        devconf6: tuple[int, ...] = (),
    ) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.up = up
        self.mtu = mtu
        self.master = master
        self.address = address
        self.alias = alias
        self.devconf = devconf
        self.devconf6 = devconf6

    def setting(self, number: int) -> int | None:
        """One IPv4 setting of this link, by its DEVCONF_ number, or None where IPv4 is off on it."""
        return self.devconf[number - 1] if number <= len(self.devconf) else None

    def setting6(self, number: int) -> int | None:
        """One IPv6 setting of this link, by its DEVCONF6_ number, or None where the kernel has no IPv6 on it."""
        return self.devconf6[number] if number < len(self.devconf6) else None


class Address:
    """An address of a link, as four or sixteen bytes, with its prefix length."""

    __slots__ = ("address", "index", "prefix_length")

    def __init__(self, index: int, address: bytes, prefix_length: int) -> None:
        self.index = index
        self.address = address
        self.prefix_length = prefix_length


class Route:
    """A route: destination as four or sixteen bytes and a length, the link it leaves by (0: none) and its table.

    One that is `cloned` is what the kernel learned of a single destination.
    """

    __slots__ = ("cloned", "destination", "gateway", "link", "metric", "prefix_length", "table", "unicast")

    def __init__(
        self,
        *,
        destination: bytes,
        prefix_length: int,
        gateway: bytes,
        link: int,
        metric: int,
        table: int,
        unicast: bool,
        cloned: bool = False,
    ) -> None:
        self.destination = destination
        self.prefix_length = prefix_length
        self.gateway = gateway
        self.link = link
        self.metric = metric
        self.table = table
        self.unicast = unicast
        self.cloned = cloned


# --- links ----------------------------------------------------------------------------------------------------------


def _ifinfo(index: int = 0, *, up: bool | None = None) -> bytes:
    flags, change = (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def new_bridge(name: str, *, mtu: int, mac: bytes) -> bytes:
    """Make a bridge, down; EEXIST where the name is taken.

    A fixed `mac` keeps the bridge from taking over the lowest one of its ports, which would change under the
    containers' feet.
    """
    body = _ifinfo() + text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + attribute(_IFLA_ADDRESS, mac)
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
    return message(_NEWLINK, CREATE | EXCLUSIVE, body)


def new_veth(name: str, *, bridge: int, mtu: int, peer: str, peer_mac: bytes, peer_namespace: int) -> bytes:
    """Make a veth pair: `name` here, up, as a port of `bridge`, and `peer`, down, in the namespace `peer_namespace`.

    EEXIST where either name is taken. The peer is born in its namespace: moving it there later costs 17 ms. It can't be
    born up, because it has no partner yet at that moment (veth_open returns ENOTCONN).
    """
    inside = _ifinfo() + text(_IFLA_IFNAME, peer) + u32(_IFLA_MTU, mtu)
    inside += attribute(_IFLA_ADDRESS, peer_mac) + u32(_IFLA_NET_NS_FD, peer_namespace)
    body = _ifinfo(up=True) + text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + u32(_IFLA_MASTER, bridge)
    body += nested(
        _IFLA_LINKINFO,
        text(_IFLA_INFO_KIND, "veth"),
        nested(_IFLA_INFO_DATA, nested(_VETH_INFO_PEER, inside)),
    )
    return message(_NEWLINK, CREATE | EXCLUSIVE, body)


def set_link(
    index: int = 0,
    *,
    name: str | None = None,
    up: bool | None = None,
    master: int | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    mac: bytes | None = None,
    devconf: dict[int, int] | None = None,
    hairpin: bool | None = None,
) -> bytes:
    """Change what is given on the link `index`, or on the link `name` where the index is 0.

    `hairpin` is for a link that is a port of a bridge already: frames may leave by the port they came in by.
    """
    body = _ifinfo(index, up=up)
    if name is not None:
        body += text(_IFLA_IFNAME, name)
    if mac is not None:
        body += attribute(_IFLA_ADDRESS, mac)
    if mtu is not None:
        body += u32(_IFLA_MTU, mtu)
    if alias is not None:
        body += attribute(_IFLA_IFALIAS, alias.encode())
    if master is not None:
        body += u32(_IFLA_MASTER, master)
    if devconf is not None:
        settings = (u32(number, value) for number, value in sorted(devconf.items()))
        body += nested(_IFLA_AF_SPEC, nested(socket.AF_INET, nested(_IFLA_INET_CONF, *settings)))
    if hairpin is not None:
        body += nested(
            _IFLA_LINKINFO,
            text(_IFLA_INFO_PORT_KIND, "bridge"),
            nested(_IFLA_INFO_PORT_DATA, u8(_IFLA_BRPORT_MODE, int(hairpin))),
        )
    return message(_NEWLINK, 0, body)


def delete_link(index: int) -> bytes:
    return message(_DELLINK, 0, _ifinfo(index))


def get_link(name: str) -> bytes:
    """Ask for one link by name; ENODEV where there is none."""
    return message(_GETLINK, 0, _ifinfo() + text(_IFLA_IFNAME, name) + u32(_IFLA_EXT_MASK, _EXT_SKIP_STATS))


def get_link_at(index: int) -> bytes:
    """Ask for one link by index; ENODEV where there is none."""
    return message(_GETLINK, 0, _ifinfo(index) + u32(_IFLA_EXT_MASK, _EXT_SKIP_STATS))


def get_links() -> bytes:
    """Ask for every link (a dump)."""
    return message(_GETLINK, 0, _ifinfo() + u32(_IFLA_EXT_MASK, _EXT_SKIP_STATS))


def read_link(body: bytes) -> Link:
    """The link that an answer to `get_link` or `get_links` describes."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = netlink.attributes(body, _IFINFO.size)
    kind = netlink.attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    families = netlink.attributes(found.get(_IFLA_AF_SPEC, b""))
    settings = netlink.attributes(families.get(int(socket.AF_INET), b"")).get(_IFLA_INET_CONF, b"")
    settings6 = netlink.attributes(families.get(int(socket.AF_INET6), b"")).get(_IFLA_INET6_CONF, b"")
    return Link(
        index=index,
        name=netlink.string(found.get(_IFLA_IFNAME, b"")),
        kind=netlink.string(kind),
        up=bool(flags & IFF_UP),
        mtu=netlink.number(found.get(_IFLA_MTU, b"")),
        master=netlink.number(found.get(_IFLA_MASTER, b"")),
        address=found.get(_IFLA_ADDRESS, b""),
        alias=netlink.string(found.get(_IFLA_IFALIAS, b"")),
        devconf=struct.unpack(f"={len(settings) // 4}i", settings),
        devconf6=struct.unpack(f"={len(settings6) // 4}i", settings6),
    )


class LinkList:
    """Reads the answers to `get_links` again and again: a link whose description has not changed is the same object.

    It goes by every byte but those that `read_link` does not look at and that change all the time: counters, and what a
    link's kind tells about itself, which with a bridge holds timers.
    """

    __slots__ = ("_known", "_last")

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, tuple[tuple[int, int, bytes], ...], Link]] = {}
        self._last: list[Link] = []

    def read(self, bodies: list[bytes]) -> list[Link]:
        """The links; the same list, which nobody may change, where all of them are the same in the same order."""
        known: dict[int, tuple[int, tuple[tuple[int, int, bytes], ...], Link]] = {}
        links = []
        for body in bodies:
            index = _IFINFO.unpack_from(body)[2]
            entry = self._known.get(index)
            if entry is None or len(body) != entry[0] or not _matches(body, entry[1]):
                entry = len(body), _steady_parts(body), read_link(body)
            known[index] = entry
            links.append(entry[2])
        self._known = known
        if len(links) != len(self._last) or any(a is not b for a, b in zip(links, self._last, strict=True)):
            self._last = links
        return self._last


def _matches(body: bytes, parts: tuple[tuple[int, int, bytes], ...]) -> bool:
    return all([body[start:end] == part for start, end, part in parts])


def _steady_parts(body: bytes) -> tuple[tuple[int, int, bytes], ...]:
    """The parts of a link's description that count, each with where it begins and ends; headers are always among them,

    so that where they are the same, everything else is where it was.
    """
    parts = []
    start = 0
    offset = _IFINFO.size
    for kind, payload in netlink.attribute_list(body, offset):
        first, last = offset + 4, offset + 4 + len(payload)
        if kind == _IFLA_LINKINFO:
            for inner, value in netlink.attribute_list(payload):
                first += (4 + len(value) + 3) & ~3
                if inner == _IFLA_INFO_KIND:
                    break
        if kind in (_IFLA_LINKINFO, _IFLA_STATS, _IFLA_STATS64) and first < last:
            parts.append((start, first, body[start:first]))
            start = last
        offset = (last + 3) & ~3
    parts.append((start, len(body), body[start:]))
    return tuple(parts)


# --- addresses, routes, forwarding entries ----------------------------------------------------------------------------

_IPV6 = 16  # bytes


def _family(address: bytes) -> int:
    return int(socket.AF_INET6 if len(address) == _IPV6 else socket.AF_INET)


def new_address(index: int, address: bytes, prefix_length: int) -> bytes:
    """Give the link an address; succeeds if it has it already. One of IPv6 can be used at once, without a question

    whether somebody has it (RFC 4862, 5.4: DAD), because who leases it knows.
    """
    if len(address) == _IPV6:
        body = _IFADDR.pack(socket.AF_INET6, prefix_length, _IFA_F_NODAD, _SCOPE_UNIVERSE, index)
        body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
        return message(_NEWADDR, CREATE | REPLACE, body)
    host_bits = (1 << (32 - prefix_length)) - 1
    broadcast = (int.from_bytes(address, "big") | host_bits).to_bytes(4, "big")
    body = _IFADDR.pack(socket.AF_INET, prefix_length, 0, _SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
    body += attribute(_IFA_BROADCAST, broadcast)
    return message(_NEWADDR, CREATE | REPLACE, body)


def get_addresses(family: int = socket.AF_INET) -> bytes:
    """Ask for every address of this family of every link (a dump)."""
    return message(_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0))


def read_address(body: bytes) -> Address:
    _, prefix_length, _, _, index = _IFADDR.unpack_from(body)
    found = netlink.attributes(body, _IFADDR.size)
    return Address(index, found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b"")), prefix_length)


def new_default_route(gateway: bytes, index: int) -> bytes:
    """Send everything without a better route to `gateway` through the link; replaces another default route."""
    body = _RTMSG.pack(
        _family(gateway), 0, 0, 0, TABLE_MAIN, _RTPROT_BOOT, _SCOPE_UNIVERSE, _RTN_UNICAST, 0
    )  # family, dst length, src length, tos, table, protocol, scope, type, flags
    body += attribute(_RTA_GATEWAY, gateway) + u32(_RTA_OIF, index)
    return message(_NEWROUTE, CREATE | REPLACE, body)


def get_routes(family: int = socket.AF_INET) -> bytes:
    """Ask for every route of this family of every table (a dump)."""
    return message(_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def read_route(body: bytes) -> Route:
    family, prefix_length, _, _, table, _, _, kind, flags = _RTMSG.unpack_from(body)
    found = netlink.attributes(body, _RTMSG.size)
    return Route(
        destination=found.get(_RTA_DST, b"\0" * (_IPV6 if family == socket.AF_INET6 else 4)),
        prefix_length=prefix_length,
        gateway=found.get(_RTA_GATEWAY, b""),
        link=netlink.number(found.get(_RTA_OIF, b"")),
        metric=netlink.number(found.get(_RTA_PRIORITY, b"")),
        table=netlink.number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        unicast=kind == _RTN_UNICAST,
        cloned=bool(flags & _RTM_F_CLONED),
    )


def new_forwarding_entry(port: int, mac: bytes) -> bytes:
    """Tie `mac` to the bridge port `port`: frames to it go there at once, and no other port can take it over.

    Sticky entries do not move by learning (Linux 4.20), so a container can't steal its sibling's frames.
    """
    body = _NDMSG.pack(socket.AF_BRIDGE, port, _NUD_NOARP, _NTF_MASTER | _NTF_STICKY, 0)
    return message(_NEWNEIGH, CREATE | REPLACE, body + attribute(_NDA_LLADDR, mac))


def new_neighbour(index: int, address: bytes, mac: bytes) -> bytes:
    """Tell the host that `address` is at `mac` on this link, as if it had just answered; it ages like any other."""
    body = _NDMSG.pack(_family(address), index, _NUD_REACHABLE, 0, 0)
    return message(
        _NEWNEIGH, CREATE | REPLACE, body + attribute(_NDA_DST, address) + attribute(_NDA_LLADDR, mac)
    )
