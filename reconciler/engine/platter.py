"""Reads files from the disk itself, past the page cache: what is in memory may be right while the disk is not.

It also leaves the cache to those who run. A file system that has no direct reads (tmpfs) is read as usual.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from typing import Final

_BUFFER: Final = 256 << 10
_BLOCK: Final = 4096  # the largest that a direct read may have to be a multiple of


class Platter:
    """A buffer for direct reads; not for two threads at once."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BUFFER)  # begins on a page, as direct reads want it

    def read(self, fd: int, take: Callable[[memoryview], object], told: Callable[[int], object]) -> None:
        """Give `take` everything in the file `fd`, from its start, piece by piece; `told` hears of each size after it.

        `fd` is left as a descriptor for direct reads. Raises OSError, EIO among it.
        """
        _set_direct(fd, wanted=True)
        view = memoryview(self._memory)
        at = 0
        try:
            while size := self._some(fd, view, at):
                take(view[:size])
                at += size
                told(size)
                if size % _BLOCK:
                    return  # the end, from where no direct read is possible
        finally:
            view.release()

    def _some(self, fd: int, view: memoryview, at: int) -> int:
        try:
            return os.preadv(fd, [view], at)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Not a whole block further on, as compressing file systems have it: through the cache, and out of it again
        _set_direct(fd, wanted=False)
        size = os.preadv(fd, [view], at)
        os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)
        return size


def _set_direct(fd: int, *, wanted: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
