"""seccomp(2): putting a filter on this thread, and asking what the kernel can do with one. It decides nothing."""

import ctypes
import errno
import os

from reconciler.linux.process import prctl
from reconciler.linux.syscall import bind, check

_SET_MODE_FILTER = 1
_GET_ACTION_AVAIL = 2
_PR_GET_SECCOMP = 21
_INSTRUCTION = 8  # bytes of a struct sock_filter

FLAG_TSYNC = 1
FLAG_LOG = 2  # Linux 4.14
FLAG_SPEC_ALLOW = 4  # Linux 4.17
FLAG_NEW_LISTENER = 8  # Linux 5.0
FLAG_TSYNC_ESRCH = 16  # Linux 5.7
FLAG_WAIT_KILLABLE_RECV = 32  # Linux 5.19


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_seccomp = bind("seccomp", ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


def load(program: bytes, flags: int = 0) -> int:
    """Have the kernel ask `program`, struct sock_filter[], before every call of this thread and of what it executes.

    Give the listener, close-on-exec, where `flags` ask for one, else -1. It can't be undone. Raise OSError: EACCES
    without no_new_privs and CAP_SYS_ADMIN, EINVAL where the program or a flag is not understood, EBUSY for a second
    listener, ESRCH where TSYNC met a thread with another filter.
    """
    code = ctypes.create_string_buffer(program, len(program))
    given = _Program(len(program) // _INSTRUCTION, ctypes.addressof(code))
    result = check(
        _seccomp(_SET_MODE_FILTER, flags, ctypes.addressof(given)), "seccomp(SECCOMP_SET_MODE_FILTER)"
    )
    if flags & FLAG_NEW_LISTENER:
        os.set_inheritable(result, False)
        return result
    if result > 0:  # with TSYNC and without TSYNC_ESRCH: the thread that could not be given the filter
        raise OSError(
            errno.ESRCH, f"seccomp(SECCOMP_SET_MODE_FILTER): thread {result} has a filter of its own"
        )
    return -1


def available() -> bool:
    """Say whether this kernel has filters at all (CONFIG_SECCOMP_FILTER)."""
    action = ctypes.c_uint(0x7FFF0000)  # SECCOMP_RET_ALLOW
    return _seccomp(_GET_ACTION_AVAIL, 0, ctypes.addressof(action)) == 0


def mode() -> int:
    """Give the seccomp mode of this thread: 0 none, 2 filtered (in mode 1 one could not ask)."""
    return prctl(_PR_GET_SECCOMP)
