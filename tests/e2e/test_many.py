"""Devices beside each other, and apps that come and go: nothing meets, and nothing is left behind.

What is left of anything is what the leak check of every device finds at its end.
"""

import os

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def web(name: str, image: str, port: int, greeting: str) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: [sh, -c, "mkdir /www; echo {greeting} > /www/index.html; exec httpd -f -p 80 -h /www"]
    ports: ["{port}:80"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
"""


def running(device: Device) -> int:
    """How many containers run."""
    return sum(item["state"] == "running" for item in device.ps().values())


def answers(device: Device, port: int, text: str) -> None:
    """Wait until what listens on `port` says `text`; "" is nobody."""
    device.until(lambda: device.curl(f"http://127.0.0.1:{port}/") == text, message=f"for {text!r}")


def test_devices_in_one_network_never_meet(device: Device, neighbour: Device, box: Built) -> None:
    both = {device: 8080, neighbour: 8081}
    for number, (one, port) in enumerate(both.items()):
        one.configure(bundles=[str(box.layout)], metrics={"listen": f"127.0.0.1:{9470 + number}"})
        one.spec("web", web("web", reference(box), port, f"device {number}"))
        one.start()
    for number, (one, port) in enumerate(both.items()):
        answers(one, port, f"device {number}\n")
    pids = {one: one.running("web/main") for one in both}
    assert len(set(pids.values())) == 2
    # The same name inside means one's own; what one removes is its own.
    for number, one in enumerate(both):
        inside = one.reconciler("exec", "web/main", "wget", "-q", "-O", "-", "http://main/").stdout
        assert inside == f"device {number}\n"
    # A port of the other's is taken, by name.
    neighbour.spec("thief", web("thief", reference(box), 8080, "thief"))
    neighbour.logged("port 0.0.0.0:8080/tcp")
    device.stop()
    device.reconciler("uninstall", "--yes")
    assert neighbour.curl("http://127.0.0.1:8081/") == "device 1\n"
    assert neighbour.pid("web/main") == pids[neighbour]
    assert "drift" not in neighbour.output


def test_apps_come_and_go_and_leave_nothing_behind(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)], shrink_guard={"max_removed": "100%"})
    device.spec("stays", web("stays", reference(box), 9000, "here"))
    device.start()
    pid = device.running("stays/main")
    names = [f"app{number}" for number in range(20)]
    seen: list[tuple[int, int]] = []
    for round_number in range(3):
        for number, name in enumerate(names):
            device.spec(name, web(name, reference(box), 9100 + number, f"{name} {round_number}"))
        device.until(lambda: running(device) == 21, timeout=60)
        answers(device, 9119, f"app19 {round_number}\n")
        for name in names:
            (device.specs / f"{name}.yaml").unlink()
        device.until(lambda: set(device.ps()) == {"stays/main"}, timeout=60)
        answers(device, 9119, "")
        # The kernel takes the links of dead namespaces apart in its own time; lo, one bridge and one link stay.
        device.until(
            lambda: device.inside(["ip", "-o", "link"]).stdout.count("\n") == 3, message="for links to go"
        )
        descriptors = len(os.listdir(f"/proc/{device.agent_pid}/fd"))
        containers = len(os.listdir(device.state / "containers")) + len(os.listdir(device.run / "containers"))
        seen.append((descriptors, containers))
    assert seen[1][1] == seen[2][1] == 2
    assert seen[2][0] <= seen[0][0] + 2
    assert device.pid("stays/main") == pid
