"""The shim: holds one container's output and records how it ended, whatever becomes of agent and zygote.

One per container, forked from the zygote, single-threaded, blocked in epoll: idle it wakes up for nothing. Its life:

  create    a maker (shim.maker) makes the container and hands over its descriptors; shim.json is written
  start     the child executes the program; shim.json gains the time
  exit      output drained, log closed, exit.json renamed into place, and only then the shim exits

A failure before the program was executed is told to whoever asked, and leaves no exit.json: there was no run to record.
The same holds for a container that was created and killed before its start. cgroups are the agent's; the shim removes
nothing but its socket.

There are as many shims as containers, so this file does as little as can be in Python: whatever a shim runs or parses,
it keeps in memory. Making a container, and each connection to the control socket, is a fork that goes away again.
"""

import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from reconciler.linux import process
from reconciler.shim import clerk, maker, oom, protocol, record
from reconciler.shim.output import Output

_CLERKS = 64
_IMPORTANCE = b"-999"


def run(bundle: str, directory: str, answer: socket.socket, area: tuple[int, int]) -> int:
    """Be the shim of the container in `bundle`, with run directory `directory`, until it has ended; give a status.

    `answer` gets shim and init with their descriptors, or the error.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # at a shutdown the container's output is still wanted
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        finish(lambda: maker.make(bundle, directory, answer, theirs, area))
    theirs.close()
    answer.close()
    received = protocol.receive_values(ours)
    ours.close()
    os.waitpid(pid, 0)
    if received is None:
        _reap()
        return 1
    made: maker.Made = marshal.loads(received[0])
    Monitor(made, received[1], area).serve()
    return 0


def finish(work: Callable[[], int]) -> None:
    """End this process with the status that `work` gives, or with 70 after saying why."""
    status = 70
    try:
        status = work()
    except BaseException as error:  # noqa: BLE001 - nobody is left to catch it
        print(describe(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def describe(error: BaseException) -> str:
    """Put a crash into a few lines. (The traceback module would be loaded into every shim.)"""
    lines = [f"reconciler shim {os.getpid()}: {type(error).__name__}: {error}"]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "\n".join(lines)


def _reap() -> None:
    """Reap what the maker left: the container's first process is this process's child."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


class Monitor:
    """One container that has been made. The arguments are what the maker sends."""

    def __init__(self, made: maker.Made, fds: list[int], area: tuple[int, int]) -> None:
        name, self._identity, self._cgroups, self._killed, log, there = made
        every = [fds.pop(0) if present else -1 for present in there]
        self._pidfd, self._go, self._error, listener, self._run, self._bundle, *outputs = every
        self._listener = socket.socket(fileno=listener)
        self._phase = "created"
        self._started = (0.0, 0.0)
        self._waiting: list[socket.socket] = []  # clerks whose clients wait for the start
        self._clerks: dict[socket.socket, int] = {}
        self._handlers: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._ended = False
        self._output = Output(self._watch, self._unwatch, log, outputs)
        self._become_important()
        process.set_title(area, f"reconciler shim {name}")

    def _become_important(self) -> None:
        """Let the kernel look elsewhere when memory runs out. Not before the container has a value of its own."""
        try:
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, _IMPORTANCE)
            finally:
                os.close(fd)
        except OSError:
            pass  # no CAP_SYS_RESOURCE: `doctor` tells; the shim is small

    # --- the loop -------------------------------------------------------------------------------------------------
    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def serve(self) -> None:
        """Run until the container has ended and its record is there."""
        self._watch(self._pidfd, self._exited)
        self._watch(self._error, self._executed)
        self._watch(self._listener.fileno(), self._accept)
        while not self._ended:
            for fd, _ in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is not None:  # an earlier handler of this round may have closed it
                    handler()

    # --- control --------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors
        if len(self._clerks) >= _CLERKS:
            client.close()
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            for end in (client, ours, theirs):
                end.close()
            return
        if pid == 0:
            place = (self._identity[2], self._pidfd, self._bundle)
            finish(lambda: clerk.serve(client, theirs, place, self._cgroups))
        client.close()
        theirs.close()
        self._clerks[ours] = pid
        self._watch(ours.fileno(), lambda: self._asked(ours))

    def _asked(self, end: socket.socket) -> None:
        try:
            received = protocol.receive_values(end)
        except OSError:
            received = None
        if received is None:
            self._dismiss(end)
            return
        question: tuple[object, ...] = marshal.loads(received[0])
        match question:
            case ("start",) if self._phase in ("created", "starting"):
                self._waiting.append(end)
                self._start()
            case ("logging", int(size), int(files), bool(compress)):
                self._output.log.configure(size, files, compress)
                self._reply(end, (True,))
            case _:
                self._reply(end, (self._phase, *self._output.counts()))

    def _dismiss(self, end: socket.socket) -> None:
        self._unwatch(end.fileno())
        end.close()
        if end in self._waiting:
            self._waiting.remove(end)
        os.waitpid(self._clerks.pop(end), 0)

    @staticmethod
    def _reply(end: socket.socket, values: tuple[object, ...]) -> None:
        try:
            protocol.send_values(end, values)
        except OSError:
            pass  # the clerk died; the end of its channel is about to tell

    # --- start and exit -------------------------------------------------------------------------------------------
    def _start(self) -> None:
        if self._phase == "created":
            self._phase = "starting"
            try:
                os.write(self._go, b"g")
            except BrokenPipeError:
                pass  # the child died; its pidfd is about to tell

    def _executed(self) -> None:
        """The error pipe has closed: the program runs, or a line says why it does not, or the child was killed."""
        line = b""
        while chunk := os.read(self._error, 65536):
            line += chunk
        self._unwatch(self._error)
        os.close(self._error)
        os.close(self._go)
        self._error = self._go = -1
        if self._phase == "starting" and not line:
            self._phase = "running"
            self._started = (record.boottime(), time.time())
            self._write(record.SHIM, record.shim(self._identity, *self._started))
        else:
            self._phase = "failed"
        for end in self._waiting:
            self._reply(end, (self._phase, line))
        self._waiting = []

    def _exited(self) -> None:
        if self._error >= 0:
            self._executed()
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        finished = (record.boottime(), time.time())
        self._output.finish()
        if result is not None and self._phase == "running":
            normal = result.si_code == os.CLD_EXITED
            self._write(
                record.EXIT,
                record.exit(
                    self._identity[4],
                    result.si_status if normal else None,
                    None if normal else result.si_status,
                    oom.count(self._cgroups) > self._killed,
                    self._started,
                    finished,
                ),
            )
        try:
            os.unlink(record.SOCKET, dir_fd=self._run)
        except OSError:
            pass  # the directory is gone already
        self._ended = True

    def _write(self, name: str, text: str) -> None:
        try:
            record.replace(self._run, name, text)
        except (
            OSError
        ) as error:  # the run directory is gone, or full: without the record the container counts as lost
            print(f"reconciler shim {os.getpid()}: {name}: {error}", file=sys.stderr, flush=True)
