"""The shim's control socket: what may be asked of a container while it lives, by an agent or whoever else is root.

A bad request, a client that vanishes or one that never reads costs its own connection, nothing else. Requests:

  {"op": "state"}                                        {"op": "start"}
  {"op": "kill", "signal": 15}                           {"op": "logging", "max_size", "max_files", "compress"}
  {"op": "exec", "args", "env", "user", "cwd", "tty", "size"} with three descriptors, or with tty none

An exec is answered once the program runs ({"ok", "pid"}, and a terminal's master), or with the error and the code that
a shell would give. From then on the connection is the program's: {"op": "resize", "size"} comes in, {"code", "signal"}
goes out at its end, and hanging up kills it.
"""

import json
import os
import signal
import socket
import struct
from collections.abc import Callable

from reconciler.shim import attach, protocol, record
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.output import Output
from reconciler.shim.step import StepError

_CLIENTS = 128
_CREDENTIALS = struct.Struct("iII")


class Container:
    """What the server needs of the monitor. (A class instead of a Protocol: typing is not for shims.)"""

    pid: int
    pidfd: int
    phase: str
    config: dict[str, object]
    cgroups: tuple[str | None, tuple[str, ...]]
    output: Output

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        raise NotImplementedError

    def unwatch(self, fd: int) -> None:
        raise NotImplementedError

    def start(self, done: Callable[[dict[str, object]], None]) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, object]:
        raise NotImplementedError


class Server:
    """Listens on control.sock in the open run directory."""

    def __init__(self, container: Container, run: int) -> None:
        self.container = container
        self.clients: set[Client] = set()
        self.executions: set[Execution] = set()
        self._run = run
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            os.unlink(record.SOCKET, dir_fd=run)
        except FileNotFoundError:
            pass
        before = os.umask(0o177)
        try:
            self._listener.bind(
                f"/proc/self/fd/{run}/{record.SOCKET}"
            )  # sun_path is too short for many a path
        finally:
            os.umask(before)
        self._listener.listen(64)
        container.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors
        channel.setblocking(False)
        uid = _CREDENTIALS.unpack(
            channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )[1]
        if uid != 0 or len(self.clients) >= _CLIENTS:
            channel.close()
            return
        self.clients.add(Client(self, channel))

    def finish(self) -> None:
        """The container has ended: end what was run beside it, tell all, and hang up."""
        for execution in tuple(self.executions):
            execution.kill()
            execution.ended()
        for client in tuple(self.clients):
            client.close()

    def close(self) -> None:
        """Take the socket away."""
        self.container.unwatch(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(record.SOCKET, dir_fd=self._run)
        except OSError:
            pass  # the directory is gone already


class Client:
    """One connection."""

    def __init__(self, server: Server, channel: socket.socket) -> None:
        self._server = server
        self._container = server.container
        self._channel = channel
        self._execution: Execution | None = None
        self._container.watch(channel.fileno(), self._readable)

    def close(self) -> None:
        """Hang up; a program that belongs to this connection is killed."""
        if self not in self._server.clients:
            return
        self._server.clients.remove(self)
        self._container.unwatch(self._channel.fileno())
        self._channel.close()
        if self._execution is not None:
            self._execution.kill()

    def send(self, message: protocol.Message, fds: tuple[int, ...] = ()) -> None:
        """Send an answer; a client that does not read loses its connection."""
        if self not in self._server.clients:
            return
        try:
            protocol.send(self._channel, message, fds)
        except OSError:
            self.close()

    def _readable(self) -> None:
        try:
            received = protocol.receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            received = None
        except protocol.ProtocolError as error:
            self.send(_error("request", 0, str(error)))
            received = None
        if received is None:
            self.close()
            return
        message, fds = received
        try:
            self._serve(message, fds)
        except StepError as error:
            value = {"step": error.step, "path": error.path, "errno": error.errno, "message": str(error)}
            self.send({"error": value, "code": attach.exit_code(error)})
        except ConfigError as error:
            self.send({**_error("request", 0, str(error)), "code": 125})
        except OSError as error:
            self.send({**_error("request", error.errno or 0, str(error)), "code": 125})
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, message: protocol.Message, fds: list[int]) -> None:
        asked = Section({"request": message}, "request")
        op = asked.text("op")
        if self._execution is not None:
            if op == "resize":
                self._execution.resize(attach.size(asked))
            return
        match op:
            case "state":
                self.send(self._container.state())
            case "start":
                self._container.start(self.send)
            case "kill":
                self._kill(asked.number("signal"))
            case "logging":
                sizes = asked.number("max_size"), asked.number("max_files")
                self._container.output.log.configure(*sizes, asked.flag("compress"))
                self.send({"ok": True})
            case "exec":
                self._exec(message, fds)
            case _:
                raise ConfigError(f"{op or 'request'}: no such request")

    def _kill(self, number: int) -> None:
        if not 0 <= number <= signal.SIGRTMAX:
            raise ConfigError(f"signal {number}: no such signal")
        signal.pidfd_send_signal(self._container.pidfd, number)
        self.send({"ok": True})

    def _exec(self, message: protocol.Message, fds: list[int]) -> None:
        if self._container.phase != "running":
            raise ConfigError("exec: the container does not run")
        wanted = attach.prepare(self._container.config, message)
        null = -1
        if wanted.terminal:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stdio = (null, null, null)
        else:
            stdio = attach.check_stdio(fds)
        try:
            init = (self._container.pid, self._container.pidfd)
            attached = attach.spawn(wanted, init=init, cgroups=self._container.cgroups, stdio=stdio)
        finally:
            if null >= 0:
                os.close(null)
        self._execution = Execution(self._server, self, attached)


class Execution:
    """A program that runs beside the container's own, for one client."""

    def __init__(self, server: Server, client: Client, attached: attach.Attached) -> None:
        self._server = server
        self._client = client
        self._attached = attached
        self._terminal = -1
        self._failed = False
        server.executions.add(self)
        server.container.watch(attached.error, self._executed)
        server.container.watch(attached.pidfd, self.ended)

    def kill(self) -> None:
        """Kill the program and its process group. It has not been reaped, so its numbers are still its own."""
        if self not in self._server.executions:
            return
        signal.pidfd_send_signal(self._attached.pidfd, signal.SIGKILL)
        try:
            os.killpg(self._attached.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has not come to lead a group yet

    def resize(self, window: tuple[int, int]) -> None:
        """Set the size of the program's terminal."""
        if self._terminal >= 0:
            attach.set_size(self._terminal, window)

    def _executed(self) -> None:
        line = b""
        while chunk := os.read(self._attached.error, 65536):
            line += chunk
        self._server.container.unwatch(self._attached.error)
        os.close(self._attached.error)
        self._attached.error = -1
        if line:
            self._failed = True
            self._client.send(_failure(line))
            return
        self._take_terminal()
        fds = (self._terminal,) if self._terminal >= 0 else ()
        self._client.send({"ok": True, "pid": self._attached.pid}, fds)

    def _take_terminal(self) -> None:
        if self._attached.console is None:
            return
        try:
            flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            _, fds, _, _ = socket.recv_fds(self._attached.console, 64, 1, flags)
        except OSError:
            fds = []  # it was killed on its way
        if fds:
            self._terminal = fds[0]

    def ended(self) -> None:
        """The program has ended: reap it and tell."""
        if self not in self._server.executions:
            return
        if self._attached.error >= 0:
            self._executed()
        self._server.executions.remove(self)
        self._server.container.unwatch(self._attached.pidfd)
        result = os.waitid(os.P_PIDFD, self._attached.pidfd, os.WEXITED)
        os.close(self._attached.pidfd)
        if self._attached.console is not None:
            self._attached.console.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        if not self._failed and result is not None:
            normal = result.si_code == os.CLD_EXITED
            status = result.si_status
            self._client.send({"code": status if normal else None, "signal": None if normal else status})
        self._client.close()


def _error(step: str, number: int, text: str) -> protocol.Message:
    return {"error": {"step": step, "path": "", "errno": number, "message": text}}


def _failure(line: bytes) -> protocol.Message:
    try:
        value = json.loads(line)
        code = attach.exit_code(StepError(value["step"], value["path"], value["errno"], ""))
    except (ValueError, KeyError, TypeError):
        return {**_error("exec", 0, "the process died before the program ran"), "code": 125}
    return {"error": value, "code": code}
