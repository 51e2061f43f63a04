"""The service as docs/operations.md installs it, under a real systemd. Run inside the guest only, by test_vm.py.

One device, one story in order: start, restart, stop and start, reload, re-execution, a kill, a loop that hangs, the
end. All through, the containers keep their pids and their limits.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import busybox

CLONE = Path(__file__).resolve().parents[2]
UNIT = Path("/etc/systemd/system/reconciler.service")
DROP_IN = Path("/run/systemd/system/reconciler.service.d/test.conf")
PROGRAM = Path("/usr/local/bin/reconciler")
SPECS = Path("/etc/reconciler/specs")
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 90.0  # seconds; everything is emulated

Pids = dict[str, int]


def call(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{journal()}"
    return done.stdout.strip()


def journal() -> str:
    done = subprocess.run(
        ["journalctl", "-u", "reconciler", "-n", "60", "--no-pager"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def show(what: str) -> str:
    return call("systemctl", "show", "reconciler", "--value", "-p", what)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{journal()}"
        time.sleep(0.2)


def pids() -> Pids:
    items = json.loads(call("reconciler", "ps", "-a", "-o", "json"))["items"]
    return {item["name"]: int(item["pid"] or 0) for item in items}


def instance() -> str:
    return Path("/var/lib/reconciler/instance").read_text().strip()


def group(pid: int) -> Path:
    """The cgroup of a process."""
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def scope() -> Path:
    return CGROUPS / "system.slice" / f"reconciler-{instance()}.scope"


def app(name: str, digest: str) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: box.example/box:1@{digest}
    command: [sleep, "100000"]
    init: true
    limits: {{memory: 32Mi, pids: 17, cpus: 0.5}}
    stop_grace_period: 1s
"""


@pytest.fixture(scope="module")
def before() -> Pids:
    """Install, start, and give the pids of what runs."""
    built = busybox(Path("/var/tmp/box"))
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    PROGRAM.symlink_to(CLONE / ".venv/bin/reconciler")
    SPECS.mkdir(parents=True)
    SPECS.parent.joinpath("device.yaml").write_text(f'bundles: ["{built.layout}"]\n')
    for name in ("one", "two"):
        (SPECS / f"{name}.yaml").write_text(app(name, str(built.digest)))
    shutil.copy(CLONE / "deploy/reconciler.service", UNIT)
    call("systemctl", "daemon-reload")
    call("systemctl", "start", "reconciler")  # Type=notify: returns once the loop has turned
    until(lambda: len([pid for pid in pids().values() if pid]) == 2, "two containers")
    return pids()


def unharmed(before: Pids) -> None:
    """Same processes, same limits, in the scope of their own."""
    assert pids() == before
    for pid in before.values():
        where = group(pid)
        assert where.parent == scope()
        assert (where / "memory.max").read_text() == f"{32 << 20}\n"
        assert (where / "pids.max").read_text() == "17\n"
        assert (where / "cpu.max").read_text().split()[0] == "50000"


def test_the_service_starts_and_says_that_it_is_ready(before: Pids) -> None:
    assert show("ActiveState") == "active"
    assert show("Type") == "notify"
    assert int(show("WatchdogUSec").removesuffix("min").removesuffix("s") or 0) > 0
    unharmed(before)
    assert call("systemctl", "is-active", scope().name) == "active"
    assert call("systemctl", "show", scope().name, "--value", "-p", "Delegate") == "yes"
    # nothing of the containers, and no zygote, is in the service's own cgroup
    own = (CGROUPS / "system.slice/reconciler.service/cgroup.procs").read_text().split()
    assert own == [show("MainPID")]


@pytest.mark.parametrize("order", ["restart", "stop and start", "daemon-reload", "daemon-reexec", "kill"])
def test_containers_survive(before: Pids, order: str) -> None:
    main = show("MainPID")
    match order:
        case "restart":
            call("systemctl", "restart", "reconciler")
        case "stop and start":
            call("systemctl", "stop", "reconciler")
            assert show("ActiveState") == "inactive"
            for pid in before.values():
                assert "sleep" in Path(f"/proc/{pid}/cmdline").read_text() or Path(f"/proc/{pid}").exists()
            call("systemctl", "start", "reconciler")
        case "daemon-reload" | "daemon-reexec":
            call("systemctl", order)
            call("systemctl", "restart", "reconciler")
        case "kill":
            os.kill(int(main), signal.SIGKILL)
            until(lambda: show("MainPID") not in ("0", main) and show("ActiveState") == "active", "a restart")
    assert show("ActiveState") == "active"
    assert show("MainPID") != main
    assert show("Result") == "success"
    unharmed(before)


def test_a_loop_that_hangs_is_restarted_by_the_watchdog(before: Pids) -> None:
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text("[Service]\nWatchdogSec=10\nTimeoutAbortSec=1\n")
    call("systemctl", "daemon-reload")
    call("systemctl", "restart", "reconciler")
    main = show("MainPID")
    time.sleep(13)  # longer than the watchdog allows: it is fed
    assert show("MainPID") == main
    os.kill(int(main), signal.SIGSTOP)
    until(lambda: show("MainPID") not in ("0", main) and show("ActiveState") == "active", "the watchdog")
    unharmed(before)


def test_a_new_container_is_made_in_the_scope_after_all_that(before: Pids) -> None:
    text = (SPECS / "one.yaml").read_text().replace("name: one", "name: three")
    (SPECS / "three.yaml").write_text(text)
    until(lambda: pids().get("three/main"), "the third container")
    assert group(pids()["three/main"]).parent == scope()
    (SPECS / "three.yaml").unlink()
    until(lambda: "three/main" not in pids(), "its end")
    unharmed(before)


def test_uninstall_leaves_nothing(before: Pids) -> None:
    gone = scope()
    call("systemctl", "stop", "reconciler")
    call("reconciler", "uninstall", "--yes")
    for pid in before.values():
        assert not Path(f"/proc/{pid}").exists()
    until(lambda: not gone.exists(), "the end of the scope")
    assert "reconciler" not in call("nft", "list", "tables", check=False)
    assert not Path("/var/lib/reconciler").exists() or not os.listdir("/var/lib/reconciler")
    assert call("systemctl", "is-active", gone.name, check=False) != "active"
