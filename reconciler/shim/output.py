"""A container's output on its way to the log: pipes or a terminal, pumped whenever they have something.

The pump never waits for anything but more output. When a log is a flood it lets the pipes fill for some milliseconds
between two rounds, so that the cost is by the megabyte and not by the line; idle, it does nothing at all.
"""

import os
import select
import sys
import time

from reconciler.shim import compress
from reconciler.shim.journal import Journal
from reconciler.shim.logfile import PIPE_SIZE, Discard, LogFile, pipe
from reconciler.shim.logindex import STDERR, STDOUT

_QUICK = 0.005  # seconds between two rounds of one pipe, below which its output is a flood ...
_NAP = 0.003  # ... and waiting this long makes the next round worth its cost

Log = tuple[str, int, int, int, bool]  # directory, sequence number, max_size, max_files, compress


class Output:
    """Stdout and stderr of one container.

    `epoll` watches what `outputs` begins with already; `log` and `outputs` are the maker's: directory, sequence number
    and rotation of the log; descriptors of a terminal's master, of stdout and stderr, of the log's directory, the log
    and its index, -1 for what there is not. Of the journal there is its socket in the place of the directory, and the
    directory's name is three lines: the socket's path, the container's name and id.
    """

    log: LogFile | Discard | Journal
    terminal: int  # its master, -1 where there is none, or nobody has it open any more

    def __init__(self, epoll: select.epoll, log: Log, outputs: list[int]) -> None:
        self._epoll = epoll
        self._path, sequence, size, files, compressing = log
        self.terminal, stdout, stderr, directory, data, index = outputs
        self._pumped = {STDOUT: 0.0, STDERR: 0.0}
        self._pipes: dict[int, int] = {}  # read end: stream
        self._feed = -1
        self._compressor = (0, -1)
        if directory >= 0 and data < 0:
            self.log = Journal(directory, *self._path.split("\n"))
        elif directory >= 0:
            opened = (directory, data, index, sequence)
            self.log = LogFile(opened, max_size=size, max_files=files, compress=self._compress)
            self.log.configure(size, files, compressing)
        else:
            self.log = Discard()
        if self.terminal >= 0:  # the log takes from pipes, so a terminal's output goes through one
            stdout, self._feed = pipe()
        for reader, stream in ((stdout, STDOUT), (stderr, STDERR)):
            if reader >= 0:
                self._pipes[reader] = stream

    def ready(self, fd: int) -> None:
        """Take what there is at `fd`, which is readable."""
        if fd in self._pipes:
            self._pump(fd)
        elif fd == self.terminal:
            self._pump_terminal()
        elif fd == self._compressor[1]:
            self._compressed()

    def finish(self) -> None:
        """The container has ended: take what is left and close the log."""
        for _ in range(64):
            if self.terminal < 0:
                break
            self._pump_terminal()
        for reader in tuple(self._pipes):
            self._drain(reader)
        if self._compressor[0]:  # the plain file stays
            os.kill(self._compressor[0], 9)
            self._compressed()
        self.log.close()

    def counts(self) -> tuple[int, int, int, int]:
        """Bytes of stdout and stderr, bytes dropped, and the errno of the last write that failed or 0."""
        return self.log.bytes[STDOUT], self.log.bytes[STDERR], self.log.dropped, self.log.error

    def _pump(self, reader: int) -> None:
        stream = self._pipes[reader]
        if time.monotonic() - self._pumped[stream] < _QUICK:
            time.sleep(_NAP)
        try:
            count = self.log.take(reader, stream)
        except BlockingIOError:
            return
        self._pumped[stream] = time.monotonic()
        if not count:
            self._epoll.unregister(reader)
            del self._pipes[reader]
            os.close(reader)

    def _pump_terminal(self) -> None:
        try:
            data = os.read(self.terminal, 16384)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._epoll.unregister(self.terminal)
            os.close(self.terminal)
            self.terminal = -1
            return
        # The pipe is empty here, and never smaller than this: nothing blocks and nothing is cut short.
        os.write(self._feed, data)
        for reader in tuple(self._pipes):
            self._drain(reader)

    def _drain(self, reader: int) -> None:
        """Take what a pipe holds now. What a writer outside of the container adds meanwhile has an end, too."""
        taken = 0
        while taken < 2 * PIPE_SIZE:
            try:
                count = self.log.take(reader, self._pipes[reader])
            except BlockingIOError:
                return
            if not count:
                return
            taken += count

    def _compress(self, sequences: list[int]) -> None:
        """Have these rotated files compressed, one compressor at a time: the next rotation asks again."""
        if self._compressor[0]:
            return
        try:
            pid = compress.spawn(self._path, sequences)
        except OSError as error:
            print(f"reconciler shim {os.getpid()}: compress: {error}", file=sys.stderr, flush=True)
            return
        pidfd = os.pidfd_open(pid)
        self._compressor = (pid, pidfd)
        self._epoll.register(pidfd, select.EPOLLIN)

    def _compressed(self) -> None:
        pid, pidfd = self._compressor
        os.waitpid(pid, 0)
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        self._compressor = (0, -1)
