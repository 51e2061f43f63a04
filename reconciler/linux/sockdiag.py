"""sock_diag: which TCP sockets listen, and which UDP sockets wait, in this network namespace.

The kernel filters by state, so that a machine with many connections costs no more than one with few; /proc/net/tcp
lists them all. It knows no process: the kernel tells the socket's inode only.
"""

import socket
import struct

from reconciler.linux import netlink

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_LISTEN = 1 << 10  # TCP_LISTEN
_UNCONNECTED = 1 << 7  # TCP_CLOSE: what an unconnected UDP socket reports
_V6_ONLY = 11  # INET_DIAG_SKV6ONLY

_REQUEST = struct.Struct(
    "=BBBxI48x"
)  # inet_diag_req_v2: family, protocol, extensions, states, an empty socket id
_SOCKET = struct.Struct(">HH16s16s")  # the ports and addresses of inet_diag_sockid, in network order
_INODE = struct.Struct("=I")
_SOCKET_OFFSET = 4
_INODE_OFFSET = 68
_SIZE = 72  # sizeof(struct inet_diag_msg)


class BoundSocket:
    """A socket that owns a local port: `address` is 4 or 16 bytes; `v6_only` matters for the wildcard `::` alone."""

    __slots__ = ("address", "inode", "port", "protocol", "v6_only")

    def __init__(self, protocol: int, address: bytes, port: int, v6_only: bool, inode: int) -> None:
        self.protocol = protocol
        self.address = address
        self.port = port
        self.v6_only = v6_only
        self.inode = inode


def get_bound(family: int, protocol: int) -> bytes:
    """Ask for listening TCP, or unconnected UDP, sockets of one address family (a dump); ENOENT without the module."""
    states = _LISTEN if protocol == socket.IPPROTO_TCP else _UNCONNECTED
    return netlink.message(_BY_FAMILY, 0, _REQUEST.pack(family, protocol, 0, states))


def read_bound(protocol: int, body: bytes) -> BoundSocket:
    family = body[0]
    port, _, source, _ = _SOCKET.unpack_from(body, _SOCKET_OFFSET)
    (inode,) = _INODE.unpack_from(body, _INODE_OFFSET)
    v6_only = netlink.attributes(body, _SIZE).get(_V6_ONLY, b"\0") != b"\0"
    return BoundSocket(protocol, source[:4] if family == socket.AF_INET else source, port, v6_only, inode)
