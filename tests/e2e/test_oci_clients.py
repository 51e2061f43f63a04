"""podman and containerd with our runtime below: what people do with them, on a real one each.

They are as Debian has them, in directories, a mount and a network namespace of the test's own. A container of theirs is
made by their own program (conmon, containerd's shim), which calls the runtime.
"""

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.linux.process import set_child_subreaper
from tests.images import busybox as busybox_image
from tests.kernel.box import busybox
from tests.kernel.leaks import LeakCheck
from tests.kernel.netns import private_network
from tests.kernel.runtime import PROGRAM, children, reap
from tests.kernel.trial import private_mounts
from tests.kernel.workshop import remove, scratch

__all__ = ["busybox"]

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

# This machine's own hard limits may be lower than podman's defaults, which no runtime could give then
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
log_driver = "k8s-file"
[engine]
lock_type = "file"
events_logger = "file"
cgroup_manager = "cgroupfs"
runtime_supports_json = ["reconciler-oci"]
"""
_CONTAINERD = """\
version = 2
root = "{0}/state"
state = "{0}/run"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{0}/grpc.sock"
[ttrpc]
address = "{0}/ttrpc.sock"
"""


@dataclass
class Client:
    """One of the two, in a directory of its own; `group` is the cgroup that all of its containers are in."""

    path: Path
    patience: float
    command: tuple[str, ...]
    environment: dict[str, str]
    group: str

    def __call__(self, *words: str, code: int = 0, input: str = "") -> str:
        """Run it with these words, which must end with `code`; give what it prints, or complains."""
        with (self.path / "out").open("w+") as out, (self.path / "err").open("w+") as err:
            with (self.path / "in").open("w+") as given:
                given.write(input)
                given.seek(0)
                done = subprocess.run(
                    [*self.command, *words],
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    env=self.environment,
                    timeout=60 * self.patience,
                    check=False,
                )
            out.seek(0)
            err.seek(0)
            said, complaint = out.read(), err.read()
        assert done.returncode == code, f"{words}: {done.returncode}\n{said}\n{complaint}"
        return (said if code == 0 else said + complaint).strip()


@contextlib.contextmanager
def place(name: str) -> Iterator[tuple[Path, str]]:
    """A directory and a cgroup of the test's own, in its own mount and network namespace; all is gone afterwards."""
    path = scratch(name)
    path.chmod(0o755)
    check = LeakCheck(str(path))
    group = check.own(f"reconciler-{name}-{secrets.token_hex(4)}")
    before = set(children())
    set_child_subreaper(True)  # conmon and containerd's shims leave what called them
    try:
        with private_network(), private_mounts():
            yield path, group
        reap(set(children()) - before)
    finally:
        set_child_subreaper(False)
        for pattern in (group, f"*/{group}"):
            for found in Path("/sys/fs/cgroup").glob(pattern):
                for inner, _, _ in os.walk(found, topdown=False):
                    os.rmdir(inner)
        remove(path)
    assert check.leaks() == []


@pytest.fixture
def podman(busybox: Path, patience: float) -> Iterator[Client]:
    """podman with an image `box`."""
    if shutil.which("podman") is None:
        pytest.skip("this machine has no podman")
    with place("podman") as (path, group):
        (path / "containers.conf").write_text(_CONTAINERS_CONF)
        environment = {**os.environ, "CONTAINERS_CONF": str(path / "containers.conf")}
        places = [
            ("--root", "store"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
            ("--network-config-dir", "net"),
        ]
        command = ["podman", "--storage-driver", "overlay", "--runtime", PROGRAM]
        for option, name in places:
            command += [option, str(path / name)]
        made = Client(path, patience, tuple(command), environment, group)
        subprocess.run(["tar", "-C", str(busybox), "-cf", str(path / "box.tar"), "."], check=True)
        made("import", str(path / "box.tar"), "box")
        try:
            yield made
        finally:
            made("rm", "--all", "--force", "--time", "0")
            made("unmount", "--all")
            for point in mounts_below(path):
                subprocess.run(["umount", "-l", point], check=True)


def mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted((line.split()[4] for line in lines if line.split()[4].startswith(f"{path}/")), reverse=True)


def test_podman_runs_what_people_run(podman: Client) -> None:
    run = ("run", "--rm", "--network", "none", "--cgroup-parent", f"/{podman.group}")
    script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; hostname; id -u"
    lines = podman(*run, "--hostname", "here", "box", "/bin/sh", "-c", script).split("\n")
    assert lines == ["CapEff:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2", "here", "0"]
    assert podman(*run, "-i", "box", "/bin/cat", input="a word\n") == "a word"
    assert podman(*run, "-t", "box", "/bin/tty") == "/dev/pts/0"
    assert podman(*run, "box", "/bin/sh", "-c", "exit 7", code=7) == ""
    assert "no such file or directory" in podman(*run, "box", "/bin/nope", code=127)
    assert "executable file not found" in podman(*run, "box", "nope", code=127)
    assert "is a directory" in podman(*run, "box", "/etc", code=126)
    options = (
        "--read-only",
        "--user",
        "1000:1000",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        "--tmpfs",
        "/t",
        "-v",
        "data:/data",
    )
    script = "id -u; echo $A; pwd; touch /x; touch /t/x /data/x; stat -c %u /data/x"
    assert podman(*run, *options, "box", "/bin/sh", "-c", f"({script}) 2>&1").split("\n") == [
        *("1000", "b", "/tmp", "touch: /x: Read-only file system", "1000")
    ]
    limits = ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")
    files = "memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us"
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        files = "memory.max pids.max cpu.max"
    shown = podman(*run, *limits, "box", "/bin/sh", "-c", f"cd /sys/fs/cgroup; cat {files}")
    assert shown.split()[:3] == ["67108864", "50", "50000"]
    maps = ("--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536")
    assert podman(
        *run, *maps, "box", "/bin/sh", "-c", "cat /proc/self/uid_map; touch /x; stat -c %u /x"
    ).split() == [*("0", "200000", "65536", "0")]
    assert podman(*run, "--privileged", "box", "/bin/sh", "-c", "mount -t tmpfs x /tmp && echo yes") == "yes"
    assert podman("ps", "--all", "--quiet") == ""


def test_podman_keeps_one_that_goes_on(podman: Client) -> None:
    health = ("--health-cmd", "/bin/test -e /tmp/ok", "--health-interval", "disable")
    options = ("--network", "none", "--cgroup-parent", f"/{podman.group}", *health)
    podman(
        "run",
        "--detach",
        "--name",
        "c",
        *options,
        "box",
        "/bin/sh",
        "-c",
        "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done",
    )
    deadline = time.monotonic() + 20 * podman.patience
    while podman("logs", "c") != "up":
        assert time.monotonic() < deadline
    assert podman(
        "exec", "--user", "1000", "--env", "A=b", "c", "/bin/sh", "-c", "id -u; echo $A"
    ).split() == ["1000", "b"]
    assert podman("exec", "c", "/bin/sh", "-c", "exit 5", code=5) == ""
    assert "no such file or directory" in podman("exec", "c", "/bin/nope", code=127)
    assert podman("exec", "-t", "c", "/bin/tty").startswith("/dev/pts/")
    podman("healthcheck", "run", "c", code=1)
    podman("exec", "--detach", "c", "/bin/touch", "/tmp/ok")
    while True:
        with contextlib.suppress(AssertionError):
            podman("healthcheck", "run", "c")
            break
        assert time.monotonic() < deadline
    podman("pause", "c")
    assert podman("inspect", "--format", "{{.State.Status}}", "c") == "paused"
    podman("unpause", "c")
    podman("update", "--memory", "32m", "c")
    assert "sleep" in podman("top", "c")
    podman("stop", "--time", "20", "c")
    assert podman("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "c") == "exited 3"
    podman("start", "c")
    podman("kill", "--signal", "KILL", "c")
    podman("wait", "c")
    podman("rm", "c")
    assert podman("ps", "--all", "--quiet") == ""


def test_podman_gives_it_its_default_network_and_a_pod(podman: Client) -> None:
    group = ("--cgroup-parent", f"/{podman.group}")
    assert "inet 10.88.0." in podman("run", "--rm", *group, "box", "/bin/sh", "-c", "ip addr show eth0")
    infra = ("--infra-image", "box", "--infra-command", "/bin/sleep 1000")
    podman("pod", "create", "--name", "p", "--network", "none", *group, *infra)
    assert podman("run", "--rm", "--pod", "p", "box", "/bin/sh", "-c", "hostname; id -u").split() == [
        "p",
        "0",
    ]
    podman("pod", "rm", "--force", "--time", "0", "p")


@pytest.fixture
def ctr(patience: float) -> Iterator[Client]:
    """containerd with an image `box`, and its client."""
    if shutil.which("containerd") is None:
        pytest.skip("this machine has no containerd")
    with place("ctr") as (path, group):
        os.makedirs("/run/containerd", exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", "/run/containerd"], check=True
        )  # the sockets of its shims
        (path / "config.toml").write_text(_CONTAINERD.format(path))
        made = Client(path, patience, ("ctr", "--address", str(path / "grpc.sock")), dict(os.environ), group)
        with (path / "log").open("w") as log:
            daemon = subprocess.Popen(
                ["containerd", "--config", str(path / "config.toml")], stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + 30 * patience
            while not (path / "grpc.sock").exists():
                assert time.monotonic() < deadline, (path / "log").read_text()
                select.select([], [], [], 0.05)
            busybox_image(path / "layout")
            subprocess.run(["tar", "-C", str(path / "layout"), "-cf", str(path / "box.tar"), "."], check=True)
            made("image", "import", "--base-name", "box.example/box", str(path / "box.tar"))
            yield made
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30 * patience)
            for point in [*mounts_below(path), "/run/containerd"]:
                subprocess.run(["umount", "-l", point], check=True)


def test_containerd_runs_and_keeps_containers(ctr: Client) -> None:
    image = ctr("image", "ls", "--quiet").split("\n")[0]
    runtime = ("--runc-binary", PROGRAM)

    def group(name: str) -> tuple[str, str]:
        return ("--cgroup", f"/{ctr.group}/{name}")

    script = "id -u; grep Seccomp: /proc/self/status; exit 6"
    said = ctr(
        "run", "--rm", "--seccomp", *runtime, *group("one"), image, "one", "/bin/sh", "-c", script, code=6
    )
    assert said.split() == ["0", "Seccomp:", "2"]
    assert "no such file or directory" in ctr(
        "run", "--rm", *runtime, *group("two"), image, "two", "/bin/nope", code=1
    )
    ctr("run", "--detach", *runtime, *group("three"), image, "three", "/bin/sleep", "1000")
    assert ctr("task", "exec", "--exec-id", "e", "three", "/bin/sh", "-c", "echo in; exit 5", code=5) == "in"

    def status() -> str:
        return next(line.split()[2] for line in ctr("task", "ls").split("\n") if line.startswith("three"))

    assert status() == "RUNNING"
    ctr("task", "pause", "three")
    assert status() == "PAUSED"
    ctr("task", "resume", "three")
    ctr("task", "kill", "--signal", "KILL", "three")
    deadline = time.monotonic() + 20 * ctr.patience
    while status() != "STOPPED":
        assert time.monotonic() < deadline
    ctr("task", "rm", "three")
    ctr("container", "rm", "three")
    assert ctr("container", "ls", "--quiet") == ""
