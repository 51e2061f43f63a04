"""The agent is killed, doubled, lied to by its own files and robbed of its kernel objects; what runs goes on.

Ids as in docs/security.md: R2 random kills, R9 damaged files, R15 crash loops, R17 reboot, R18 pid reuse, R19 two
agents, R22 kernel objects deleted by somebody else, R23 no address twice.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.engine.layout import Layout
from tests.e2e.device import PROGRAM, REPOSITORY, Device, cgroups
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_COUNT = "i=0; while true; do echo line $i; i=$((i+1)); usleep 5000; done"


def app(
    name: str, image: Built, command: str = "exec sleep 100000", *, more: str = "", mark: str = ""
) -> str:
    """A spec of one small container, which ends at once when told to."""
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: box.example/box:1@{image.digest}
    command: [sh, -c, {json.dumps(command)}]
    init: true
    environment: {{MARK: "{mark}"}}
    limits: {{memory: 16Mi, pids: 16}}
    stop_grace_period: 0s
{more}
"""


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)], interval="1s")
    return device


def layout(device: Device) -> Layout:
    return Layout(device.state, device.run)


def running(device: Device, count: int) -> dict[str, int]:
    """Wait until that many containers run; their pids by name."""

    def all_of_them() -> dict[str, int] | None:
        found = {n: int(c["pid"] or 0) for n, c in device.ps().items() if c["state"] == "running"}
        return found if len(found) == count and all(found.values()) else None

    return device.until(all_of_them, timeout=30)


def groups(device: Device) -> list[Path]:
    """The cgroups of this device's containers, in whatever hierarchies."""
    return cgroups(device.instance)


# --- R2 ---------------------------------------------------------------------------------------------------------------


def test_twenty_kills_during_churn_touch_nothing_that_runs(ready: Device, box: Built) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    for name in ("still-a", "still-b"):
        ready.spec(name, app(name, box, _COUNT, more='    logging: {max_size: "10Mi"}'))
    for number in range(5):
        ready.spec(f"churn-{number}", app(f"churn-{number}", box))
    ready.start()
    still = {n: pid for n, pid in running(ready, 7).items() if n.startswith("still")}
    for kill in range(20):
        number = dice.randrange(5)
        path = ready.specs / f"churn-{number}.yaml"
        if path.exists() and dice.random() < 0.3:
            path.unlink()
        else:
            ready.spec(f"churn-{number}", app(f"churn-{number}", box, mark=str(kill)))
        time.sleep(dice.uniform(0.0, 0.6))
        ready.stop(signal.SIGKILL)
        ready.start()
    wanted = len(list(ready.specs.glob("*.yaml")))
    found = running(ready, wanted)
    assert {name: found[name] for name in still} == still, f"seed {seed}"
    for name in still:
        lines = ready.reconciler("logs", name).stdout.split("\n")
        numbers = [int(line.removeprefix("line ")) for line in lines if line.startswith("line ")]
        assert numbers == list(range(len(numbers))), f"seed {seed}: {name}: a gap or a repetition"
        assert len(numbers) > 100
    assert len({path.name for path in groups(ready)}) == wanted
    assert len(os.listdir(layout(ready).containers)) == wanted


# --- R15 --------------------------------------------------------------------------------------------------------------


def test_crash_loops_back_off_and_leak_nothing(ready: Device, box: Built) -> None:
    """Twenty programs that fail at once: pauses grow as the policy says, descriptors and directories do not."""
    more = "    restart: {policy: always, delay: 500ms, factor: 2, max_delay: 4s, jitter: 0}"
    for number in range(20):
        ready.spec(f"loop-{number:02}", app(f"loop-{number:02}", box, "date +%s.%N; exit 1", more=more))
    ready.start()

    def restarts() -> int:
        return min((int(c["restarts"]) for c in ready.ps().values()), default=0)

    ready.until(lambda: len(ready.ps()) == 20 and restarts() >= 1, timeout=40)
    descriptors = len(os.listdir(f"/proc/{ready.agent_pid}/fd"))
    threads = len(os.listdir(f"/proc/{ready.agent_pid}/task"))
    ready.until(lambda: restarts() >= 3, timeout=40)
    # One for each program that runs at this moment; a leak with each restart would be forty
    assert len(os.listdir(f"/proc/{ready.agent_pid}/fd")) <= descriptors + 24
    assert len(os.listdir(f"/proc/{ready.agent_pid}/task")) <= threads + 2
    assert len(os.listdir(layout(ready).containers)) <= 20
    assert len(os.listdir(layout(ready).run_containers)) <= 20
    assert len({path.name for path in groups(ready)}) <= 20
    starts: dict[str, list[float]] = {}
    for event in (json.loads(line) for line in layout(ready).events.read_text().splitlines()):
        started = re.fullmatch(r"start (loop-\d+)/main", event["message"])
        if started:
            starts.setdefault(started[1], []).append(event["time"])
    assert len(starts) == 20
    for name, times in starts.items():
        for position, (before, after) in enumerate(itertools.pairwise(times)):
            due = min(0.5 * 2**position, 4.0)
            assert after - before >= due * 0.95, f"{name}: {times}"


# --- R17, R18, R19 ----------------------------------------------------------------------------------------------------


def test_after_a_reboot_everything_starts_again_and_no_stranger_is_killed(ready: Device, box: Built) -> None:
    for name in ("a", "b", "c"):
        ready.spec(name, app(name, box))
    ready.start()
    before = running(ready, 3)
    ready.stop(signal.SIGKILL)
    for group in groups(ready):
        for pid in (group / "cgroup.procs").read_text().split():
            kill(int(pid))
    ready.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before.values()))
    shutil.rmtree(ready.run)
    ready.inside(["nft", "flush", "ruleset"])
    for link in re.findall(r"\d+: (rc[^:@]*)", ready.inside(["ip", "-o", "link"]).stdout):
        ready.inside(["ip", "link", "del", link])
    ready.start()
    after = running(ready, 3)
    assert not set(after.values()) & set(before.values())
    assert len(os.listdir(layout(ready).containers)) == 3


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("other_boot", [False, True], ids=["this-boot", "another-boot"])
def test_a_pid_that_belongs_to_somebody_else_now_is_never_signalled(
    ready: Device, box: Built, other_boot: bool
) -> None:
    ready.spec("web", app("web", box))
    ready.start()
    pid = ready.running("web/main")
    identity = ready.ps()["web/main"]["id"]
    ready.stop(signal.SIGKILL)
    path = layout(ready).shim_record(identity)
    record = json.loads(path.read_text())
    kill(pid)
    kill(record["shim"]["pid"])
    ready.until(lambda: not Path(f"/proc/{pid}").exists())
    layout(ready).exit_record(identity).unlink(missing_ok=True)
    with stranger() as process:
        for who in ("shim", "init"):
            record[who]["pid"] = process.pid
            if other_boot:
                record[who]["started"] = start_time(process.pid)
        if other_boot:
            record["boot"] = "00000000-0000-4000-8000-000000000000"
        path.write_text(json.dumps(record))
        ready.start()
        assert ready.until(lambda: ready.pid("web/main")) not in (pid, process.pid)
        (ready.specs / "web.yaml").unlink()
        ready.reconciler("apply", "--allow-empty")
        assert not ready.ps()
        assert process.poll() is None


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_two_agents_started_at_once_leave_one(ready: Device, box: Built) -> None:
    ready.spec("web", app("web", box))
    ready.start()
    with ready.log.open("ab") as log:
        other = ready.spawn(
            [*PROGRAM, "agent", str(ready.specs), *ready.places], stdout=log, stderr=log, cwd=REPOSITORY
        )
    ready.until(lambda: (other.poll() is None) != ready.alive or None, message="for one of two to give up")
    assert (other.returncode if ready.alive else ready.ended()) == 5
    pid = ready.running("web/main")
    third = ready.reconciler("uninstall", "--yes", check=False)
    assert third.returncode == 5
    assert ready.pid("web/main") == pid
    if not ready.alive:
        other.kill()
        other.wait()


# --- R22 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["ruleset", "bridge", "cgroup", "leases", "socket"])
def test_what_somebody_else_deletes_is_made_again(ready: Device, box: Built, victim: str) -> None:
    serve = "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"
    ready.spec("web", app("web", box, serve, more='    ports: ["8080:80"]'))
    ready.spec("gone", app("gone", box, "exit 0", more='    restart: {policy: "no"}'))
    ready.start()
    pid = ready.running("web/main")
    answers(ready)
    ready.until(lambda: ready.ps()["gone/main"]["state"] == "exited")
    match victim:
        case "ruleset":
            ready.inside(["nft", "flush", "ruleset"])
        case "bridge":
            for link in re.findall(r"\d+: (rc[^:@]*)", ready.inside(["ip", "-o", "link"]).stdout):
                ready.inside(["ip", "link", "del", link])
        case "cgroup":
            identity = ready.ps()["gone/main"]["id"]
            for path in groups(ready):
                if path.name == identity:
                    path.rmdir()
        case "leases":
            layout(ready).leases.unlink()
        case "socket":
            layout(ready).agent_record.unlink()
    time.sleep(1.5)  # the next turn is due after a second
    answers(ready)
    assert ready.pid("web/main") == pid
    for name in ("web", "gone"):
        (ready.specs / f"{name}.yaml").unlink()
    ready.reconciler("apply", "--allow-empty")
    assert not ready.ps()
    assert not groups(ready)


def answers(device: Device) -> None:
    device.until(lambda: device.curl("http://127.0.0.1:8080/") == "hello\n", message="for an answer")


# --- R23 --------------------------------------------------------------------------------------------------------------


def test_no_address_is_given_out_twice_through_kills(ready: Device, box: Built) -> None:
    """Addresses are leased while the agent is killed at random; nobody ever has one that somebody else has."""
    dice = random.Random(23)
    containers = "\n".join(
        f"  c{number}: {{image: 'box.example/box:1@{box.digest}', command: [sleep, '1000'], init: true,"
        " limits: {memory: 16Mi}, stop_grace_period: 0s}"
        for number in range(6)
    )
    ready.spec("many", f"apiVersion: reconciler/v1\nkind: App\nname: many\ncontainers:\n{containers}\n")
    for _ in range(6):
        ready.start()
        time.sleep(dice.uniform(0.3, 0.9))
        ready.stop(signal.SIGKILL)
        addresses(ready)
    ready.start()
    running(ready, 6)
    leased = addresses(ready)
    seen = ready.inside(["ip", "-o", "neigh"]).stdout  # nothing to learn from, but it must not fail
    assert seen is not None
    assert len(leased) == 6
    inside = {ready.reconciler("exec", name, "hostname", "-i").stdout.strip() for name in ready.ps()}
    assert inside == set(leased)


def addresses(device: Device) -> list[str]:
    path = layout(device).leases
    if not path.exists():
        return []
    found = [
        address
        for entry in json.loads(path.read_text())["apps"].values()
        for address in entry["addresses"].values()
    ]
    assert len(found) == len(set(found)), found
    return found


# --- R9 ---------------------------------------------------------------------------------------------------------------


def test_no_damaged_file_ends_the_agent_or_what_runs(ready: Device, box: Built) -> None:
    """Each state file is flipped, emptied, cut in half or replaced by a directory: the agent starts and converges."""
    for name in ("a", "b"):
        ready.spec(name, app(name, box, more='    volumes: ["data:/data"]\nvolumes: {data: {}}'))
    ready.start()
    running(ready, 2)
    ready.logged("converged")
    ready.stop(signal.SIGTERM)
    names = [path.relative_to(ready.root) for path in state_files(ready)]
    assert len(names) > 15
    dice = random.Random(9)
    for position, relative in enumerate(names):
        path = ready.root / relative
        if not path.exists():
            continue
        damage(path, ("flip", "empty", "half", "directory")[(position + dice.randrange(2)) % 4])
        if position % 3 == 2 or position == len(names) - 1:
            ready.start()
            ready.until(lambda: ready.reconciler("apply", check=False).returncode == 0, timeout=30)
            assert ready.alive
            assert set(running(ready, 2)) == {"a/main", "b/main"}
            ready.stop(signal.SIGTERM)
    assert "Traceback" not in ready.output


@pytest.mark.parametrize("kind", ["flip", "empty", "half", "directory", "deleted"])
@pytest.mark.parametrize("copy", ["whole", "deleted", "damaged"])
def test_r9_a_damaged_record_of_a_running_container_is_seen_told_and_mended(
    ready: Device, box: Built, kind: str, copy: str
) -> None:
    """The very next turn sees it. With the copy it is as it was; without it the container is one that was lost."""
    ready.configure(bundles=[str(box.layout)], interval="1h")
    for name in ("a", "b"):
        ready.spec(name, app(name, box))
    ready.start()
    before = running(ready, 2)
    ready.logged("converged: 2 apps")
    container = ready.ps()["a/main"]["id"]
    record, second = layout(ready).identity(container), layout(ready).identity_copy(container)
    written = record.read_bytes()
    assert second.read_bytes() == written
    if copy == "deleted":
        second.unlink()
    elif copy == "damaged":
        damage(second, "half")
    if kind == "deleted":
        record.unlink()
    elif kind == "flip" and copy != "whole":
        # Where it falls in a value, what is left reads like a record, and only a copy could tell: so in its syntax
        record.write_bytes(bytes([written[0] ^ 0x20]) + written[1:])
    else:
        damage(record, kind)
    ready.reconciler("apply", timeout=30)
    after = running(ready, 2)
    assert after["b/main"] == before["b/main"], "nothing of another app is touched"
    word = {"directory": "is a directory", "deleted": "was deleted"}.get(kind, "was damaged")
    if copy == "whole":
        assert after == before
        assert record.read_bytes() == written
        said = rf"a/main: its record {word}; restored from its copy"
        assert len(list(record.parent.glob("identity.json.corrupt-*"))) == (kind != "deleted")
        metrics = ready.curl("http://127.0.0.1:9470/metrics")
        assert 'reconciler_drift_detected_total{app="a",kind="unexpected"} 1' in metrics
    else:
        assert after["a/main"] != before["a/main"]
        assert not alive(before["a/main"]), "two of one name never run"
        said = rf"container {container[:12]}: its record {word}, and no copy is left: removed"
        assert not record.parent.exists()
    ready.logged(said)
    assert re.search(said, ready.reconciler("status").stderr), "status says it, too"
    assert re.search(said, (ready.state / "events.jsonl").read_text())
    assert "Traceback" not in ready.output


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def state_files(device: Device) -> list[Path]:
    """The files that the agent itself writes and reads again, but for what makes the instance itself."""
    kept = layout(device)
    never = {kept.instance, kept.agent_lock, kept.store_lock, kept.network_lock}
    found = [path for path in device.state.rglob("*") if path.is_file() and path not in never]
    inner = ("upper", "work", "log", "data", "configs", "trash")
    found = [path for path in found if not set(path.relative_to(device.state).parts) & set(inner)]
    layers = kept.layers
    found = [path for path in found if not path.is_relative_to(layers) or path.parent == layers]
    return sorted(found) + sorted(path for path in device.run.rglob("*.json") if path.is_file())


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    match kind:
        case "flip":
            middle = len(data) // 2
            path.write_bytes(
                data[:middle] + bytes([data[middle] ^ 0x20]) + data[middle + 1 :] if data else b"x"
            )
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "directory":
            path.unlink()
            path.mkdir()
            (path / "inside").write_bytes(b"x")
