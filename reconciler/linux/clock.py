"""The kernel's clock: whether somebody keeps it right. One call; it decides nothing and sets nothing."""

import ctypes

from reconciler.linux.syscall import bind_libc, check

STA_UNSYNC = 0x0040  # linux/timex.h

_SIZE = 256  # struct timex has 208 bytes on 64-bit machines; room for a kernel that knows more
_STATUS = 40  # its offset there, behind modes, offset, freq, maxerror and esterror

_adjtimex = bind_libc("adjtimex", ctypes.c_void_p)


def status() -> int:
    """Return the status bits of the kernel's clock (adjtimex(2) with modes 0, which needs no privilege).

    A seccomp filter around the agent may refuse the call: OSError then.
    """
    buffer = (ctypes.c_byte * _SIZE)()
    check(_adjtimex(ctypes.addressof(buffer)), "adjtimex")
    return ctypes.c_int.from_buffer(buffer, _STATUS).value
