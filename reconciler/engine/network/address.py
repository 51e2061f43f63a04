"""Which addresses an app and its containers get.

Pure: what is taken is an argument. The choice follows from the names, so that a lost lease file gives mostly the same
addresses again; a subnet that the host routes elsewhere is never chosen.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from reconciler.errors import BlockedError

# RFC 1918, in the order in which they are tried. 4096 subnets of the first are enough until something on the host
# (a VPN that takes all of 172.16.0.0/12) leaves none of them.
POOLS = (IPv4Network("172.16.0.0/12"), IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16"))
SUBNET_PREFIX = 24

# Default routes, also when a VPN splits them in two (0.0.0.0/1 and 128.0.0.0/1), cover everything and exclude nothing.
_WIDEST_ROUTE = 8


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def blocks(route: IPv4Network) -> bool:
    """Whether a host route takes its addresses away from us."""
    return route.prefixlen >= _WIDEST_ROUTE


def choose_subnet(
    taken: Iterable[IPv4Network],
    host_routes: Iterable[IPv4Network],
    pools: Sequence[IPv4Network] = POOLS,
    seed: str = "",
) -> IPv4Network:
    """A /24 of the pools that overlaps nothing in `taken` and no route of the host; BlockedError where none is left.

    Where the search begins follows from `seed` (the instance and the app).
    """
    used = [*taken, *(route for route in host_routes if blocks(route))]
    for pool in pools:
        total = 1 << max(SUBNET_PREFIX - pool.prefixlen, 0)
        busy = _busy(pool, used)
        first = _number("subnet", seed) % total
        for step in range(total):
            index = (first + step) % total
            if index not in busy:
                base = int(pool.network_address) + (index << (32 - SUBNET_PREFIX))
                return IPv4Network((base, max(SUBNET_PREFIX, pool.prefixlen)))
    listed = ", ".join(str(pool) for pool in pools)
    raise BlockedError(
        f"network: no free /{SUBNET_PREFIX} is left in {listed}",
        hint="see `ip route`: the host's own routes and other apps take all of them",
    )


def _busy(pool: IPv4Network, used: Iterable[IPv4Network]) -> "_Ranges":
    """The positions of `pool` that something in `used` overlaps."""
    ranges = []
    start, shift = int(pool.network_address), 32 - SUBNET_PREFIX
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


def allocate(
    subnet: IPv4Network, leased: Mapping[str, IPv4Address], name: str, kept: Iterable[IPv4Address] = ()
) -> IPv4Address:
    """The address of `name`: the one it has, or a free one that follows from the name; BlockedError where none is.

    Never the network's, the gateway's or the broadcast address, and never one that is leased to another name, or kept.
    """
    if name in leased:
        return leased[name]
    used = {*leased.values(), *kept}
    total = subnet.num_addresses - 3
    first = _number("address", name) % total
    for step in range(total):
        address = subnet.network_address + 2 + (first + step) % total
        if address not in used:
            return address
    raise BlockedError(
        f"network: all {total} addresses of {subnet} are leased, none is left for {name}",
        hint="split the app, or have some of its containers in another network, or declare a larger subnet",
    )
