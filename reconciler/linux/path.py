"""Paths and files as the kernel offers them beyond the standard library: openat2, renameat2, fstatfs, syncfs, seals.

One function per call. Which restrictions a path needs is the caller's decision.
"""

import ctypes
import fcntl
import os

from reconciler.linux.syscall import bind, bind_libc, check

# openat2(2), since 5.6
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

AT_FDCWD = -100

# statfs.f_type, linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
TMPFS_MAGIC = 0x01021994
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
OVERLAYFS_SUPER_MAGIC = 0x794C7630
NSFS_MAGIC = 0x6E736673

SEAL_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Statfs(ctypes.Structure):
    """struct statfs of 64-bit Linux; only the type is read, the rest is room."""

    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


_openat2 = bind("openat2", ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
_renameat2 = bind("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_fstatfs = bind_libc("fstatfs", ctypes.c_int, ctypes.POINTER(_Statfs))
_syncfs = bind_libc("syncfs", ctypes.c_int)


def openat2(dir_fd: int, path: str | bytes, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Open `path` relative to `dir_fd` under the RESOLVE_* restrictions; the descriptor is close-on-exec.

    EAGAIN is retried: the kernel gives it for RESOLVE_IN_ROOT and RESOLVE_BENEATH when a rename elsewhere raced with a
    `..` of this path (openat2(2), ERRORS).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for _ in range(64):
        result = _openat2(dir_fd, name, ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0 or ctypes.get_errno() != 11:
            break
    return check(result, "openat2", name)


def renameat2(old_dir: int, old: str, new_dir: int, new: str, flags: int) -> None:
    """Rename with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    check(_renameat2(old_dir, os.fsencode(old), new_dir, os.fsencode(new), flags), "renameat2", new)


def filesystem_type(fd: int) -> int:
    """Give the magic number of the file system that `fd` is on (an O_PATH descriptor will do)."""
    buffer = _Statfs()
    check(_fstatfs(fd, ctypes.byref(buffer)), "fstatfs")
    return int(buffer.f_type) & 0xFFFFFFFF


def syncfs(fd: int) -> None:
    """Write out the whole file system that `fd` is on; since 5.8 a write-back error is reported."""
    check(_syncfs(fd), "syncfs")


def seal(fd: int, seals: int = SEAL_ALL) -> None:
    """Add `seals` to a memfd made with MFD_ALLOW_SEALING: from then on nobody can change its content."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def seals(fd: int) -> int:
    """Give the seals of `fd`; OSError(EINVAL) where its file can't be sealed at all."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
