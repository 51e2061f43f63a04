"""Standard streams for a command in a container: none of the operator's terminals ever gets in.

A program inside could type into the operator's terminal (TIOCSTI) or change its modes, and it could open a file again
through /proc/self/fd: for writing where it was given for reading. So only pipes and sockets are handed over as they
are; for anything else a pipe takes its place and a thread copies.
"""

import os
import stat
import sys
import threading
from contextlib import ExitStack

_CHUNK = 65536


def standard(stack: ExitStack, *, interactive: bool) -> tuple[int, int, int]:
    """Descriptors for stdin, stdout and stderr of the command. Leaving `stack` waits for what is still to be copied."""
    if not interactive:
        stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, stdin)
    elif not _may_enter(0):
        read, write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, read)
        threading.Thread(target=_copy, args=(0, write, True), daemon=True).start()
        stdin = read
    else:
        stdin = 0
    return stdin, _out(stack, 1), _out(stack, 2)


def _may_enter(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _out(stack: ExitStack, fd: int) -> int:
    if _may_enter(fd):
        (sys.stdout if fd == 1 else sys.stderr).flush()
        return fd
    read, write = os.pipe2(os.O_CLOEXEC)
    copier = threading.Thread(target=_copy, args=(read, fd, False), daemon=True)
    copier.start()
    stack.callback(os.close, read)
    stack.callback(copier.join, 5)
    stack.callback(os.close, write)
    return write


def _copy(source: int, target: int, close: bool) -> None:
    """Copy until the end of file, or until nobody reads any more."""
    try:
        while data := os.read(source, _CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    except OSError:
        pass  # the other end has gone: there is nothing left to do
    finally:
        if close:
            os.close(target)
