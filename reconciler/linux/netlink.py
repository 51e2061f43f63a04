"""Netlink: how this program asks the kernel about links, addresses, routes, sockets and connection tracking.

Encoding and decoding are pure functions over bytes; `Socket` is the one thing that talks. Nothing here knows what a
message means: rtnetlink, conntrack and sockdiag build on it. It decides nothing, and raises OSError with the kernel's
own words where it gives any (extended acknowledgements, Linux 4.12).
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

ROUTE = 0
SOCK_DIAG = 4
NETFILTER = 12

REQUEST = 0x001  # NLM_F_*, linux/netlink.h
ACK = 0x004
DUMP = 0x300
REPLACE = 0x100
EXCLUSIVE = 0x200
CREATE = 0x400

_ERROR = 2  # NLMSG_ERROR
_DONE = 3
_FIRST_REAL_KIND = 16  # NLMSG_MIN_TYPE: smaller ones are control messages
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_ACK_CAPPED = 0x100  # NLM_F_CAPPED
_ACK_ATTRIBUTES = 0x200  # NLM_F_ACK_TLVS
_NESTED = 0x8000  # NLA_F_NESTED
_KIND_MASK = 0x3FFF  # NLA_TYPE_MASK

_SOL_NETLINK = 270
_OPTION_CAP_ACK = 10
_OPTION_EXT_ACK = 11
_OPTION_STRICT_CHECK = 12  # NETLINK_GET_STRICT_CHK, Linux 4.20

# The kernel fills at most 32 KiB per dump message (NLMSG_GOODSIZE grown to the reader's buffer, af_netlink.c).
_BUFFER = 1 << 16
_TIMEOUT = (
    10.0  # seconds; the kernel answers within the system call, so this only guards against a lost answer
)
_DUMP_ATTEMPTS = 20

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")


# --- encoding (pure) ------------------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u16_be(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">H", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def u32_be(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request; `Socket` gives it its sequence number when it is sent."""
    return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, 0, 0) + body


# --- decoding (pure) ------------------------------------------------------------------------------------------------


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on, by kind without the nesting flag; the last one wins, as in the kernel."""
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each attribute from `offset` on, or ValueError where the lengths do not add up."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise ValueError(f"netlink attribute {kind & _KIND_MASK}: length {length} at {offset} of {end}")
        yield kind & _KIND_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def string(payload: bytes) -> str:
    """A string attribute without its NUL."""
    return payload.rstrip(b"\0").decode(errors="replace")


def number(payload: bytes) -> int:
    """An unsigned integer in host order, of any width."""
    return int.from_bytes(payload, sys.byteorder)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence, body) of every message in what one recv returned."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise OSError(errno.EBADMSG, f"netlink: message of {length} bytes at {offset} of {len(data)}")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _failure(body: bytes, flags: int, sent: bytes) -> OSError | None:
    """What an NLMSG_ERROR says: None for success (an acknowledgement)."""
    number_ = -_INT.unpack_from(body)[0]
    if number_ == 0:
        return None
    reason = os.strerror(number_)
    if flags & _ACK_ATTRIBUTES:
        echoed = _HEADER.unpack_from(body, 4)[0] if not flags & _ACK_CAPPED else _HEADER.size
        try:
            said = attributes(body, 4 + ((echoed + 3) & ~3)).get(1)  # NLMSGERR_ATTR_MSG
        except ValueError:
            said = None
        if said:
            reason = f"{reason} ({string(said)})"
    kind = _HEADER.unpack_from(sent)[1]
    return OSError(number_, f"netlink request {kind}: {reason}")


# --- talking --------------------------------------------------------------------------------------------------------


class Socket:
    """A netlink socket in the network namespace of the thread that opens it; not to be shared between threads."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(_TIMEOUT)
            for option in (_OPTION_CAP_ACK, _OPTION_EXT_ACK, _OPTION_STRICT_CHECK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Socket":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # not where the kernel refused to open it
            self._socket.close()

    def _number(self, request: bytes, flags: int) -> bytes:
        """Fill in the sequence number, and `flags` on top of the request's own."""
        length, kind, own, _, _ = _HEADER.unpack_from(request)
        self._sequence += 1
        return _HEADER.pack(length, kind, own | flags, self._sequence, 0) + request[_HEADER.size :]

    def try_all(self, *requests: bytes) -> list[OSError | None]:
        """Send all requests in one system call; return for each None, or why the kernel refused it.

        The kernel works on them in order, and goes on after a refusal.
        """
        first = self._sequence + 1
        self._socket.send(b"".join(self._number(request, ACK) for request in requests))
        results: dict[int, OSError | None] = {}
        while len(results) < len(requests):
            for kind, flags, sequence, body in _messages(self._socket.recv(_BUFFER)):
                if kind == _ERROR and first <= sequence < first + len(requests):
                    results[sequence] = _failure(body, flags, requests[sequence - first])
        return [results[first + index] for index in range(len(requests))]

    def request(self, *requests: bytes) -> None:
        """Send all requests in one system call; raise the first refusal after all were answered."""
        for failure in self.try_all(*requests):
            if failure is not None:
                raise failure

    def get(self, request: bytes) -> bytes:
        """Send one request and return the body of its answer."""
        answer: bytes | None = None
        self._socket.send(self._number(request, ACK))
        while True:
            for kind, flags, sequence, body in _messages(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue
                if kind >= _FIRST_REAL_KIND:
                    answer = body
                elif kind == _ERROR:
                    failure = _failure(body, flags, request)
                    if failure is not None:
                        raise failure
                    if answer is None:
                        raise OSError(errno.ENODATA, "netlink: acknowledged without an answer")
                    return answer

    def dump(self, request: bytes) -> list[bytes]:
        """Send one dump request and return the body of every answer, taken from one consistent pass if possible.

        A pass that the kernel calls interrupted (something changed meanwhile) is repeated; after many of them
        EAGAIN is raised.
        """
        for _ in range(_DUMP_ATTEMPTS):
            answers = self._dump(request)
            if answers is not None:
                return answers
        raise OSError(errno.EAGAIN, "netlink: the list changes faster than it can be read")

    def _dump(self, request: bytes) -> list[bytes] | None:
        answers: list[bytes] = []
        interrupted = False
        self._socket.send(self._number(request, DUMP))
        while True:
            for kind, flags, sequence, body in _messages(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind == _ERROR:
                    failure = _failure(body, flags, request)
                    if failure is not None:
                        raise failure
                elif kind == _DONE:
                    code = -_INT.unpack_from(body)[0] if len(body) >= 4 else 0
                    if code > 0:
                        raise OSError(code, f"netlink: {os.strerror(code)}")
                    return None if interrupted else answers
                elif kind >= _FIRST_REAL_KIND:
                    answers.append(body)
