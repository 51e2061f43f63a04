"""What a process can do to itself: prctl, credentials without libc's help, keyrings, descriptors, its title.

One function per call. Credentials go straight to the kernel: libc's setgroups and setresuid would be right too, but its
name lookups (NSS) load libraries, which must never happen inside a container's root (CVE-2019-14271).
"""

import ctypes
import errno
import os
import signal

from reconciler.linux.syscall import bind, bind_libc, check

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_TID_ADDRESS = 40

_KEYCTL_JOIN_SESSION_KEYRING = 1

CLOSE_RANGE_CLOEXEC = 4
_ALL = 0xFFFFFFFF

_SFD_CLOEXEC = os.O_CLOEXEC
_SFD_NONBLOCK = os.O_NONBLOCK
SIGNALFD_SIGINFO_SIZE = 128

_prctl = bind_libc("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_setgroups = bind("setgroups", ctypes.c_size_t, ctypes.c_void_p)
_setresuid = bind("setresuid", ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_setresgid = bind("setresgid", ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_setfsuid = bind("setfsuid", ctypes.c_uint)
_setfsgid = bind("setfsgid", ctypes.c_uint)
_keyctl = bind("keyctl", ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_rt_sigaction = bind("rt_sigaction", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_close_range = bind("close_range", ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_signalfd = bind_libc("signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    """prctl(2) with integer arguments."""
    return check(_prctl(option, argument, second, 0, 0), "prctl")


def set_dumpable(value: bool) -> None:
    """Allow or forbid core dumps, and ptrace and /proc/PID access by processes of the same uid."""
    prctl(_PR_SET_DUMPABLE, int(value))


def dumpable() -> bool:
    """Say whether this process may be dumped and traced."""
    return prctl(_PR_GET_DUMPABLE) == 1


def set_no_new_privs() -> None:
    """Make set-uid bits and file capabilities powerless for this process and all that descend from it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_parent_death_signal(number: int) -> None:
    """Ask for `number` when the parent thread ends; any later change of uid clears it (prctl(2))."""
    prctl(_PR_SET_PDEATHSIG, number)


def set_keep_capabilities(value: bool) -> None:
    """Keep the permitted capabilities across a change from uid 0."""
    prctl(_PR_SET_KEEPCAPS, int(value))


def set_child_subreaper(value: bool) -> None:
    """Inherit the orphans of all descendants."""
    prctl(_PR_SET_CHILD_SUBREAPER, int(value))


def set_name(name: str) -> None:
    """Set the thread's name as `ps -o comm` shows it; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def thread_id_address() -> int:
    """Give the address of libc's cached thread id, or 0 where the kernel can't tell (no CONFIG_CHECKPOINT_RESTORE)."""
    address = ctypes.c_ulong(0)
    if _prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) < 0:
        return 0
    return address.value


def setgroups(groups: tuple[int, ...]) -> None:
    """Replace the supplementary groups."""
    array = (ctypes.c_uint * len(groups))(*groups)
    check(_setgroups(len(groups), ctypes.addressof(array)), "setgroups")


def set_file_ids(uid: int, gid: int) -> None:
    """Have files belong to these ids that this thread makes (setfsuid(2), which never says that it failed)."""
    _setfsgid(gid)
    _setfsuid(uid)
    if (_setfsuid(_ALL), _setfsgid(_ALL)) != (uid, gid):  # no id is that, so it only asks
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def setresuid(uid: int) -> None:
    """Set the real, effective and saved user id of this thread: the caller has only one."""
    check(_setresuid(uid, uid, uid), "setresuid", str(uid))


def setresgid(gid: int) -> None:
    """Set the real, effective and saved group id of this thread: the caller has only one."""
    check(_setresgid(gid, gid, gid), "setresgid", str(gid))


def join_session_keyring() -> None:
    """Start a fresh anonymous session keyring, so that no key of the old one can be reached."""
    check(_keyctl(_KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0), "keyctl join_session_keyring")


def close_from(first: int, *, cloexec: bool = False) -> None:
    """Close every descriptor from `first` on, or with `cloexec` leave that to the next exec (Linux 5.11)."""
    check(_close_range(first, _ALL, CLOSE_RANGE_CLOEXEC if cloexec else 0), "close_range")


def close_except(keep: tuple[int, ...]) -> None:
    """Close every descriptor but those in `keep`."""
    start = 0
    for fd in sorted(keep):
        if fd > start:
            check(_close_range(start, fd - 1, 0), "close_range")
        start = max(start, fd + 1)
    close_from(start)


def signalfd(signals: frozenset[signal.Signals] | set[signal.Signals] | set[int]) -> int:
    """Open a non-blocking descriptor that delivers `signals`, which the caller has blocked.

    Reads give records of SIGNALFD_SIGINFO_SIZE bytes that begin with the signal number as a native uint32.
    """
    mask = (ctypes.c_uint64 * 16)()  # libc's sigset_t is 1024 bits
    for number in signals:
        mask[(number - 1) // 64] |= 1 << ((number - 1) % 64)
    return check(_signalfd(-1, ctypes.addressof(mask), _SFD_CLOEXEC | _SFD_NONBLOCK), "signalfd")


def title_area() -> tuple[int, int]:
    """Give the addresses where the kernel keeps this process's argument vector (first byte, one past the last)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 of proc(5)


def set_title(area: tuple[int, int], title: str) -> None:
    """Write `title` over the argument vector, cut to its room, so that `ps` shows it.

    Whoever executes this program gives it room by a long padding argument. The interpreter has copied its arguments
    long before.
    """
    start, end = area
    data = os.fsencode(title)[: max(0, end - start - 1)]
    ctypes.memmove(start, data + bytes(end - start - len(data)), end - start)


def set_default_signal(number: int) -> None:
    """Give signal `number` its default disposition, also one that libc keeps for itself and hides (32 and 33)."""
    action = ctypes.create_string_buffer(32)  # struct sigaction of the kernel, all zero: SIG_DFL
    check(_rt_sigaction(number, ctypes.addressof(action), None, 8), "rt_sigaction", str(number))


def signal_number(name: str) -> int:
    """Give the number of `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; raise ValueError for anything else."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        value = int(text[:4])
    elif text.startswith(("RTMIN+", "RTMAX-")) and text[6:].isdigit():
        value = signal.SIGRTMIN + int(text[6:]) if text[3:5] == "IN" else signal.SIGRTMAX - int(text[6:])
    else:
        found = signal.Signals.__members__.get("SIG" + text)
        value = int(found) if found is not None else 0
    if not 1 <= value <= signal.SIGRTMAX:
        raise ValueError(f"{name}: no such signal")
    return value


def signal_name(number: int) -> str:
    """Give the name of signal `number`: `SIGTERM`, `SIGRTMIN+3`, or `signal 99` where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        if signal.SIGRTMIN < number < signal.SIGRTMAX:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}"
        return f"signal {number}"
