"""The file of events, as all who write it write it: the agent, and the shims for what is run beside a container.

Writers know nothing of each other. A line is one write with O_APPEND, which the kernel makes whole; only the change to
a new file wants a lock, which nobody waits for: whoever does not get it writes to the file as it is.
"""

import errno
import fcntl
import os

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 4  # files that others have put there between our look and our lock


def append(path: str, line: bytes, half: int) -> None:
    """Append `line`, with its newline, to the file at `path`, which becomes PATH.1 where it would be over `half` bytes.

    Raise OSError where nothing was written: EFBIG where somebody holds the lock for so long that the file would be
    over twice that. A last line that was cut off is closed first.
    """
    for _ in range(_ATTEMPTS):
        fd = os.open(path, _FLAGS, 0o600)
        try:
            size = os.fstat(fd).st_size
            if not size or size + len(line) <= half:
                _write(fd, line, size)
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if size + len(line) > 2 * half:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path) from None
                _write(fd, line, size)
                return
            if _is(path, fd):  # else somebody has just moved it away, and this is no longer the file
                os.rename(path, path + ".1")
        finally:
            os.close(fd)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def _write(fd: int, line: bytes, size: int) -> None:
    if size and os.pread(fd, 1, size - 1) != b"\n":
        line = b"\n" + line  # the last writer was cut off in the middle of a line
    if os.write(fd, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is(path: str, fd: int) -> bool:
    try:
        there, mine = os.lstat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
