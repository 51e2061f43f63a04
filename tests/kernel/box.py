"""A container by hand: busybox, a bundle, and a process that plays the shim. What the child does is seen from inside.

The shim here is a fork of the test (which may have threads; the fork has one), speaks the protocol that shim.child's
text describes, and holds the only write end of the go pipe, so that killing it is what killing a shim is.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from reconciler.engine.bundle import CAPABILITIES, MASKED_PATHS, READONLY_PATHS
from reconciler.engine.seccomp import default
from reconciler.engine.seccomp.filter import MACHINE, compiled
from reconciler.shim import child
from reconciler.shim.filter import FILE, read
from reconciler.shim.step import StepError

PREFIX = "dev.reconciler."


def make_layer(directory: Path) -> Path:
    """Make a root file system of busybox with every applet, and the few files that images have."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in os.popen("/bin/busybox --list").read().split():
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    for name in ("etc", "tmp", "root", "home", "var", "usr"):
        (directory / name).mkdir()
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    )
    (directory / "etc/group").write_text("root:x:0:\nweb:x:1001:\nlogs:x:44:web,nobody\nextra:x:45:web\n")
    return directory


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The busybox layer, shared and never written to."""
    return make_layer(tmp_path_factory.mktemp("busybox") / "layer")


@dataclass
class Bundle:
    """A bundle in the making: `config` may be changed freely before it is run."""

    directory: Path
    config: dict[str, Any]

    def annotate(self, key: str, value: object) -> Self:
        """Set an annotation of ours; anything but a string goes in as JSON."""
        self.config["annotations"][PREFIX + key] = value if isinstance(value, str) else json.dumps(value)
        return self

    def mount(self, destination: str, kind: str, source: str, *options: str) -> Self:
        """Add a mount after the others."""
        entry = {"destination": destination, "type": kind, "source": source, "options": list(options)}
        self.config["mounts"].append(entry)
        return self

    def unfiltered(self) -> Self:
        """Have no seccomp filter."""
        self.config["linux"].pop("seccomp", None)
        return self

    def compile(self) -> None:
        """Put the filter beside config.json, as who makes a bundle does."""
        section = self.config["linux"].get("seccomp")
        if section is not None:
            (self.directory / FILE).write_bytes(compiled(section))

    @property
    def upper(self) -> Path:
        return self.directory / "upper"


def make_bundle(directory: Path, layers: list[Path], *args: str, env: tuple[str, ...] = ()) -> Bundle:
    """Make a bundle as the engine's are: overlay, all namespaces, default mounts, masks and capabilities."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("upper", "work"):
        (directory / name).mkdir(exist_ok=True)
    names = list(CAPABILITIES)
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/usr/bin:/bin", *env],
            "cwd": "/",
            "capabilities": {
                "bounding": names,
                "effective": names,
                "permitted": names,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": True,
            "oomScoreAdj": 0,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": [
            {
                "destination": destination,
                "type": kind,
                "source": source,
                "options": options.split(","),
            }
            for destination, kind, source, options in (
                ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
                ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
                ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
                ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
                ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
                ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
                ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
            )
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "uts", "ipc", "cgroup")],
            "rootfsPropagation": "rslave",
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": default.section(CAPABILITIES, MACHINE),
        },
        "annotations": {PREFIX + "name": "test/box"},
    }
    bundle = Bundle(directory, config)
    bundle.annotate("layers", [str(layer) for layer in layers])
    bundle.annotate("upper", str(directory / "upper"))
    bundle.annotate("work", str(directory / "work"))
    return bundle


@dataclass
class Result:
    """How a container went: `error` is the child's line, `code` its exit code (negative: signal)."""

    output: str = ""
    code: int | None = None
    error: dict[str, Any] | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        return self.output.splitlines()


class Box:
    """A container under way: `create`, `start`, `wait`; `pid` is its first process as the host sees it."""

    def __init__(self, bundle: Bundle, *, death_signal: int = signal.SIGKILL) -> None:
        self._prepared = child.prepare(bundle.config, str(bundle.directory))
        bundle.compile()
        if self._prepared.process.filtered:
            directory = os.open(bundle.directory, os.O_RDONLY)
            self._prepared.process.filter = read(directory, str(bundle.directory))
            os.close(directory)
        self._death_signal = death_signal
        self.pid = -1
        self.shim = -1
        self.pidfd = -1
        self.master = -1
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shim > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.shim, signal.SIGKILL)
            os.waitpid(self.shim, 0)
        self._stack.close()

    def create(self) -> dict[str, Any] | None:
        """Go as far as created; give the child's error, or None."""
        self.launch()
        return self.answer()

    def launch(self) -> None:
        """Begin to create, without waiting for it."""
        output, inside = self._pipe()
        commands, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stack.enter_context(commands)
        self._output, self._commands = output, commands
        self.shim = os.fork()
        if self.shim == 0:
            code = 70
            try:
                commands.close()
                os.close(output)
                code = _play_shim(self._prepared, told, inside, self._death_signal)
            finally:
                os._exit(code)
        told.close()
        os.close(inside)

    def _pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        self._stack.callback(os.close, read)
        return read, write

    def answer(self) -> dict[str, Any] | None:
        """Wait for the shim's next word: the child's error, or None."""
        data, fds, _, _ = socket.recv_fds(self._commands, 65536, 1)
        for fd in fds:
            self.master = fd
            self._stack.callback(os.close, fd)
        answer: dict[str, Any] = (
            json.loads(data) if data else {"error": {"step": "shim", "message": "the shim died"}}
        )
        self.pid = answer.get("pid", self.pid)
        error: dict[str, Any] | None = answer.get("error")
        return error

    def start(self) -> dict[str, Any] | None:
        """Start the program; give the child's error, or None once it runs."""
        self._commands.send(b"start")
        return self.answer()

    def read(self, size: int = 65536) -> str:
        """Read what the program writes next."""
        return os.read(self._output, size).decode(errors="replace")

    def kill_shim(self) -> None:
        """Kill the shim, as a fault."""
        os.kill(self.shim, signal.SIGKILL)
        os.waitpid(self.shim, 0)
        self.shim = -1

    def wait(self) -> Result:
        """Read to the end, and give how the container ended."""
        chunks = []
        while chunk := os.read(self._output, 65536):
            chunks.append(chunk)
        _, status = os.waitpid(self.shim, 0)
        self.shim = -1
        data = self._commands.recv(65536)
        code = json.loads(data)["code"] if data else None
        assert os.waitstatus_to_exitcode(status) == 0
        return Result(b"".join(chunks).decode(errors="replace"), code)


def _play_shim(prepared: child.Prepared, told: socket.socket, output: int, death_signal: int) -> int:
    go_read, go_write = os.pipe()
    sync_read, sync_write = os.pipe()
    error_read, error_write = os.pipe()
    console, console_child = socket.socketpair()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        pid, pidfd = child.spawn(
            prepared,
            go_fd=go_read,
            sync_fd=sync_write,
            error_fd=error_write,
            stdio=(null, output, output),
            console_fd=console_child.fileno(),
            death_signal=death_signal,
        )
    except StepError as refused:
        told.send(json.dumps({"error": json.loads(refused.line())}).encode())
        return 0
    for fd in (go_read, sync_write, error_write, output, null):
        os.close(fd)
    console_child.close()
    fds = []
    if prepared.process.terminal:
        fds = socket.recv_fds(console, 64, 1)[1]
    created = os.read(sync_read, 1)
    error = None if created else json.loads(_all(error_read) or b'{"step": "?", "message": "no word"}')
    socket.send_fds(told, [json.dumps({"pid": pid, "error": error}).encode()], fds)
    for fd in fds:
        os.close(fd)
    if error is None and told.recv(64) == b"start":
        os.write(go_write, b"g")
        line = _all(error_read)
        error = json.loads(line) if line else None
        told.send(json.dumps({"error": error}).encode())
    elif error is None:
        os.close(go_write)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert ended is not None
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    told.send(json.dumps({"code": code}).encode())
    return 0


def _all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    return b"".join(chunks)


@contextlib.contextmanager
def running(bundle: Bundle) -> Iterator[Box]:
    """Run a bundle; kill what is left of it at the end."""
    with Box(bundle) as box:
        error = box.create()
        assert error is None, error
        error = box.start()
        assert error is None, error
        yield box


def run(bundle: Bundle) -> Result:
    """Run a bundle to its end; a failure before the program runs is in `error`."""
    with Box(bundle) as box:
        error = box.create() or box.start()
        result = box.wait()
        result.error = error
        return result


def shell(bundle: Bundle, script: str) -> list[str]:
    """Run a script of the container's shell, which must succeed, and give the lines that it prints."""
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    result = run(bundle)
    assert result.error is None, result.error
    assert result.code == 0, result.output
    return result.lines()
