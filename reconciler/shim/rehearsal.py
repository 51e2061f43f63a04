"""A rehearsal of a shim's life in the zygote: what the interpreter notes down while code runs, it notes once for all.

CPython specialises bytecode, fills method caches and makes constants as it goes, in the middle of pages that shims
share with the zygote; done in each shim it costs each a quarter of a megabyte. So the zygote runs a Monitor before it
forks the first shim, with a child that plays the container, a client, and a log in a temporary directory. A rehearsal
that fails costs memory later, nothing else. The reading of a bundle is rehearsed for its time: makers do it once each.
"""

import errno
import marshal
import os
import signal
import socket
from types import FrameType

from reconciler.linux import process
from reconciler.shim import channel, config, monitor, oom, record
from reconciler.shim.logfile import pipe
from reconciler.shim.logopen import open_log

_ROUNDS = 12
_PATIENCE = 5
_CAPABILITIES = [f"CAP_{name}" for name in ("CHOWN", "KILL", "SETGID", "SETUID", "SYS_CHROOT")]
_BUNDLE: dict[str, object] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "rehearsal",
    "process": {
        "args": ["/program", "argument"],
        "env": ["PATH=/bin", "A=1", "B=2"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
        "oomScoreAdj": 0,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
        "capabilities": {name: _CAPABILITIES for name in ("bounding", "effective", "permitted")},
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": "/hosts",
            "options": ["bind", "rprivate", "ro"],
        },
    ],
    "linux": {
        "namespaces": [{"type": name} for name in ("pid", "network", "mount", "uts", "ipc", "cgroup")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/sys"],
        "rootfsPropagation": "private",
    },
    "annotations": {
        "dev.reconciler.name": "rehearsal/rehearsal",
        "dev.reconciler.cgroup": '{"v1":["/a","/b"],"v2":"/c"}',
        "dev.reconciler.layers": '["/lower"]',
        "dev.reconciler.upper": "/upper",
        "dev.reconciler.work": "/work",
        "dev.reconciler.volumes": "[]",
    },
}


def rehearse(directory: str) -> None:
    """Play a container from its creation to its end, in a directory made in `directory`; raise OSError."""
    place = f"{directory}/rehearsal.{os.getpid()}"
    before = tuple(int(name) for name in os.listdir("/proc/self/fd"))
    children: list[int] = []
    os.mkdir(place, 0o700)
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE)
    try:
        for _ in range(_ROUNDS):
            config.prepare(_BUNDLE, place)
        _play(place, children)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _clean_up(place, before, children)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise OSError(errno.ETIMEDOUT, "it takes too long")


def _clean_up(place: str, before: tuple[int, ...], children: list[int]) -> None:
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended as it should
    process.close_except((0, 1, 2, *before))
    for name in os.listdir(place):
        os.unlink(f"{place}/{name}")
    os.rmdir(place)


def _play(place: str, children: list[int]) -> None:
    run = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directory, log, index, sequence = open_log(place)
    stdout, stdout_write = pipe()
    stderr, stderr_write = pipe()
    go_read, go = os.pipe2(os.O_CLOEXEC)
    error, error_write = os.pipe2(os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind(f"/proc/self/fd/{run}/{record.SOCKET}")
    listener.listen(1)
    container = os.fork()
    if container == 0:
        os.close(go)
        monitor.finish(lambda: _contain(go_read, error_write, stdout_write, stderr_write))
    children.append(container)
    client = os.fork()
    if client == 0:
        process.close_except((0, 1, 2, run))
        monitor.finish(lambda: _ask(run))
    children.append(client)
    for fd in (go_read, error_write, stdout_write, stderr_write):
        os.close(fd)
    pidfd = os.pidfd_open(container)
    identity = (os.getpid(), record.started(os.getpid()), container, record.started(container))
    fds = (pidfd, go, error, listener.fileno(), run, os.dup(run), stdout, stderr, directory, log, index)
    there = (True,) * 6 + (False,) * 3 + (True,) * 5
    made: monitor.Made = (
        True,
        (*identity, record.boot_id(), record.boottime()),
        (place,),
        oom.count((place,)),
        (place, sequence, 4096, 2, False),
        there,
    )
    ours, theirs = channel.pair()
    channel.send(theirs, made, fds)
    received = channel.receive(ours)
    for fd in fds:
        os.close(fd)
    listener.detach()
    if received is not None:
        shim = monitor.Monitor(made, received[1], _serve, 0)
        try:
            shim.serve()
        finally:
            children.extend(shim.clerks.values())
    for end in (ours, theirs):
        end.close()


def _contain(go: int, error: int, stdout: int, stderr: int) -> int:
    """Be the program: wait for the start, then write to both streams, line by line and in halves."""
    os.read(go, 1)
    os.close(error)
    for number in range(_ROUNDS):
        os.write(stdout, b"x" * 500 + b"\n")
        os.write(stderr, b"half" if number % 2 else b"\n")
        os.sched_yield()
    return 0


def _ask(run: int) -> int:
    """Be a client, one connection after the other: the first one asks for the start, the others have clerks."""
    for number in range(_ROUNDS // 2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            try:
                client.connect(f"/proc/self/fd/{run}/{record.SOCKET}")
                client.send(b"?" if number else monitor.START)
                client.recv(len(monitor.STARTED))
            except OSError:
                return 0  # the container has ended
    return 0


def _serve(fds: tuple[int, ...], identity: record.Identity, cgroups: tuple[str, ...]) -> int:
    """Be a clerk: everything that a monitor can be asked."""
    process.close_except((0, 1, 2, *fds[:2]))  # above all its own channel's other end
    for question in (("phase",), ("state",), ("logging", 4096, 2, False), ("start",)):
        try:
            os.write(fds[1], marshal.dumps(question))
            os.read(fds[1], 4096)
        except OSError:
            return 0  # the container has ended
    return 0
