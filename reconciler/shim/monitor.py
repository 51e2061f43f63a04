"""The shim: holds one container's output and records how it ended, whatever becomes of agent and zygote.

One per container, forked from the zygote, single-threaded, blocked in epoll: idle it wakes up for nothing. Its life:

  create    a maker (shim.maker) makes the container and hands over its descriptors; shim.json is written
  start     the child executes the program; shim.json gains the time
  exit      output drained, log closed, exit.json renamed into place, and only then the shim exits

A failure before the program was executed is told to whoever asked, and leaves no exit.json: there was no run to record.
The same holds for a container that was created and killed before its start. cgroups are the agent's; the shim removes
nothing but its socket.

There are as many shims as containers, so this file does as little as can be in Python: whatever a shim runs or parses,
it keeps in memory. Making a container, and what is asked on the control socket, is for a fork that goes away again. One
request is answered here, where it is nothing but itself: the start, because somebody waits for the program.
"""

import marshal
import os
import select
import sys
import time
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SO_PEERCRED, SOL_SOCKET
from collections.abc import Callable
from signal import SIGKILL

from reconciler.linux import process
from reconciler.shim import channel, oom, record
from reconciler.shim.channel import Channel
from reconciler.shim.output import Log, Output
from reconciler.shim.step import KILLED

TITLE = "reconciler shim"
_CLIENTS = 64
START = b'{"op":"start"}'  # as protocol.send writes it; in any other form it is a clerk's
STARTED = b'{"ok":true}'
_ROOT = b"\0\0\0\0"

# What the maker sends: whether it could write the shim's title, who is who, the cgroups (v2 or "", then v1), how many
# were killed for memory in them, the log, and which of the descriptors are there.
Made = tuple[bool, record.Identity, tuple[str, ...], int, Log, tuple[bool, ...]]
# Serves a client in a fork: the connection, the channel to the monitor, init's pidfd, the bundle, the run directory,
# the end that standard input is written to and the terminal's master or -1; who is who, and the cgroups. It writes
# marshalled tuples to the channel, a question each, and reads the answers: ("phase",) and ("eof",), which closes
# standard input: phase; ("start",): phase, the child's line, the times of the start; ("state",) and ("logging",
# max_size, max_files, compress): phase and the counts of the log.
Clerk = Callable[[tuple[int, ...], record.Identity, tuple[str, ...]], int]


def run(
    make: Callable[[Channel], int], clerk: Clerk, given: tuple[int, Channel, Channel], area: tuple[int, int]
) -> int:
    """Be a shim: have `make` run in a fork, which sends what it made, and stay until the container has ended.

    The result is an exit status. `given` are the descriptor on which only the maker answers and the ends of a channel
    to it, `area` is where the title goes. SIGTERM and the like are ignored already: at a shutdown the container's
    output is still wanted.
    """
    os.setsid()
    answer, ours, theirs = given
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        # A maker without its shim would make a container that is nobody's
        process.set_parent_death_signal(SIGKILL)
        finish(lambda: make(theirs) if os.getppid() == shim else 1)
    theirs.close()
    os.close(answer)
    received = channel.receive(ours)
    ours.close()
    if received is None:
        _reap()
        return 1
    made: Made = marshal.loads(received[0])
    if not made[0]:
        process.set_title(area, TITLE)
    Monitor(made, received[1], clerk, pid).serve()
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
    """Reap the maker and what it left: the container's first process is this process's child."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


class Monitor:
    """One container that has been made: by `maker`, a pid, or 0; the other arguments are what that one sends."""

    __slots__ = (
        "_bundle",
        "_cgroups",
        "_clerk",
        "_clients",
        "_epoll",
        "_error",
        "_go",
        "_identity",
        "_killed",
        "_line",
        "_listener",
        "_log",
        "_maker",
        "_memory",
        "_output",
        "_outputs",
        "_phase",
        "_pidfd",
        "_run",
        "_started",
        "_starters",
        "_stdin",
        "_waiting",
        "clerks",
    )

    def __init__(self, made: Made, fds: list[int], clerk: Clerk, maker: int) -> None:
        _, self._identity, self._cgroups, self._killed, self._log, there = made
        for number, present in enumerate(there):
            if not present:
                fds.insert(number, -1)
        self._pidfd, self._go, self._error, listener, self._run, self._bundle, *fds = fds
        self._memory, self._stdin, *self._outputs = fds
        self._listener = Channel(fileno=listener)
        self._line = b""
        self._clerk = clerk
        self._maker = maker
        self._phase = "created"
        self._started = (0.0, 0.0)
        self._waiting: list[int] = []  # channels to clerks whose clients wait for the start
        self._clients: dict[int, Channel] = {}  # by descriptor: those that have asked for nothing yet
        self._starters: list[Channel] = []  # those that have asked for the start, and are not read yet
        self.clerks: dict[int, int] = {}  # by the descriptor of their channel: the pid
        self._output: Output | None = (
            None  # made when there is some, or somebody asks: many a container is silent
        )
        self._epoll = select.epoll()
        for fd in (self._pidfd, self._error, listener, self._memory, *self._outputs[:3]):
            if fd >= 0:
                self._epoll.register(fd, select.EPOLLIN)

    def serve(self) -> None:
        """Run until the container has ended and its record is there."""
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._pidfd:
                    self._exited()
                    return
                if fd == self._error:
                    self._executed()
                elif fd in self.clerks:
                    self._asked(fd)
                elif fd in self._clients:
                    self._wanted(self._clients.pop(fd))
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd == self._memory:
                    self._starved()
                else:
                    self._pump().ready(fd)

    def _pump(self) -> Output:
        if self._output is None:
            self._output = Output(self._epoll, self._log, self._outputs)
        return self._output

    # --- control --------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        """Take the next client, or hang up where there are too many."""
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return  # gone again, or out of descriptors
        if len(self.clerks) + len(self._clients) + len(self._starters) < _CLIENTS:
            self._await(Channel(fileno=fd))
        else:
            os.close(fd)

    def _await(self, client: Channel) -> None:
        self._clients[client.fileno()] = client
        self._epoll.register(client, select.EPOLLIN)

    def _wanted(self, client: Channel) -> None:
        """Begin the start, if that is what the client wants; leave anything else to a fork, with the request unread."""
        self._epoll.unregister(client)
        try:
            asked = client.recv(len(START) + 1, MSG_PEEK | MSG_DONTWAIT)
            root = client.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8] == _ROOT
        except OSError:
            asked, root = b"", False
        if asked == START and root and self._phase in ("created", "starting"):
            self._starters.append(client)
            self._start()
            return
        if asked:
            self._hire(client.fileno())
        client.close()

    def _start(self) -> None:
        if self._phase == "created":
            self._phase = "starting"
            try:
                os.write(self._go, b"g")
            except BrokenPipeError:
                pass  # the child died; its pidfd is about to tell

    def _hire(self, client: int) -> None:
        """Have a fork serve the client, or nobody where that can't be."""
        terminal = self._outputs[0] if self._output is None else self._output.terminal
        fds = (self._pidfd, self._bundle, self._run, self._stdin, terminal)
        self._fork(lambda channel: self._clerk((client, channel, *fds), self._identity, self._cgroups))

    def _starved(self) -> None:
        """The kernel is about to kill for memory: have a fork see to it that all of the container goes."""
        os.read(self._memory, 8)
        self._fork(lambda _: oom.end_all(self._cgroups, self._killed, self._pidfd))

    def _fork(self, work: Callable[[int], int]) -> None:
        """Do `work` in a fork, which has one end of a channel; not at all where that can't be."""
        try:
            ours, theirs = channel.pair()
            pid = os.fork()
        except OSError:
            return  # out of descriptors or processes
        if pid == 0:
            finish(lambda: work(theirs.fileno()))
        theirs.close()
        fd = ours.detach()
        self.clerks[fd] = pid
        self._epoll.register(fd, select.EPOLLIN)

    def _asked(self, fd: int) -> None:
        try:
            question = os.read(fd, 4096)
        except OSError:
            question = b""  # it was killed
        if question:
            self._answer(fd, marshal.loads(question))
            return
        self._epoll.unregister(fd)
        os.close(fd)
        if fd in self._waiting:
            self._waiting.remove(fd)
        os.waitpid(self.clerks.pop(fd), 0)

    def _answer(self, fd: int, question: tuple[object, ...]) -> None:
        if question[0] == "phase":
            self._tell(fd, (self._phase,))
        elif question[0] == "eof":
            if self._stdin >= 0:
                os.close(self._stdin)
                self._stdin = -1
            self._tell(fd, (self._phase,))
        elif question[0] == "start":
            self._start()
            if self._phase == "starting":
                self._waiting.append(fd)
            else:
                self._tell(fd, (self._phase, self._line, *self._started))
        else:
            pump = self._pump()
            if len(question) == 4:
                pump.log.configure(*question[1:])  # type: ignore[arg-type]
            self._tell(fd, (self._phase, *pump.counts()))

    @staticmethod
    def _tell(fd: int, answer: tuple[object, ...]) -> None:
        try:
            os.write(fd, marshal.dumps(answer))  # type: ignore[arg-type]
        except OSError:
            pass  # the clerk died; the end of its channel is about to tell

    # --- start and exit -------------------------------------------------------------------------------------------
    def _executed(self) -> None:
        """The error pipe has closed: the program runs, or a line says why it does not, or the child was killed.

        Whoever is asked for the start writes it into shim.json, and so does every clerk that is asked again.
        """
        while chunk := os.read(self._error, 4096):
            self._line += chunk
        self._epoll.unregister(self._error)
        os.close(self._error)
        os.close(self._go)
        self._error = self._go = -1
        if self._phase == "starting" and not self._line:
            self._phase = "running"
            self._started = (time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
        else:
            self._phase = "failed"
        for client in self._starters:
            self._report(client)
        for fd in self._waiting:
            self._tell(fd, (self._phase, self._line, *self._started))
        self._starters, self._waiting = [], []
        if self._maker:
            os.waitpid(self._maker, 0)  # here, and not when it has made all: its end takes a millisecond

    def _report(self, client: Channel) -> None:
        """Tell a client that the program runs, or with the child's own line why it does not."""
        answer = STARTED
        try:
            if self._phase == "running":
                record.replace(self._run, record.SHIM, record.shim(self._identity, *self._started))
            else:
                answer = b'{"error":' + (self._line or KILLED) + b"}"
            client.recv(len(START), MSG_DONTWAIT)
            client.send(answer, MSG_DONTWAIT | MSG_NOSIGNAL)
            self._await(client)
        except (
            OSError
        ):  # the client is gone, or the directory or the room in it: a clerk tries again, and tells
            self._hire(client.fileno())
            client.close()

    def _exited(self) -> None:
        if self._error >= 0:
            self._executed()
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        finished = (record.boottime(), time.time())
        self._pump().finish()
        if result is not None and self._phase == "running":
            normal = result.si_code == os.CLD_EXITED
            text = record.exit(
                self._identity[4],
                result.si_status if normal else None,
                None if normal else result.si_status,
                oom.count(self._cgroups) > self._killed,
                self._started,
                finished,
                oom.peak(self._cgroups),
            )
            try:
                record.replace(self._run, record.EXIT, text)
            except (
                OSError
            ) as error:  # the directory is gone, or full: without it the container counts as lost
                print(f"reconciler shim {os.getpid()}: {record.EXIT}: {error}", file=sys.stderr, flush=True)
        try:
            os.unlink(record.SOCKET, dir_fd=self._run)
        except OSError:
            pass  # the directory is gone already
