"""The control socket of a container's shim: start, kill, log rotation, and programs run beside the container's own.

Works with or without an agent: whoever may open the socket (root) talks to the shim itself. A connection that runs a
program belongs to it until it ends; closing it kills the program.
"""

import os
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from reconciler.engine.zygote import StepError, failure
from reconciler.errors import ReconcilerError, TimedOutError, UnreachableError
from reconciler.shim import protocol

_ANSWER_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run in a container: as `user` (USER of an image) or as the container's, in `cwd` or in its.

    `environment` ("NAME=value") adds to the container's own. `origin` is what asks for it, for the event.
    """

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    user: str | None = None
    cwd: str | None = None
    origin: str = ""


class CommandError(ReconcilerError):
    """A command did not run: `code` is what a shell would give, 126 (not executable), 127 (not found), 125 (else)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = code


class Control:
    """A connection to a shim. Close it, or use it in a `with`."""

    def __init__(self, channel: socket.socket, where: Path) -> None:
        self._channel = channel
        self._where = where

    @classmethod
    def connect(cls, path: Path) -> "Control":
        """Connect to the control socket at `path`; raise UnreachableError where no shim listens."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # sun_path holds 107 bytes, a state directory may be deeper: the directory goes in by descriptor
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                channel.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError as error:
            channel.close()
            raise UnreachableError(f"{path}: no shim answers: {error.strerror}") from error
        return cls(channel, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def start(self, *, timeout: float = _ANSWER_TIMEOUT) -> None:
        """Let the program run; succeeds if it does already. Raise StepError where it can't be executed."""
        self._ask({"op": "start"}, timeout=timeout)

    def kill(self, signal: int) -> None:
        """Send `signal` to the container's first process."""
        self._ask({"op": "kill", "signal": int(signal)})

    def update_logging(self, *, max_size: int, max_files: int, compress: bool) -> None:
        """Change the rotation of the log from its next line on."""
        self._ask({"op": "logging", "max_size": max_size, "max_files": max_files, "compress": compress})

    def state(self) -> protocol.Message:
        """What the shim knows: "phase" (created, running), "pid", "log" (bytes by stream, "dropped", "error")."""
        return self._ask({"op": "state"})

    def attach(self) -> int:
        """The master of the container's terminal, or the end that its standard input is written to; the caller's.

        Raise StepError where it has neither, or its input has been closed. Closing this connection detaches.
        """
        answer, fds = self._exchange({"op": "attach"}, (), _ANSWER_TIMEOUT)
        if "error" in answer or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise failure(answer.get("error"), str(self._where))
        return fds[0]

    def execute(self, command: Command, stdio: tuple[int, int, int]) -> "Execution":
        """Run `command` on these descriptors; raise CommandError where it can't run. The connection is its own now.

        None of them may be a terminal, which a program inside could type into (TIOCSTI), or a directory.
        """
        answer, _ = self._execute({**_request(command), "tty": False}, stdio)
        return Execution(self._channel, _pid(answer), None, unrecorded=_unrecorded(answer))

    def execute_terminal(self, command: Command, rows: int, columns: int) -> "Execution":
        """Run `command` on a pseudo-terminal of the container's own; its master is the execution's `master`."""
        answer, fds = self._execute({**_request(command), "tty": True, "size": [rows, columns]}, ())
        return Execution(self._channel, _pid(answer), fds[0], unrecorded=_unrecorded(answer))

    def run(self, command: Command, stdio: tuple[int, int, int], *, timeout: float | None = None) -> int:
        """Run `command` to its end and give its exit code, 128+n for signal n.

        Raise TimedOutError after `timeout` seconds; the command is killed then.
        """
        with self.execute(command, stdio) as execution:
            return execution.wait(timeout)

    def _execute(self, request: protocol.Message, fds: tuple[int, ...]) -> tuple[protocol.Message, list[int]]:
        answer, received = self._exchange(request, fds, _ANSWER_TIMEOUT)
        error = answer.get("error")
        if error is not None:
            reason = failure(error, str(self._where))
            code = answer.get("code")
            raise CommandError(str(reason), code if isinstance(code, int) else 125)
        if request["tty"] and len(received) != 1:
            raise StepError("exec", "", 0, f"{self._where}: no terminal came")
        return answer, received

    def _ask(self, request: protocol.Message, *, timeout: float = _ANSWER_TIMEOUT) -> protocol.Message:
        answer, fds = self._exchange(request, (), timeout)
        for fd in fds:
            os.close(fd)
        if "error" in answer:
            raise failure(answer["error"], str(self._where))
        return answer

    def _exchange(
        self, request: protocol.Message, fds: tuple[int, ...], timeout: float
    ) -> tuple[protocol.Message, list[int]]:
        self._channel.settimeout(timeout)
        try:
            protocol.send(self._channel, request, fds)
            answer = protocol.receive(self._channel)
        except TimeoutError as error:
            raise TimedOutError(f"{self._where}: no answer within {timeout:g} s") from error
        except (OSError, protocol.ProtocolError) as error:
            raise UnreachableError(f"{self._where}: {error}") from error
        if answer is None:
            raise UnreachableError(f"{self._where}: the shim hung up")
        return answer


class Execution:
    """A program that runs in a container. `pid` is the host's number for it; `master` its terminal, if it has one.

    `unrecorded` says why there is no event of it; empty where there is.
    """

    def __init__(self, channel: socket.socket, pid: int, master: int | None, *, unrecorded: str = "") -> None:
        self._channel = channel
        self.pid = pid
        self.master = master
        self.unrecorded = unrecorded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that becomes readable when the program has ended."""
        return self._channel.fileno()

    def close(self) -> None:
        """Let go; what still runs is killed."""
        self._channel.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size. There is no answer: the program learns it by SIGWINCH."""
        try:
            protocol.send(self._channel, {"op": "resize", "size": [rows, columns]})
        except OSError as error:
            raise UnreachableError(f"exec: the shim is gone: {error.strerror}") from error

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and give the exit code, 128+n for signal n; raise TimedOutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        if not poll.poll(left):
            raise TimedOutError(f"exec: still running after {timeout:g} s")
        try:
            answer = protocol.receive(self._channel)
        except (OSError, protocol.ProtocolError) as error:
            raise UnreachableError(f"exec: {error}") from error
        if answer is None:
            raise UnreachableError("exec: the shim ended")
        code, signal = answer[0].get("code"), answer[0].get("signal")
        if isinstance(signal, int):
            return 128 + signal
        if isinstance(code, int):
            return code
        raise UnreachableError("exec: the shim's answer is not understood")


def _request(command: Command) -> protocol.Message:
    return {
        "op": "exec",
        "args": list(command.arguments),
        "env": list(command.environment),
        "user": command.user,
        "cwd": command.cwd,
        "origin": command.origin,
    }


def _pid(answer: protocol.Message) -> int:
    pid = answer.get("pid")
    return pid if isinstance(pid, int) else 0


def _unrecorded(answer: protocol.Message) -> str:
    return str(answer.get("unrecorded", ""))
