"""One connection to a container's control socket, served by a fork of its shim: what may be asked while it lives.

A bad request, a client that vanishes or one that never reads costs this process only. Requests:

  {"op": "state"}                                        {"op": "start"}
  {"op": "kill", "signal": 15}                           {"op": "logging", "max_size", "max_files", "compress"}
  {"op": "exec", "args", "env", "user", "cwd", "tty", "size", "origin"} with three descriptors, or with tty none

  {"op": "attach"}, as the first of a connection

An attach is answered with {"ok", "tty"} and one descriptor: the master of the container's terminal, to be written to
and told the window's size, or the end that its standard input is written to. Output is in the log, for whoever is
behind as well. Hanging up detaches; where annotation `stdin` says `once`, it closes the standard input too.

An exec is an event before it begins and another at its end (shim.execlog); `origin` says what asks for it. It is
answered once the program runs ({"ok", "pid"}, and a terminal's master; "unrecorded" with the reason where the event
could not be written), or with the error and the code that a shell would give. From then on the connection is the
program's: {"op": "resize", "size"} comes in, {"code", "signal"} goes out at its end, and hanging up kills it.
"""

import marshal
import os
import select
import signal
import socket
import struct

from reconciler.linux import process
from reconciler.shim import attach, document, execlog, filter, maker, protocol, record, step
from reconciler.shim.fields import PREFIX, ConfigError, Section
from reconciler.shim.program import Process
from reconciler.shim.step import StepError

_CREDENTIALS = struct.Struct("iII")
_SEND_TIMEOUT = 30.0


def serve(fds: tuple[int, ...], identity: record.Identity, cgroups: tuple[str, ...]) -> int:
    """Serve one client until it or the shim hangs up.

    `fds` are the connection, the channel to the shim, init's pidfd, the open bundle and run directory, the end that
    standard input is written to and the terminal's master, -1 for what there is not; `cgroups` are the container's,
    that of v2 or "" first.
    """
    process.close_except((0, 1, 2, *(fd for fd in fds if fd >= 0)))
    client = socket.socket(fileno=fds[0])
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    peer, user, _ = _CREDENTIALS.unpack(credentials)
    if user != 0:
        return 1
    client.settimeout(_SEND_TIMEOUT)
    clerk = Clerk(client, peer, fds[1:], identity, cgroups)
    try:
        clerk.serve()
    except (OSError, protocol.ProtocolError, ConfigError):
        pass  # the client or the shim is gone, or talks nonsense
    finally:
        clerk.end()
    return 0


class Clerk:
    """One client, and perhaps the program that it runs."""

    def __init__(
        self,
        client: socket.socket,
        peer: int,
        fds: tuple[int, ...],
        identity: record.Identity,
        cgroups: tuple[str, ...],
    ) -> None:
        self._client = client
        self._peer = peer
        self._shim, self._pidfd, self._bundle, self._run, *self._inputs = fds
        self._once = False
        self._identity = identity
        self._pid = identity[2]
        self._cgroups = cgroups
        self._attached: attach.Attached | None = None
        self._trace: execlog.Trace | None = None
        self._terminal = -1

    def serve(self) -> None:
        """Answer one request after the other; return at the end of the client, the shim or the program."""
        poll = select.poll()
        for end in (self._client, self._shim):
            poll.register(end, select.POLLIN)
        while self._attached is None:
            ready = [fd for fd, _ in poll.poll()]
            if self._client.fileno() not in ready or not self._answer():
                return
        self._attend(self._attached)

    def end(self) -> None:
        """Kill the program, if it still runs, with its process group: not reaped yet, its numbers are its own."""
        if self._once:
            try:
                self._ask("eof")
            except (OSError, ConfigError):
                pass  # the container has ended
        if self._attached is None:
            return
        signal.pidfd_send_signal(self._attached.pidfd, signal.SIGKILL)
        try:
            os.killpg(self._attached.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has not come to lead a group yet
        result = os.waitid(os.P_PIDFD, self._attached.pidfd, os.WEXITED)
        if result is not None and self._trace is not None:
            self._trace.end(_code(result))

    def _answer(self) -> bool:
        received = protocol.receive(self._client)
        if received is None:
            return False
        message, fds = received
        try:
            answer = self._serve(Section({"request": message}, "request"), message, fds)
        except StepError as error:
            answer = {"error": maker.describe(error, ""), "code": attach.exit_code(error)}
        except ConfigError as error:
            answer = {**_error(0, str(error)), "code": 125}
        except OSError as error:
            answer = {**_error(error.errno or 0, str(error)), "code": 125}
        finally:
            for fd in fds:
                os.close(fd)
            self._drop()
        if answer is not None:
            protocol.send(self._client, answer)
        return True

    def _serve(self, asked: Section, message: protocol.Message, fds: list[int]) -> protocol.Message | None:
        match asked.text("op"):
            case "state":
                phase, stdout, stderr, dropped, error = self._ask("state")
                counts = {"stdout": stdout, "stderr": stderr, "dropped": dropped, "error": error}
                return {"ok": True, "phase": phase, "pid": self._pid, "log": counts}
            case "start":
                return self._start()
            case "kill":
                return self._kill(asked.number("signal"))
            case "logging":
                self._ask(
                    "logging", asked.number("max_size"), asked.number("max_files"), asked.flag("compress")
                )
                return {"ok": True}
            case "attach":
                self._attach()
                return None
            case "exec":
                self._exec(message, fds)
                return None
            case other:
                raise ConfigError(f"{other or 'request'}: no such request")

    def _ask(self, *question: object) -> tuple[object, ...]:
        os.write(self._shim, marshal.dumps(question))  # type: ignore[arg-type]
        received = os.read(self._shim, 65536)
        if not received:
            raise ConfigError("the container has ended")
        answer: tuple[object, ...] = marshal.loads(received)
        return answer

    def _start(self) -> protocol.Message:
        """Have the program run; note in shim.json since when, again if it runs already."""
        phase, line, boot, wall = self._ask("start")
        if phase != "running" or not isinstance(boot, float) or not isinstance(wall, float):
            return {"error": step.failure(line if isinstance(line, bytes) else b"")}
        text = record.shim(self._identity, boot, wall)
        record.replace(self._run, record.SHIM, text)
        return {"ok": True}

    def _kill(self, number: int) -> protocol.Message:
        if not 0 <= number <= signal.SIGRTMAX:
            raise ConfigError(f"signal {number}: no such signal")
        signal.pidfd_send_signal(self._pidfd, number)
        return {"ok": True}

    def _attach(self) -> None:
        stdin, terminal = self._inputs or (-1, -1)
        given = terminal if terminal >= 0 else stdin
        if given < 0:
            raise ConfigError("attach: the container has no terminal, and no standard input that is open")
        annotations = Section(document.read_config(self._bundle, "config.json"), "annotations")
        protocol.send(self._client, {"ok": True, "tty": terminal >= 0}, (given,))
        self._once = terminal < 0 and annotations.text(PREFIX + "stdin") == "once"

    def _drop(self) -> None:
        """Let go of the inputs: while this process has them, nobody else can close them."""
        for fd in self._inputs:
            if fd >= 0:
                os.close(fd)
        self._inputs = []

    def _exec(self, message: protocol.Message, fds: list[int]) -> None:
        if self._ask("phase")[0] != "running":
            raise ConfigError("exec: the container does not run")
        config = document.read_config(self._bundle, "config.json")
        wanted = attach.prepare(config, message)
        trace = execlog.Trace(config, Section({"exec": message}, "exec"), self._bundle, self._peer)
        trace.begin()
        self._trace = trace
        try:
            self._attached = self._spawn(wanted, fds)
        except (StepError, ConfigError, OSError) as error:
            trace.end(attach.exit_code(error) if isinstance(error, StepError) else 125, str(error))
            raise

    def _spawn(self, wanted: Process, fds: list[int]) -> attach.Attached:
        if wanted.filtered:
            wanted.filter = filter.read(self._bundle, "")
        null = -1
        if wanted.terminal:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stdio = (null, null, null)
        else:
            stdio = attach.check_stdio(fds)
        try:
            init = (self._pid, self._pidfd)
            return attach.spawn(wanted, init=init, cgroups=self._cgroups, stdio=stdio)
        finally:
            if null >= 0:
                os.close(null)

    # --- the program ----------------------------------------------------------------------------------------------
    def _attend(self, attached: attach.Attached) -> None:
        """Tell the client that the program runs, hear it about the window, and tell how the program ended."""
        if not self._report_exec(attached):
            return
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        poll.register(attached.pidfd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if attached.pidfd in ready:
                break
            received = protocol.receive(self._client)
            if received is None:
                return
            message, fds = received
            for fd in fds:
                os.close(fd)
            if message.get("op") == "resize" and self._terminal >= 0:
                attach.set_size(self._terminal, attach.size(Section({"resize": message}, "resize")))
        result = os.waitid(os.P_PIDFD, attached.pidfd, os.WEXITED)
        self._attached = None
        if result is not None:
            if self._trace is not None:
                self._trace.end(_code(result))
            normal, status = result.si_code == os.CLD_EXITED, result.si_status
            answer: protocol.Message = {
                "code": status if normal else None,
                "signal": None if normal else status,
            }
            protocol.send(self._client, answer)

    def _report_exec(self, attached: attach.Attached) -> bool:
        poll = select.poll()
        poll.register(attached.error, select.POLLIN)
        poll.register(self._client, select.POLLRDHUP)
        if attached.error not in [fd for fd, _ in poll.poll()]:
            return False  # the client hung up
        line = b""
        while chunk := os.read(attached.error, 65536):
            line += chunk
        if line:
            failure = step.failure(line)
            number = failure["errno"] if isinstance(failure["errno"], int) else 0
            code = attach.exit_code(StepError(str(failure["step"]), "", number, ""))
            if self._trace is not None:
                self._trace.end(code, str(failure["message"]))
            protocol.send(self._client, {"error": failure, "code": code})
            return False
        if attached.console is not None:
            self._terminal = _master(attached.console)
        fds = (self._terminal,) if self._terminal >= 0 else ()
        answer: protocol.Message = {"ok": True, "pid": attached.pid}
        if self._trace is not None and self._trace.problem:
            answer["unrecorded"] = self._trace.problem
        protocol.send(self._client, answer, fds)
        return True


def _code(result: os.waitid_result) -> int:
    """Give an exit code as a shell has it: 128+n for signal n."""
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


def _master(console: socket.socket) -> int:
    try:
        _, fds, _, _ = socket.recv_fds(console, 64, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    except OSError:
        return -1  # it was killed on its way
    return fds[0] if fds else -1


def _error(number: int, text: str) -> protocol.Message:
    return {"error": {"step": "request", "path": "", "errno": number, "message": text}}
