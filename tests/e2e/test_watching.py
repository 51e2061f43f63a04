"""The verbs that look: what they show of real containers, in every form, with and without an agent."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, PROGRAM, REPOSITORY, Device
from tests.images import Built, busybox

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def shop(image: str, name: str = "shop", port: int = 8080) -> str:
    """An app with one container that runs, one that has ended with 3, and a volume."""
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  web:
    image: {image}
    command: [sh, -c, "echo hello; exec sleep 100000"]
    environment: {{COLOUR: blue}}
    labels: {{tier: front, "org.example/x": "1"}}
    limits: {{memory: 32Mi, cpus: "0.5", pids: 64}}
    stop_grace_period: 0s
    volumes: ["data:/data"]
    ports: ["{port}:80", "127.0.0.1:{port}:53/udp"]
  job:
    image: {image}
    command: [sh, -c, "echo done; exit 3"]
    labels: {{tier: back}}
    limits: {{memory: 16Mi}}
    restart: {{policy: "no"}}
volumes: {{data: {{}}}}
"""


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    """A device whose agent runs `shop`, the job ended."""
    device.configure(bundles=[str(box.layout)])
    device.spec("shop", shop(reference(box)))
    device.start()
    device.until(lambda: device.ps()["shop/job"]["state"] == "exited")
    device.running("shop/web")
    return device


def on_a_terminal(device: Device, verb: str, *args: str, **variables: str) -> str:
    """What a verb prints to a terminal; it must end by itself."""
    master, slave = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        [
            "nsenter",
            f"--net=/run/netns/{device.namespace}",
            "--",
            *PROGRAM,
            *verb.split(),
            *device.places,
            *args,
        ],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm"} | variables,
        cwd=REPOSITORY,
    )
    os.close(slave)
    said = b""
    try:
        while data := os.read(master, 65536):
            said += data
    except OSError:  # EIO: nobody holds the other side any more
        pass
    os.close(master)
    assert process.wait() == 0, said
    return said.decode()


# --- lists -----------------------------------------------------------------------------------------------------------

LISTS = ("ps -a", "status", "images", "volume ls", "gc --dry-run")


def test_every_list_comes_in_every_form(ready: Device) -> None:
    def said(verb: str, *args: str) -> str:
        return ready.reconciler(*verb.split(), *args).stdout

    for verb in LISTS:
        items = json.loads(said(verb, "-o", "json"))["items"]
        names = "".join(f"{item['name']}\n" for item in items)
        assert names, verb
        assert said(verb, "-o", "name") == names, verb
        lines = said(verb, "--format", "json").splitlines()
        assert [json.loads(line)["name"] for line in lines] == names.split(), verb
        table = said(verb, "--no-headers", "--color", "always")
        assert ("\x1b[" in table) == (verb in ("ps -a", "status")), verb
    as_yaml = yaml.safe_load(said("volume ls", "-o", "yaml"))
    assert [item["name"] for item in as_yaml["items"]] == ["shop/data"]
    heading, row = said("volume ls").splitlines()
    assert (heading.split()[0], row.split()[0]) == ("VOLUME", "shop/data")
    assert said("volume ls", "--no-headers").split()[0] == "shop/data"
    assert said("volume ls", "--format", "{{.name}}") == said("volume ls", "-q") == "shop/data\n"
    wide = said("images", "-o", "wide", "--no-trunc").splitlines()
    assert json.loads(said("images", "-o", "jsonl"))["config"] in wide[1]


def test_ps_shows_what_was_asked_for(ready: Device, box: Built) -> None:
    def names(*args: str) -> list[str]:
        return ready.reconciler("ps", *args, "-o", "name").stdout.split()

    assert names() == ["shop/web"]
    assert names("-a") == ["shop/job", "shop/web"]
    assert names("--filter", "status=exited") == ["shop/job"]
    assert names("--filter", "exited=3") == ["shop/job"]
    assert names("--filter", "exited=0") == []
    assert names("-a", "--filter", "label=tier") == ["shop/job", "shop/web"]
    assert names("-a", "--filter", "label=tier=front") == ["shop/web"]
    assert names("--filter", "publish=8080/udp") == ["shop/web"]
    assert names("--filter", "volume=data", "--filter", "app=shop") == ["shop/web"]
    assert names("-a", "--filter", f"image={box.digest}") == ["shop/job", "shop/web"]
    assert len(names("-l")) == 1
    assert len(names("-n", "5")) == 2
    full = ready.reconciler("ps", "-q", "--no-trunc").stdout.strip()
    assert ready.reconciler("ps", "-q").stdout.strip() == full[:12]
    docker = r"table {{.Names}}\t{{.Status}}\t{{.Ports}}\t{{.ID}}"
    heading, row = ready.reconciler("ps", "--format", docker).stdout.splitlines()
    assert heading.split() == ["NAMES", "STATUS", "PORTS", "ID"]
    assert row.startswith("shop/web   Up ")
    assert "0.0.0.0:8080->80/tcp" in row
    assert row.endswith(full[:12])
    for wrong in (["--filter", "colour=red"], ["--format", "{{.nothing}}"], ["-q", "-o", "json"]):
        done = ready.reconciler("ps", *wrong, check=False)
        assert (done.returncode, done.stdout) == (64, "")
        assert "Traceback" not in done.stderr
    said = on_a_terminal(ready, "ps -a")
    assert "\x1b[32m" in said
    assert "\x1b" not in on_a_terminal(ready, "ps -a", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(ready, "ps -a --color never")
    ready.stop()
    assert names("--filter", "label=tier=front", "--filter", "publish=8080") == ["shop/web"]


def test_ps_goes_on_watching(ready: Device, box: Built) -> None:
    watching = ready.spawn(
        [*PROGRAM, "ps", "-w", "-o", "name", *ready.places], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert watching.stdout is not None
    with watching.stdout as lines:
        assert lines.readline() == b"shop/web\n"
        ready.spec("more", shop(reference(box), "more", 9090))
        seen = b""
        while b"more/web\n" not in seen:
            seen += lines.readline()


# --- inspect ---------------------------------------------------------------------------------------------------------


def inspected(device: Device, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(device.reconciler("inspect", *args).stdout)
    return found


def test_inspect_tells_of_a_container_in_dockers_words(ready: Device, box: Built) -> None:
    web, job = inspected(ready, "shop/web", "shop/job")
    row = ready.ps()["shop/web"]
    assert (web["Id"], web["Name"], web["State"]["Pid"]) == (row["id"], "shop/web", row["pid"])
    assert (web["Path"], web["Args"]) == ("sh", ["-c", "echo hello; exec sleep 100000"])
    state = web["State"]
    assert (state["Status"], state["Running"], state["Paused"], state["Dead"]) == (
        "running",
        True,
        False,
        False,
    )
    assert state["StartedAt"] > web["Created"] > "2026"
    assert state["FinishedAt"].startswith("0001")
    host = web["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (32 << 20, 500_000_000, 64)
    assert host["RestartPolicy"]["Name"] == "always"
    assert host["PortBindings"]["80/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
    assert host["Binds"] == ["shop/data:/data"]
    assert host["ReadonlyRootfs"] is False
    (mount,) = web["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Destination"], mount["RW"]) == (
        "volume",
        "shop/data",
        "/data",
        True,
    )
    assert os.path.isdir(mount["Source"])
    assert "COLOUR=blue" in web["Config"]["Env"]
    assert web["Config"]["Hostname"] == "shop-web"
    assert web["Config"]["Labels"]["tier"] == "front"
    assert web["Config"]["Image"] == reference(box)
    network = web["NetworkSettings"]
    inside = ready.reconciler("exec", "shop/web", "ip", "-o", "-4", "address", "show", "eth0").stdout
    assert f"{network['IPAddress']}/{network['IPPrefixLen']}" in inside
    assert network["Networks"]["shop"]["IPAddress"] == network["IPAddress"]
    assert network["Ports"]["53/udp"] == [{"HostIp": "127.0.0.1", "HostPort": "8080"}]
    assert (job["State"]["Status"], job["State"]["ExitCode"], job["State"]["Running"]) == ("exited", 3, False)
    assert job["State"]["FinishedAt"] >= job["State"]["StartedAt"] > "2026"
    assert job["HostConfig"]["RestartPolicy"]["Name"] == "no"

    def show(template: str, *names: str) -> str:
        return ready.reconciler("inspect", "--format", template, *(names or ("shop/web",))).stdout

    assert (
        show("{{.State.Status}} {{json .Config.Cmd}}")
        == 'running ["sh","-c","echo hello; exec sleep 100000"]\n'
    )
    assert show("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}") == network["IPAddress"] + "\n"
    assert show('{{index .Config.Labels "org.example/x"}}') == "1\n"
    assert show("{{.Name}}", "shop/web", "shop/job") == "shop/web\nshop/job\n"
    assert show("{{.State.ExitCode}}", job["Id"][:10]) == "3\n"
    ready.stop()
    alone, _ = inspected(ready, "shop/web", "shop/job")
    assert {**alone, "Reconciler": {}} == {**web, "Reconciler": {}}


def test_inspect_tells_of_images_and_volumes_and_says_what_it_can_not_find(ready: Device, box: Built) -> None:
    for name in (
        "box.example/box:1",
        "box.example/box",
        reference(box),
        str(box.digest),
        str(box.digest)[7:19],
    ):
        if name == "box.example/box":  # no tag means latest
            assert ready.reconciler("inspect", name, check=False).returncode == 8
            continue
        (image,) = inspected(ready, name)
        assert image["Reconciler"]["Manifest"] == str(box.digest), name
        assert image["RepoTags"] == ["box.example/box:1"]
        assert image["RepoDigests"] == [f"box.example/box@{box.digest}"]
        assert image["Os"] == "linux"
        assert image["Reconciler"]["UsedBy"] == ["shop/job", "shop/web"]
        assert image["Size"] > 100_000
    (volume,) = inspected(ready, "shop/data")
    assert (volume["Name"], volume["UsageData"]["RefCount"]) == ("shop/data", 1)
    assert os.path.isdir(volume["Mountpoint"])
    assert ready.reconciler("inspect", "--type", "volume", "shop/web", check=False).returncode == 8
    done = ready.reconciler("inspect", "shop/web", "no/thing", check=False)
    assert done.returncode == 8
    assert [item["Name"] for item in json.loads(done.stdout)] == ["shop/web"]
    assert "no/thing: no such container, image, volume or network" in done.stderr
    for wrong in (["--format", "{{.nothing}}", "shop/web"], ["--type", "dog", "shop/web"], []):
        done = ready.reconciler("inspect", *wrong, check=False)
        assert done.returncode == 64, wrong
        assert "Traceback" not in done.stderr
    assert (
        yaml.safe_load(ready.reconciler("inspect", "shop/web", "-o", "yaml").stdout)[0]["Name"] == "shop/web"
    )


# --- logs ------------------------------------------------------------------------------------------------------------

# Which of two streams the log takes first is a matter of the moment: nothing here asks for it.
TALK = "echo first; echo oops >&2; printf 'red \\\\033[31mX\\\\033[0m\\\\n'; echo last; exec sleep 100000"


def talkers(image: str) -> str:
    container = f"""
    image: {image}
    command: [sh, -c, "{TALK}"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
"""
    return f"apiVersion: reconciler/v1\nkind: App\nname: talk\ncontainers:\n  a:{container}  bb:{container}"


def test_logs_of_several_are_one_stream_that_can_be_searched(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("talk", talkers(reference(box)))
    device.start()

    def logs(*args: str) -> str:
        return device.reconciler("logs", *args).stdout

    device.until(lambda: logs("talk", "--grep", "last").count("last") == 2)
    both = logs("talk/a", "talk/bb").splitlines()
    assert sorted(both) == sorted(
        f"{name} | {line}"
        for name in ("talk/a ", "talk/bb")
        for line in ("first", "red \x1b[31mX\x1b[0m", "last")
    )
    assert len(device.reconciler("logs", "talk", "--tail", "1", "--grep", "t").stdout.splitlines()) == 2
    assert logs("talk/a", "--grep", "^(first|last)$") == "first\nlast\n"
    assert logs("talk/a", "--grep", "F[I]RST", "-i") == "first\n"
    assert logs("talk/a", "--grep", "red|last", "-v") == "first\n"
    assert logs("talk/a", "--grep", "st", "--tail", "1") == "last\n"
    lines = [json.loads(line) for line in logs("talk", "-o", "jsonl").splitlines()]
    assert {line["name"] for line in lines} == {"talk/a", "talk/bb"}
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert logs("talk", "--until", "2001-01-01T00:00:00Z") == ""
    # Following ends at the time that was asked for, with everything that was there.
    followed = logs("talk", "-f", "--until", "+1s", "--grep", "first")
    assert sorted(followed.splitlines()) == ["talk/a  | first", "talk/bb | first"]
    for wrong in (["--grep", "("], ["-v"], ["-f", "--previous"]):
        done = device.reconciler("logs", "talk/a", *wrong, check=False)
        assert done.returncode == 64
        assert "Traceback" not in done.stderr


def test_a3_what_a_container_writes_moves_no_cursor_on_a_terminal(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("talk", talkers(reference(box)))
    device.start()
    device.until(lambda: device.reconciler("logs", "talk", "--grep", "last").stdout.count("last") == 2)
    raw = device.reconciler("logs", "talk/a").stdout
    assert "red \x1b[31mX\x1b[0m\n" in raw  # a pipe gets what was written
    shown = on_a_terminal(device, "logs talk/a")
    assert "\x1b" not in shown
    assert "red \\x1b[31mX\\x1b[0m\r\n" in shown
    both = on_a_terminal(device, "logs talk")
    assert "\x1b[36mtalk/a  | \x1b[0mfirst" in both
    assert "\x1b[31mX" not in both
    assert "oops" in shown
    assert "\x1b" not in on_a_terminal(device, "logs talk", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(device, "logs talk/a -o jsonl")


def test_a3_what_an_image_claims_moves_no_cursor_and_breaks_no_document(
    device: Device, tmp_path: Path
) -> None:
    evil = "\x1b[2J\u202e\x07\x9b31m"
    built = busybox(
        tmp_path / "layout", config={"Labels": {evil: evil}, "Env": ["PATH=/bin", f"EVIL={evil}"]}
    )
    device.configure(bundles=[str(built.layout)])
    device.spec("shop", shop(reference(built)))
    device.start()
    device.running("shop/web")
    (found,) = inspected(device, "shop/web")
    assert found["Config"]["Labels"][evil] == evil
    device.reconciler("exec", "shop/web", "sh", "-c", f"touch '/{evil}'; exec -a x true")
    for verb in (
        "inspect shop/web",
        "inspect shop/web -o yaml",
        "ps -a -o json",
        "events",
        "diff shop/web",
        "top shop/web",
    ):
        said = on_a_terminal(device, f"{verb} --color never")
        assert not set(said) & {"\x1b", "\u202e", "\x07", "\x9b"}, verb
    shown = on_a_terminal(device, "inspect", "shop/web", "--format", "{{json .Config.Labels}}{{.Config.Env}}")
    assert not set(shown) & {"\x1b", "\u202e", "\x07", "\x9b"}
    assert evil in device.reconciler("inspect", "shop/web", "--format", "{{join .Config.Env ` `}}").stdout


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_are_told_kept_chosen_and_followed(ready: Device, box: Built) -> None:
    def events(*args: str) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in ready.reconciler("events", "-o", "jsonl", *args).stdout.splitlines()
        ]

    kinds = [event["kind"] for event in events("--filter", "container=shop/web")]
    assert kinds == ["create", "start"]
    (ended,) = events("--filter", "event=exit")
    assert (ended["container"], ended["exit_code"], ended["oom"]) == ("job", 3, False)
    assert ended["id"] == ready.ps()["shop/job"]["id"]
    assert [e["volume"] for e in events("--filter", "kind=volume", "--filter", "app=shop")] == ["shop/data"]
    assert events("--since", "2100-01-01T00:00:00Z") == []
    assert events("--until", "2001-01-01T00:00:00Z") == []
    everything = events()
    times = [event["time"] for event in everything]
    assert all(time.endswith("Z") for time in times)
    assert events("--since", times[2]) == [event for event in everything if event["time"] >= times[2]]
    assert json.loads(ready.reconciler("events", "-o", "json").stdout)["items"] == everything
    assert "start shop/web" in ready.reconciler("events", "-n", "50").stdout
    assert "3" in ready.reconciler("events", "--format", "{{.kind}} {{.exit_code}}").stdout

    log = ready.state / "events.jsonl"
    before = log.stat()
    now = datetime.now(UTC).isoformat()
    following = ready.spawn(
        [
            *PROGRAM,
            "events",
            "-f",
            "--since",
            now,
            "-o",
            "jsonl",
            "--filter",
            "container=shop/web",
            *ready.places,
        ],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert following.stdout is not None
    with following.stdout as lines:
        os.kill(ready.pid("shop/web"), 9)
        found = [json.loads(lines.readline())["kind"] for _ in range(4)]
        assert found == ["exit", "remove", "restart", "start"]
        # An agent that is killed and started again writes on, and nobody who follows notices.
        ready.stop(9)
        ready.start()
        ready.running("shop/web")
        log.rename(log.with_name("events.jsonl.1"))
        os.kill(ready.pid("shop/web"), 9)
        assert [json.loads(lines.readline())["kind"] for _ in range(4)] == found
    assert log.stat().st_ino != before.st_ino
    # The job's end was written once, although three agents have seen it.
    assert len(events("--filter", "kind=exit", "--filter", "container=job")) == 1
    ready.stop()
    same = log.stat()
    assert events("--filter", "kind=exit")
    assert log.stat() == same
    for wrong in (["-f", "-o", "json"], ["--filter", "x=y"], ["--since", "yesterday"]):
        assert ready.reconciler("events", *wrong, check=False).returncode == 64


# --- stats -----------------------------------------------------------------------------------------------------------


def test_stats_measures_what_containers_use_without_an_agent_too(ready: Device, box: Built) -> None:
    busy = shop(reference(box), "busy", 9090).replace(
        "echo hello; exec sleep 100000", "head -c 8388608 /dev/zero > /dev/shm/x; while :; do :; done"
    )
    ready.spec("busy", busy)
    ready.running("busy/web")
    own = {
        row["name"]: row
        for row in json.loads(ready.reconciler("stats", "--self", "-o", "json").stdout)["items"]
    }
    assert own["agent"]["pid"] == ready.agent_pid
    assert {"zygote", "shim shop/web", "shim busy/web"} <= own.keys()
    assert 0 < own["shim shop/web"]["private"] < own["agent"]["private"] <= own["agent"]["memory"]
    ready.stop()
    assert "agent" not in ready.reconciler("stats", "--self").stdout

    def stats(*args: str) -> dict[str, dict[str, Any]]:
        text = ready.reconciler("stats", "-o", "json", *args).stdout
        return {item["name"]: item for item in json.loads(text)["items"]}

    found = stats()
    assert set(found) == {"shop/web", "busy/web"}
    used = found["busy/web"]
    # Half a CPU is its limit; on a busy machine it may get less.
    assert 0 < used["cpu_percent"] <= 75
    assert found["shop/web"]["cpu_percent"] < 5
    assert used["memory"] >= 8 << 20
    assert used["memory_limit"] == 32 << 20
    assert used["memory_percent"] == pytest.approx(100 * used["memory"] / (32 << 20), abs=0.01)
    assert (used["pids"], used["pids_limit"]) == (1, 64)
    before = found["shop/web"]
    send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(1400), (sys.argv[1], 9))"
    ready.inside([sys.executable, "-c", send, address(ready, "shop/web")])
    after = stats("shop/web")["shop/web"]
    assert after["network_received"] >= before["network_received"] + 1400
    assert after["network_sent"] > before["network_sent"]  # nobody listens there: it says so
    stopped = stats("shop/job", "shop")
    assert set(stopped) == {"shop/job", "shop/web"}
    assert stopped["shop/job"]["memory"] is None
    assert stopped["shop/job"]["pid"] is None
    table = ready.reconciler("stats", "--no-stream", "shop").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "CPU", "%"]
    assert "32MiB" in table[2].replace(".0", "").replace("32.0", "32")
    row = ready.reconciler(
        "stats", "--no-stream", "--format", "{{.Name}} {{.MemPerc}} {{.PIDs}}", "shop/web"
    ).stdout
    assert row.startswith("shop/web ")
    assert row.endswith("% 1\n")
    streamed = ready.spawn(
        [*PROGRAM, "stats", "-o", "jsonl", "--interval", "100ms", "shop/web", *ready.places],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert streamed.stdout is not None
    with streamed.stdout as lines:
        assert [json.loads(lines.readline())["name"] for _ in range(3)] == ["shop/web"] * 3
    for wrong in (["--interval", "1ms"], ["--interval", "x"]):
        assert ready.reconciler("stats", *wrong, check=False).returncode == 64
    assert ready.reconciler("stats", "no/thing", check=False).returncode == 8


def address(device: Device, name: str) -> str:
    return str(inspected(device, name)[0]["NetworkSettings"]["IPAddress"])


# --- top, port, diff, wait -------------------------------------------------------------------------------------------


def test_top_port_and_diff_look_into_a_running_container(ready: Device) -> None:
    sleeping = ready.spawn(
        [*PROGRAM, "exec", *ready.places, "-u", "12:34", "shop/web", "sh", "-c", "echo up; sleep 5000; :"],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert sleeping.stdout is not None
    with sleeping.stdout as lines:
        assert lines.readline() == b"up\n"
        ready.until(
            lambda: (
                "sleep 5000" in ready.reconciler("top", "shop/web", "--no-headers").stdout.splitlines()[-1]
            )
        )
        items = json.loads(ready.reconciler("top", "shop/web", "-o", "json").stdout)["items"]
    first, *others = items
    assert (first["inside"], first["pid"], first["uid"]) == (1, ready.pid("shop/web"), 0)
    assert first["command"] == "sleep 100000"
    assert {item["uid"] for item in others} == {12}
    inside = ready.reconciler("exec", "shop/web", "sh", "-c", "echo /proc/[0-9]*").stdout.split()
    assert {f"/proc/{item['inside']}" for item in items} <= set(inside)
    child = next(item for item in others if item["command"] == "sleep 5000")
    assert child["parent_inside"] in {item["inside"] for item in others}
    assert Path(f"/proc/{child['pid']}/cmdline").read_text() == "sleep\x005000\x00"

    assert ready.reconciler("port", "shop/web").stdout == (
        "53/udp -> 127.0.0.1:8080\n80/tcp -> 0.0.0.0:8080\n"
    )
    assert ready.reconciler("port", "shop/web", "80").stdout == "0.0.0.0:8080\n"
    assert ready.reconciler("port", "shop/web", "53/udp").stdout == "127.0.0.1:8080\n"
    assert ready.reconciler("port", "shop/web", "53", check=False).returncode == 8
    assert ready.reconciler("port", "shop/web", "http", check=False).returncode == 64
    for verb in ("top", "port"):
        done = ready.reconciler(verb, "shop/job", check=False)
        assert (done.returncode, "not running" in done.stderr) == (1, True)

    assert ready.reconciler("diff", "shop/web").stdout == ""
    script = "echo x > /new; rm /bin/vi; mkdir -p /srv/a; echo y > /data/not-mine; echo z >> /etc/passwd"
    ready.reconciler("exec", "shop/web", "sh", "-c", script)
    changed = ready.reconciler("diff", "shop/web").stdout.splitlines()
    expected = "C /bin, D /bin/vi, C /etc, C /etc/passwd, A /new, A /srv, A /srv/a"
    assert [" ".join(line.split()) for line in changed] == expected.split(", ")
    ready.reconciler("exec", "shop/web", "sh", "-c", "touch \"$(printf '/\\\\033[2Jx')\"")
    assert "\x1b[2J" not in on_a_terminal(ready, "diff shop/web --color never")
    kinds = json.loads(ready.reconciler("diff", "shop/job", "-o", "json").stdout)
    assert kinds["items"] == []


def test_wait_ends_with_what_it_waits_for_or_in_time(ready: Device, box: Built) -> None:
    assert ready.reconciler("wait", "shop/job").stdout == "3\n"
    late = ready.reconciler("wait", "shop/web", "--timeout", "100ms", check=False)
    assert (late.returncode, late.stdout) == (6, "")
    assert "shop/web" in late.stderr
    ready.reconciler("wait", "--for", "running", "shop/web", "--timeout", "20s")
    ready.reconciler("wait", "--for", "healthy", "shop/web", "--timeout", "20s")
    ready.reconciler("wait", "--for", "synced", "--timeout", "20s")
    assert (
        ready.reconciler("wait", "--for", "running", "shop/job", "--timeout", "0s", check=False).returncode
        == 6
    )
    assert ready.reconciler("wait", "--for", "running", "no/thing", check=False).returncode == 8
    assert ready.reconciler("wait", check=False).returncode == 64
    waiting = ready.spawn(
        [*PROGRAM, "wait", "shop/job", "shop/web", *ready.places], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert waiting.stdout is not None
    first = ready.pid("shop/web")
    with waiting.stdout as lines:
        # It holds the container once its descriptors show it; from then on no end can be missed.
        ready.until(lambda: any("pidfd" in link for link in descriptors(waiting.pid)))
        os.kill(first, 15)
        os.kill(first, 9)
        assert [lines.readline(), lines.readline()] == [b"3\n", b"137\n"]
    ready.until(lambda: ready.pid("shop/web") not in (0, first))
    ready.spec("more", shop(reference(box), "more", 9090))
    ready.running("more/web")
    gone = ready.spawn([*PROGRAM, "wait", "--for", "removed", "more", *ready.places], cwd=REPOSITORY)
    (ready.specs / "more.yaml").unlink()
    ready.reconciler("apply", "--allow-empty")
    assert gone.wait(20 * PATIENCE) == 0
    ready.stop()
    assert ready.reconciler("wait", "shop/job").stdout == "3\n"
    ready.reconciler("wait", "--for", "running", "shop/web", "--timeout", "20s")


def descriptors(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
