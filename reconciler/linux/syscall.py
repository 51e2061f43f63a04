"""The door itself: libc, system call numbers, and the one way in which a failed call becomes an OSError.

Only the modules of this package may use it. It binds each call's argument types once, at import, and decides nothing.
"""

import ctypes
import os
from collections.abc import Callable

_MACHINES = {"x86_64": 0, "aarch64": 1}
_MACHINE = os.uname().machine

# Calls from 424 on have the same number on every architecture; the older ones do not. (x86_64, aarch64)
_NUMBERS = {
    "rt_sigaction": (13, 134),
    "pivot_root": (155, 41),
    "keyctl": (250, 219),
    "seccomp": (317, 277),
    "capget": (125, 90),
    "capset": (126, 91),
    "setgroups": (116, 159),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "ioprio_set": (251, 30),
    "sched_setattr": (314, 274),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "renameat2": (316, 276),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
}

# Calls release the interpreter's lock while they run, so that a slow one (syncfs) holds up no other thread.
# clone3 alone keeps it.
_libc = ctypes.CDLL(None, use_errno=True)
_libc_locked = ctypes.PyDLL(None, use_errno=True)


def number(name: str) -> int:
    """Give the number of system call `name` on this machine; raise OSError(ENOSYS) on an unknown architecture."""
    column = _MACHINES.get(_MACHINE)
    if column is None:
        raise OSError(38, f"{name}: system call numbers of {_MACHINE} are not known")
    return _NUMBERS[name][column]


def bind(name: str, *argtypes: object, locked: bool = False) -> Callable[..., int]:
    """Bind system call `name` with `argtypes`; the result is the raw return value, -1 with errno set on failure.

    With `locked` the interpreter's lock is kept during the call, as a fork needs.
    """
    function = (_libc_locked if locked else _libc)["syscall"]
    function.argtypes = (ctypes.c_long, *argtypes)  # type: ignore[arg-type]
    function.restype = ctypes.c_long
    nr = number(name)

    def call(*args: object) -> int:
        return int(function(nr, *args))

    return call


def address_of(name: str) -> ctypes.c_void_p:
    """Give the address of libc's function `name`, for a call that takes a function."""
    return ctypes.cast(_libc[name], ctypes.c_void_p)


def bind_libc(name: str, *argtypes: object) -> Callable[..., int]:
    """Bind libc's function `name` with `argtypes`; the result is its int, -1 with errno set on failure."""
    function = _libc[name]
    function.argtypes = argtypes  # type: ignore[assignment]
    function.restype = ctypes.c_int

    def call(*args: object) -> int:
        return int(function(*args))

    return call


def check(result: int, call: str, path: str | bytes | int | None = None) -> int:
    """Return `result`, or raise OSError(errno, "call: text", path) where it says that the call failed."""
    if result < 0:
        code = ctypes.get_errno()
        name = os.fsdecode(path) if isinstance(path, bytes) else path
        raise OSError(code, f"{call}: {os.strerror(code)}", name)
    return result
