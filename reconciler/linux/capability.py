"""Capabilities: their names, and the five sets of a thread. One function per call; it decides nothing."""

import ctypes

from reconciler.linux.process import prctl
from reconciler.linux.syscall import bind, check

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_IS_SET = 1
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# In the order of their numbers, linux/capability.h of Linux 5.9 and later.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_capget = bind("capget", ctypes.POINTER(_Header), ctypes.c_void_p)
_capset = bind("capset", ctypes.POINTER(_Header), ctypes.c_void_p)


def mask(names: list[str] | tuple[str, ...]) -> int:
    """Give the bit set of capability `names`; raise KeyError for one that is not a capability."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBERS[name]
    return bits


def names(bits: int) -> list[str]:
    """Give the names of a bit set, by number; a bit without a name shows as `CAP_<number>`."""
    return [
        NAMES[number] if number < len(NAMES) else f"CAP_{number}"
        for number in range(bits.bit_length())
        if bits >> number & 1
    ]


def capget() -> tuple[int, int, int]:
    """Read the effective, permitted and inheritable sets of this thread."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    check(_capget(ctypes.byref(header), ctypes.addressof(data)), "capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the effective, permitted and inheritable sets of this thread."""
    low = 0xFFFFFFFF
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    data[0] = _Data(effective & low, permitted & low, inheritable & low)
    data[1] = _Data(effective >> 32, permitted >> 32, inheritable >> 32)
    check(_capset(ctypes.byref(header), ctypes.addressof(data)), "capset")


def drop_effective(number: int) -> None:
    """Take capability `number` out of this thread's effective set; it stays permitted."""
    effective, permitted, inheritable = capget()
    capset(effective & ~(1 << number), permitted, inheritable)


def bounding() -> int:
    """Read the bounding set; ends at the last capability that the kernel knows."""
    bits = 0
    for number in range(64):
        try:
            bits |= prctl(_PR_CAPBSET_READ, number) << number
        except OSError:
            break
    return bits


def drop_bounding(number: int) -> None:
    """Take capability `number` out of the bounding set, for ever."""
    prctl(_PR_CAPBSET_DROP, number)


def clear_ambient() -> None:
    """Empty the ambient set."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def raise_ambient(number: int) -> None:
    """Add capability `number`, which must be permitted and inheritable, to the ambient set."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def ambient() -> int:
    """Read the ambient set."""
    bits = 0
    for number in range(len(NAMES)):
        try:
            bits |= prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_IS_SET, number) << number
        except OSError:
            break
    return bits
