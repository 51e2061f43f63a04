"""How a process is scheduled, on processors and on disks, and which system it is told that it runs on.

One function per call; the numbers are the kernel's own.
"""

import ctypes
import os

from reconciler.linux.syscall import bind, bind_libc, check

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}

_WHO_PROCESS = 1
_CLASS_SHIFT = 13


class _SchedAttr(ctypes.Structure):
    """struct sched_attr, version 0 (48 bytes, Linux 3.14)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


_sched_setattr = bind("sched_setattr", ctypes.c_int, ctypes.POINTER(_SchedAttr), ctypes.c_uint)
_ioprio_set = bind("ioprio_set", ctypes.c_int, ctypes.c_int, ctypes.c_int)
_personality = bind_libc("personality", ctypes.c_ulong)


def set_scheduler(
    policy: int,
    *,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> None:
    """sched_setattr(2) for this thread; times in nanoseconds."""
    attr = _SchedAttr(ctypes.sizeof(_SchedAttr), policy, flags, nice, priority, runtime, deadline, period)
    check(_sched_setattr(0, ctypes.byref(attr), 0), "sched_setattr")


def set_io_priority(kind: int, level: int) -> None:
    """ioprio_set(2) for this thread: a class of IO_CLASSES and a level, 0 (the highest) to 7."""
    check(_ioprio_set(_WHO_PROCESS, 0, kind << _CLASS_SHIFT | level), "ioprio_set")


def background() -> None:
    """Have this thread run, and use disks, only when nobody else wants to: nice 19, and the idle class of I/O."""
    os.setpriority(
        os.PRIO_PROCESS, 0, 19
    )  # 0 is the calling thread: on Linux each has its own (setpriority(2))
    try:
        set_io_priority(IO_CLASSES["IOPRIO_CLASS_IDLE"], 0)
    except OSError:
        pass  # a filter around us may refuse it; then it is the processor alone


def set_personality(domain: int) -> None:
    """personality(2): which machine uname(2) tells about, LINUX32 the 32-bit one."""
    check(_personality(domain), "personality")
