"""Mounts: mount(2), umount2(2), pivot_root(2) and the descriptor-based interface of Linux 5.2 to 5.12.

One function per call; the flags are the kernel's own. Which of them a mount needs is the caller's decision.
"""

import ctypes
import os

from reconciler.linux.syscall import bind, bind_libc, check

AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_RDONLY = 0x01
MS_NOSUID = 0x02
MS_NODEV = 0x04
MS_NOEXEC = 0x08
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_mount = bind_libc(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
)
_umount2 = bind_libc("umount2", ctypes.c_char_p, ctypes.c_int)
_pivot_root = bind("pivot_root", ctypes.c_char_p, ctypes.c_char_p)
_open_tree = bind("open_tree", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = bind("move_mount", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_fsopen = bind("fsopen", ctypes.c_char_p, ctypes.c_uint)
_fsconfig = bind("fsconfig", ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_fsmount = bind("fsmount", ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
_mount_setattr = bind(
    "mount_setattr",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.POINTER(_MountAttr),
    ctypes.c_size_t,
)


def mount(source: str, target: str, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2): `options` may be as long as one page less a byte."""
    args = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype), flags, os.fsencode(options))
    check(_mount(*args), "mount", target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check(_umount2(os.fsencode(target), flags), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); `.` twice stacks the old root over the new one, to be detached at once."""
    check(_pivot_root(os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def open_tree(dir_fd: int, path: str = "", flags: int = OPEN_TREE_CLONE) -> int:
    """Open, or with OPEN_TREE_CLONE copy, the mount at `path`; an empty path means `dir_fd` itself."""
    if not path:
        flags |= AT_EMPTY_PATH
    return check(_open_tree(dir_fd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC), "open_tree", path)


def move_mount(tree_fd: int, target_fd: int, target: str = "") -> None:
    """Attach the mount `tree_fd` on `target`, or with an empty path on `target_fd` itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    check(_move_mount(tree_fd, b"", target_fd, os.fsencode(target), flags), "move_mount", target)


def fsopen(fstype: str) -> int:
    """Open a configuration context for a new file system of `fstype`; ENODEV where the kernel has none."""
    return check(_fsopen(os.fsencode(fstype), FSOPEN_CLOEXEC), "fsopen", fstype)


def fsconfig_string(context: int, key: str, value: str) -> None:
    """Set an option; the kernel takes at most 255 bytes (fs/fsopen.c, strndup_user)."""
    code = _fsconfig(context, FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value), 0)
    check(code, f"fsconfig {key}", value)


def fsconfig_flag(context: int, key: str) -> None:
    """Set an option without a value."""
    check(_fsconfig(context, FSCONFIG_SET_FLAG, os.fsencode(key), None, 0), f"fsconfig {key}")


def fsconfig_fd(context: int, key: str, fd: int) -> None:
    """Set an option to an open descriptor (overlay's layers: since 6.13)."""
    check(_fsconfig(context, FSCONFIG_SET_FD, os.fsencode(key), None, fd), f"fsconfig {key}")


def fsconfig_create(context: int) -> None:
    """Make the superblock."""
    check(_fsconfig(context, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig create")


def fsmount(context: int, attributes: int = 0) -> int:
    """Make a detached mount with MOUNT_ATTR_* `attributes` of what `context` created."""
    return check(_fsmount(context, FSMOUNT_CLOEXEC, attributes), "fsmount")


def context_messages(context: int) -> str:
    """Read what the kernel has to say about a failed fsconfig: its own words, or nothing."""
    lines = []
    while True:
        try:
            line = os.read(context, 1024)
        except OSError:
            break
        if not line:
            break
        lines.append(line.decode(errors="replace").strip())
    return "; ".join(lines)


def mount_setattr(
    fd: int,
    path: str = "",
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns: int = 0,
) -> None:
    """Change a mount's attributes and propagation, of the whole tree at once where `recursive`; since 5.12.

    `userns` is the descriptor of the user namespace whose mapping MOUNT_ATTR_IDMAP takes.
    """
    attr = _MountAttr(set_, clear, propagation, userns)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    args = (fd, os.fsencode(path), flags, ctypes.byref(attr), ctypes.sizeof(attr))
    check(_mount_setattr(*args), "mount_setattr", path)
