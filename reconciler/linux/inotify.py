"""inotify(7): waiting for files to change without asking again and again.

One function per call; the events themselves are read with os.read, which the descriptor allows as any other.
"""

import ctypes
import os
import struct
from collections.abc import Iterator

from reconciler.linux.syscall import bind_libc, check

IN_MODIFY = 0x00000002
IN_CLOSE_WRITE = 0x00000008
IN_MOVED_FROM = 0x00000040
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000
IN_MASK_ADD = 0x20000000

_init1 = bind_libc("inotify_init1", ctypes.c_int)
_add_watch = bind_libc("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def inotify_init() -> int:
    """Open a non-blocking, close-on-exec inotify descriptor."""
    return check(_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Report events of `mask` on `path`; ENOSPC when the user's watches are used up."""
    return check(_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch", path)


def inotify_events(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the watch and the mask of each event in `data`, what one read(2) has given."""
    at = 0
    while at < len(data):
        watch, mask, _, length = struct.unpack_from("iIII", data, at)
        yield watch, mask
        at += 16 + length
