"""Running one more program in a container: what `exec` and exec probes are, from clone to exec.

The new process is born in the container's cgroup and PID namespace, joins the others through init's pidfd, and gets
what the bundle gives the container's own program: the same functions in the same order, so that it has not more (S14).
It is a copy of the shim until it executes: not dumpable, running from a sealed memfd, holding nothing of the host's.
"""

import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import termios

from reconciler.linux import namespace, process
from reconciler.shim import child, device, privilege, start, user, users
from reconciler.shim.fields import PREFIX, ConfigError, Section
from reconciler.shim.program import Process, prepare_process
from reconciler.shim.step import Step, StepError

_JOINED = (
    namespace.CLONE_NEWIPC
    | namespace.CLONE_NEWUTS
    | namespace.CLONE_NEWNET
    | namespace.CLONE_NEWCGROUP
    | namespace.CLONE_NEWNS
)
_PTMX = os.makedev(5, 2)
_NULL = os.makedev(1, 3)
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441  # _IO('T', 0x41), since Linux 4.13


class Attached:
    """A process on its way to exec. `error` closes when it gets there; `console` brings a terminal's master before."""

    __slots__ = ("console", "error", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, error: int, console: socket.socket | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.error = error
        self.console = console


def prepare(config: dict[str, object], request: dict[str, object]) -> Process:
    """Read what a request asks for, in a container of `config`; raise ConfigError naming the field."""
    asked = Section({"exec": request}, "exec")
    base = Section(config, "process").values
    annotations = dict(Section(config, "annotations").values)
    wanted = dict(base)
    wanted["args"] = asked.strings("args")
    wanted["env"] = [*Section(config, "process").strings("env"), *asked.strings("env")]
    wanted["terminal"] = asked.flag("tty")
    wanted.pop("consoleSize", None)
    if asked.raw("cwd") is not None:
        wanted["cwd"] = asked.text("cwd")
    if asked.raw("user") is not None:
        annotations[PREFIX + "user"] = asked.text("user")
    result = prepare_process({"process": wanted, "annotations": annotations, "linux": config.get("linux")})
    if result.terminal:
        result.console_size = size(asked)
    return result


def size(asked: Section) -> tuple[int, int]:
    """Read a window size, rows and columns."""
    numbers = asked.numbers("size")
    if len(numbers) != 2 or not all(0 <= number < 1 << 16 for number in numbers):
        raise ConfigError(f"{asked.name}.size: expected rows and columns")
    return numbers[0], numbers[1]


def check_stdio(fds: list[int]) -> tuple[int, int, int]:
    """Refuse descriptors that would be a way out: only pipes, sockets and the null device may enter.

    A terminal can be typed into (TIOCSTI), a directory left by `..`, and a file opened again through /proc/self/fd: for
    writing where it was given for reading, or to be chmod'ed.
    """
    if len(fds) != 3:
        raise ConfigError("exec: expected three descriptors")
    for number, fd in enumerate(fds):
        info = os.fstat(fd)
        if stat.S_ISCHR(info.st_mode) and os.isatty(fd):
            raise ConfigError(
                f"exec: descriptor {number}: a terminal must not enter a container; ask for one instead"
            )
        passes = stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode)
        passes = passes or (stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL)
        if not passes or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
            raise ConfigError(
                f"exec: descriptor {number}: a file, directory or device must not enter a container"
            )
    return fds[0], fds[1], fds[2]


def spawn(
    wanted: Process,
    *,
    init: tuple[int, int],
    cgroups: tuple[str, ...],
    stdio: tuple[int, int, int],
) -> Attached:
    """Fork a process that becomes `wanted` in the container whose first process is `init` (pid, pidfd).

    `cgroups` are that of v2 or "", then those of v1.

    Raise StepError if it can't be made; nothing of it is left then.
    """
    with Step("pipe"):
        go_read, go = os.pipe2(os.O_CLOEXEC)
        error, error_write = os.pipe2(os.O_CLOEXEC)
        console, console_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        adjust = oom_score_adj(init[0], wanted)
        pid, pidfd = clone(init[1], cgroups[0])
        if pid == 0:
            _run(wanted, init[1], cgroups[1:], adjust, go_read, error_write, console_child, stdio)
        try:
            os.write(go, b"g")
        except BrokenPipeError:
            pass  # it failed already, and the error pipe says why
    except BaseException:
        os.close(error)
        console.close()
        raise
    finally:
        console_child.close()
        for fd in (go_read, go, error_write):
            os.close(fd)
    if not wanted.terminal:
        console.close()
    return Attached(pid, pidfd, error, console if wanted.terminal else None)


def clone(init: int, cgroup: str) -> tuple[int, int]:
    """Fork into init's PID namespace, which setns gives to children only, and into its v2 cgroup."""
    group = None
    with Step("cgroup", cgroup):
        if cgroup:
            group = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with Step("namespace", "pid"):
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        namespace.setns(init, namespace.CLONE_NEWPID)
    pid = pidfd = -1
    try:
        with Step("clone"):
            pid, pidfd = namespace.clone3(0, cgroup=group)
    finally:
        if pid:  # not in the child, which can't leave the namespace that it is born in
            namespace.setns(own, namespace.CLONE_NEWPID)
            os.close(own)
            if group is not None:
                os.close(group)
    return pid, pidfd


def oom_score_adj(init: int, wanted: Process) -> str:
    """Give what the bundle sets, else what init has: never the shim's own, which is to be spared."""
    if wanted.oom_score_adj is not None:
        return str(wanted.oom_score_adj)
    with Step("oom_score_adj"), open(f"/proc/{init}/oom_score_adj", encoding="ascii") as file:
        return file.read().strip()


def _run(
    wanted: Process,
    init: int,
    cgroups: tuple[str, ...],
    adjust: str,
    go: int,
    error: int,
    console: socket.socket,
    stdio: tuple[int, int, int],
) -> None:
    code = 125
    try:
        file = _become(wanted, init, cgroups, adjust, go, error, console.detach(), stdio)
        start.reset_signals()
        start.execute(file, wanted, error)
    except BaseException as problem:  # noqa: BLE001 - the error pipe is the only way out of here
        code = report(problem, error)
    os._exit(code)


def _become(
    wanted: Process,
    init: int,
    cgroups: tuple[str, ...],
    adjust: str,
    go: int,
    error: int,
    console: int,
    stdio: tuple[int, int, int],
) -> bytes:
    """Do everything up to the exec; give the program's file."""
    with Step("isolate"):
        process.close_except((0, 1, 2, init, go, error, console, *stdio))
        process.set_dumpable(False)
        signal.set_wakeup_fd(-1)
        os.umask(0)
        os.setsid()
    with Step("oom_score_adj", adjust):
        # Before the container's /proc can be seen: what is there may be anything (CVE-2025-52881)
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, adjust.encode())
        os.close(fd)
    child.join_cgroups(cgroups)
    if not os.read(go, 1):  # the shim is gone
        raise SystemExit
    with Step("namespace"):
        namespace.setns(init, _JOINED)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    who = user.resolve(root, wanted)
    wanted.environment.setdefault(b"HOME", who.home)
    owner = user.outside(who, wanted)
    if wanted.terminal:
        master, slave = terminal(wanted.console_size)
        os.fchown(slave, owner, -1)
        device.send_master(console, master)
        device.take_terminal(slave)
    else:
        start.set_stdio(stdio, owner)
    with Step("descriptors"):
        process.close_except((0, 1, 2, go, error, *((init,) if wanted.ids is not None else ())))
    privilege.set_limits(wanted)
    privilege.fresh_keyring()
    if wanted.ids is not None:
        users.join(init)
    privilege.drop(wanted, who)
    os.umask(wanted.umask)
    start.change_directory(wanted.cwd)
    with Step("pdeathsig"):
        process.set_parent_death_signal(signal.SIGKILL)
    return start.find_program(wanted)


def terminal(window: tuple[int, int] | None) -> tuple[int, int]:
    """Open a pseudo-terminal of the container's devpts: its master and slave.

    No link is followed to the multiplexer, it must be one, and the slave comes from the master (CVE-2025-52565).
    """
    with Step("console", "/dev/pts/ptmx"):
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
        look = os.open("/dev/pts/ptmx", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        info = os.fstat(look)
        os.close(look)
        if not stat.S_ISCHR(info.st_mode) or info.st_rdev != _PTMX:
            raise OSError(errno.ENOTTY, "not a pseudo-terminal multiplexer")
        master = os.open("/dev/pts/ptmx", flags)
        if os.fstat(master).st_rdev != _PTMX:
            raise OSError(errno.ENOTTY, "not a pseudo-terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        set_size(slave, window)
        return master, slave


def set_size(terminal: int, window: tuple[int, int] | None) -> None:
    """Set a terminal's rows and columns; its foreground program gets SIGWINCH."""
    if window is not None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *window, 0, 0))


def report(problem: BaseException, error: int) -> int:
    if isinstance(problem, SystemExit):
        return 0
    if not isinstance(problem, StepError):
        number = problem.errno or 0 if isinstance(problem, OSError) else 0
        problem = StepError("exec", "", number, f"{type(problem).__name__}: {problem}")
    try:
        os.write(error, problem.line())
    except OSError:
        pass  # the shim is gone
    return exit_code(problem)


def exit_code(problem: StepError) -> int:
    """What a shell would give: 127 where the program was not found, 126 where it can't be executed, else 125."""
    if problem.step != "exec":
        return 125
    return 127 if problem.errno in (errno.ENOENT, errno.ENOTDIR) else 126
