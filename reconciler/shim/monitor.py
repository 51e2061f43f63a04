"""The shim: makes one container, holds its output, and records how it ended, whatever becomes of agent and zygote.

One per container, forked from the zygote, single-threaded, blocked in epoll: idle it wakes up for nothing. Its life:

  create    bundle read, log opened, child cloned; shim.json written; the agent gets descriptors, or the failure
  start     the child executes the program; shim.json gains the time
  exit      output drained, log closed, exit.json renamed into place, and only then the shim exits

A failure before the program was executed is told to whoever asked, and leaves no exit.json: there was no run to record.
The same holds for a container that was created and killed before its start. cgroups are the agent's; the shim removes
nothing but its socket.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from reconciler.linux import process
from reconciler.shim import child, control, oom, protocol, record
from reconciler.shim.fields import ConfigError
from reconciler.shim.output import Output
from reconciler.shim.step import Step, StepError

_LARGEST_CONFIG = 4 * 1024 * 1024
_IMPORTANCE = b"-999"


def run(bundle: str, directory: str, answer: socket.socket, area: tuple[int, int]) -> int:
    """Be the shim of the container in `bundle`, with run directory `directory`, until it has ended; give a status.

    `answer` gets shim and init with their descriptors, or the error; if it closes before, the container is undone.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # at a shutdown the container's output is still wanted
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monitor = Monitor(bundle, directory)
    try:
        monitor.create(answer, area)
    except (StepError, ConfigError) as error:
        monitor.undo()
        try:
            protocol.send(answer, {"error": _error(error, f"{bundle}/config.json")})
        except OSError:
            pass  # the agent is gone; there is nothing left to tell
        return 1
    answer.close()
    monitor.serve()
    return 0


def _error(error: StepError | ConfigError, config: str) -> dict[str, object]:
    if isinstance(error, StepError):
        return {"step": error.step, "path": error.path, "errno": error.errno, "message": str(error)}
    return {"step": "config", "path": config, "errno": 0, "message": f"config: {error}"}


def describe(error: BaseException) -> str:
    """Put a crash into a few lines. (The traceback module would be loaded into every shim.)"""
    lines = [f"reconciler shim {os.getpid()}: {type(error).__name__}: {error}"]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "\n".join(lines)


class Monitor(control.Container):
    """One container, from its bundle to its exit record."""

    def __init__(self, bundle: str, directory: str) -> None:
        self.bundle = bundle
        self.pid = 0
        self.pidfd = -1
        self.config: dict[str, object] = {}
        self.cgroups: tuple[str | None, tuple[str, ...]] = (None, ())
        self.phase = "created"
        self._directory = directory
        self._run = -1
        self._go = self._error = -1
        self._starting: list[Callable[[dict[str, object]], None]] = []
        self._record: dict[str, object] = {}
        self._handlers: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self.output = Output(self.watch, self.unwatch)
        self._server: control.Server | None = None
        self._ended = False
        self._oom = 0

    # --- create ---------------------------------------------------------------------------------------------------
    def create(self, answer: socket.socket, area: tuple[int, int]) -> None:
        """Make the container and answer; raise StepError or ConfigError."""
        prepared = self._prepare(area)
        with Step("run directory", self._directory):
            self._run = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.output.open(self.config)
        with Step("control socket", f"{self._directory}/{record.SOCKET}"):
            self._server = control.Server(self, self._run)
        with Step("pipe"):
            stdio = self.output.stdio(prepared.process.terminal)
        with Step("pipe"):
            go_read, self._go = os.pipe2(os.O_CLOEXEC)
            sync, sync_write = os.pipe2(os.O_CLOEXEC)
            self._error, error_write = os.pipe2(os.O_CLOEXEC)
            console, console_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._oom = oom.count(*self.cgroups)
        self.pid, self.pidfd = child.spawn(
            prepared,
            go_fd=go_read,
            sync_fd=sync_write,
            error_fd=error_write,
            stdio=stdio,
            console_fd=console_child.fileno(),
        )
        try:
            os.write(self._go, b"p")
        except BrokenPipeError:
            pass  # it has failed already, and the error pipe says why
        for fd in {go_read, sync_write, error_write, *stdio}:
            os.close(fd)
        console_child.close()
        self._await_created(sync, answer)
        os.close(sync)
        if prepared.process.terminal:
            self.output.take_terminal(console)
        console.close()
        self._become_important()
        self._answer(answer)

    def _prepare(self, area: tuple[int, int]) -> child.Prepared:
        path = f"{self.bundle}/config.json"
        with Step("config", path), open(path, "rb") as file:
            data = file.read(_LARGEST_CONFIG + 1)
        if len(data) > _LARGEST_CONFIG:
            raise StepError("config", path, 0, "larger than 4 MiB")
        try:
            config = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise StepError("config", path, 0, f"not JSON: {error}") from error
        if not isinstance(config, dict):
            raise StepError("config", path, 0, "not an object")
        prepared = child.prepare(config, self.bundle)
        # All that exec and log need later; the rest of the bundle need not stay in memory.
        self.config = {key: config[key] for key in ("process", "annotations") if key in config}
        self.cgroups = (prepared.cgroup_v2, prepared.cgroup_v1)
        process.set_title(area, f"reconciler shim {prepared.name or os.path.basename(self.bundle)}")
        return prepared

    def _await_created(self, sync: int, answer: socket.socket) -> None:
        """Wait for the child, or for the agent to give up."""
        poll = select.poll()
        poll.register(sync, select.POLLIN)
        poll.register(answer, select.POLLRDHUP)
        ready = [fd for fd, _ in poll.poll()]
        if sync not in ready:
            raise StepError("create", "", 0, "the agent gave up")
        if not os.read(sync, 1):
            raise _failure(_read_all(self._error))

    def _become_important(self) -> None:
        """Last, when the container has its own value: let the kernel look elsewhere when memory runs out."""
        try:
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
                file.write(_IMPORTANCE)
        except OSError:
            pass  # no CAP_SYS_RESOURCE: `doctor` tells; the shim is small

    def _answer(self, answer: socket.socket) -> None:
        me = os.getpid()
        with Step("record", f"{self._directory}/{record.SHIM}"):
            self._record = {
                "shim": {"pid": me, "started": record.started(me)},
                "init": {"pid": self.pid, "started": record.started(self.pid)},
                "boot": record.boot_id(),
                "created_boot": record.boottime(),
                "started_boot": None,
                "started_wall": None,
            }
            record.replace(self._run, record.SHIM, self._record)
            own = os.pidfd_open(me)
            network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        message = {"ok": True, **{key: self._record[key] for key in ("shim", "init", "boot")}}
        with Step("answer"):
            protocol.send(answer, message, (own, self.pidfd, network))
        os.close(own)
        os.close(network)

    def undo(self) -> None:
        """Take back what `create` has done so far."""
        if self.pidfd >= 0:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        if self._server is not None:
            self._server.close()
        self.output.close()
        if self._run >= 0:
            try:
                os.unlink(record.SHIM, dir_fd=self._run)
            except FileNotFoundError:
                pass

    # --- the loop -------------------------------------------------------------------------------------------------
    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable or hung up."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def serve(self) -> None:
        """Run until the container has ended and its record is there."""
        self.watch(self.pidfd, self._exited)
        self.watch(self._error, self._executed)
        while not self._ended:
            for fd, _ in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is not None:  # an earlier handler of this round may have closed it
                    handler()

    # --- start and exit -------------------------------------------------------------------------------------------
    def start(self, done: Callable[[dict[str, object]], None]) -> None:
        """Let the program run; `done` gets the answer, at once or later."""
        if self.phase == "running":
            done({"ok": True})
            return
        self._starting.append(done)
        if self.phase == "created":
            self.phase = "starting"
            try:
                os.write(self._go, b"g")
            except BrokenPipeError:
                pass  # the child died; its pidfd is about to tell

    def _executed(self) -> None:
        """The error pipe has closed: the program runs, or a line says why it does not, or the child was killed."""
        line = _read_all(self._error)
        self.unwatch(self._error)
        os.close(self._error)
        self._error = -1
        os.close(self._go)
        if self.phase == "starting" and not line:
            self.phase = "running"
            self._record.update(started_boot=record.boottime(), started_wall=time.time())
            self._write(record.SHIM, self._record)
            self._tell({"ok": True})
            return
        failure = _failure(line)
        self.phase = "failed"
        self._tell({"error": _error(failure, "")})

    def _tell(self, answer: dict[str, object]) -> None:
        for done in self._starting:
            done(answer)
        self._starting = []

    def _exited(self) -> None:
        if self._error >= 0:
            self._executed()
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        finished = {"finished_boot": record.boottime(), "finished_wall": time.time()}
        self.output.finish()
        if self._server is not None:
            self._server.finish()
        if result is not None and self.phase == "running":
            normal = result.si_code == os.CLD_EXITED
            value: dict[str, object] = {
                "code": result.si_status if normal else None,
                "signal": None if normal else result.si_status,
                "oom": oom.count(*self.cgroups) > self._oom,
                "boot": self._record["boot"],
                "started_boot": self._record["started_boot"],
                "started_wall": self._record["started_wall"],
                **finished,
            }
            self._write(record.EXIT, value)
        if self._server is not None:
            self._server.close()
        self._ended = True

    def _write(self, name: str, value: dict[str, object]) -> None:
        try:
            record.replace(self._run, name, value)
        except (
            OSError
        ) as error:  # the run directory is gone, or full: without the record the container counts as lost
            print(f"{self._directory}/{name}: {error}", file=sys.stderr, flush=True)

    def state(self) -> dict[str, object]:
        """What is known of the container, for whoever asks."""
        return {"ok": True, "phase": self.phase, "pid": self.pid, "log": self.output.counts()}


def _read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    return data


def _failure(line: bytes) -> StepError:
    """Read the child's line; without one it was killed before it could write any."""
    try:
        value = json.loads(line)
        error = StepError(value["step"], value["path"], value["errno"], "")
        error.args = (value["message"],)
    except (ValueError, KeyError, TypeError):
        return StepError("child", "", 0, "it was killed before the program ran")
    return error
