"""Packets between the processes of one shim, which are forks of each other: marshalled tuples and descriptors.

Used by the monitor, of which there is one per container, so it does without the Python half of the socket module and
without JSON: every function that a monitor runs costs it pages of its own.
"""

import _socket
import marshal
import struct

_LARGEST = 16384
_FDS = 16
_INT = struct.calcsize("i")

Channel = _socket.socket


def pair() -> tuple[Channel, Channel]:
    """Make two ends, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def send(channel: Channel, values: tuple[object, ...], fds: tuple[int, ...] = ()) -> None:
    """Send numbers, strings, bytes and tuples of them, and descriptors, which stay open here."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    channel.sendmsg([marshal.dumps(values)], rights, _socket.MSG_NOSIGNAL)  # type: ignore[arg-type]


def receive(channel: Channel, largest: int = _LARGEST) -> tuple[bytes, list[int]] | None:
    """Receive what `send` sent, for marshal.loads, and its descriptors; None at the end. `largest` is in bytes."""
    data, rights, _, _ = channel.recvmsg(largest, _socket.CMSG_SPACE(_FDS * _INT), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for _, _, content in rights:
        fds += struct.unpack(f"{len(content) // _INT}i", content)
    return (data, fds) if data else None
