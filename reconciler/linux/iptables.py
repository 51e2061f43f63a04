"""The policy of a chain of the older iptables, which keeps its tables outside nftables and shows them nowhere else.

Reads only, through the socket options of linux/netfilter_ipv4/ip_tables.h. The caller makes sure that the table exists:
asking for one that does not makes the kernel create it.
"""

import ctypes
import errno
import socket
import struct

from reconciler.linux.syscall import bind_libc, check

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_*
_INFO = struct.Struct("=32sI5I5III")  # name, valid hooks, hook entries, underflows, entries, size
_ENTRIES = struct.Struct("=32sI4x")  # the entries themselves are aligned to 8 bytes
_OFFSETS = struct.Struct("=HH")
_OFFSETS_AT = 88  # target_offset and next_offset in struct ipt_entry, after ipt_ip and nfcache
_VERDICT_AT = 32  # in struct xt_standard_target, after the header
_VERDICT = struct.Struct("=i")
_ATTEMPTS = 5

FORWARD = 2  # NF_INET_FORWARD
DROP = -1  # -NF_DROP - 1

_getsockopt = bind_libc(
    "getsockopt", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)
)


def policy(table: str, hook: int) -> int:
    """The verdict of a built-in chain's policy, DROP or another; EPERM without CAP_NET_ADMIN.

    EAGAIN from the kernel means that the table grew between the two questions, which are then asked again.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        for _ in range(_ATTEMPTS):
            info = _INFO.unpack(_get(sock, _GET_INFO, _INFO.pack(table.encode(), *[0] * 13)))
            underflow, size = info[7 + hook], info[13]
            request = _ENTRIES.pack(table.encode(), size) + bytes(size)
            try:
                entries = _get(sock, _GET_ENTRIES, request)[_ENTRIES.size :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                continue
            target, _ = _OFFSETS.unpack_from(entries, underflow + _OFFSETS_AT)
            verdict: int = _VERDICT.unpack_from(entries, underflow + target + _VERDICT_AT)[0]
            return verdict
    raise OSError(errno.EAGAIN, f"iptables: table {table} changes faster than it can be read")


def _get(sock: socket.socket, option: int, request: bytes) -> bytes:
    """getsockopt(2) with an argument that goes both ways, which socket.getsockopt can't do."""
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    check(
        _getsockopt(sock.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length)),
        "getsockopt iptables",
    )
    return buffer.raw
