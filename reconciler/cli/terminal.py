"""A terminal for a command in a container: the operator's is put into raw mode and joined to one made inside.

The two are different devices; only bytes and the window's size pass between them.
"""

import fcntl
import os
import select
import signal
import struct
import sys
import termios
import tty
from collections.abc import Callable

from reconciler.engine.control import Command, Control, Execution

_CHUNK = 65536


def window_size() -> tuple[int, int]:
    """Rows and columns of the operator's terminal."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return rows or 24, columns or 80


def attach(control: Control, command: Command, *, interactive: bool) -> int:
    """Run `command` on a terminal of its own and return its exit code; the operator's terminal is put back after."""
    rows, columns = window_size()
    with control.execute_terminal(command, rows, columns) as execution:
        assert execution.master is not None
        warn(execution)
        resized, notify = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = signal.signal(signal.SIGWINCH, lambda *_: None)
        wakeup = signal.set_wakeup_fd(notify)
        modes = termios.tcgetattr(0)
        try:
            tty.setraw(0)
            poll = select.poll()
            poll.register(execution.master, select.POLLIN)
            poll.register(resized, select.POLLIN)
            if interactive:
                poll.register(0, select.POLLIN)
            _join(poll, execution.master, resized, lambda: execution.resize(*window_size()))
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGWINCH, before)
            os.close(resized)
            os.close(notify)
        return execution.wait()


def warn(execution: Execution) -> None:
    """Say that what runs now is not in the log of events: a full disk must stop nobody who has come to free it."""
    if execution.unrecorded:
        print(f"reconciler: exec: no event was recorded: {execution.unrecorded}", file=sys.stderr)


def _join(poll: "select.poll", master: int, resized: int, resize: Callable[[], None]) -> None:
    """Copy both ways until the terminal inside is closed by its last user."""
    while True:
        for fd, _ in poll.poll():
            if fd == resized:
                os.read(resized, 4096)
                resize()
            elif fd == master:
                try:
                    data = os.read(master, _CHUNK)
                except OSError:  # EIO: no process has the other side open any more
                    return
                if not data:
                    return
                _write(1, data)
            else:
                data = os.read(0, _CHUNK)
                if data:
                    _write(master, data)
                else:
                    poll.unregister(0)
                    _write(master, b"\x04")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
