"""Standing in the foreground for a container's program: signals, a terminal's bytes and its window, the exit code.

Only for `run` and `exec` without --detach: conmon and containerd's shim do all of this themselves.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty

from reconciler.linux import process

_PASSED = frozenset(
    (
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
        *(signal.SIGCONT, signal.SIGTSTP, signal.SIGWINCH),
    )
)
_LARGEST = 65536


class Foreground:
    """Made before the process is: from then on signals wait to be passed on."""

    def __init__(self, *, terminal: bool) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
        self._signals = process.signalfd(_PASSED)
        self._ours: socket.socket | None = None
        self.theirs: socket.socket | None = None
        if terminal:
            self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @property
    def console(self) -> int:
        """The descriptor for the terminal's master, the caller's to close; -1 without one."""
        return os.dup(self.theirs.fileno()) if self.theirs is not None else -1

    def wait(self, pid: int, pidfd: int) -> int:
        """Stand in for the process until it ends; give its exit code, 128 and the signal where one ended it."""
        master = -1
        if self._ours is not None and self.theirs is not None:
            self.theirs.close()
            _, fds, _, _ = socket.recv_fds(self._ours, 64, 1, socket.MSG_CMSG_CLOEXEC)
            master = fds[0]
        before = _raw(0) if master >= 0 and os.isatty(0) else None
        try:
            if master >= 0:
                _resize(master)
            self._pass(pidfd, master)
        finally:
            if before is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _pass(self, pidfd: int, master: int) -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        if master >= 0:
            poll.register(master, select.POLLIN)
            poll.register(0, select.POLLIN)
        open_ = master >= 0
        while True:
            ready = dict(poll.poll())
            if self._signals in ready:
                self._forward(pidfd, master)
            if 0 in ready:
                data = os.read(0, _LARGEST)
                if data:
                    _write(master, data)
                else:
                    poll.unregister(0)
                    _write(master, b"\x04")
            if open_ and master in ready:
                open_ = _copy(master)
                if not open_:
                    poll.unregister(master)
            elif pidfd in ready:
                return

    def _forward(self, pidfd: int, master: int) -> None:
        data = os.read(self._signals, process.SIGNALFD_SIGINFO_SIZE)
        number = struct.unpack_from("I", data)[0]
        if number == signal.SIGWINCH and master >= 0:
            _resize(master)
            return
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass


def _copy(master: int) -> bool:
    """Pass on what the terminal shows; False at its end, which is EIO once nobody has it open."""
    try:
        data = os.read(master, _LARGEST)
    except OSError:
        return False
    _write(1, data)
    return bool(data)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _raw(fd: int) -> list[int | list[bytes | int]]:
    before: list[int | list[bytes | int]] = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what has been typed already is for the program
    return before


def _resize(master: int) -> None:
    for fd in (0, 1, 2):
        if os.isatty(fd):
            window = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(master, termios.TIOCSWINSZ, window)
            return
