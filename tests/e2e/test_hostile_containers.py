"""Containers that attack the agent with what they may write to. Whatever they do, it costs only themselves."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_GIB = 1 << 30


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)])
    return device


def app(name: str, **containers: str) -> str:
    """A spec whose containers are given as YAML flow mappings by name."""
    lines = [f"  {name}: {text}" for name, text in containers.items()]
    return "\n".join(["apiVersion: reconciler/v1", "kind: App", f"name: {name}", "containers:", *lines, ""])


def shell(image: str, script: str, more: str = "") -> str:
    """A container that runs a script and then does nothing."""
    return (
        f"{{image: {image}, command: [sh, -c, '{script}; exec sleep 100000'], init: true, stop_grace_period: 0s, "
        f"limits: {{memory: 16Mi}}{more}}}"
    )


def peak(pid: int) -> int:
    """The most memory, in bytes, that a process has ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def test_names_that_a_container_makes_huge_or_unreadable_cost_the_agent_nothing(
    ready: Device, box: Built
) -> None:
    """The files behind /etc/hosts and /etc/hostname are the container's to write, and the agent's to update."""
    image = reference(box)
    grow = f'truncate -s {_GIB} /etc/hosts /etc/hostname; printf "\\\\377" > /etc/hostname; touch /done'
    ready.spec("web", app("web", bad=shell(image, grow), good=shell(image, "true")))
    ready.start()
    ready.running("web/bad")
    good = ready.running("web/good")
    ready.until(
        lambda: ready.reconciler("exec", "web/bad", "--", "test", "-e", "/done", check=False).returncode == 0
    )
    ready.spec("web", app("web", bad=shell(image, grow), good=shell(image, "echo new")))
    ready.until(lambda: ready.pid("web/good") not in (0, good))
    hosts = ready.reconciler("exec", "web/bad", "--", "cat", "/etc/hosts").stdout
    assert len(hosts) < 1000
    assert "good" in hosts
    assert peak(ready.agent_pid) < 200 << 20


def dig(top: Path) -> None:
    """Make directories in each other, as a program inside can with mkdir and chdir; this is only quicker."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=fd)
        inner = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_a_tree_as_deep_as_it_can_be_is_measured_and_removed(ready: Device, box: Built) -> None:
    """In the writable layer and in a volume; deeper than a path can name, and than a recursion can go."""
    more = ', volumes: ["deep:/data"]'
    ready.spec("web", app("web", main=shell(reference(box), "true", more)) + "volumes: {deep: {}}\n")
    ready.start()
    ready.running("web/main")
    dig(ready.state / "volumes" / "web" / "deep" / "data")
    dig(next((ready.state / "containers").glob("*/upper")))
    assert ready.reconciler("volume", "ls").returncode == 0
    ready.until(lambda: "reconciler_" in ready.curl("http://127.0.0.1:9470/metrics"))
    (ready.specs / "web.yaml").unlink()
    ready.reconciler("apply", "--allow-empty", "--wait", timeout=60)
    ready.until(lambda: not ready.ps())
    ready.reconciler("volume", "rm", "web/deep")
    assert not (ready.state / "volumes" / "web").exists()
    ready.until(lambda: not list((ready.state / "trash").iterdir()))


def test_names_at_their_limits_work(ready: Device, box: Built) -> None:
    """40 characters of an app, 63 of a container and of a volume: links, cgroups, host names and sockets take them."""
    name, inner = "a" * 40, "c" * 63
    more = f', volumes: ["{"v" * 63}:/data"], ports: ["8080:80"], depends_on: [{"d" * 63}]'
    containers = {
        inner: shell(reference(box), "httpd -p 80 -h /etc", more),
        "d" * 63: shell(reference(box), "true"),
    }
    ready.spec("web", app(name, **containers) + f"volumes: {{{'v' * 63}: {{}}}}\n")
    ready.start()
    ready.running(f"{name}/{inner}")
    ready.until(lambda: "localhost" in ready.curl("http://127.0.0.1:8080/hosts"))
    host = ready.reconciler("exec", f"{name}/{inner}", "--", "hostname").stdout.strip()
    assert len(host) <= 64
    assert host.startswith(f"{name}-c")
    assert (
        ready.reconciler("exec", f"{name}/{inner}", "--", "ping", "-c1", "d" * 63, check=False).stdout != ""
    )


def test_a_config_with_two_owners_is_two_files(ready: Device, box: Built) -> None:
    more = (
        ', user: "1000:1000", configs: [{source: conf, target: /mine, uid: 1000, mode: "0400"}, '
        '{source: conf, target: /roots, mode: "0400"}, {source: conf, target: /all}]'
    )
    text = app("web", main=shell(reference(box), "true", more)) + "configs: {conf: {content: hello}}\n"
    ready.spec("web", text)
    ready.start()
    ready.running("web/main")
    looks = "stat -c %a:%u /mine /roots /all; cat /mine; echo; cat /roots; cat /all; echo x >/mine"
    said = ready.reconciler("exec", "web/main", "--", "sh", "-c", looks, check=False)
    assert said.stdout.split() == ["400:1000", "400:0", "444:0", "hello", "hello"]
    assert "denied" in said.stderr or "Read-only" in said.stderr


def test_binds_that_lead_to_the_agent_or_out_of_what_is_allowed_are_refused(
    ready: Device, box: Built
) -> None:
    """Y7: by name, by a link inside the allowed prefix, and where the prefix allows too much."""
    ready.configure(bundles=[str(box.layout)], allowed_binds=["/"])
    (ready.root / "data").mkdir()
    (ready.root / "data" / "link").symlink_to("/etc")
    (ready.root / "data" / "good").mkdir()
    wrong = {
        "state": ready.state,
        "socket": ready.run / "agent.sock",
        "above": ready.root,
        "link": ready.root / "data" / "link",
        "through": ready.root / "data" / "link" / "ssl",
    }
    for name, source in wrong.items():
        ready.spec(name, app(name, main=shell(reference(box), "true", f', volumes: ["{source}:/x"]')))
    ready.spec("proc", app("proc", main=shell(reference(box), "true", ', volumes: ["/proc/1:/x"]')))
    ready.spec("root", app("root", main=shell(reference(box), "true", ', volumes: ["/:/x"]')))
    ready.spec(
        "good", app("good", main=shell(reference(box), "true", f', volumes: ["{ready.root}/data/good:/x"]'))
    )
    ready.start()
    ready.running("good/main")
    for name in wrong:
        ready.until(lambda name=name: f"{wrong[name]}" in ready.reason(name), message=name)  # type: ignore[misc]
    ready.logged("root.yaml.*the whole device is behind it")
    ready.logged("proc.yaml.*the whole device is behind it")
    assert set(ready.ps()) == {"good/main"} | {name for name in ready.ps() if name.split("/")[0] in wrong}
    assert [name for name, item in ready.ps().items() if item["state"] == "running"] == ["good/main"]


def test_what_listens_on_the_device_for_itself_is_out_of_reach(ready: Device, box: Built) -> None:
    """The metrics' port, by every address of the device that a container can name, and the agent's sockets."""
    ready.spec(
        "web",
        app(
            "web",
            main=shell(reference(box), "true"),
            published=shell(reference(box), "httpd -p 80 -h /etc", ', ports: ["8080:80"]'),
        ),
    )
    ready.spec("other", app("other", main=shell(reference(box), "httpd -p 80 -h /etc")))
    ready.start()
    for name in ("web/main", "web/published", "other/main"):
        ready.running(name)
    ready.until(lambda: "localhost" in ready.curl("http://127.0.0.1:8080/hosts"))
    assert "reconciler_" in ready.curl("http://127.0.0.1:9470/metrics")

    def from_inside(address: str, port: int, path: str) -> str:
        ask = f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port}"
        return ready.reconciler("exec", "web/main", "--", "sh", "-c", ask, check=False).stdout

    gateway = ready.reconciler("exec", "web/main", "--", "ip", "route").stdout.split()[2]
    assert "localhost" in from_inside(gateway, 8080, "/hosts")  # published: the way that there is
    for address in ("127.0.0.1", gateway):
        assert from_inside(address, 9470, "/metrics") == ""
    leases = (ready.state / "network" / "leases.json").read_text()
    other = json.loads(leases)["apps"]["other"]["addresses"]["main"]
    assert from_inside(other, 80, "/hosts") == ""
    found = ready.reconciler("exec", "web/main", "--", "find", "/", "-xdev", "-type", "s").stdout
    assert found == ""
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    assert not [name for name in names if name.startswith("@") and "reconciler" in name]  # P16


@pytest.mark.parametrize("umask", ["000", "077"])
def test_s9_under_any_umask_others_read_nothing_and_users_of_a_volume_write_to_it(
    ready: Device, box: Built, umask: str
) -> None:
    more = ', user: "1000:1000", environment: {SECRET: hunter2}, volumes: ["data:/data"]'
    text = app("web", main=shell(reference(box), "echo out", more)) + "volumes: {data: {}}\n"
    ready.spec("web", text)
    ready.start(under=("sh", "-c", f'umask {umask}; exec "$@"', "sh"))
    pid = ready.running("web/main")
    ready.root.chmod(0o755)  # what is above the two directories is the device's
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for place in (ready.state, ready.run):
        seen = ready.inside([*nobody, "find", str(place), "-type", "f", "-readable"], check=False).stdout
        assert seen == ""
        wide = ready.inside(
            ["find", str(place), "-perm", "/022", "!", "-type", "l", "!", "-name", "agent.sock"]
        ).stdout
        assert [line for line in wide.splitlines() if "/layers/" not in line and "/upper" not in line] == []
    assert ready.reconciler("exec", "web/main", "--", "ls", "/data").returncode == 0
    # P18: nothing of the secret is on a command line, and the agent's own processes are closed to others
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        assert b"hunter2" not in command
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for own in (ready.agent_pid, parent):
        assert ready.inside([*nobody, "cat", f"/proc/{own}/environ"], check=False).returncode != 0
        assert b"hunter2" not in Path(f"/proc/{own}/environ").read_bytes()


def test_a_realtime_stop_signal_stops_and_signals_by_the_hundred_end_nothing(
    ready: Device, box: Built
) -> None:
    script = 'trap "echo got it; exit 0" 37; while :; do sleep 0.1; done'
    text = (
        f"{{image: {reference(box)}, command: [sh, -c, '{script}'], stop_signal: SIGRTMIN+3, stop_grace_period: 20s, "
        "limits: {memory: 16Mi}}"
    )
    ready.spec("web", app("web", main=text))
    ready.start()
    first = ready.running("web/main")
    for _ in range(300):
        os.kill(ready.agent_pid, signal.SIGHUP)
    ready.spec("web", app("web", main=text.replace("got it", "heard it")))
    ready.until(lambda: ready.pid("web/main") not in (0, first), timeout=15)
    assert "got it" in ready.reconciler("logs", "web/main", "--previous").stdout
    assert ready.stop() == 0
