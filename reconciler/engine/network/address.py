"""Which addresses an app and its containers get.

Pure: what is taken is an argument. The choice follows from the names, so that a lost lease file gives mostly the same
addresses again; a subnet that the host routes elsewhere is never chosen.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from reconciler.errors import BlockedError

# RFC 1918, in the order in which they are tried. 4096 subnets of the first are enough until something on the host
# (a VPN that takes all of 172.16.0.0/12) leaves none of them.
POOLS = (IPv4Network("172.16.0.0/12"), IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16"))
SUBNET_PREFIX = 24
SUBNET6_PREFIX = 64  # RFC 4291, 2.5.1

# Default routes, also when a VPN splits them in two (0.0.0.0/1 and 128.0.0.0/1), cover everything and exclude nothing.
# Of IPv6 nor does what covers more than one organisation has: 2000::/3, or fd00::/8, where others chose at random too.
_WIDEST_ROUTE = {4: 8, 6: 32}

_Subnet = TypeVar("_Subnet", IPv4Network, IPv6Network)
_Address = TypeVar("_Address", IPv4Address, IPv6Address)


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def blocks(route: IPv4Network | IPv6Network) -> bool:
    """Whether a host route takes its addresses away from us."""
    return route.prefixlen >= _WIDEST_ROUTE[route.version]


def choose_subnet(
    taken: Iterable[IPv4Network],
    host_routes: Iterable[IPv4Network],
    pools: Sequence[IPv4Network] = POOLS,
    seed: str = "",
) -> IPv4Network:
    """A /24 of the pools that overlaps nothing in `taken` and no route of the host; BlockedError where none is left.

    Where the search begins follows from `seed` (the instance and the app).
    """
    return _choose(pools, SUBNET_PREFIX, [*taken, *filter(blocks, host_routes)], seed)


def unique_local(instance: str) -> IPv6Network:
    """The /48 of an instance (RFC 4193): its 40 bits follow from the id of the instance, which was drawn at random."""
    drawn = hashlib.sha256(f"unique local\0{instance}".encode()).digest()[:5]
    return IPv6Network((b"\xfd" + drawn + bytes(10), 48))


def choose_subnet6(
    taken: Iterable[IPv6Network], host_routes: Iterable[IPv6Network], instance: str, seed: str = ""
) -> IPv6Network:
    """A /64 of those of the instance, as `choose_subnet`."""
    return _choose([unique_local(instance)], SUBNET6_PREFIX, [*taken, *filter(blocks, host_routes)], seed)


def _choose(pools: Sequence[_Subnet], prefix: int, used: Sequence[_Subnet], seed: str) -> _Subnet:
    for pool in pools:
        total = 1 << max(prefix - pool.prefixlen, 0)
        busy = _busy(pool, prefix, used)
        first = _number("subnet", seed) % total
        for step in range(total):
            index = (first + step) % total
            if index not in busy:
                base = int(pool.network_address) + (index << (pool.max_prefixlen - prefix))
                return type(pool)((base, max(prefix, pool.prefixlen)))
    listed = ", ".join(str(pool) for pool in pools)
    route = "ip -6 route" if prefix == SUBNET6_PREFIX else "ip route"
    raise BlockedError(
        f"network: no free /{prefix} is left in {listed}",
        hint=f"see `{route}`: the host's own routes and other apps take all of them",
    )


def _busy(pool: _Subnet, prefix: int, used: Iterable[_Subnet]) -> "_Ranges":
    """The positions of `pool` that something in `used` overlaps."""
    ranges = []
    start, shift = int(pool.network_address), pool.max_prefixlen - prefix
    for network in used:
        if network.overlaps(pool):
            low = max(int(network.network_address), start)
            high = min(int(network.broadcast_address), int(pool.broadcast_address))
            ranges.append(range((low - start) >> shift, ((high - start) >> shift) + 1))
    return _Ranges(ranges)


class _Ranges:
    """A set of positions, kept as the ranges that make it up."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Sequence[range]) -> None:
        self._ranges = ranges

    def __contains__(self, index: object) -> bool:
        return any(index in positions for positions in self._ranges)


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The bridge's own address: the first one of the subnet."""
    return subnet.network_address + 1


def gateway6(subnet: IPv6Network) -> IPv6Address:
    """The bridge's own address of IPv6: the first one after that of any router (RFC 4291, 2.6.1)."""
    return subnet.network_address + 1


def allocate(
    subnet: IPv4Network, leased: Mapping[str, IPv4Address], name: str, kept: Iterable[IPv4Address] = ()
) -> IPv4Address:
    """The address of `name`: the one it has, or a free one that follows from the name; BlockedError where none is.

    Never the network's, the gateway's or the broadcast address, and never one that is leased to another name, or kept.
    """
    return _allocate(subnet, leased, name, kept)


def allocate6(
    subnet: IPv6Network,
    leased: Mapping[str, IPv6Address],
    name: str,
    address: IPv4Address,
    kept: Iterable[IPv6Address] = (),
) -> IPv6Address:
    """The same for IPv6. In a subnet with room for it the address ends with that of IPv4, `address`, so that both can
    be told by either, and a lost lease file gives the same again.
    """
    if name not in leased and subnet.prefixlen <= _ROOM:
        wanted = subnet.network_address + int(address)
        if wanted not in {*leased.values(), *kept}:
            return wanted
    return _allocate(subnet, leased, name, kept)


_ROOM = 96  # with 32 bits left


def _allocate(
    subnet: IPv4Network | IPv6Network, leased: Mapping[str, _Address], name: str, kept: Iterable[_Address]
) -> _Address:
    if name in leased:
        return leased[name]
    used = {*leased.values(), *kept}
    total = subnet.num_addresses - 3
    first = _number("address", name) % total
    kind = IPv4Address if subnet.version == 4 else IPv6Address
    for step in range(min(total, _MOST_TRIED)):
        address = kind(int(subnet.network_address) + 2 + (first + step) % total)
        if address not in used:
            return address  # type: ignore[return-value]  # an address of the subnet's family
    raise BlockedError(
        f"network: all {total} addresses of {subnet} are leased, none is left for {name}",
        hint="split the app, or have some of its containers in another network, or declare a larger subnet",
    )


_MOST_TRIED = 1 << 24  # all of the largest IPv4 subnet: more than anybody leases
