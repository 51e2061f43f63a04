"""R8: a device that boots in 1970 and is told the time later, in both directions; and a boot clock that is far ahead.

The wall clock of the agent is set by a library that is preloaded into it: the kernel's own belongs to everybody. The
clocks of the boot are in a time namespace.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.device import Device
from tests.faults.test_agent_faults import app, layout, running
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_HOUR = 3600
_LOOP = "    restart: {policy: always, delay: 5m, jitter: 0}"


class WallClock:
    """The wall clock of one agent."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        library = directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        self.under = ["env", f"LD_PRELOAD={library}", f"TEST_CLOCK={self._file}"]

    def set(self, seconds: float) -> None:
        """Let it be `seconds` after 1970 now."""
        partial = self._file.with_suffix(".new")
        partial.write_text(str(int(seconds - time.time())))
        partial.rename(self._file)


def turns(device: Device) -> float:
    """How many turns the agent has made."""
    text = device.curl("http://127.0.0.1:9470/metrics")
    return sum(map(float, re.findall(r"^reconciler_reconcile_total\{.*\} (\S+)$", text, re.MULTILINE)))


def a_few_turns(device: Device) -> None:
    """Wait until the agent has observed and planned anew, several times."""
    before = turns(device)
    device.until(lambda: turns(device) >= before + 3, message="for three more turns")


def restarts(device: Device, name: str) -> int:
    return int(device.ps()[name]["restarts"])


def test_r8_a_device_that_boots_in_1970_and_learns_the_time_later(
    device: Device, box: Built, box2: Built
) -> None:
    """What is here runs; TLS waits and says for what; no back-off, no age and no container minds the jumps."""
    clock = WallClock(device.root)
    served = device.root / "served"
    served.mkdir()
    registry = device.spawn(
        ["python3", "-m", "tests.e2e.secure", str(served), str(box2.layout)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert registry.stdout is not None
    with registry.stdout:
        secure = json.loads(registry.stdout.readline())
    device.configure(bundles=[str(box.layout)], interval="200ms", registries={"ca": secure["ca"]})
    device.spec("here", app("here", box))
    device.spec("loop", app("loop", box, "exit 3", more=_LOOP))
    device.spec("afar", app("afar", box).replace(f"box.example/box:1@{box.digest}", secure["reference"]))
    clock.set(100)
    device.start(under=clock.under)
    pid = device.running("here/main")
    said = device.until(lambda: reason if "certificate" in (reason := device.reason("afar")) else None)
    assert "set this device's clock: it says 1970-01-01 00:0" in said, said
    device.until(lambda: device.ps()["loop/main"]["state"] == "backoff")

    clock.set(time.time())
    device.running("afar/main", timeout=40)
    a_few_turns(device)
    assert (device.pid("here/main"), restarts(device, "loop/main")) == (pid, 0)
    left = device.ps()["loop/main"]["status"]
    assert re.search(r"next in (4m|5m)", left), left

    apart = running(device, 2)
    for wall in (time.time() - _HOUR, time.time() + 40 * 365 * 24 * _HOUR, 0.0):
        clock.set(wall)
        a_few_turns(device)
        assert running(device, 2) == apart
        assert restarts(device, "loop/main") == 0
    assert len(list(layout(device).layers.glob("*.json"))) >= 1
    device.stop()
    clock.set(time.time())
    device.start(under=clock.under)
    a_few_turns(device)
    assert running(device, 2) == apart


def test_r8_a_boot_clock_that_is_years_ahead_changes_nothing(device: Device, box: Built) -> None:
    years = str(10 * 365 * 24 * _HOUR)
    device.configure(bundles=[str(box.layout)], interval="200ms")
    device.spec("here", app("here", box))
    device.spec("loop", app("loop", box, "exit 3", more=_LOOP))
    device.start(under=["unshare", "--time", "--fork", "--boottime", years, "--monotonic", years])
    pid = device.running("here/main")
    device.until(lambda: device.ps()["loop/main"]["state"] == "backoff")
    a_few_turns(device)
    assert device.pid("here/main") == pid
    (agent,) = Path(f"/proc/{device.agent_pid}/task/{device.agent_pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGTERM)
    assert device.ended() == 0
