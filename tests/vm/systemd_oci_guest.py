"""The OCI runtime with `--systemd-cgroup`, under a real systemd. Run inside the guest only, by test_vm.py."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.box import make_layer
from tests.kernel.runtime import Runtime, Sample

CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 90.0  # seconds; everything is emulated
SLICE = "test-pods.slice"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    layer = tmp_path / "busybox"
    make_layer(layer)
    made = Runtime(tmp_path, layer, patience=10)
    try:
        yield made
    finally:
        for sample in made.made:
            systemd(made, "delete", "--force", sample.id, check=False)


def systemd(runtime: Runtime, *arguments: str, check: bool = True) -> str:
    done = runtime("--systemd-cgroup", *arguments, check=check)
    return done.out if done.code == 0 else done.err.strip()


def sample(runtime: Runtime, script: str, path: str = "") -> Sample:
    made = runtime.shell(script)
    made.linux["cgroupsPath"] = path or f"{SLICE}:unit:{made.id}"
    return made.write()


def create(made: Sample, *options: str) -> Sample:
    systemd(made.runtime, "create", "--bundle", str(made.write().directory), *options, made.id)
    return made


def place(made: Sample) -> Path:
    return CGROUPS / "test.slice" / SLICE / f"unit-{made.id}.scope"


def show(made: Sample, what: str) -> str:
    command = ["systemctl", "show", f"unit-{made.id}.scope", "--value", "-p", what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def test_a_container_lives_in_a_scope_from_create_to_delete(runtime: Runtime) -> None:
    made = sample(runtime, "echo up; exec sleep 1000")
    made.linux["resources"] = {
        "memory": {"limit": 64 << 20, "swap": 96 << 20},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"},
        "pids": {"limit": 50},
    }
    create(made)
    directory = place(made)
    assert (directory / "cgroup.procs").read_text().split() == [str(made.pid)]
    assert show(made, "ActiveState") == "active"
    assert (show(made, "Slice"), show(made, "Delegate"), show(made, "TasksMax")) == (SLICE, "yes", "50")
    systemd(runtime, "start", made.id)
    limits = {
        **{"memory.max": str(64 << 20), "memory.swap.max": str(32 << 20), "cpu.max": "50000 100000"},
        **{"pids.max": "50", "cpuset.cpus": "0"},
    }
    found = {name: (directory / name).read_text().strip() for name in limits}
    assert found == limits
    weight = (directory / "cpu.weight").read_text()

    # systemd writes what it knows once more, and takes nothing back
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "daemon-reexec"], check=True)
    until(lambda: show(made, "ActiveState") == "active", "systemd")
    assert {name: (directory / name).read_text().strip() for name in limits} == limits
    assert (directory / "cpu.weight").read_text() == weight

    systemd(
        runtime,
        "update",
        "--memory",
        str(80 << 20),
        "--memory-swap",
        str(80 << 20),
        "--pids-limit",
        "60",
        made.id,
    )
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert (directory / "memory.max").read_text().strip() == show(made, "MemoryMax") == str(80 << 20)
    assert (directory / "pids.max").read_text().strip() == show(made, "TasksMax") == "60"

    said = systemd(runtime, "exec", made.id, "cat", "/proc/self/cgroup")
    assert said.strip().startswith("0::/")
    systemd(runtime, "pause", made.id)
    assert made.status == "paused"
    systemd(runtime, "resume", made.id)
    systemd(runtime, "kill", made.id, "KILL")
    until(lambda: made.status == "stopped", "its end")
    systemd(runtime, "delete", made.id)
    assert not directory.exists()
    assert show(made, "LoadState") == "not-found"


def test_the_same_name_can_be_used_again_at_once(runtime: Runtime) -> None:
    made = sample(runtime, "exit 3")
    for _ in range(3):
        done = runtime("--systemd-cgroup", "run", "--bundle", str(made.directory), made.id, check=False)
        assert (done.code, done.err) == (3, "")
        assert not place(made).exists()


def test_without_a_path_there_is_a_scope_below_the_systems(runtime: Runtime) -> None:
    made = sample(runtime, "exec sleep 1000")
    del made.linux["cgroupsPath"]
    create(made)
    assert f"0::/system.slice/reconciler-oci-{made.id}.scope" in made.proc("cgroup")


def test_what_fails_leaves_no_scope(runtime: Runtime) -> None:
    made = sample(runtime, "true")
    made.process["cwd"] = "/etc/passwd"
    made.mount("/x", "bind", "/no/such/place", "rbind").write()
    said = systemd(runtime, "create", "--bundle", str(made.directory), made.id, check=False)
    assert "/no/such/place" in said
    until(lambda: not place(made).exists(), "the end of the scope")
    assert os.listdir(runtime.root) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/absolute", "/absolute: expected SLICE:PREFIX:NAME with --systemd-cgroup"),
        ("a:b", "a:b: expected SLICE:PREFIX:NAME"),
        ("system.slice:x:", "expected SLICE:PREFIX:NAME"),
        ("nothing:x:y", "nothing: no name of a slice"),
        ("a--b.slice:x:y", "a--b.slice: no name of a slice"),
        ("system.slice:x:../y", "'x-../y.scope' is no name of a unit"),
        ("system.slice:a b!:x", "'a b!-x.scope' is no name of a unit"),
    ],
)
def test_a_path_that_is_none_of_systemds_is_refused(runtime: Runtime, path: str, said: str) -> None:
    made = sample(runtime, "true", path)
    assert said in systemd(runtime, "create", "--bundle", str(made.directory), made.id, check=False)


def test_systemds_own_words_are_passed_on(runtime: Runtime) -> None:
    made = sample(runtime, "true", f"system.slice:{'x' * 250}:y")
    said = systemd(runtime, "create", "--bundle", str(made.directory), made.id, check=False)
    assert "systemd-run: " in said, said


def test_features_say_so(runtime: Runtime) -> None:
    assert json.loads(runtime("features").out)["linux"]["cgroup"]["systemd"] is True
