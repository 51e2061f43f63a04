"""The verbs that look: what they show of real containers, in every form, with and without an agent."""

import json
import os
import pty
import subprocess
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.images import Built

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
    for verb in LISTS:
        document = json.loads(ready.reconciler(*verb.split(), "-o", "json").stdout)
        items = document["items"]
        assert items, verb
        as_yaml = yaml.safe_load(ready.reconciler(*verb.split(), "-o", "yaml").stdout)
        assert [item["name"] for item in as_yaml["items"]] == [item["name"] for item in items], verb
        lines = ready.reconciler(*verb.split(), "-o", "jsonl").stdout.splitlines()
        assert [json.loads(line)["name"] for line in lines] == [item["name"] for item in items], verb
        names = ready.reconciler(*verb.split(), "-o", "name").stdout
        assert names == "".join(f"{item['name']}\n" for item in items), verb
        table = ready.reconciler(*verb.split()).stdout.splitlines()
        bare = ready.reconciler(*verb.split(), "--no-headers").stdout.splitlines()
        assert [line.split()[0] for line in bare] == [line.split()[0] for line in table[1:]], verb
        wide = ready.reconciler(*verb.split(), "-o", "wide", "--no-trunc").stdout.splitlines()
        assert len(wide[0]) >= len(table[0]), verb
        formatted = ready.reconciler(*verb.split(), "--format", "{{.name}}").stdout
        assert formatted == names, verb
        coloured = ready.reconciler(*verb.split(), "--color", "always").stdout
        assert ("\x1b[" in coloured) == (verb in ("ps -a", "status")), verb
        assert "\x1b[" not in "".join(table), verb


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
    assert "no/thing: no such container, image or volume" in done.stderr
    for wrong in (["--format", "{{.nothing}}", "shop/web"], ["--type", "dog", "shop/web"], []):
        done = ready.reconciler("inspect", *wrong, check=False)
        assert done.returncode == 64, wrong
        assert "Traceback" not in done.stderr
    assert (
        yaml.safe_load(ready.reconciler("inspect", "shop/web", "-o", "yaml").stdout)[0]["Name"] == "shop/web"
    )
