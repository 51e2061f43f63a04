"""A network that apps share, as people see it: who joins it by hand, who is in it, what can't be had."""

import json
import os
import signal
import sys

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def spec(name: str, image: str, networks: str, place: str, more: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
networks: {networks}
containers:
  web:
    image: {image}
    command: [sh, -c, "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"]
    networks: {place}
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    init: true
{more}"""


SIDE = """
    ports: ["8081:81"]
  side:
    image: {image}
    command: [sh, -c, "mkdir /www; echo from the side >/www/index.html; exec httpd -f -p 81 -h /www"]
    network_mode: container:web
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    init: true
"""


def together(device: Device, *names: str) -> set[int]:
    """The pids of these containers, once they are in one network namespace."""

    def found() -> set[int] | None:
        pids = {device.pid(name) for name in names}
        try:
            return pids if len({os.stat(f"/proc/{pid}/ns/net").st_ino for pid in pids}) == 1 else None
        except FileNotFoundError:
            return None  # one of them has just ended

    return device.until(found, message=f"for {names} to share a network")


def test_a_network_is_shared_by_apps_and_by_hand_and_shown(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)], interval="1s")
    image = reference(box)
    device.spec("one", spec("one", image, "{lan: {external: true}}", "[default, lan]"))
    device.start()
    device.running("one/web")
    run = ("run", "--rm", "--network", "lan", image, "wget", "-qO-", "http://one-web/")
    assert device.reconciler(*run).stdout == "one-web\n"
    refused = device.reconciler("run", "--rm", "--network", "wan", image, "true", check=False)
    assert refused.returncode == 125
    assert "network wan: no app shares one of that name" in refused.stderr
    assert "declare it in the spec of an app: networks: {wan: {external: true}}" in refused.stderr

    named = ("--network", "lan", "--network-alias", "helper", "--network-alias=spare")
    device.reconciler("run", "-d", "--name", "hand", *named, image, "sleep", "100000")
    hosts = device.reconciler("exec", "one/web", "cat", "/etc/hosts").stdout
    (line,) = [line.split() for line in hosts.splitlines() if line.split()[1:2] == ["hand"]]
    assert {line[0]} == {one.split()[0] for one in hosts.splitlines() if {"helper", "spare"} & {*one.split()}}
    lonely = device.reconciler("run", "--network-alias", "helper", image, "true", check=False)
    assert lonely.returncode == 125
    assert "--network-alias helper: goes with a network that has a name" in lonely.stderr
    shown = device.reconciler("network", "ls").stdout
    assert "/lan" in shown
    assert "hand, one/web" in shown
    inspected = device.reconciler(
        "inspect", "one/web", "--format", "{{json .NetworkSettings.Networks}}"
    ).stdout
    assert '"one":' in inspected
    assert '"/lan":' in inspected
    members = device.reconciler("network", "inspect", "lan", "--format", "{{json .Containers}}").stdout
    assert '"hand"' in members
    assert '"one/web"' in members

    # One joins that of another by hand, follows it, and is in the way of its removal
    device.reconciler("run", "-d", "--name", "guest", "--network", "container:hand", image, "sleep", "100000")
    before = together(device, "hand", "guest")
    mode = device.reconciler("inspect", "guest", "--format", "{{.HostConfig.NetworkMode}}").stdout
    assert mode == f"container:{device.ps()['hand']['id']}\n"
    device.reconciler("restart", "-t", "0", "hand")
    device.until(lambda: device.pid("guest") not in before or None)
    assert not before & together(device, "hand", "guest")
    device.reconciler("stop", "-t", "0", "hand")
    refused = device.reconciler("rm", "hand", check=False)
    assert "hand: guest joined its network, and could not start without it" in refused.stderr
    device.until(lambda: device.ps()["guest"]["state"] != "running" or None)
    assert (
        "waits for hand, whose network it joins" in device.reconciler("status", "adhoc", check=False).stdout
    )
    pruned = device.reconciler("container", "prune", "--dry-run", "-o", "json").stdout
    assert "hand" not in {item["name"] for item in json.loads(pruned)["items"]}
    device.reconciler("rm", "guest", "hand")
    joins = ("run", "--network", "container:nobody", image, "true")
    assert "container nobody: not found" in device.reconciler(*joins, check=False).stderr

    # One of the same app is reached by the ports of the other, and is made anew with it
    device.spec(
        "one", spec("one", image, "{lan: {external: true}}", "[default, lan]") + SIDE.format(image=image)
    )
    device.running("one/side")
    before = together(device, "one/web", "one/side")
    device.until(lambda: device.curl("http://127.0.0.1:8081/") == "from the side\n" or None)
    own = ("run", "--rm", "--network", "container:one/side", image, "true")
    assert "one/side has no network of its own" in device.reconciler(*own, check=False).stderr
    get = ("run", "--rm", "--network", "container:one/web", image, "wget", "-qO-", "http://127.0.0.1:81/")
    assert device.reconciler(*get).stdout == "from the side\n"
    os.kill(device.pid("one/web"), signal.SIGKILL)
    device.until(
        lambda: (
            (device.ps()["one/side"]["state"] == "running" and device.pid("one/side") not in before) or None
        )
    )
    assert not before & together(device, "one/web", "one/side")
    device.until(lambda: device.curl("http://127.0.0.1:8081/") == "from the side\n" or None)

    by_ipv6(device, image)
    pid = device.pid("one/web")

    # What only the device knows is said by the plan, and everything else goes on
    device.inside(["ip", "link", "add", "wire", "type", "bridge"])
    device.inside(["ip", "address", "add", "10.99.0.1/16", "dev", "wire"])
    device.inside(["ip", "link", "set", "wire", "up"])
    device.spec("two", spec("two", image, "{back: {subnet: 10.99.7.0/24}}", "[back]"))
    planned = device.reconciler("plan", str(device.specs), check=False)
    reason = "network two/back: its subnet 10.99.7.0/24 overlaps the host's route 10.99.0.0/16"
    assert reason in planned.stdout + planned.stderr
    device.until(lambda: reason in device.reconciler("status", "two", check=False).stdout or None)
    device.inside(["ip", "link", "delete", "wire"])
    device.running("two/web")
    assert device.pid("one/web") == pid

    # The last app in it takes it along
    (device.specs / "one.yaml").unlink()
    device.until(lambda: "/lan" not in device.reconciler("network", "ls").stdout or None)


PORT = '    ports: ["8085:80"]\n'


def by_ipv6(device: Device, image: str) -> None:
    """An app with IPv6 in a network of its own and in the shared one, which gets it in place; and without it again."""
    networks = "{default: {ipv6: true}, lan: {external: true, ipv6: true}}"
    device.spec("six", spec("six", image, networks, "[default, lan]", PORT))
    device.running("six/web")
    said = device.reconciler("inspect", "six/web", "--format", "{{json .NetworkSettings}}").stdout
    own, shared = (json.loads(said)["Networks"][key] for key in ("six", "/lan"))
    assert own["GlobalIPv6Address"].startswith("fd")
    assert own["GlobalIPv6PrefixLen"] == 64
    gateway = own["IPv6Gateway"]
    assert device.reconciler("port", "six/web").stdout.split("\n")[:2] == [
        "80/tcp -> 0.0.0.0:8085",
        "80/tcp -> [::]:8085",
    ]
    for address in ("127.0.0.1", f"[{gateway}]"):
        assert device.curl(f"http://{address}:8085/", "-g") == "six-web\n"
    assert (
        f"{own['GlobalIPv6Address']}\tsix-web web"
        in device.reconciler("exec", "six/web", "cat", "/etc/hosts").stdout
    )
    # By hand too, by the name and by a port that is published on both
    run = ("run", "--rm", "--network", "lan", image)
    found = device.reconciler(
        *run, "sh", "-c", "cat /etc/hosts; wget -qO- http://[$0]/", shared["GlobalIPv6Address"]
    ).stdout
    assert f"{shared['GlobalIPv6Address']}\tsix-web\n" in found
    assert found.endswith("six-web\n")
    refused = device.reconciler(
        "run", "--rm", "-p", "[::]:8085:80", "--network", "lan", image, "true", check=False
    )
    assert "port [::]:8085/tcp already used by six/web" in refused.stderr
    listen = (
        "import socket, time; s = socket.create_server(('::', 8086), family=socket.AF_INET6); time.sleep(600)"
    )
    device.spawn([sys.executable, "-c", listen])
    device.until(lambda: ":8086" in device.inside(["ss", "-Hltn6"]).stdout or None)
    for port in ("8086:80", "[::]:8086:80"):
        refused = device.reconciler("run", "--rm", "-p", port, "--network", "lan", image, "true", check=False)
        assert "8086/tcp already used by python" in refused.stderr
    shown = device.reconciler("network", "inspect", "six").stdout
    assert json.loads(shown)[0]["EnableIPv6"] is True
    # What somebody takes away comes back
    bridge = json.loads(shown)[0]["Id"]
    device.inside(["ip", "-6", "address", "flush", "dev", bridge, "scope", "global"])
    device.until(
        lambda: gateway in device.inside(["ip", "-6", "address", "show", "dev", bridge]).stdout or None
    )
    assert device.curl(f"http://[{gateway}]:8085/", "-g") == "six-web\n"

    before = device.pid("six/web")
    device.spec("six", spec("six", image, "{lan: {external: true}}", "[default, lan]", PORT))
    device.until(lambda: device.pid("six/web") not in (0, before) or None)
    device.until(lambda: "ip6" not in device.inside(["nft", "list", "tables"]).stdout or None)
    assert "inet6 fd" not in device.inside(["ip", "-6", "address"]).stdout
    device.until(lambda: device.curl("http://127.0.0.1:8085/") == "six-web\n" or None)
    (device.specs / "six.yaml").unlink()


def test_what_a_foreign_firewall_drops_is_said_before_and_after(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)], interval="1s")
    device.inside(["nft", "add", "table", "ip", "filter"])
    chain = "{ type filter hook forward priority 0; policy drop; }"
    device.inside(["nft", "add", "chain", "ip", "filter", "FORWARD", chain])
    device.spec("one", spec("one", reference(box), "{}", "[default]"))
    said = (
        "firewall: ip filter FORWARD: policy drop: what comes to published ports from outside and what containers "
        "send out is dropped; accept it there: iptables -I FORWARD -o rc-+ -j ACCEPT; "
        "iptables -I FORWARD -i rc-+ -j ACCEPT"
    )
    assert f"  warning: {said}" in device.reconciler("plan", str(device.specs)).stdout
    items = json.loads(device.reconciler("plan", str(device.specs), "-o", "json").stdout)["items"]
    (warning,) = [item for item in items if item["action"] == "Warning"]
    assert f"{warning['text']}; {warning['hint']}".startswith(said)
    assert "ip filter FORWARD" in device.reconciler("doctor", check=False).stdout
    device.start()
    device.running("one/web")
    assert said in device.reconciler("status").stderr
    for way in ("iifname", "oifname"):
        device.inside(["nft", "add", "rule", "ip", "filter", "FORWARD", way, "rc-*", "accept"])
    for verb in (("status",), ("plan", str(device.specs))):
        told = device.reconciler(*verb)
        assert "firewall" not in told.stdout + told.stderr
    device.spec(
        "one",
        spec("one", reference(box), "{}", "[default]").replace("networks: [default]", "network_mode: none"),
    )
    device.inside(["nft", "flush", "chain", "ip", "filter", "FORWARD"])
    assert "firewall" not in device.reconciler("plan", str(device.specs)).stdout
