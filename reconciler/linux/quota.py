"""Project quotas: the project of a file, and what a file system counts and allows per project (ext4, xfs, f2fs).

One function per call; it decides nothing. A limit holds for nobody who has CAP_SYS_RESOURCE in the first user
namespace, on file systems that keep quotas the VFS way (fs/quota/dquot.c, ignore_hardlimit); xfs makes no exception.
"""

import ctypes
import fcntl
import struct

from reconciler.linux.syscall import bind, check

# linux/fs.h: _IOR('X', 31, struct fsxattr) and _IOW('X', 32, struct fsxattr); 28 bytes on every architecture
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FSXATTR = struct.Struct("=IIIII8s")  # xflags, extsize, nextents, projid, cowextsize, pad
_XFLAG_PROJINHERIT = 0x200

# linux/quota.h, linux/dqblk_xfs.h. A command is shifted past the eight bits of the type of quota.
_PRJQUOTA = 2
_Q_GETQUOTA = 0x800007 << 8 | _PRJQUOTA
_Q_SETQUOTA = 0x800008 << 8 | _PRJQUOTA
_Q_XGETQSTAT = 0x5805 << 8 | _PRJQUOTA
_QIF_BLIMITS = 1
_BLOCK = 1024  # QIF_DQBLKSIZE: the unit of limits, whatever the file system's blocks are
_PDQ_ACCT = 1 << 4
_PDQ_ENFD = 1 << 5


class _Dqblk(ctypes.Structure):
    """struct if_dqblk"""

    _fields_ = (
        ("bhardlimit", ctypes.c_uint64),
        ("bsoftlimit", ctypes.c_uint64),
        ("curspace", ctypes.c_uint64),
        ("ihardlimit", ctypes.c_uint64),
        ("isoftlimit", ctypes.c_uint64),
        ("curinodes", ctypes.c_uint64),
        ("btime", ctypes.c_uint64),
        ("itime", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    )


class _Qstat(ctypes.Structure):
    """struct fs_quota_stat; only the flags are read, the rest is room."""

    _fields_ = (("version", ctypes.c_int8), ("flags", ctypes.c_uint16), ("rest", ctypes.c_uint64 * 12))


_quotactl_fd = bind("quotactl_fd", ctypes.c_int, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


def get_project(fd: int) -> tuple[int, bool]:
    """Read the project of the open file or directory, 0 for none, and whether what is made in it gets the same.

    ENOTTY or EOPNOTSUPP where the file system has no such attributes.
    """
    value = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, value)
    flags, _, _, project, _, _ = _FSXATTR.unpack(value)
    return project, bool(flags & _XFLAG_PROJINHERIT)


def set_project(fd: int, project: int, *, inherit: bool) -> None:
    """Give the open file or directory a project; with `inherit` a directory hands it on to what is made in it.

    EOPNOTSUPP where the file system was made without projects. Not atomic beside another change of the attributes.
    """
    value = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, value)
    flags, extsize, extents, _, cow, pad = _FSXATTR.unpack(value)
    flags = flags | _XFLAG_PROJINHERIT if inherit else flags & ~_XFLAG_PROJINHERIT
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(flags, extsize, extents, project, cow, pad))


def state(fd: int) -> tuple[bool, bool]:
    """Whether the file system of `fd` counts what projects use, and whether it enforces their limits.

    ENOSYS where it does neither, or has no quotas.
    """
    found = _Qstat()
    check(_quotactl_fd(fd, _Q_XGETQSTAT, 0, ctypes.addressof(found)), "quotactl_fd")
    return bool(found.flags & _PDQ_ACCT), bool(found.flags & _PDQ_ENFD)


def get_limit(fd: int, project: int) -> tuple[int, int, int]:
    """Read the limit in bytes (0 for none), the use in bytes and the inodes of `project` on the file system of `fd`.

    ESRCH where quotas are off. A project that nobody has ever used has zeros.
    """
    found = _Dqblk()
    try:
        check(_quotactl_fd(fd, _Q_GETQUOTA, project, ctypes.addressof(found)), "quotactl_fd")
    except FileNotFoundError:
        return 0, 0, 0  # xfs: no record of this project yet
    return found.bhardlimit * _BLOCK, found.curspace, found.curinodes


def set_limit(fd: int, project: int, limit: int) -> None:
    """Have the file system of `fd` give `project` no more than `limit` bytes, rounded up to 1 KiB; 0 lifts the limit.

    Less than what is in use is allowed: then no block is added until enough are given back.
    """
    wanted = _Dqblk(bhardlimit=-(-limit // _BLOCK), valid=_QIF_BLIMITS)
    check(_quotactl_fd(fd, _Q_SETQUOTA, project, ctypes.addressof(wanted)), "quotactl_fd")
