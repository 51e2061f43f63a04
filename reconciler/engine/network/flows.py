"""Tracked connections that a change of ours makes wrong: found and forgotten, so that they are looked at afresh.

A flow keeps the translation it began with. TCP connections end with their container; UDP has no end, so a client that
goes on sending would go on reaching an address that is gone, or never reach a port that came later. What it forgets is
always named by an address or a port of ours; other flows of the host are left alone.
"""

import errno
import socket
from collections.abc import Callable, Container, Iterable, Sequence
from ipaddress import ip_address

from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.ports import PROTOCOLS, Address, PortMapping
from reconciler.errors import UnsupportedError
from reconciler.linux import conntrack, netlink

_UDP = PROTOCOLS["udp"]
# A search walks the kernel's whole hash table, which takes milliseconds whatever it finds; so few flows are read once
# and looked through here, and many are searched by the kernel, once for each thing to find.
_FEW = 2000
_SUBJECT = "connection tracking"

_Answer = tuple[bytes, int]  # packed address and port
_Search = tuple[bytes, Callable[[conntrack.Entry], bool]]


def forget_addresses(addresses: Iterable[Address]) -> int:
    """Forget every flow from or to these addresses, of any protocol; return how many there were."""
    searches: list[_Search] = []
    addresses = sorted(set(addresses), key=lambda one: one.packed)
    for address in addresses:
        searches.append((conntrack.by_original_source(address.packed), _begun_by(address)))
        searches.append((conntrack.by_reply_source(address.packed), _answered_by(address)))
    if not searches:
        return 0
    with kernel(_SUBJECT), netlink.Socket(netlink.NETFILTER) as sock:
        return _forget(sock, searches, _families(addresses))


def forget_changed(
    sock: netlink.Socket,
    before: Iterable[PortMapping],
    after: Iterable[PortMapping],
    local: frozenset[Address],
) -> int:
    """Forget the UDP flows that would go elsewhere under the port table `after`; return how many there were.

    `local` are this host's own addresses: a flow to the same port of somebody else's is none of ours.
    """
    old = {mapping for mapping in before if mapping.protocol == "udp" and mapping.serving}
    new = {mapping for mapping in after if mapping.protocol == "udp" and mapping.serving}
    answering: dict[object, set[_Answer]] = {}
    for mapping in new:
        answering.setdefault(mapping.key, set()).add((mapping.address.packed, mapping.target))
    gone: list[_Search] = [
        (conntrack.by_reply_source(mapping.address.packed), _translated_by(mapping))
        for mapping in sorted(old - new)
    ]
    come: list[_Search] = [
        (
            conntrack.by_original_destination_port(_UDP, mapping.published, _family(mapping.address)),
            _reaches_another(mapping, local, answering[mapping.key]),
        )
        for mapping in sorted(new - old)
    ]
    if not gone and not come:
        return 0
    with kernel(_SUBJECT):
        return _forget(sock, [*gone, *come], _families(mapping.address for mapping in old ^ new))


def _family(address: Address) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def _families(addresses: Iterable[Address]) -> list[int]:
    return sorted({_family(address) for address in addresses})


def _begun_by(address: Address) -> Callable[[conntrack.Entry], bool]:
    return lambda entry: entry.original.source == address.packed


def _answered_by(address: Address) -> Callable[[conntrack.Entry], bool]:
    return lambda entry: entry.reply.source == address.packed


def _translated_by(mapping: PortMapping) -> Callable[[conntrack.Entry], bool]:
    answer = (_UDP, mapping.address.packed, mapping.target)

    def stale(entry: conntrack.Entry) -> bool:
        reply = entry.reply
        return (reply.protocol, reply.source, reply.source_port) == answer

    return stale


def _reaches_another(
    mapping: PortMapping, local: frozenset[Address], answering: Container[_Answer]
) -> Callable[[conntrack.Entry], bool]:
    """A flow to that port that is answered by none of those that it leads to now."""

    def stale(entry: conntrack.Entry) -> bool:
        sent = entry.original
        if (sent.protocol, sent.destination_port) != (_UDP, mapping.published):
            return False
        asked = ip_address(sent.destination)
        mine = asked == mapping.host_ip or (
            mapping.everywhere and asked.version == mapping.version and (asked in local or asked.is_loopback)
        )
        return mine and (entry.reply.source, entry.reply.source_port) not in answering

    return stale


def _forget(sock: netlink.Socket, searches: Sequence[_Search], families: Iterable[int]) -> int:
    """Delete the flows that a search finds and its test confirms; the tests alone are enough to tell."""
    try:
        tracked = conntrack.read_count(sock.get(conntrack.count()))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UnsupportedError(
            "connection tracking: this kernel can't list tracked connections",
            hint="load it: modprobe nf_conntrack_netlink",
        ) from error
    if not tracked:
        return 0
    if tracked <= _FEW:
        bodies = [body for family in families for body in sock.dump(conntrack.everything(family))]
        entries = [conntrack.read_entry(body) for body in bodies]
        stale = [entry for entry in entries if any(test(entry) for _, test in searches)]
        return conntrack.delete_all(sock, stale)
    forgotten = 0
    for request, test in searches:
        found = [conntrack.read_entry(body) for body in sock.dump(request)]
        forgotten += conntrack.delete_all(sock, [entry for entry in found if test(entry)])
    return forgotten
