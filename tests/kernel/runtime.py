"""Containers by the OCI runtime command line, as podman and containerd have them: a bundle, and a process."""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reconciler.linux.process import set_child_subreaper
from tests.kernel.leaks import LeakCheck
from tests.kernel.workshop import remove, scratch

PROGRAM = str(Path(sys.executable).with_name("reconciler-oci"))
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]


@dataclass
class Done:
    """How a call of the runtime ended."""

    code: int
    out: str
    err: str


@dataclass
class Runtime:
    """The runtime with a root of its own. `name` is in all that it makes: ids, and so cgroups and directories."""

    path: Path
    busybox: Path
    patience: float
    program: str = PROGRAM
    name: str = field(default_factory=lambda: f"reconciler-oci-{secrets.token_hex(4)}")
    count: int = 0
    made: "list[Sample]" = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.path / "root"

    def __call__(self, *arguments: str, check: bool = True, input: str = "") -> Done:
        """Run the runtime; with `check` it must succeed.

        Into files: what it leaves running has its output too, and a pipe of that would not end.
        """
        with contextlib.ExitStack() as stack:
            given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
            given.write(input)
            given.seek(0)
            command = [self.program, "--root", str(self.root), *arguments]
            timeout = 20 * self.patience
            done = subprocess.run(command, stdin=given, stdout=out, stderr=err, timeout=timeout, check=False)
            out.seek(0)
            err.seek(0)
            result = Done(done.returncode, out.read(), err.read())
        if check:
            assert result.code == 0, result.err
        return result

    def fails(self, *arguments: str, input: str = "") -> str:
        """Run the runtime, which must fail, and give what it says."""
        done = self(*arguments, check=False, input=input)
        assert done.code != 0, done.out
        assert "Traceback" not in done.err
        return done.err.strip().removeprefix("reconciler-oci: ")

    def sample(self, *args: str, **process: Any) -> "Sample":
        """Make a bundle whose program is `args`."""
        self.count += 1
        directory = self.path / f"bundle{self.count}"
        shutil.copytree(self.busybox, directory / "rootfs", symlinks=True)
        made = Sample(self, f"{self.name}-{self.count}", directory, default_config())
        made.config["process"] |= {"args": list(args), **process}
        made.config["linux"]["cgroupsPath"] = f"/{self.name}/{self.count}"
        self.made.append(made)
        return made

    def shell(self, script: str, **process: Any) -> "Sample":
        return self.sample("/bin/sh", "-c", script, **process)

    def close(self) -> None:
        for made in self.made:
            self("delete", "--force", made.id, check=False)
        for pattern in (
            self.name,
            f"*/{self.name}",
        ):  # what a caller wants above a container's own stays the caller's
            for directory in Path("/sys/fs/cgroup").glob(pattern):
                directory.rmdir()


@dataclass
class Sample:
    """One bundle and the container of it. `config` may be changed freely before it is created."""

    runtime: Runtime
    id: str
    directory: Path
    config: dict[str, Any]

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["linux"]
        return found

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["process"]
        return found

    def mount(self, destination: str, kind: str, source: object, *options: str, **more: Any) -> "Sample":
        entry = {
            "destination": destination,
            "type": kind,
            "source": str(source),
            "options": list(options),
            **more,
        }
        self.config["mounts"].append(entry)
        return self

    def namespace(self, kind: str, path: str | None = None) -> "Sample":
        """Have a namespace of this kind, a new one or the one at `path`, instead of what there was."""
        kept = [entry for entry in self.linux["namespaces"] if entry["type"] != kind]
        self.linux["namespaces"] = [*kept, {"type": kind, **({"path": path} if path else {})}]
        return self

    def without(self, kind: str) -> "Sample":
        self.linux["namespaces"] = [entry for entry in self.linux["namespaces"] if entry["type"] != kind]
        return self

    def users(self, first: int = 100000, size: int = 65536) -> "Sample":
        """Have a user namespace whose ids are the host's from `first` on."""
        self.namespace("user")
        ids = [{"containerID": 0, "hostID": first, "size": size}]
        self.linux.update(uidMappings=ids, gidMappings=ids)
        return self

    def write(self) -> "Sample":
        (self.directory / "config.json").write_text(json.dumps(self.config))
        return self

    def run(self, *options: str, check: bool = True) -> Done:
        """Run it to its end, with what it prints."""
        self.write()
        return self.runtime("run", "--bundle", str(self.directory), *options, self.id, check=check)

    def output(self) -> list[str]:
        return self.run().out.splitlines()

    def refused(self) -> str:
        """It can't be created: give what is said, and see that nothing is left."""
        self.write()
        said = self.runtime.fails("create", "--bundle", str(self.directory), self.id)
        assert not (self.runtime.root / self.id).exists()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/{self.runtime.name}/{self.id.rpartition('-')[2]}"))
        return said

    def create(self, *options: str) -> "Sample":
        self.write()
        self.runtime("create", "--bundle", str(self.directory), *options, self.id)
        return self

    def start(self) -> "Sample":
        self.runtime("start", self.id)
        return self

    def up(self, *options: str) -> "Sample":
        return self.create(*options).start()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.runtime("state", self.id).out)
        return found

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    @property
    def pid(self) -> int:
        return int(self.state()["pid"])

    def proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def ps(self) -> list[int]:
        found: list[int] = json.loads(self.runtime("ps", "--format", "json", self.id).out)
        return found

    def execute(self, *arguments: str) -> str:
        return self.runtime("exec", self.id, *arguments).out.strip()

    def kill(self, name: str = "KILL") -> None:
        """Signal it, and wait until it has ended."""
        pidfd = os.pidfd_open(self.pid)
        try:
            self.runtime("kill", self.id, name)
            assert select.select([pidfd], [], [], 20 * self.runtime.patience)[0]
        finally:
            os.close(pidfd)

    def delete(self) -> None:
        self.runtime("delete", self.id)

    def cgroup(self, controller: str) -> Path:
        """Its directory in the hierarchy of a controller, whichever version that is."""
        tail = f"{self.runtime.name}/{self.id.rpartition('-')[2]}"
        v1 = Path(f"/sys/fs/cgroup/{controller}/{tail}")
        return v1 if v1.is_dir() else Path(f"/sys/fs/cgroup/{tail}")


def default_config() -> dict[str, Any]:
    """What most callers begin with."""
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": where, "type": kind, "source": kind, "options": options.split(",")}
            for where, kind, options in (
                ("/proc", "proc", "nosuid,noexec,nodev"),
                ("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
                ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
                ("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
                ("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
                ("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
            )
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "uts", "ipc", "cgroup")],
        },
    }


@pytest.fixture
def runtime(busybox: Path, patience: float) -> Iterator[Runtime]:
    """A runtime for one test, which leaves nothing behind, whatever its containers did."""
    with runtime_at(busybox, patience) as made:
        yield made


@contextlib.contextmanager
def runtime_at(busybox: Path, patience: float) -> Iterator[Runtime]:
    path = scratch("oci")
    path.chmod(0o755)  # the root of a user namespace goes through it
    check = LeakCheck(str(path))
    made = Runtime(path, busybox, patience)
    check.own(made.name)
    before = set(children())
    set_child_subreaper(True)  # as conmon is: containers become this process's children
    try:
        yield made
    finally:
        reap(set(children()) - before)
        set_child_subreaper(False)
        made.close()
        remove(path)
    assert check.leaks(3.0 * patience) == []


def reap(left: set[int]) -> None:
    """Kill these children and reap them, side by side: a container's first process ends only after the others."""
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while left:
        left -= {pid for pid in left if _reaped(pid)}
        select.select([], [], [], 0.001)


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def eventually(condition: Callable[[], bool], patience: float) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + 20 * patience
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)
