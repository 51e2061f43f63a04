"""The last steps before a program of the container runs: its descriptors, its directory, its file, the exec.

Serves the container's own program and `exec`. Everything happens in the container's root, as the container's user,
after every directory descriptor of the host has been closed.
"""

import errno
import fcntl
import os
import signal
import stat

from reconciler.linux import path, process
from reconciler.shim import privilege
from reconciler.shim.program import Process
from reconciler.shim.step import Step, StepError, reason

_NULL = os.makedev(1, 3)
_OF_LIBC = (32, 33)  # SIGCANCEL and SIGSETXID of glibc; valid_signals() knows neither
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def set_stdio(stdio: tuple[int, int, int], uid: int) -> None:
    """Make `stdio` the descriptors 0 to 2, and pipes, sockets and terminals among them the user's own.

    Without the latter a program that is not root can't open /dev/stdout again, which images do. Call it in the
    container's root: where one of them is the host's null device, it becomes the one in there.
    """
    with Step("stdio"):
        set_descriptors(stdio)
        for fd in (0, 1, 2):
            if _is_null(fd):
                _reopen_null(fd)
        if uid == 0:
            return
        for fd in (0, 1, 2):
            if passes_hands(os.fstat(fd).st_mode, fd):
                os.fchown(fd, uid, -1)


def passes_hands(mode: int, fd: int) -> bool:
    """Say whether the descriptor is of the kind that becomes its user's: a pipe, a socket, a terminal."""
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))


def set_descriptors(stdio: tuple[int, int, int]) -> None:
    """Make `stdio` the descriptors 0 to 2, whatever they are."""
    # Away from 0 to 2 first: stdio=(1, 0, 2) must not overwrite one before it is used
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio]
    for number, fd in enumerate(high):
        os.dup2(fd, number)
        os.close(fd)


def _is_null(fd: int) -> bool:
    info = os.fstat(fd)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL


def _reopen_null(fd: int) -> None:
    """Put the root's own /dev/null in the place of the host's: root inside could chmod the host's through it."""
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    # O_NONBLOCK: what a container has put there may be anything, and is only looked at before it is refused
    own = os.open("/dev/null", access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not _is_null(own):
            raise OSError(errno.ENODEV, "the container's /dev/null is not the null device")
        os.dup2(own, fd)
    finally:
        os.close(own)


def change_directory(cwd: str) -> None:
    """Go to `cwd`; raise StepError where it is not a directory inside the root.

    No magic link is followed, and getcwd must know the place: a directory reached through a leaked descriptor would be
    `(unreachable)` (CVE-2024-21626). Call it when no directory descriptor of the host is open any more.
    """
    with Step("cwd", cwd):
        flags = os.O_PATH | os.O_DIRECTORY
        fd = path.openat2(path.AT_FDCWD, cwd, flags, resolve=path.RESOLVE_NO_MAGICLINKS)
        os.fchdir(fd)
        os.close(fd)
        if not os.getcwd().startswith("/"):
            raise OSError(errno.EPERM, "outside of the container's root")


def find_program(wanted: Process) -> bytes:
    """Find the program's file as execvpe does; raise StepError("exec", ...) with ENOENT, EACCES or ENOTDIR.

    Call it as the user that will run it, in its directory.
    """
    name = wanted.arguments[0]
    if b"/" in name:
        return _check(name)
    denied: StepError | None = None
    for folder in wanted.environment.get(b"PATH", _DEFAULT_PATH).split(b":"):
        try:
            return _check((folder or b".") + b"/" + name)
        except StepError as error:
            if error.errno == errno.EACCES:
                denied = error
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise
    if denied is not None:
        raise denied
    raise StepError("exec", os.fsdecode(name), errno.ENOENT, "no such program in PATH")


def _check(name: bytes) -> bytes:
    shown = os.fsdecode(name)
    with Step("exec", shown):
        try:
            info = os.stat(name)
        except OSError as error:
            raise StepError("exec", shown, error.errno or 0, reason(error)) from error
        if stat.S_ISDIR(info.st_mode):
            raise StepError("exec", shown, errno.EACCES, "is a directory")
        if not stat.S_ISREG(info.st_mode) or not os.access(name, os.X_OK):
            raise StepError("exec", shown, errno.EACCES, "permission denied")
    return name


def reset_signals() -> None:
    """Give every signal its default disposition and unblock all: Python ignores SIGPIPE and SIGXFSZ, shims more."""
    for number in signal.valid_signals():
        if signal.getsignal(number) != signal.SIG_DFL and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    # posix_spawn(3) of whoever started us (GNU make) may leave these ignored, and sigaction(3) refuses them
    for hidden in _OF_LIBC:
        process.set_default_signal(hidden)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def execute(file: bytes, wanted: Process, keep: int, preserved: int = 0, *, confined: bool = False) -> None:
    """Execute `file`, filtered; never return except by StepError. `keep` is the error pipe, which the exec closes.

    Every other descriptor from 3 on is gone before (CVE-2024-21626), but the first `preserved`: whoever starts a
    container of its own may hand it some. With `confined` the filter has been loaded.
    """
    with Step("exec", os.fsdecode(file)):
        supervisor = () if wanted.supervisor is None else (wanted.supervisor[0],)
        process.close_except((*range(3 + preserved), keep, *supervisor))
        os.set_inheritable(keep, False)
    if not confined:
        privilege.confine(wanted)
    try:
        os.execve(file, wanted.arguments, wanted.environment)
    except OSError as error:
        raise _explain(file, error) from error


def _explain(file: bytes, error: OSError) -> StepError:
    """Tell apart what execve means by one errno: the file itself, or the interpreter that it names."""
    text = reason(error)
    try:
        with open(file, "rb") as opened:
            head = opened.read(256)
    except OSError:
        head = b""
    if error.errno in (errno.ENOENT, errno.EACCES) and head.startswith(b"#!"):
        parts = head[2:].partition(b"\n")[0].split()
        text = f"interpreter {os.fsdecode(parts[0] if parts else b'')}: {text}"
    elif error.errno == errno.ENOENT and head.startswith(b"\x7fELF"):
        text = f"its dynamic loader is not in the image: {text}"
    elif error.errno == errno.ENOEXEC:
        known = head.startswith(b"\x7fELF")
        text = (
            "a program for another processor" if known else "not a program, and no #! line says how to run it"
        )
    return StepError("exec", os.fsdecode(file), error.errno or 0, text)
