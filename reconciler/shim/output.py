"""A container's output on its way to the log: pipes or a terminal, pumped whenever they have something.

The pump never waits for anything but more output. When a log is a flood it lets the pipes fill for some milliseconds
between two rounds, so that the cost is by the megabyte and not by the line; idle, it does nothing at all.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from reconciler.shim import compress
from reconciler.shim.fields import PREFIX, ConfigError, Section, annotation
from reconciler.shim.logfile import PIPE_SIZE, Discard, LogFile
from reconciler.shim.logindex import STDERR, STDOUT
from reconciler.shim.step import Step, StepError

_QUICK = 0.005  # seconds between two rounds of one pipe, below which its output is a flood ...
_NAP = 0.003  # ... and waiting this long makes the next round worth its cost


class Output:
    """Stdout and stderr of one container. `watch` and `unwatch` are the event loop's."""

    def __init__(
        self, watch: Callable[[int, Callable[[], None]], None], unwatch: Callable[[int], None]
    ) -> None:
        self.log: LogFile | Discard = Discard()
        self._watch = watch
        self._unwatch = unwatch
        self._directory = ""
        self._pumped = {STDOUT: 0.0, STDERR: 0.0}
        self._pipes: dict[int, int] = {}  # read end: stream
        self._terminal = -1
        self._feed = -1
        self._compressor = (0, -1)

    def open(self, config: dict[str, object]) -> None:
        """Open the log that annotation `dev.reconciler.log` asks for; without one the output is discarded."""
        wanted = annotation(Section(config, "annotations"), "log")
        section = Section({"log": wanted}, "log", f"annotations.{PREFIX}log")
        driver = section.text("driver") or ("file" if section.values else "none")
        if driver == "none":
            return
        if driver != "file":
            raise ConfigError(f"{section.name}.driver: {driver}: expected file or none")
        self._directory = section.text("directory")
        if not self._directory.startswith("/"):
            raise ConfigError(f"{section.name}.directory: expected an absolute path")
        sizes = section.number("max_size"), section.number("max_files")
        with Step("log", self._directory):
            log = LogFile(self._directory, max_size=sizes[0], max_files=sizes[1], compress=self._compress)
        log.configure(*sizes, section.flag("compress"))
        self.log.close()
        self.log = log

    def stdio(self, terminal: bool) -> tuple[int, int, int]:
        """Open what the program gets as descriptors 0 to 2; nothing that matters where it has a terminal."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if terminal:
            return null, null, null
        return null, self._pipe(STDOUT), self._pipe(STDERR)

    def take_terminal(self, console: socket.socket) -> None:
        """Receive the terminal's master. Its output goes through a pipe, because the log takes from pipes."""
        with Step("console"):
            _, fds, _, _ = socket.recv_fds(console, 64, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        if len(fds) != 1:
            raise StepError("console", "", 0, "no terminal came")
        self._terminal = fds[0]
        os.set_blocking(self._terminal, False)
        self._feed = self._pipe(STDOUT)
        self._watch(self._terminal, self._pump_terminal)

    def finish(self) -> None:
        """The container has ended: take what is left and close the log."""
        for _ in range(64):
            if self._terminal < 0:
                break
            self._pump_terminal()
        for reader in tuple(self._pipes):
            self._drain(reader)
        self.close()

    def close(self) -> None:
        """Close the log; a compressor that is under way is killed, the plain file stays."""
        if self._compressor[0]:
            os.kill(self._compressor[0], signal.SIGKILL)
            self._compressed()
        self.log.close()

    def counts(self) -> dict[str, object]:
        """Bytes by stream, bytes dropped, and the errno of the last write that failed or 0."""
        return {
            "stdout": self.log.bytes[STDOUT],
            "stderr": self.log.bytes[STDERR],
            "dropped": self.log.dropped,
            "error": self.log.error,
        }

    def _pipe(self, stream: int) -> int:
        """Open the pipe of a stream and give its write end."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        try:
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except PermissionError:
            pass  # fs.pipe-max-size is lower: more rounds, the same log
        self._pipes[reader] = stream
        self._watch(reader, lambda: self._pump(reader))
        return writer

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
            self._unwatch(reader)
            del self._pipes[reader]
            os.close(reader)

    def _pump_terminal(self) -> None:
        try:
            data = os.read(self._terminal, 16384)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._unwatch(self._terminal)
            os.close(self._terminal)
            self._terminal = -1
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
        if self._compressor[0]:
            return  # the next rotation asks again
        try:
            pid = compress.spawn(self._directory, sequences)
        except OSError as error:
            print(f"compress: {error}", file=sys.stderr, flush=True)
            return
        pidfd = os.pidfd_open(pid)
        self._compressor = (pid, pidfd)
        self._watch(pidfd, self._compressed)

    def _compressed(self) -> None:
        pid, pidfd = self._compressor
        os.waitpid(pid, 0)
        self._unwatch(pidfd)
        os.close(pidfd)
        self._compressor = (0, -1)
