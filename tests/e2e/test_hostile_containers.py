"""Containers that attack the agent with what they may write to. Whatever they do, it costs only themselves."""

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
