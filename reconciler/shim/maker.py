"""The maker: a short-lived child of the shim that makes the container, so that all it takes to do so is given back.

Reading the bundle and everything up to the clone touches a megabyte of memory. The maker does it, clones the
container's first process as a child of the shim (CLONE_PARENT), answers the agent, hands the descriptors over and
exits. Whatever fails here, the agent is told, and nothing is left.
"""

import marshal
import os
import select
import signal
import socket

from reconciler.linux import namespace, process
from reconciler.shim import channel, child, filter, journal, oom, protocol, record, users
from reconciler.shim.document import read_config
from reconciler.shim.fields import PREFIX, ConfigError, Section, annotation
from reconciler.shim.logfile import pipe
from reconciler.shim.logopen import open_log
from reconciler.shim.monitor import TITLE, Made
from reconciler.shim.output import Log
from reconciler.shim.step import Step, StepError, problem

SPARE = "reconciler spare"
# Annotation `stdin`: "once" has its end come with that of who attached first, outside of a terminal.
STDIN = ("open", "once")
_IMPORTANCE = b"-999"
_LARGEST_ORDER = 65536
_CLONE_PARENT = 0x00008000


def make(request: bytes, reply: int, shim: channel.Channel, area: tuple[int, int]) -> int:
    """Make the container that `request` asks for; tell the agent and the shim; give a status.

    The request names a bundle and a run directory. The socket `reply` gets shim and init with their descriptors, or the
    error. If it closes before, all is undone.
    """
    answer = socket.socket(fileno=reply)
    try:
        bundle, directory = read_request(request)
    except protocol.ProtocolError as error:
        return _refuse(answer, {"step": "zygote", "path": "", "errno": 0, "message": f"zygote: {error}"})
    maker = Maker(bundle, directory)
    try:
        maker.make(answer, shim, area)
    except (StepError, ConfigError) as error:
        maker.undo()
        return _refuse(answer, describe(error, f"{bundle}/config.json"))
    return 0


def attend(order: int, shim: channel.Channel, area: tuple[int, int]) -> int:
    """Wait for the zygote's order on a descriptor and make that container; give a status, 0 if none comes any more."""
    orders = channel.Channel(fileno=order)
    _title(area, SPARE)
    received = channel.receive(orders, _LARGEST_ORDER)
    orders.close()
    if received is None:
        return 0
    (request,) = marshal.loads(received[0])
    (reply,) = received[1]
    return make(request, reply, shim, area)


def _refuse(answer: socket.socket, error: dict[str, object]) -> int:
    try:
        protocol.send(answer, {"error": error})
    except OSError:
        pass  # the agent is gone; there is nothing left to tell
    return 1


def read_request(request: bytes) -> tuple[str, str]:
    """Read which bundle is asked for, and its run directory; raise ProtocolError."""
    message = protocol.parse(request)
    bundle, run = message.get("bundle"), message.get("run")
    if message.get("op") != "create" or not isinstance(bundle, str) or not isinstance(run, str):
        raise protocol.ProtocolError("request not understood")
    return bundle, run


def describe(error: StepError | ConfigError, config: str) -> dict[str, object]:
    """Give the "error" of an answer."""
    if isinstance(error, StepError):
        return {"step": error.step, "path": error.path, "errno": error.errno, "message": str(error)}
    return {"step": "config", "path": config, "errno": 0, "message": f"config: {error}"}


class Maker:
    """One container in the making."""

    def __init__(self, bundle: str, directory: str) -> None:
        self._bundle = bundle
        self._directory = directory
        self._run = -1
        self._pidfd = -1
        self._listening = False

    def make(self, answer: socket.socket, shim: channel.Channel, area: tuple[int, int]) -> None:
        """Do it all; raise StepError or ConfigError."""
        with Step("bundle", self._bundle):
            bundle = os.open(self._bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        config = read_config(bundle, f"{self._bundle}/config.json")
        annotations = Section(config, "annotations")
        prepared = child.prepare(config, self._bundle)
        if prepared.process.filtered:
            prepared.process.filter = filter.read(bundle, self._bundle)
        name = prepared.name or os.path.basename(self._bundle)
        process.set_title(area, f"{TITLE} {name}")
        with Step("run directory", self._directory):
            self._run = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        log, logs = self._open_log(config, name)
        listener = self._listen()
        stdin = annotations.text(PREFIX + "stdin") in STDIN and not prepared.process.terminal
        outputs, stdio, feed = self._open_stdio(prepared.process.terminal, stdin)
        cgroups = (prepared.cgroup_v2 or "", *prepared.cgroup_v1)
        killed = oom.count(cgroups)
        with Step("cgroup", "cgroup.event_control"):
            memory = oom.announced(cgroups)
        pid, go, error, terminal = self._spawn(prepared, stdio, answer)
        identity = self._identity(pid)
        with Step("record", f"{self._directory}/{record.SHIM}"):
            record.replace(self._run, record.SHIM, record.shim(identity, None, None))
            own = os.pidfd_open(os.getppid())
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        titled = _dress(area, name)
        inputs = (memory, feed, terminal)
        fds = (self._pidfd, go, error, listener.fileno(), self._run, bundle, *inputs, *outputs, *logs)
        there = tuple(fd >= 0 for fd in fds)
        made: Made = (titled, identity, cgroups, killed, log, there)
        with Step("answer"):
            channel.send(shim, made, tuple(fd for fd in fds if fd >= 0))
            shim_pid, shim_started, _, init_started, boot, _ = identity
            message: protocol.Message = {
                "ok": True,
                "shim": {"pid": shim_pid, "started": shim_started},
                "init": {"pid": pid, "started": init_started},
                "boot": boot,
            }
            protocol.send(answer, message, (own, self._pidfd, network))

    def undo(self) -> None:
        """Take back what has been done so far. The shim reaps what is killed here: it is the parent."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], [], [])
        for name in (record.SHIM, *((record.SOCKET,) if self._listening else ())):
            if self._run >= 0:
                try:
                    os.unlink(name, dir_fd=self._run)
                except FileNotFoundError:
                    pass

    def _identity(self, pid: int) -> tuple[int, int, int, int, str, float]:
        shim = os.getppid()
        with Step("record", "/proc"):
            return (
                shim,
                record.started(shim),
                pid,
                record.started(pid),
                record.boot_id(),
                record.boottime(),
            )

    def _open_log(self, config: dict[str, object], name: str) -> tuple[Log, tuple[int, int, int]]:
        """Open the log that annotation `dev.reconciler.log` asks for; without one the output is discarded."""
        wanted = annotation(Section(config, "annotations"), "log")
        section = Section({"log": wanted}, "log", f"annotations.{PREFIX}log")
        driver = section.text("driver") or ("file" if section.values else "none")
        size, files, compress = (
            section.number("max_size"),
            section.number("max_files"),
            section.flag("compress"),
        )
        if driver == "none":
            return ("", 0, size, files, compress), (-1, -1, -1)
        if driver == "journald":
            return self._open_journal(section.text("socket") or journal.SOCKET, name)
        if driver != "file":
            raise ConfigError(f"{section.name}.driver: {driver}: expected file, journald or none")
        path = section.text("directory")
        if not path.startswith("/"):
            raise ConfigError(f"{section.name}.directory: expected an absolute path")
        with Step("log", path):
            directory, log, index, sequence = open_log(path)
        return (path, sequence, size, files, compress), (directory, log, index)

    def _open_journal(self, path: str, name: str) -> tuple[Log, tuple[int, int, int]]:
        with Step("log", path):
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            opened.connect(path)
        where = f"{path}\n{name}\n{os.path.basename(self._bundle)}"
        return (where, 0, 0, 0, False), (opened.detach(), -1, -1)

    def _listen(self) -> socket.socket:
        with Step("control socket", f"{self._directory}/{record.SOCKET}"):
            try:
                os.unlink(record.SOCKET, dir_fd=self._run)
            except FileNotFoundError:
                pass
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            before = os.umask(0o177)
            try:
                # By descriptor: sun_path holds 107 bytes, too few for many a path
                listener.bind(f"/proc/self/fd/{self._run}/{record.SOCKET}")
            finally:
                os.umask(before)
            self._listening = True
            listener.listen(64)
            return listener

    def _open_stdio(self, terminal: bool, stdin: bool) -> tuple[tuple[int, int], tuple[int, int, int], int]:
        """Open the output's read ends, what the program gets as descriptors 0 to 2 unless it has a terminal, and the
        end that its standard input is written to, -1 where it has none.
        """
        with Step("pipe"):
            if terminal:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                return (-1, -1), (null, null, null), -1
            read, feed = (
                os.pipe2(os.O_CLOEXEC) if stdin else (os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), -1)
            )
            stdout, stdout_write = pipe()
            stderr, stderr_write = pipe()
            return (stdout, stderr), (read, stdout_write, stderr_write), feed

    def _spawn(
        self, prepared: child.Prepared, stdio: tuple[int, int, int], answer: socket.socket
    ) -> tuple[int, int, int, int]:
        """Clone the first process and wait until it is ready: pid, go and error pipes, the terminal or -1."""
        with Step("pipe"):
            go_read, go = os.pipe2(os.O_CLOEXEC)
            sync, sync_write = os.pipe2(os.O_CLOEXEC)
            error, error_write = os.pipe2(os.O_CLOEXEC)
            console, console_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cgroup = None
        with Step("cgroup", prepared.cgroup_v2 or ""):
            if prepared.cgroup_v2:
                cgroup = os.open(prepared.cgroup_v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        ending = None
        if prepared.process.ids is not None:
            prepared.users, ending = users.begin_for(prepared.process.ids)
        with Step("clone", prepared.name):
            # CLONE_PARENT takes over the exit signal of the maker and allows no other (clone(2))
            pid, self._pidfd = namespace.clone3(
                prepared.clone_flags | _CLONE_PARENT, cgroup=cgroup, exit_signal=0
            )
        if pid == 0:
            child.run(
                prepared,
                go_fd=go_read,
                sync_fd=sync_write,
                error_fd=error_write,
                stdio=stdio,
                console_fd=console_child.fileno(),
            )
        held = {go_read, sync_write, error_write, *stdio, prepared.users} - {-1}
        for fd in held:
            os.close(fd)
        console_child.close()
        self._await_created(sync, error, answer)
        if ending is not None:
            ending.wait()
        return pid, go, error, _terminal(console) if prepared.process.terminal else -1

    def _await_created(self, sync: int, error: int, answer: socket.socket) -> None:
        """Wait for the child, or for the agent to give up."""
        poll = select.poll()
        poll.register(sync, select.POLLIN)
        poll.register(answer, select.POLLRDHUP)
        if sync not in [fd for fd, _ in poll.poll()]:
            raise StepError("create", "", 0, "the agent gave up")
        if os.read(sync, 1):
            return
        line = b""
        while chunk := os.read(error, 65536):
            line += chunk
        raise problem(line)


def _dress(area: tuple[int, int], name: str) -> bool:
    """Give the shim its title and its importance from here, at no cost to its memory; say whether the title is there.

    The importance: when memory runs out, the kernel should look elsewhere. By now the container has a value of its own.
    """
    shim = os.getppid()
    try:
        _write(f"/proc/{shim}/oom_score_adj", _IMPORTANCE, 0)
    except OSError:
        pass  # no CAP_SYS_RESOURCE: `doctor` tells; the shim is small
    return _title(area, f"{TITLE} {name}")


def _title(area: tuple[int, int], text: str) -> bool:
    start, end = area
    title = os.fsencode(text)[: end - start - 1]
    try:
        _write(f"/proc/{os.getppid()}/mem", title + bytes(end - start - len(title)), start)
    except OSError:
        return False  # no CAP_SYS_PTRACE, or a policy against it
    return True


def _write(path: str, data: bytes, offset: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def _terminal(console: socket.socket) -> int:
    with Step("console"):
        _, fds, _, _ = socket.recv_fds(console, 64, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    if len(fds) != 1:
        raise StepError("console", "", 0, "no terminal came")
    os.set_blocking(fds[0], False)
    return fds[0]
