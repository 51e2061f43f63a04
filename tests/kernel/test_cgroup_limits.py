"""Limits that hold: by the kernel's own counters, on whatever hierarchies this machine has."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine import cgroup, usage
from reconciler.errors import ReconcilerError, UnsupportedError
from reconciler.state.desired import Limits
from tests.kernel.box import Bundle, make_bundle, run, running
from tests.kernel.leaks import LeakCheck

pytestmark = [pytest.mark.kernel, pytest.mark.cgroup]


@pytest.fixture
def hierarchies() -> cgroup.Hierarchies:
    return cgroup.Hierarchies.detect()


@pytest.fixture
def parent(leak_check: LeakCheck) -> str:
    return leak_check.own(f"reconciler-{secrets.token_hex(8)}")


@pytest.fixture
def group(hierarchies: cgroup.Hierarchies, parent: str) -> Iterator[cgroup.Cgroup]:
    """An empty cgroup without limits."""
    made = cgroup.create(hierarchies, parent, "box", Limits(pids=None))
    yield made
    cgroup.kill(made)
    assert cgroup.wait_empty(made, 10)
    cgroup.remove(made)


@pytest.fixture
def bundle(tmp_path: Path, busybox: Path, group: cgroup.Cgroup) -> Bundle:
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/sh")
    return bundle.annotate("cgroup", group.annotation())


def test_the_first_instruction_is_inside_every_cgroup(
    bundle: Bundle, group: cgroup.Cgroup, parent: str
) -> None:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "cat /proc/self/cgroup; sleep 100"]
    with running(bundle) as box:
        inside = box.read()
        outside = Path(f"/proc/{box.pid}/cgroup").read_text()
    ours = [line for line in outside.splitlines() if line.endswith(group.path)]
    assert len(ours) >= len(group.directories())
    # the cgroup namespace hides everything above
    assert parent not in inside
    assert {line.split(":")[2] for line in inside.splitlines()} == {"/"}


def test_p12_inside_only_the_containers_own_directories_are_mounted_read_only(
    bundle: Bundle, group: cgroup.Cgroup
) -> None:
    script = (
        "grep cgroup /proc/self/mountinfo | grep -v tmpfs; echo --; find /sys/fs/cgroup -name release_agent;"
        "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null;"
        "mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null; true"
    )
    cgroup.update(group, Limits(pids=77))
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    mounts, _, rest = run(bundle).output.partition("--\n")
    assert len(mounts.splitlines()) == len(group.directories())
    for line in mounts.splitlines():
        fields = line.split()
        assert fields[3] == "/"
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(fields[5].split(","))
    assert rest.split() == ["77"]


def test_a_memory_hog_is_killed_at_its_limit_and_counted(bundle: Bundle, group: cgroup.Cgroup) -> None:
    cgroup.update(group, Limits(memory=16 << 20, swap=0))
    hog = "x=0123456789abcdef; while :; do x=$x$x; done"
    bundle.config["process"]["args"] = ["/bin/sh", "-c", hog]
    before = cgroup.oom_kills(group)
    assert run(bundle).code == -signal.SIGKILL
    # Version 2 counts the process that it chose, and then all of the cgroup, that one among them
    assert cgroup.oom_kills(group) in (before + 1, before + 2)
    assert before == 0


def test_s13_what_is_written_to_a_tmpfs_counts(bundle: Bundle, group: cgroup.Cgroup) -> None:
    cgroup.update(group, Limits(memory=16 << 20, swap=0))
    bundle.config["process"]["args"] = [
        "/bin/sh",
        "-c",
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit 0",
    ]
    assert run(bundle).code in (0, -signal.SIGKILL)
    assert cgroup.oom_kills(group) >= 1


def test_r13_a_fork_bomb_stops_at_its_limit_and_is_ended(bundle: Bundle, group: cgroup.Cgroup) -> None:
    cgroup.update(group, Limits(pids=20))
    bomb = "f() { f & f & wait; }; f 2>/dev/null; echo stopped; sleep 100"
    bundle.config["process"]["args"] = ["/bin/sh", "-c", bomb]
    file = group.file("pids", "pids.events", "pids.events")
    assert file is not None
    with running(bundle) as box:
        for _ in range(500):
            if int(file.read_text().split()[1]) > 0:
                break
            signal.sigtimedwait([], 0.01)
        else:
            pytest.fail("the limit was never reached")
        peak = usage.usage(group).processes
        assert peak is not None
        assert peak <= 20
        cgroup.kill(group)
        assert cgroup.wait_empty(group, 10)
        assert box.wait().code == -signal.SIGKILL


def test_a_cpu_hog_is_throttled(bundle: Bundle, group: cgroup.Cgroup) -> None:
    cgroup.update(group, Limits(cpus=50))
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "while :; do :; done"]
    with running(bundle), usage.Meter(group) as meter:
        for _ in range(500):
            found = meter.read()
            if (found.cpu_throttled_periods or 0) >= 3:
                break
            signal.sigtimedwait([], 0.02)
        else:
            pytest.fail("never throttled")
    assert found.cpu_throttled_seconds is not None
    assert found.cpu_throttled_seconds > 0
    assert found.cpu_seconds is not None
    assert found.cpu_seconds > 0


def test_limits_change_under_a_running_program_and_read_back(bundle: Bundle, group: cgroup.Cgroup) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    with running(bundle):
        for limits in (
            Limits(cpus=1500, memory=64 << 20, swap=0, pids=9),
            Limits(cpus=250, memory=(32 << 20) + 1, swap=(8 << 20) + 1, pids=None),
            Limits(cpus=None, memory=None, swap=0, pids=5000),
        ):
            cgroup.update(group, limits)
            assert cgroup.read_limits(group, limits) == limits
        assert cgroup.read_limits(group) == Limits(cpus=None, memory=None, swap=0, pids=5000)


def test_drift_of_a_limit_is_seen(group: cgroup.Cgroup) -> None:
    wanted = Limits(cpus=500, memory=64 << 20, swap=0, pids=9)
    cgroup.update(group, wanted)
    cgroup.update(group, Limits(cpus=500, memory=32 << 20, swap=0, pids=10))
    found = cgroup.read_limits(group, wanted)
    assert (found.memory, found.pids, found.cpus) == (32 << 20, 10, 500)


def test_what_cannot_be_enforced_is_refused_and_leaves_nothing(
    parent: str, hierarchies: cgroup.Hierarchies
) -> None:
    bare = cgroup.Hierarchies(v2=hierarchies.v2, v1={}, v2_controllers=frozenset())
    if bare.v2 is None:
        pytest.skip("this kernel lacks cgroup v2, on which the case is built")
    for limits in (Limits(pids=5), Limits(memory=1 << 30, pids=None), Limits(cpus=100, pids=None)):
        with pytest.raises(UnsupportedError, match=r"limits\.\w+: this machine cannot enforce it"):
            cgroup.create(bare, parent, "box", limits)
        assert not (bare.v2 / parent).exists()
    group = cgroup.create(bare, parent, "box", Limits(pids=None))
    assert not cgroup.populated(group)
    cgroup.remove(group)


def test_a_value_that_the_kernel_refuses_names_the_limit(group: cgroup.Cgroup) -> None:
    with pytest.raises(ReconcilerError, match=r"limits\.cpus: .*Invalid argument"):
        cgroup.update(group, Limits(cpus=1))


def test_a_child_that_cannot_be_placed_is_an_error_and_gone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "no-cgroup").mkdir()
    mounts = bundle.config["mounts"]
    bundle.config["mounts"] = [item for item in mounts if item["destination"] != "/sys/fs/cgroup"]
    bundle.annotate("cgroup", {"v2": None, "v1": [str(tmp_path / "no-cgroup")]})
    error = run_error(bundle)
    assert error["step"] == "cgroup"
    assert "no such file" in error["message"].lower()


def run_error(bundle: Bundle) -> dict[str, str]:
    from tests.kernel.box import Box

    with Box(bundle) as box:
        error = box.create()
        assert error is not None
        return error


def test_kill_ends_everything_and_waiting_for_an_empty_cgroup_is_immediate(
    bundle: Bundle, group: cgroup.Cgroup
) -> None:
    script = "for i in 1 2 3 4 5 6; do sleep 100 & done; trap '' TERM INT; echo up; wait"
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    assert cgroup.wait_empty(group, 0)
    with running(bundle) as box:
        assert box.read() == "up\n"
        assert cgroup.populated(group)
        assert not cgroup.wait_empty(group, 0.05)
        with pytest.raises(ReconcilerError, match="processes still run in it"):
            cgroup.remove(group)
        cgroup.kill(group)
        assert cgroup.wait_empty(group, 10)
        assert not cgroup.populated(group)
        assert box.wait().code == -signal.SIGKILL


def test_removing_twice_and_finding_again(parent: str, hierarchies: cgroup.Hierarchies) -> None:
    assert cgroup.open_existing(hierarchies, parent, "box") is None
    made = cgroup.create(hierarchies, parent, "box", Limits())
    assert cgroup.open_existing(hierarchies, parent, "box") == made
    again = cgroup.create(hierarchies, parent, "box", Limits(pids=3))
    assert cgroup.read_limits(again).pids == 3
    other = cgroup.create(hierarchies, parent, "other", Limits())
    cgroup.remove(made)
    cgroup.remove(made)
    cgroup.kill(made)
    assert cgroup.wait_empty(made, 0)
    assert cgroup.open_existing(hierarchies, parent, "other") == other
    cgroup.remove(other)
    assert not any(directory.parent.exists() for directory in other.directories())


def test_usage_has_every_series_that_this_kernel_counts(bundle: Bundle, group: cgroup.Cgroup) -> None:
    cgroup.update(group, Limits(cpus=1000, memory=64 << 20, pids=50))
    script = "dd if=/dev/zero of=/f bs=64k count=20 2>/dev/null; sync; echo up; sleep 100"
    bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
    with running(bundle) as box, usage.Meter(group) as meter:
        assert box.read() == "up\n"
        fds = len(os.listdir("/proc/self/fd"))
        found = meter.read()
        again = meter.read()
        assert len(os.listdir("/proc/self/fd")) > fds
        assert found.processes in (1, 2)
        assert found.oom_kills == 0
        for value in (found.memory, found.memory_working_set, found.memory_rss, found.memory_max):
            assert value is not None
            assert 0 < value < 64 << 20
        assert found.cpu_seconds is not None
        assert again.cpu_seconds is not None
        assert again.cpu_seconds >= found.cpu_seconds > 0
        assert found.cpu_periods is not None
    assert (
        usage.usage(cgroup.Cgroup("/none", Path("/nowhere"), {}, frozenset({"cpu", "memory"}))).memory is None
    )
