"""Limits as people see them: what is told of a container that met one, and what the kernel's own counters say.

Also run on cgroup version 2 in the virtual machine, where starting a program takes seconds: verbs are called sparingly.
Nothing is timed.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.cgroup, pytest.mark.network]

SLEEP = "exec sleep 100000"
MEMORY_HOG = "x=0123456789abcdef; while :; do x=$x$x; done"
FORK_BOMB = "f() { f & f & wait; }; f 2>/dev/null; exec sleep 100000"
CPU_HOG = "while :; do :; done"
COUNTS_PEAKS = Path("/sys/fs/cgroup/memory/memory.max_usage_in_bytes").exists() or tuple(
    map(int, re.findall(r"\d+", os.uname().release)[:2])
) >= (5, 19)


def app(name: str, image: str, script: str, limits: str, *, restart: str = "always") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: [sh, -c, "{script}"]
    limits: {{{limits}}}
    restart: {restart}
    stop_grace_period: 0s
"""


class Groups:
    """The cgroup directories of a running process, on whatever hierarchies this machine has."""

    def __init__(self, pid: int) -> None:
        self.directories: list[Path] = []
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            points = [f"/sys/fs/cgroup/{name}" for name in controllers.split(",")]
            points += [] if controllers else ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            self.directories += [Path(point + path) for point in points if Path(point + path).is_dir()]

    def read(self, *names: str) -> str:
        """The first of these files that there is: the name in version 2, then the one in version 1."""
        for name in names:
            for directory in self.directories:
                if (directory / name).exists():
                    return (directory / name).read_text().strip()
        raise AssertionError(f"none of {names} in {self.directories}")

    def count(self, file: str, key: str) -> int:
        """A counter of a file of `key value` lines."""
        found = re.search(rf"^{key} (\d+)$", self.read(file), re.MULTILINE)
        assert found is not None
        return int(found[1])


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)])
    return device


def test_hogs_meet_their_limits_and_nothing_else_is_touched(ready: Device, box: Built) -> None:
    image = reference(box)
    ready.spec("bystander", app("bystander", image, SLEEP, "memory: 16Mi, pids: 8"))
    ready.start()
    ready.logged("start bystander/main")
    ready.spec("once", app("once", image, MEMORY_HOG, "memory: 16Mi, pids: 8", restart="no"))
    ready.spec(
        "again", app("again", image, MEMORY_HOG, "memory: 16Mi", restart="{policy: always, delay: 5m}")
    )
    ready.spec("bomb", app("bomb", image, FORK_BOMB, "memory: 64Mi, pids: 20"))
    ready.spec("busy", app("busy", image, CPU_HOG, "memory: 16Mi, cpus: 0.05"))
    for name in ("once", "again", "bomb", "busy"):
        ready.logged(f"start {name}/main")
    # The memory hogs are killed by the kernel and said to be; the rest runs on.
    ready.until(lambda: ready.ps()["once/main"]["oom"] and ready.ps()["again/main"]["state"] == "backoff")
    found = ready.ps()
    assert {found["once/main"][key] for key in ("exit_code", "last_exit_code")} == {137}
    assert found["once/main"]["status"].startswith("Exited (137) (OOM) ")
    if COUNTS_PEAKS:
        peak = found["once/main"]["memory_peak"]
        assert 14 << 20 < peak <= 16 << 20
        seen = json.loads(ready.reconciler("inspect", "once/main").stdout)[0]
        assert (seen["State"]["OOMKilled"], seen["Reconciler"]["MemoryPeak"]) == (True, peak)
    assert re.fullmatch(r"Backoff \(1st, next in .*, exit 137 OOM\)", found["again/main"]["status"])
    told = ready.reconciler("status").stdout
    assert re.search(r"^again .*degraded.*exit 137 \(OOM\)", told, re.MULTILINE), told
    assert re.search(r"^once .*degraded.*exit 137 \(OOM\)", told, re.MULTILINE), told

    bomb = Groups(ready.running("bomb/main"))
    assert bomb.read("pids.max") == "20"
    ready.until(lambda: bomb.count("pids.events", "max") > 0)
    assert int(bomb.read("pids.current")) <= 20

    busy = Groups(ready.running("busy/main"))
    before = busy.count("cpu.stat", "nr_throttled")
    ready.until(lambda: busy.count("cpu.stat", "nr_throttled") > before)

    assert found["bystander/main"]["state"] == "running"
    assert found["bystander/main"]["restarts"] == 0
    assert Path(f"/proc/{found['bystander/main']['pid']}").exists()


def test_limits_change_in_place_without_a_restart(ready: Device, box: Built) -> None:
    image = reference(box)
    ready.spec("app", app("app", image, SLEEP, "memory: 16Mi, pids: 8, cpus: 0.5"))
    ready.start()
    ready.logged("start app/main")
    pid = ready.running("app/main")
    group = Groups(pid)
    assert group.read("memory.max", "memory.limit_in_bytes") == str(16 << 20)
    ready.spec("app", app("app", image, SLEEP, "memory: 24Mi, pids: 9, cpus: 0.25"))
    ready.until(lambda: group.read("pids.max") == "9")
    ready.until(lambda: group.read("memory.max", "memory.limit_in_bytes") == str(24 << 20))
    ready.until(lambda: group.read("cpu.max", "cpu.cfs_quota_us").split()[0] == "25000")
    found = ready.ps()["app/main"]
    assert (found["pid"], found["restarts"]) == (pid, 0)
    assert found["limits"] == {"cpus": 0.25, "memory": 24 << 20, "pids": 9}


def test_what_is_run_beside_a_container_counts_against_its_limits(ready: Device, box: Built) -> None:
    ready.spec("app", app("app", reference(box), SLEEP, "memory: 16Mi, pids: 8"))
    ready.start()
    ready.logged("start app/main")
    forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 >/dev/null 2>&1 & done; echo all"
    many = ready.reconciler("exec", "app/main", "sh", "-c", forks, check=False)
    assert many.returncode != 0
    assert "can't fork: Resource temporarily unavailable" in many.stderr
    found = ready.ps()["app/main"]
    assert (found["state"], found["restarts"]) == ("running", 0)
    group = Groups(found["pid"])
    assert group.count("pids.events", "max") > 0
    # Of memory that runs out, the whole container dies: it is on record with how much it had, whoever took it.
    hog = ready.reconciler("exec", "app/main", "sh", "-c", MEMORY_HOG, check=False)
    assert hog.returncode == 137
    ready.until(lambda: ready.ps()["app/main"]["pid"] not in (None, found["pid"]))
    assert ready.ps()["app/main"]["restarts"] == 1
    items = json.loads(ready.reconciler("events", "-o", "json").stdout)["items"]
    (ended,) = [event for event in items if event["kind"] == "exit"]
    assert (ended["id"], ended["exit_code"], ended["oom"]) == (found["id"], 137, True)
    if COUNTS_PEAKS:
        assert 14 << 20 < ended["memory_peak"] <= 16 << 20
    (code,) = [
        event["exit_code"]
        for event in items
        if event["kind"] == "exec" and MEMORY_HOG in str(event) and "exit_code" in event
    ]
    assert code == 137


# What the agent sees of cgroups, without the controller cpu: in a mount namespace of its own, so that nobody else does.
WITHOUT_CPU = """
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount --bind "$0" /sys/fs/cgroup
else
    umount /sys/fs/cgroup/cpu
    umount /sys/fs/cgroup/cpuacct 2>/dev/null || true
fi
exec "$@"
"""


def test_a_limit_that_can_not_be_enforced_is_a_failed_step_of_its_own_app(ready: Device, box: Built) -> None:
    image = reference(box)
    ready.spec("limited", app("limited", image, SLEEP, "memory: 16Mi, cpus: 0.5"))
    ready.spec("other", app("other", image, SLEEP, "memory: 16Mi"))
    inner = Path("/sys/fs/cgroup") / ready.namespace / "inner"
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if unified:  # a group whose parent hands on memory and pids, but not cpu
        inner.mkdir(parents=True)
        (inner.parent / "cgroup.subtree_control").write_text("+memory +pids")
    try:
        ready.start(under=["unshare", "-m", "sh", "-ec", WITHOUT_CPU, str(inner)])
        ready.logged("start other/main")
        said = ready.logged(r"limited: create limited/main .*")
        assert "limits.cpus: this machine cannot enforce it: the cgroup controller cpu is in no" in said
        ready.logged("boot with cgroup_enable=cpu, or mount it: ")
        assert not ready.pid("limited/main")
        assert ready.running("other/main")
        ready.stop()
    finally:
        if unified:
            for procs in sorted(inner.parent.glob("**/cgroup.kill"), reverse=True):
                procs.write_text("1")
            deadline = time.monotonic() + 5 * PATIENCE
            while any(p.read_text() for p in inner.parent.glob("**/cgroup.procs")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for directory in sorted(inner.parent.glob("**/"), reverse=True):
                directory.rmdir()


@pytest.mark.parametrize("file", ["hosts", "resolv.conf", "hostname"])
def test_s13_what_is_written_to_a_file_of_the_agents_is_not_the_hosts_memory(
    ready: Device, box: Built, file: str
) -> None:
    """A container without a memory limit that fills its /etc/hosts: /run, where that is, stays as it was."""
    image = reference(box)
    ready.spec("web", app("web", image, SLEEP, "pids: 64"))
    ready.start()
    ready.running("web/main")
    before = used(ready.run)
    fill = f"dd if=/dev/zero of=/etc/{file} bs=1M count=24 2>/dev/null && wc -c < /etc/{file}"
    assert ready.reconciler("exec", "web/main", "sh", "-c", fill).stdout.strip() == str(24 << 20)
    assert used(ready.run) - before < 1 << 20
    # It is with the writable layer, and goes with it; the agent is not bothered by what it finds there.
    (grown,) = [path for path in ready.state.glob(f"containers/*/{file}") if path.stat().st_size >= 24 << 20]
    ready.spec("web", two(image))
    ready.running("web/other")
    if file == "hosts":
        names = ready.reconciler("exec", "web/main", "cat", "/etc/hosts").stdout
        assert "other" in names
        assert grown.stat().st_size == len(names)
    (ready.specs / "web.yaml").unlink()
    ready.spec("b", app("b", image, SLEEP, "memory: 16Mi"))
    ready.until(lambda: not grown.exists(), message="for the container to be gone")


def two(image: str) -> str:
    """The same app with a sibling: its first container goes on."""
    return (
        app("web", image, SLEEP, "pids: 64")
        + f"""
  other:
    image: {image}
    command: [sh, -c, "{SLEEP}"]
    stop_grace_period: 0s
"""
    )


def used(directory: Path) -> int:
    """Bytes that a directory takes up, as du(1) counts."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
