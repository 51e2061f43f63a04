"""Messages between the agent, the zygote and the shims: one JSON object and a few descriptors per packet.

SOCK_SEQPACKET keeps packets whole and in order, so there is no framing to get wrong. An object too large for a packet
(a long environment) travels in a memfd, which then comes before the other descriptors. Whatever a peer sends, the
result is a message, the end, or ProtocolError; descriptors of a bad message are closed.

Requests have "op"; answers have "ok" or "error" ({"step", "path", "errno", "message"}, as shim.step writes it).
"""

import errno
import json
import os
import socket
import struct

_INLINE = 48 * 1024
_LARGEST = 4 * 1024 * 1024
_FDS = 8
_INT = struct.calcsize("i")

Message = dict[str, object]


class ProtocolError(Exception):
    """A packet that is no message of this protocol."""


def send(channel: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send `message` with `fds`, which stay open here. BlockingIOError where a non-blocking peer does not read."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= _INLINE:
        _send(channel, data, fds)
        return
    if len(data) > _LARGEST:
        raise OSError(errno.E2BIG, "message: longer than 4 MiB")
    body = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(body, view) :]
        _send(channel, b'{"body":true}', (body, *fds))
    finally:
        os.close(body)


def _send(channel: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    channel.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive a message and its descriptors, which are close-on-exec and the caller's; None at the end."""
    data, rights, flags, _ = channel.recvmsg(_INLINE, socket.CMSG_SPACE(_FDS * _INT), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(content) // _INT}i", content[: len(content) // _INT * _INT])
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a packet was cut short")
        message = parse(data)
        if message.get("body") is True and fds:
            body = fds.pop(0)
            try:
                message = parse(_body(body))
            finally:
                os.close(body)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def parse(data: bytes) -> Message:
    """Read a message that came without a body; raise ProtocolError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError("not an object")
    return value


def _body(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > _LARGEST:
            raise ProtocolError("longer than 4 MiB")
        return os.pread(fd, size, 0)
    except OSError as error:
        raise ProtocolError(f"its body can't be read: {error.strerror}") from error
