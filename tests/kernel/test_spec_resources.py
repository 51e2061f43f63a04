"""Limits of I/O, CPUs to run on, and what is reserved: in force in the kernel, changed in place, and repaired."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine import cgroup, cgroup_reserve, disk
from reconciler.engine.hierarchies import Cgroup, Hierarchies
from reconciler.errors import ReconcilerError, UnsupportedError
from tests.images import Built
from tests.kernel.trial import Trial, Trials, image, on_trial_disk, trials
from tests.kernel.workshop import remove, scratch

# Those marked cgroup run once more on version 2, in an emulated machine: as few as show what differs there.
pytestmark = [pytest.mark.kernel, pytest.mark.network]
__all__ = ["image", "trials"]


@pytest.fixture
def loop() -> Iterator[str]:
    """A disk: a loop device over a file in memory."""
    path = scratch("disk")
    (path / "image").write_bytes(bytes(4 << 20))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(path / "image")], capture_output=True, text=True, check=False
    )
    if made.returncode:
        remove(path)
        pytest.skip(f"this kernel lacks loop devices: {made.stderr.strip()}")
    name = made.stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)
        remove(path)


def group(trial: Trial) -> Cgroup:
    found = cgroup.open_existing(Hierarchies.detect(), trial.trials.parts.cgroup_parent, trial.id)
    assert found is not None
    return found


def numbers(name: str) -> str:
    status = os.stat(name)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def throttles(trial: Trial, name: str) -> dict[str, str]:
    """What the kernel has for a disk, by version 1's words."""
    found = group(trial)
    if found.v2 is not None and "io" in found.controllers:
        for line in (found.v2 / "io.max").read_text().splitlines():
            device, *pairs = line.split()
            if device == numbers(name):
                return {k: v for k, _, v in (pair.partition("=") for pair in pairs) if v != "max"}
        return {}
    words = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
    result = {}
    for short, word in words.items():
        for line in (found.v1["blkio"] / f"blkio.throttle.{word}_device").read_text().splitlines():
            if line.startswith(f"{numbers(name)} "):
                result[short] = line.split()[1]
    return result


def test_io_is_throttled_on_the_disk_that_the_spec_names_and_changes_in_place(
    trials: Trials, loop: str
) -> None:
    trial = trials.start(
        {"limits": {"memory": "64Mi", "io": {"read_bps": "1Mi", "write_iops": 7, "device": loop}}}
    )
    assert throttles(trial, loop) == {"rbps": str(1 << 20), "wiops": "7"}
    pid = trial.pid
    steps = trials.update(trial, {"limits": {"memory": "64Mi", "io": {"write_bps": "2Mi", "device": loop}}})
    assert steps == [f"update {trial.app}/c (limits)"]
    assert throttles(trial, loop) == {"wbps": str(2 << 20)}
    trials.update(trial, {"limits": {"memory": "64Mi"}})
    assert throttles(trial, loop) == {}
    assert (trial.pid, trial.found().limits) == (pid, trial.found().settings.limits)


@pytest.mark.cgroup
def test_a_throttle_that_somebody_changed_is_drift_and_is_repaired(trials: Trials, loop: str) -> None:
    spec = {"limits": {"memory": "64Mi", "io": {"read_bps": "1Mi", "device": loop}}}
    trial = trials.start(spec)
    app = trials.desire(trial.app, spec)
    assert trials.steps(app) == []
    found = group(trial)
    if found.v2 is not None and "io" in found.controllers:
        (found.v2 / "io.max").write_text(f"{numbers(loop)} rbps=max")
    else:
        (found.v1["blkio"] / "blkio.throttle.read_bps_device").write_text(f"{numbers(loop)} 0")
    assert trials.steps(app) == [f"update {trial.app}/c (limits)"]
    trials.update(trial, spec)
    assert throttles(trial, loop) == {"rbps": str(1 << 20)}
    assert trials.steps(app) == []


def test_io_without_a_disk_is_a_failed_step(trials: Trials) -> None:
    with pytest.raises(UnsupportedError, match=r"limits\.io: .*/state is on no disk of its own"):
        trials.start({"limits": {"memory": "64Mi", "io": {"read_bps": "1Mi"}}})
    with pytest.raises(UnsupportedError, match=r"limits\.io: /dev/none: No such file"):
        trials.start({"limits": {"memory": "64Mi", "io": {"read_bps": "1Mi", "device": "/dev/none"}}})
    assert trials.observe().containers == {}


def test_a_partition_and_a_path_stand_for_their_disk(loop: str) -> None:
    expected = tuple(map(int, numbers(loop).split(":")))
    assert disk.whole_disk(loop) == expected
    mounted = scratch("mount")
    subprocess.run(["mkfs.ext4", "-q", loop], check=True)
    subprocess.run(["mount", loop, str(mounted)], check=True)
    try:
        assert disk.whole_disk(mounted / "lost+found") == expected
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        remove(mounted)


@pytest.fixture
def on_disk(image: Built, patience: float) -> Iterator[Trials]:
    with on_trial_disk(image, patience, mib=64) as made:
        yield made


def test_the_weight_of_io_needs_a_disk(trials: Trials) -> None:
    with pytest.raises(
        UnsupportedError, match=r"limits\.io_weight: (.* is on no disk of its own|this machine cannot)"
    ):
        trials.start({"limits": {"memory": "64Mi", "io_weight": 500}})
    assert trials.observe().containers == {}


@pytest.mark.cgroup
def test_the_weight_of_io_is_in_force_where_the_disk_goes_by_weights_and_is_nowhere_forced(
    on_disk: Trials,
) -> None:
    """By io.cost of version 2, and by the scheduler bfq of either; which of them a disk has nobody changes here."""
    numbers = disk.whole_disk(on_disk.layout.state)
    scheduler = Path(f"/sys/block/{disk.name(numbers)}/queue/scheduler")
    before = scheduler.read_text()
    plain = on_disk.start({})
    found = group(plain)
    of_v2 = found.v2 is not None and "io" in found.controllers
    root = Path("/sys/fs/cgroup")
    cost = root / "io.cost.qos"
    spec: dict[str, Any] = {"limits": {"memory": "64Mi", "io_weight": 5000}}
    said = rf"limits\.io_weight: the disk {disk.name(numbers)} goes by no weights: its scheduler is \S+"
    with pytest.raises(UnsupportedError, match=said) as refused:
        on_disk.start(spec)
    assert scheduler.read_text() == before
    tried = 0

    def weighed(file: str, kept: str, take_away: Callable[[], object]) -> None:
        trial = on_disk.start(spec)
        where = group(trial)
        weight = (where.v2 if of_v2 and where.v2 is not None else where.v1["blkio"]) / file
        assert weight.read_text().split()[-1] == kept
        app = on_disk.desire(trial.app, spec)
        assert on_disk.steps(app) == []
        weight.write_text("77")
        assert on_disk.steps(app) == [f"update {trial.app}/c (limits)"]
        on_disk.update(trial, spec)
        assert weight.read_text().split()[-1] == kept
        on_disk.update(trial, {"limits": {"memory": "64Mi"}})
        assert weight.read_text().split()[-1] == "100"
        on_disk.update(trial, spec)
        take_away()  # what is set is in force no more, and that is seen
        assert on_disk.steps(app) == [f"update {trial.app}/c (limits)"]
        with pytest.raises(UnsupportedError, match=said):
            on_disk.update(trial, spec)

    if of_v2 and cost.exists():
        tried += 1
        device = ":".join(map(str, numbers))
        assert refused.value.hint == f"echo '{device} enable=1' >{cost}"
        assert not [
            line for line in cost.read_text().splitlines() if line.startswith(device) and "enable=1" in line
        ]
        cost.write_text(f"{device} enable=1")
        weighed("io.weight", "5000", lambda: cost.write_text(f"{device} enable=0"))
    try:
        scheduler.write_text("bfq")
    except OSError:
        if not tried:
            pytest.skip("this kernel lacks the scheduler bfq, and io.cost")
        return
    back = before.split("[")[1].split("]")[0]
    try:
        weighed("io.bfq.weight" if of_v2 else "blkio.bfq.weight", "1000", lambda: scheduler.write_text(back))
        if of_v2 and cost.exists():  # bfq is there and the disk does not go by it
            cost.write_text(f"{device} enable=1")
            weighed("io.weight", "5000", lambda: cost.write_text(f"{device} enable=0"))
    finally:
        scheduler.write_text(back)


@pytest.mark.cgroup
def test_a_container_runs_on_its_cpus_only_and_they_change_in_place(trials: Trials) -> None:
    every = Path("/sys/fs/cgroup/cpuset/cpuset.cpus")
    every = every if every.exists() else Path("/sys/fs/cgroup/cpuset.cpus.effective")
    everything = every.read_text().strip()
    allowed = "grep Cpus_allowed_list /proc/self/status | cut -f2"
    trial = trials.start({"cpuset": "0"})
    assert trial.shell(allowed) == "0"
    assert trials.update(trial, {}) == [f"update {trial.app}/c (limits)"]
    assert trial.shell(allowed) == everything
    trials.update(trial, {"cpuset": "0"})
    assert trial.shell(allowed) == "0"
    assert "Cpus_allowed_list:\t0\n" in trial.proc("status")
    app = trials.desire(trial.app, {"cpuset": "0"})
    file = group(trial).file("cpuset", "cpuset.cpus", "cpuset.cpus")
    assert file is not None
    if everything != "0":
        file.write_text(everything)
        assert trials.steps(app) == [f"update {trial.app}/c (limits)"]
        trials.update(trial, {"cpuset": "0"})
    assert trials.steps(app) == []
    plain = trials.start({})
    assert plain.shell(allowed) == everything


def test_cpus_that_the_machine_does_not_have_are_a_failed_step(trials: Trials) -> None:
    with pytest.raises(ReconcilerError, match=r"cpuset: 4000: this machine has the CPUs \S+ for containers"):
        trials.start({"cpuset": "4000"})
    assert trials.observe().containers == {}


@pytest.mark.cgroup
def test_reservations_are_in_force_change_in_place_and_are_repaired(trials: Trials) -> None:
    spec = {"reserve": {"memory": "16Mi", "cpus": 0.5}}
    trial = trials.start(spec)
    found = group(trial)
    memory = found.file("memory", "memory.low", "memory.soft_limit_in_bytes")
    weight = found.file("cpu", "cpu.weight", "cpu.shares")
    assert memory is not None
    assert weight is not None
    assert memory.read_text() == f"{16 << 20}\n"
    usual = 100 if weight.name == "cpu.weight" else 1024
    # half a CPU, as its part of the device of 10,000; others have 100
    assert int(weight.read_text()) == max(100, 5000 // (os.cpu_count() or 1)) * usual // 100
    app = trials.desire(trial.app, spec)
    assert trials.steps(app) == []
    weight.write_text(str(usual))
    assert trials.steps(app) == [f"update {trial.app}/c (limits)"]
    pid = trial.pid
    assert trials.update(trial, {"reserve": {"memory": "8Mi"}}) == [f"update {trial.app}/c (limits)"]
    assert memory.read_text() == f"{8 << 20}\n"
    assert int(weight.read_text()) == usual
    trials.update(trial, {})
    assert memory.read_text().strip() in ("0", "max") or int(memory.read_text()) > 1 << 60
    assert trial.pid == pid


def test_what_a_group_keeps_is_given_to_those_above_it_and_taken_back(tmp_path: Path) -> None:
    """The arithmetic of memory.low, on files: on this machine memory may be on version 1."""
    parent = tmp_path / "root" / "slice" / "ours"
    groups = [parent / "a", parent / "b"]
    for directory in (tmp_path / "root" / "slice", parent, *groups):
        directory.mkdir(parents=True)
        (directory / "memory.low").write_text("0\n")

    def low(directory: Path) -> int:
        return int((directory / "memory.low").read_text())

    def keep(directory: Path, memory: int) -> None:
        path = Cgroup("/x", directory, {}, frozenset({"memory"}))
        cgroup_reserve.set_memory(path, memory)

    keep(groups[0], 100)
    keep(groups[1], 50)
    assert (low(parent), low(parent.parent)) == (150, 150)
    (parent.parent / "memory.low").write_text("1000")  # somebody else's word
    keep(groups[1], 70)
    assert (low(parent), low(parent.parent)) == (170, 1000)
    (parent.parent / "memory.low").write_text("170")
    keep(groups[0], 0)
    assert (low(parent), low(parent.parent)) == (70, 70)
    (groups[1] / "memory.low").unlink()
    groups[1].rmdir()
    cgroup_reserve.protect(parent)
    assert (low(parent), low(parent.parent)) == (0, 0)


def pages_of(trial: Trial) -> Path:
    found = group(trial)
    if found.v2 is not None and "hugetlb" in found.controllers:
        return found.v2 / "hugetlb.2MB.max"
    return found.v1["hugetlb"] / "hugetlb.2MB.limit_in_bytes"


@pytest.mark.cgroup
def test_huge_pages_are_limited_by_their_size_in_place_and_repaired(trials: Trials) -> None:
    spec = {"limits": {"memory": "64Mi", "hugepages": {"2Mi": "4Mi"}}}
    trial = trials.start(spec)
    file = pages_of(trial)
    reserved = file.with_name(file.name.replace("2MB.", "2MB.rsvd."))
    assert file.read_text().strip() == reserved.read_text().strip() == str(4 << 20)
    app = trials.desire(trial.app, spec)
    assert trials.steps(app) == []
    file.write_text(str(8 << 20))
    assert trials.steps(app) == [f"update {trial.app}/c (limits)"]
    assert trials.update(trial, spec) == [f"update {trial.app}/c (limits)"]
    assert file.read_text().strip() == str(4 << 20)
    none = {"limits": {"memory": "64Mi", "hugepages": {"2Mi": 0}}}
    assert trials.update(trial, none) == [f"update {trial.app}/c (limits)"]
    assert file.read_text().strip() == "0"
    assert trials.update(trial, {"limits": {"memory": "64Mi"}}) == [f"update {trial.app}/c (limits)"]
    assert not file.read_text().strip().isdigit() or int(file.read_text()) > 1 << 60


@pytest.mark.cgroup
def test_more_huge_pages_than_allowed_are_refused_to_the_program(trials: Trials) -> None:
    """A device has to have some; here they are asked for only where the whole machine is the test's."""
    count = Path("/proc/sys/vm/nr_hugepages")
    trial = trials.start({"limits": {"memory": "64Mi", "hugepages": {"2Mi": "4Mi"}}})
    procs = pages_of(trial).with_name("cgroup.procs")
    program = (
        "import mmap, sys; from pathlib import Path; Path(sys.argv[1]).write_text('0')\n"
        "for size in (4, 6):\n"
        "    try: mmap.mmap(-1, size << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000).close()\n"
        "    except OSError as error: print(size, error.errno)\n"
        "    else: print(size, 'had')\n"
    )
    alone = Path("/run/guest").exists()
    try:
        if alone:
            count.write_text("8")
        done = subprocess.run(
            [sys.executable, "-c", program, str(procs)], capture_output=True, text=True, check=False
        )
    finally:
        if alone:
            count.write_text("0")
    has = alone or int(count.read_text()) >= 3
    assert done.stdout.splitlines() == ["4 had" if has else "4 12", "6 12"], done.stderr


def test_a_size_that_the_kernel_does_not_have_is_a_failed_step(trials: Trials) -> None:
    with pytest.raises(
        UnsupportedError, match=r"limits\.hugepages: this device has no pages of 16MB"
    ) as error:
        trials.start({"limits": {"memory": "64Mi", "hugepages": {"16Mi": "16Mi"}}})
    assert "2MB" in error.value.hint
    assert trials.observe().containers == {}
