"""The agent's end of the zygote: starting it from a sealed copy of the interpreter, asking it for shims.

No Python runs between fork and exec here (subprocess without preexec_fn), and nothing of the zygote is trusted to live:
one that died is started again by the next request. Shims outlive both.
"""

import os
import socket
import subprocess
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path

import reconciler
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError, TimedOutError
from reconciler.shim import protocol
from reconciler.shim.sealed import sealed_interpreter
from reconciler.state.process import ProcessId

_START_TIMEOUT = 30.0
_PROGRAM_STEPS = ("exec",)
_PADDING = "-" * 160  # room for titles: the argument vector is overwritten


class StepError(ReconcilerError):
    """A container failed at `step`: `path` and `errno` say where and why (errno 0 where no call failed)."""

    def __init__(self, step: str, path: str, errno: int, message: str, *, transient: bool = False) -> None:
        super().__init__(message, transient=transient)
        self.step = step
        self.path = path
        self.errno = errno
        if (
            step in _PROGRAM_STEPS
        ):  # as a shell, and Docker, would end: 127 for what is not there, 126 for the rest
            self.exit_code = 127 if errno == ENOENT else 126


@dataclass(frozen=True, slots=True)
class Created:
    """A container that is set up and waits for `start`. Whoever holds the value owns its three descriptors."""

    shim: ProcessId
    shim_pidfd: int
    init: ProcessId
    init_pidfd: int
    netns_fd: int

    def close(self) -> None:
        for fd in (self.shim_pidfd, self.init_pidfd, self.netns_fd):
            os.close(fd)


class Zygote:
    """Starts shims. Thread-safe; requests run side by side, each with a reply socket of its own.

    `place` is called with the pid of each new zygote before it forks anything, to put it (and so all its shims) into
    a cgroup. What zygote and shims print when they crash goes to `stderr` in the layout's zygote directory.
    """

    def __init__(self, layout: Layout, *, place: Callable[[int], None] | None = None) -> None:
        self._stderr = layout.zygote / "stderr"
        self._place = place
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the zygote that was started last, None where none was."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the zygote if it does not run."""
        with self._lock:
            self._start()

    def create(self, bundle: Path, run: Path, *, timeout: float) -> Created:
        """Make the container of `bundle` up to its first instruction; raise StepError, or TimedOutError.

        Nothing of it is left after an exception.
        """
        request: protocol.Message = {"op": "create", "bundle": str(bundle), "run": str(run)}
        for _ in range(2):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                with theirs:
                    zygote = self._send(request, theirs.fileno())
                ours.settimeout(timeout)
                created = _created(ours, str(bundle), timeout)
            if created is not None:
                return created
            try:
                zygote.wait(0.2)
            except subprocess.TimeoutExpired:
                break
            # The zygote was killed with the request unread: another one may have it.
        raise StepError("shim", str(bundle), 0, f"{bundle}: the shim died before it answered", transient=True)

    def close(self) -> None:
        """Let the zygote exit; the shims stay."""
        with self._lock:
            self._close()

    def _send(self, request: protocol.Message, reply: int) -> subprocess.Popen[bytes]:
        with self._lock:
            for _ in range(2):
                channel, process = self._start()
                try:
                    protocol.send(channel, request, (reply,))
                except (BrokenPipeError, ConnectionError):
                    self._close()  # it died since the last request
                else:
                    return process
        raise StepError("zygote", "", 0, "zygote: it dies as soon as it is started", transient=True)

    def _start(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        if self._channel is not None and self._process is not None and self._process.poll() is None:
            return self._channel, self._process
        self._close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
            if self._place is not None:
                self._place(self._process.pid)
            ours.settimeout(_START_TIMEOUT)
            _greet(ours, self._stderr)
            ours.settimeout(None)
        except BaseException:
            ours.close()
            self._close()
            raise
        self._channel = ours
        return ours, self._process

    def _spawn(self, requests: int) -> subprocess.Popen[bytes]:
        interpreter = sealed_interpreter()
        try:
            self._stderr.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            stderr = os.open(self._stderr, flags, 0o600)
            try:
                return subprocess.Popen(
                    _command(requests, interpreter, self._stderr.parent),
                    executable=f"/proc/self/fd/{interpreter}",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(requests, interpreter),
                    cwd="/",
                    env=_environment(),
                )
            finally:
                os.close(stderr)
        finally:
            os.close(interpreter)

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _command(requests: int, interpreter: int, directory: Path) -> list[str]:
    package = Path(reconciler.__file__).resolve().parent
    # The interpreter finds its own library by argv[0]: the real file, whatever links and environments led to it.
    program = os.readlink("/proc/self/exe").removesuffix(" (deleted)")
    options = ["-I", "-S", "-E", "-X", "utf8", "-X", "no_debug_ranges"]
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED") or "", str(package.parent)]
    return [
        program,
        *options,
        str(package / "shim" / "entry.py"),
        f"{requests},{interpreter}",
        os.pathsep.join(paths),
        str(directory),
        _PADDING,
    ]


def _environment() -> dict[str, str]:
    """Nothing of the agent's: only where an interpreter in a memfd finds its own shared library, if it has one."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return {}
    return {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}


def _greet(channel: socket.socket, stderr: Path) -> None:
    try:
        answer = protocol.receive(channel)
    except (OSError, protocol.ProtocolError) as error:
        raise StepError("zygote", "", 0, f"zygote: it does not answer: {error}", transient=True) from error
    if answer is None or "ok" not in answer[0]:
        raise StepError("zygote", str(stderr), 0, f"zygote: it did not start; see {stderr}", transient=True)


def _created(channel: socket.socket, bundle: str, timeout: float) -> Created | None:
    try:
        answer = protocol.receive(channel)
    except TimeoutError as error:
        raise TimedOutError(f"{bundle}: not created within {timeout:g} s") from error
    except (OSError, protocol.ProtocolError) as error:
        raise StepError("shim", bundle, 0, f"{bundle}: the shim's answer can't be read: {error}") from error
    if answer is None:
        return None
    message, fds = answer
    if "error" in message or len(fds) != 3:
        for fd in fds:
            os.close(fd)
        raise failure(message.get("error"), bundle)
    shim, init, boot = message["shim"], message["init"], str(message["boot"])
    return Created(_identity(shim, boot), fds[0], _identity(init, boot), fds[1], fds[2])


def _identity(value: object, boot: str) -> ProcessId:
    if not isinstance(value, dict):
        raise StepError("shim", "", 0, "shim: its answer names no process")
    return ProcessId(int(value["pid"]), int(value["started"]), boot)


def failure(value: object, subject: str) -> StepError:
    """Turn the "error" of an answer into an exception."""
    if not isinstance(value, dict):
        return StepError("shim", "", 0, f"{subject}: the shim's answer is not understood")
    return StepError(
        str(value.get("step", "")),
        str(value.get("path", "")),
        int(value.get("errno", 0) or 0),
        str(value.get("message", "no reason given")),
    )
