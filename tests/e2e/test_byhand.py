"""Containers that people run by hand, and what they ask of declared ones: what they see is what Docker taught them.

With an agent and without one, across its death and a reboot, and beside apps that want the same ports.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, PROGRAM, REPOSITORY, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

SERVE = "mkdir -p /www; echo $0 > /www/index.html; exec httpd -f -p 80 -h /www"


def spec(image: str, *, port: int = 8090, extra: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sh, -c, "exec sleep 100000"]
    ports: ["{port}:80"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    restart: {{policy: always, delay: 100ms}}
{extra}
"""


class Hand:
    """A device and somebody at its keyboard. `image` is pinned, and in a bundle."""

    def __init__(self, device: Device, built: Built) -> None:
        self.device = device
        self.built = built
        self.image = reference(built)
        device.configure(bundles=[str(built.layout)], interval="1s")

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.device.reconciler(*words, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return (done.stdout if code == 0 else done.stderr).strip()

    def said(self, *words: str) -> str:
        """What a verb that succeeds says beside its answer."""
        return self.device.reconciler(*words).stderr

    def detached(self, name: str, *words: str, options: tuple[str, ...] = ()) -> str:
        return self("run", "-d", "--name", name, "--stop-timeout", "0", *options, self.image, *words)

    def state(self, name: str) -> str:
        return str(self.device.ps().get(name, {}).get("state", "none"))

    def file(self, name: str, path: str) -> str:
        return self("exec", name, "cat", path)

    def reboot(self) -> None:
        self.device.reboot()


@pytest.fixture
def hand(device: Device, box: Built) -> Hand:
    """With an agent that has nothing to do."""
    made = Hand(device, box)
    device.start()
    device.logged("converged")
    return made


# --- the life of one ------------------------------------------------------------------------------------------------


def test_a_container_keeps_its_id_its_files_and_its_log_from_start_to_start(hand: Hand) -> None:
    identity = hand.detached("web1", "sh", "-c", SERVE, "one", options=("-p", "8080:80"))
    assert len(identity) == 32
    assert hand("ps", "-q", "--no-trunc") == identity
    hand.device.until(lambda: hand.device.curl("http://127.0.0.1:8080/") == "one\n")
    hand("exec", "web1", "sh", "-c", "echo kept > /kept; echo from exec")
    assert hand("stop", "-t", "0", "web1") == "web1"
    assert hand("ps") == hand("ps").splitlines()[0]
    assert hand.state("web1") == "exited"
    assert hand("start", identity[:12]) == "web1"
    assert hand.file("web1", "/kept") == "kept"
    assert hand("ps", "-q", "--no-trunc") == identity
    first = hand.device.pid("web1")
    assert hand("restart", "-t", "0", "web1") == "web1"
    assert hand.device.pid("web1") not in (0, first)
    assert hand.file("adhoc/web1", "/kept") == "kept"
    hand.device.until(lambda: hand.device.curl("http://127.0.0.1:8080/") == "one\n")
    assert "is running" in hand("rm", "web1", code=5)
    hand("kill", "web1")
    assert hand.device.ps()["web1"]["exit_code"] == 137
    assert hand("rm", "web1") == "web1"
    assert hand.device.ps() == {}
    assert "not found" in hand("start", "web1", code=8)


def test_the_foreground_passes_on_streams_exit_codes_and_signals(hand: Hand) -> None:
    done = hand.device.reconciler(
        "run", "--rm", hand.image, "sh", "-c", "echo out; printf 'no end'; echo err >&2; exit 3", check=False
    )
    assert (done.returncode, done.stdout) == (3, "out\nno end")
    assert done.stderr.endswith("err\n")
    assert hand.device.ps() == {}
    assert "no such file" in hand("run", "--rm", hand.image, "/no/such", code=127)
    assert "permission" in hand("run", "--rm", hand.image, "/etc/passwd", code=126)
    assert "must be" in hand("run", "-p", "80:80:80:80:80", hand.image, code=125)
    assert hand.device.ps() == {}
    lines = hand(
        "run", "--rm", hand.image, "sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"
    )
    assert lines.splitlines() == [f"line {number}" for number in range(3000)]
    script = "trap 'echo terminated; exit 7' TERM; echo ready; while :; do usleep 10000; done"
    places = hand.device.places
    process = hand.device.spawn(
        [*PROGRAM, "run", *places, "--rm", hand.image, "sh", "-c", script],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert output.read() == b"terminated\n"
    assert process.wait(20 * PATIENCE) == 7
    assert hand.device.ps() == {}


def test_create_makes_it_and_start_attaches_to_it(hand: Hand) -> None:
    identity = hand(
        "create", "--name", "later", "--stop-timeout", "0", hand.image, "sh", "-c", "echo now; exit 4"
    )
    assert hand.state("later") == "created"
    assert hand("ps") == hand("ps").splitlines()[0]
    assert hand("stop", "later") == "later"
    done = hand.device.reconciler("start", "-a", identity[:8], check=False)
    assert (done.returncode, done.stdout) == (4, "now\n")
    hand.device.until(lambda: hand.state("later") == "exited")
    again = hand.device.reconciler("start", "-a", "later", check=False)
    assert (again.returncode, again.stdout) == (4, "now\n")
    assert hand("logs", "later") == "now\nnow"
    hand("rm", "later")


def test_options_reach_the_container(hand: Hand) -> None:
    outside = hand.device.root / "outside"
    outside.mkdir()
    (outside / "file").write_text("from outside\n")
    env = hand.device.root / "env"
    env.write_text("# a comment\nFILE=yes\nBOTH=file\n")
    options = (
        *("-e", "ONE=1", "-e", "BOTH=line", "--env-file", str(env), "-w", "/tmp", "-u", "1000:1000"),
        *(
            "-v",
            f"{outside}:/outside:ro",
            "-v",
            "data:/data",
            "--tmpfs",
            "/scratch:size=1m",
            "--hostname",
            "box",
        ),
        *("--label", "tier=test", "--memory", "32m", "--pids-limit", "20", "--read-only", "--init"),
    )
    seen = "id -u; pwd; hostname; cat /outside/file; env | grep -E 'ONE|FILE|BOTH' | sort; "
    seen += "touch /outside/x 2>/dev/null || echo refused; touch /x 2>/dev/null || echo read-only; "
    seen += "df -h /scratch | tail -1"
    lines = hand("run", "--rm", "--name", "all", *options, hand.image, "sh", "-c", seen).splitlines()
    assert lines[:4] == ["1000", "/tmp", "box", "from outside"]
    assert lines[4:9] == ["BOTH=line", "FILE=yes", "ONE=1", "refused", "read-only"]
    assert "1.0M" in lines[9]
    # The volume outlives it, and another one finds its data.
    hand("run", "--rm", "-v", "data:/data", hand.image, "sh", "-c", "echo kept > /data/file")
    assert hand("run", "--rm", "-v", "data:/data", hand.image, "cat", "/data/file") == "kept"
    assert "adhoc/data" in hand("volume", "ls", "-q")
    hand("volume", "rm", "adhoc/data")


def test_a_volume_without_a_name_goes_with_its_container_where_that_is_asked(hand: Hand) -> None:
    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(hand("volume", "ls", "-o", "json"))["items"]
        return found

    hand.detached("one", "sleep", "100000", options=("-v", "/data", "--mount", "target=/more"))
    hand("exec", "one", "sh", "-c", "echo kept > /data/file; echo more > /more/file")
    first = listed()
    assert [item["anonymous"] for item in first] == [True, True]
    assert "(anonymous)" in hand("volume", "ls")
    hand("restart", "-t", "0", "one")
    assert hand.file("one", "/data/file") == "kept"
    # A second one mounts it by its name, so that it stays when the first one goes with all of its own
    name = str(
        next(item["name"] for item in first if "kept" in (Path(item["mountpoint"]) / "file").read_text())
    )
    hand.detached(
        "two", "sleep", "100000", options=("-v", f"{name.removeprefix('adhoc/')}:/data", "-v", "named:/n")
    )
    hand("rm", "-f", "-v", "one")
    assert {item["name"] for item in listed()} == {name, "adhoc/named"}
    assert hand.file("two", "/data/file") == "kept"
    hand("rm", "-f", "-v", "two")  # an anonymous one, also where it was mounted by its name
    assert [item["name"] for item in listed()] == ["adhoc/named"]
    # Without -v it stays, and a prune takes it; with --rm it goes
    hand.detached("three", "sleep", "100000", options=("-v", "/data"))
    hand("rm", "-f", "three")
    (left,) = (item for item in listed() if item["anonymous"])
    assert left["orphaned"] is True
    hand("volume", "prune", "-f")
    assert hand("run", "--rm", "-v", "/data", hand.image, "sh", "-c", "echo x > /data/x; cat /data/x") == "x"
    hand.detached("four", "true", options=("--rm", "-v", "/data"))
    hand.device.until(lambda: hand.state("four") == "none")
    hand("run", "--rm", "-v", "/data", hand.image, "/no/such", code=127)
    assert [item["name"] for item in listed()] == ["adhoc/named"]
    hand("volume", "rm", "named")
    # A path of the device that is not there
    missing = hand.device.root / "not" / "there"
    hand("run", "--rm", "-v", f"{missing}:/here", hand.image, "sh", "-c", "echo in > /here/file")
    assert (missing / "file").read_text() == "in\n"
    absent = str(hand.device.root / "absent")
    said = hand(
        "run", "--rm", "--mount", f"type=bind,source={absent},target=/here", hand.image, "true", code=125
    )
    assert absent in said
    assert not Path(absent).exists()


def test_networks_and_privileges_reach_the_container(hand: Hand) -> None:
    options = (
        *(
            "--rm",
            "--network",
            "none",
            "--add-host",
            "printer:192.0.2.7",
            "--shm-size",
            "1m",
            "--ulimit",
            "nofile=10:20",
        ),
        *("--cap-drop", "ALL", "--cap-add", "CHOWN", "--group-add", "44", "--oom-score-adj", "7"),
    )
    seen = (
        "ls /sys/class/net; grep -c 192.0.2.7 /etc/hosts; df -k /dev/shm | tail -1; ulimit -Sn; ulimit -Hn; "
    )
    seen += "grep CapEff /proc/self/status; id -G; cat /proc/self/oom_score_adj"
    lines = hand("run", *options, hand.image, "sh", "-c", seen).splitlines()
    assert lines[:2] == ["lo", "1"]
    assert lines[2].split()[1] == "1024"
    assert lines[3:] == ["10", "20", "CapEff:\t0000000000000001", "0 44", "7"]
    links = ["cut", "-d:", "-f1", "/proc/net/dev"]
    there = hand.device.inside(links).stdout.strip()
    assert hand("run", "--rm", "--network", "host", hand.image, *links).strip() == there
    assert "--cap-add FLY" in hand("run", "--cap-add", "FLY", hand.image, code=125)


def test_a_seccomp_profile_reaches_the_container(hand: Hand, tmp_path: Path) -> None:
    mode = ["grep", "Seccomp:", "/proc/self/status"]
    assert hand("run", "--rm", hand.image, *mode).strip() == "Seccomp:\t2"
    assert (
        hand("run", "--rm", "--security-opt", "seccomp=unconfined", hand.image, *mode).strip()
        == "Seccomp:\t0"
    )
    assert hand("run", "--rm", "--privileged", hand.image, *mode).strip() == "Seccomp:\t0"
    profile = tmp_path / "calls.json"
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    option = ("--security-opt", f"seccomp={profile}")
    assert "Input/output error" in hand("run", "--rm", *option, hand.image, "mkdir", "/x", code=1)
    profile.write_text("{}")
    assert "--security-opt seccomp: this profile: defaultAction" in hand("run", *option, hand.image, code=125)
    assert "No such file" in hand("run", "--security-opt", "seccomp=/none.json", hand.image, code=125)


def test_limits_change_in_place(hand: Hand) -> None:
    identity = hand.detached("one", "sleep", "100000")
    pid = hand.device.pid("one")
    hand("update", "--memory", "64m", "--pids-limit", "33", "--restart", "always", "one")
    limit = next(Path("/sys/fs/cgroup").glob(f"**/reconciler-{hand.device.instance}/{identity}/pids.max"))
    assert limit.read_text() == "33\n"
    assert hand.device.pid("one") == pid
    os.kill(pid, signal.SIGKILL)
    hand.device.until(lambda: hand.device.pid("one") not in (0, pid))
    assert "must be at least" in hand("update", "--memory", "1k", "one", code=64)
    hand("rm", "-f", "one")


def test_a_paused_container_stands_still_and_can_be_stopped(hand: Hand) -> None:
    hand.detached("tick", "sh", "-c", "while :; do echo tick; usleep 10000; done")
    hand("pause", "tick")
    assert hand.state("tick") == "paused"
    before = len(hand("logs", "tick"))
    assert "is paused already" in hand("pause", "tick", code=5)
    assert "unpause" in hand("start", "tick", code=5)
    assert "reconciler unpause tick" in hand("exec", "tick", "true", code=125)
    assert len(hand("logs", "tick")) == before
    hand("unpause", "tick")
    hand("exec", "tick", "true")
    hand.device.until(lambda: len(hand("logs", "tick")) > before)
    hand("pause", "tick")
    hand("stop", "tick")
    assert hand.state("tick") == "exited"
    hand("start", "tick")
    assert hand.state("tick") == "running"
    hand("rm", "-f", "tick")


def test_another_name_reaches_everything_while_it_runs(hand: Hand) -> None:
    device = hand.device
    hand.detached("one", "sh", "-c", SERVE, "same", options=("-p", "8080:80"))
    hand.detached("other", "sleep", "100000")
    device.until(lambda: device.curl("http://127.0.0.1:8080/") == "same\n")
    before = device.ps()["one"]
    assert hand("rename", "one", "two") == "two"
    now = device.ps()
    assert "one" not in now
    assert (now["two"]["pid"], now["two"]["id"]) == (before["pid"], before["id"])
    names = hand.file("other", "/etc/hosts")
    assert " two" in names or "\ttwo" in names
    assert "one" not in names.split()
    assert "one" not in hand.file("two", "/etc/hosts").split()
    assert device.curl("http://127.0.0.1:8080/") == "same\n"
    assert hand("exec", "other", "wget", "-qO-", "http://two/") == "same"
    assert "8080" in hand("port", "two")
    assert "rename one to two" in hand("events", "-n", "50")
    # What is taken, missing, no name, or a spec's
    assert "taken" in hand("rename", "two", "other", code=5)
    assert "taken" in hand("rename", "two", "two", code=5)
    assert "must be" in hand("rename", "two", "-", code=64)
    assert "not found" in hand("rename", "one", "three", code=8)
    device.spec("web", spec(hand.image))
    device.until(lambda: hand.state("web/main") == "running")
    said = hand("rename", "web/main", "mine", code=5)
    assert "web.yaml:" in said
    assert "spec" in said
    # It goes on under its new name, also without an agent, and the old one is free
    device.stop(signal.SIGKILL)
    assert hand("rename", "two", "three") == "three"
    assert device.ps()["three"]["pid"] == before["pid"]
    assert device.curl("http://127.0.0.1:8080/") == "same\n"
    assert hand("stop", "-t", "0", "three") == "three"
    assert hand("rename", "adhoc/three", "four") == "four"
    device.start()
    device.logged("converged")
    hand.detached("three", "sleep", "100000")
    assert hand("start", "four") == "four"
    device.until(lambda: device.curl("http://127.0.0.1:8080/") == "same\n")
    assert hand("logs", "four") == ""
    hand("rm", "-f", "three", "four", "other")
    assert [name for name in device.ps() if "/" not in name] == []


def test_adhoc_containers_find_each_other_by_name(hand: Hand) -> None:
    hand.detached("server", "sh", "-c", SERVE, "by name")
    assert (
        hand.device.until(
            lambda: (
                hand.device.reconciler(
                    "run", "--rm", hand.image, "wget", "-qO-", "http://server/", check=False
                ).stdout
            )
        )
        == "by name\n"
    )
    hand("rm", "-f", "server")


# --- agents that die, and reboots -----------------------------------------------------------------------------------


def test_rm_happens_also_when_the_agent_was_away_at_the_end(hand: Hand) -> None:
    hand(
        "run",
        "-d",
        "--rm",
        "--name",
        "brief",
        hand.image,
        "sh",
        "-c",
        "until [ -e /go ]; do usleep 10000; done",
    )
    hand.device.stop(signal.SIGKILL)
    hand("exec", "brief", "touch", "/go")
    hand.device.until(lambda: hand.device.pid("brief") == 0)
    assert "brief" in hand.device.ps()
    hand.device.start()
    hand.device.until(lambda: "brief" not in hand.device.ps())
    assert list((hand.device.state / "adhoc").iterdir()) == []
    assert list((hand.device.state / "containers").iterdir()) == []


def test_after_a_reboot_policies_decide_as_dockers_do(hand: Hand) -> None:
    keep = "echo $0 >> /boots; exec sleep 100000"
    hand.detached("always", "sh", "-c", keep, "x", options=("--restart", "always"))
    hand.detached("once", "sh", "-c", keep, "x")
    hand.detached("stopped", "sh", "-c", keep, "x", options=("--restart", "always"))
    hand("create", "--name", "waiting", hand.image, "true")
    hand("run", "-d", "--rm", "--name", "brief", "--stop-timeout", "0", hand.image, "sleep", "100000")
    hand("stop", "-t", "0", "stopped")
    hand.reboot()
    hand.device.running("always")
    assert hand.file("always", "/boots") == "x\nx"
    assert hand.state("once") == "exited"
    assert hand.state("stopped") == "exited"
    assert hand.device.ps()["stopped"]["exit_code"] == 137
    hand.device.until(lambda: "brief" not in hand.device.ps())
    hand("start", "once", "stopped")
    assert hand.file("once", "/boots") == "x\nx"
    assert hand.file("stopped", "/boots") == "x\nx"
    assert hand.device.reconciler("start", "-a", "waiting").returncode == 0
    hand("rm", "-f", "always", "once", "stopped", "waiting")
    hand.device.until(lambda: "rc-" not in hand.device.inside(["ip", "-o", "link"]).stdout)


def test_a_record_that_cant_be_read_holds_its_container(hand: Hand) -> None:
    hand.detached("one", "sleep", "100000")
    pid = hand.device.pid("one")
    record = hand.device.state / "adhoc/one.json"
    record.write_text("{")
    hand.device.until(lambda: "not the record" in hand("status", "adhoc"))
    hand.device.stop()
    hand.device.start()
    hand.device.until(lambda: "not the record" in hand("status", "adhoc"))
    assert hand.device.pid("one") == pid
    hand("rm", "-f", "one")
    assert "one" not in hand.device.ps()


def test_an_emptied_source_and_gc_leave_adhoc_containers_alone(hand: Hand) -> None:
    hand.device.spec("web", spec(hand.image))
    hand.device.running("web/main")
    hand.detached("one", "sleep", "100000")
    hand.detached("two", "true")
    hand.device.until(lambda: hand.state("two") == "exited")
    pid = hand.device.pid("one")
    (hand.device.specs / "web.yaml").unlink()
    hand("apply", "--allow-empty")
    hand("gc")
    assert hand.device.pid("one") == pid
    hand("start", "two")
    generations = list((hand.device.state / "generations").iterdir())
    assert all("adhoc" not in path.read_text() for path in generations)
    hand("rm", "-f", "one", "two")


# --- without an agent -----------------------------------------------------------------------------------------------


def test_without_an_agent_the_verbs_do_it_themselves(device: Device, box: Built) -> None:
    hand = Hand(device, box)
    identity = hand.detached("one", "sh", "-c", "echo kept > /kept; exec sleep 100000")
    assert hand("ps", "-q", "--no-trunc") == identity
    pid = device.pid("one")
    done = device.reconciler("run", "--rm", hand.image, "sh", "-c", "echo out; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")
    hand("stop", "-t", "0", "one")
    hand("start", "one")
    assert hand.file("one", "/kept") == "kept"
    assert device.pid("one") != pid
    device.spec("web", spec(hand.image))
    device.start()
    device.running("web/main")
    device.stop()
    hand("stop", "web/main")
    assert hand.state("web/main") == "held"
    assert hand.state("one") == "running"
    hand("rm", "-f", "one")
    assert list(device.ps()) == ["web/main"]


# --- beside declared ones -------------------------------------------------------------------------------------------


def test_ports_and_names_are_refused_with_the_name_of_who_has_them(hand: Hand) -> None:
    hand.device.spec("web", spec(hand.image, port=8090))
    hand.device.running("web/main")
    refused = hand("run", "-d", "--name", "rival", "-p", "8090:80", hand.image, "sleep", "1", code=125)
    assert "port 0.0.0.0:8090/tcp already used by web/main" in refused
    assert "rival" not in hand.device.ps()
    hand.detached("one", "sleep", "100000", options=("-p", "8091:80"))
    assert "taken" in hand("run", "-d", "--name", "one", hand.image, "true", code=125)
    hand.device.spec("web", spec(hand.image, port=8091))
    hand.device.until(lambda: "8091/tcp already used by adhoc/one" in hand.device.reason("web"))
    hand("stop", "-t", "0", "one")
    hand.device.running("web/main")
    assert "already used by web/main" in hand("start", "one", code=5)
    hand("rm", "one")
    hand.device.spec("adhoc", spec(hand.image).replace("name: web", "name: adhoc"))
    assert "must not be 'adhoc'" in hand("validate", str(hand.device.specs), code=3)


def test_a_declared_container_is_held_restarted_and_never_removed_by_hand(hand: Hand, box2: Built) -> None:
    hand.device.configure(bundles=[str(hand.built.layout), str(box2.layout)], interval="1s")
    hand.device.stop()
    hand.device.spec("web", spec(hand.image))
    hand.device.start()
    first = hand.device.running("web/main")
    assert "held stopped" in hand.said("stop", "--reason", "for repair", "web/main")
    item = hand.device.ps()["web/main"]
    assert item["state"] == "held"
    assert "held stopped by hand since" in item["reason"]
    assert "(for repair); reconciler start web/main lets it go" in item["reason"]
    assert hand.device.status()["web"]["health"] == "suspended"
    hand("apply", code=5)
    hand.reboot()
    assert hand.state("web/main") == "held"
    # A newer version is not tried before it is let go.
    hand.device.spec("web", spec(reference(box2)))
    hand("apply", code=5)
    assert hand.state("web/main") == "held"
    assert "no longer held" in hand.said("start", "web/main")
    second = hand.device.running("web/main")
    assert second != first
    assert "VERSION=2" in hand("exec", "web/main", "env")
    assert "runs already" in hand.said("start", "web/main")
    assert hand.device.pid("web/main") == second
    hand("restart", "web/main")
    third = hand.device.pid("web/main")
    assert third not in (0, second)
    hand.device.logged("converged")
    hand("apply", "--wait")
    assert hand.device.pid("web/main") == third
    refused = hand("rm", "web/main", code=5)
    assert "is declared at web.yaml:" in refused
    assert "reconciler stop web/main" in refused
    assert "was replaced" in hand.said("rm", "-f", "web/main")
    fourth = hand.device.pid("web/main")
    assert fourth not in (0, third)
    assert "the loop starts it again" in hand.said("kill", "web/main")
    hand.device.until(lambda: hand.device.pid("web/main") not in (0, fourth))
    assert "is declared at web.yaml:" in hand("update", "--memory", "64m", "web/main", code=5)
    hand("pause", "web/main")
    assert hand.state("web/main") == "paused"
    hand("unpause", "web/main")
    hand("stop", "web/main")
    (hand.device.specs / "web.yaml").unlink()
    hand("apply", "--allow-empty")
    assert not (hand.device.state / "wishes/web").exists()


def test_free_ports_are_found_and_said(hand: Hand) -> None:
    said = hand.said(
        "run",
        "-d",
        "--name",
        "any",
        "-p",
        "80",
        "--stop-timeout",
        "0",
        hand.image,
        "sh",
        "-c",
        SERVE,
        "found",
    )
    assert "->80/tcp" in said
    port = said.rpartition("published 0.0.0.0:")[2].partition("-")[0]
    hand.device.until(lambda: hand.device.curl(f"http://127.0.0.1:{port}/") == "found\n")
    hand("rm", "-f", "any")
