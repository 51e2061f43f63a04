"""ctnetlink: reading and deleting entries of connection tracking, of IPv4 and of IPv6.

A flow that was translated stays translated for as long as its entry lives, whatever the rules say by then; for UDP that
is as long as somebody keeps sending. These messages are how a change of the port table reaches such flows.
It decides nothing: which entries to delete is the caller's choice.
"""

import errno
import socket
import struct

from reconciler.linux import netlink
from reconciler.linux.netlink import attribute, message, nested, u8, u16_be, u32

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE, _GET_STATS = 1, 2, 5  # IPCTNL_MSG_CT_*

_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = (
    1,
    2,
    12,
    18,
    25,
)  # CTA_*, linux/netfilter/nfnetlink_conntrack.h
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIGINAL_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_SOURCE, _BY_PROTOCOL, _BY_DESTINATION_PORT = (
    1 << 0,
    1 << 3,
    1 << 5,
)  # CTA_FILTER_F_*, nf_conntrack_netlink.c
_STATS_GLOBAL_ENTRIES = 1

_NFGENMSG = struct.Struct("=BBH")


class Tuple:
    """One direction of a flow: addresses as four or sixteen bytes; ports are 0 where the protocol has none."""

    __slots__ = ("destination", "destination_port", "protocol", "source", "source_port")

    def __init__(
        self, source: bytes, destination: bytes, protocol: int, source_port: int, destination_port: int
    ) -> None:
        self.source = source
        self.destination = destination
        self.protocol = protocol
        self.source_port = source_port
        self.destination_port = destination_port


class Entry:
    """A tracked flow: as it was sent, and as its answer is expected; `raw` is what deletes exactly this one."""

    __slots__ = ("original", "raw", "reply")

    def __init__(self, original: Tuple, reply: Tuple, raw: bytes) -> None:
        self.original = original
        self.reply = reply
        self.raw = raw


def _body(*inner: bytes, family: int = socket.AF_INET) -> bytes:
    return _NFGENMSG.pack(family, 0, 0) + b"".join(inner)


def _source(address: bytes) -> tuple[bytes, int]:
    """The part of a request that names a source address, and its family."""
    if len(address) == 4:
        return nested(_TUPLE_IP, attribute(_IP_V4_SRC, address)), int(socket.AF_INET)
    return nested(_TUPLE_IP, attribute(_IP_V6_SRC, address)), int(socket.AF_INET6)


def count() -> bytes:
    """Ask how many flows this network namespace tracks; `read_count` reads the answer."""
    return message(_SUBSYSTEM | _GET_STATS, 0, _body())


def read_count(body: bytes) -> int:
    return int.from_bytes(netlink.attributes(body, _NFGENMSG.size).get(_STATS_GLOBAL_ENTRIES, b""), "big")


def everything(family: int = socket.AF_INET) -> bytes:
    """Ask for every tracked flow of this family (a dump)."""
    return message(_SUBSYSTEM | _GET, 0, _body(family=family))


def by_original_source(address: bytes) -> bytes:
    """Ask for the flows that `address` began (a dump, filtered by the kernel since Linux 5.8)."""
    inner, family = _source(address)
    return _filtered(_TUPLE_ORIGINAL, inner, _BY_SOURCE, family)


def by_reply_source(address: bytes) -> bytes:
    """Ask for the flows that `address` answers, translated to it or not (a dump)."""
    inner, family = _source(address)
    return _filtered(_TUPLE_REPLY, inner, _BY_SOURCE, family)


def by_original_destination_port(protocol: int, port: int, family: int = socket.AF_INET) -> bytes:
    """Ask for the flows that were sent to `port` of any address of this family (a dump)."""
    proto = nested(_TUPLE_PROTO, u8(_PROTO_NUM, protocol), u16_be(_PROTO_DST_PORT, port))
    return _filtered(_TUPLE_ORIGINAL, proto, _BY_PROTOCOL | _BY_DESTINATION_PORT, family)


def _filtered(which: int, inner: bytes, flags: int, family: int) -> bytes:
    # Both flag words are required since the kernel reads them as a pair (ctnetlink_parse_filter).
    original, reply = (flags, 0) if which == _TUPLE_ORIGINAL else (0, flags)
    wanted = nested(_FILTER, u32(_FILTER_ORIGINAL_FLAGS, original), u32(_FILTER_REPLY_FLAGS, reply))
    return message(_SUBSYSTEM | _GET, 0, _body(nested(which, inner), wanted, family=family))


def read_entry(body: bytes) -> Entry:
    found = netlink.attributes(body, _NFGENMSG.size)
    raw = b"".join(
        attribute(kind | (0x8000 if kind in (_TUPLE_ORIGINAL, _TUPLE_REPLY) else 0), found[kind])
        for kind in (_TUPLE_ORIGINAL, _ID, _ZONE)
        if kind in found
    )
    return Entry(_read_tuple(found.get(_TUPLE_ORIGINAL, b"")), _read_tuple(found.get(_TUPLE_REPLY, b"")), raw)


def _read_tuple(payload: bytes) -> Tuple:
    parts = netlink.attributes(payload)
    ip = netlink.attributes(parts.get(_TUPLE_IP, b""))
    proto = netlink.attributes(parts.get(_TUPLE_PROTO, b""))
    return Tuple(
        ip.get(_IP_V4_SRC, b"") or ip.get(_IP_V6_SRC, b""),
        ip.get(_IP_V4_DST, b"") or ip.get(_IP_V6_DST, b""),
        netlink.number(proto.get(_PROTO_NUM, b"")),
        int.from_bytes(proto.get(_PROTO_SRC_PORT, b""), "big"),
        int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big"),
    )


def delete(entry: Entry) -> bytes:
    """Delete exactly this flow; ENOENT where it has ended meanwhile."""
    family = socket.AF_INET if len(entry.original.source) == 4 else socket.AF_INET6
    return message(_SUBSYSTEM | _DELETE, 0, _body(entry.raw, family=family))


def delete_all(sock: netlink.Socket, entries: list[Entry]) -> int:
    """Delete these flows and return how many were still there."""
    deleted = 0
    for start in range(0, len(entries), 64):
        for failure in sock.try_all(*(delete(entry) for entry in entries[start : start + 64])):
            if failure is None:
                deleted += 1
            elif failure.errno != errno.ENOENT:
                raise failure
    return deleted
