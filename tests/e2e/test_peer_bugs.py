"""Faults that users of comparable systems reported, on a real device; the reports are named in each docstring.

As far as a plan alone can have them, they are in unit/plan/test_peer_bugs.py too. Others of the list have tests under
names of their own: trouble with a git remote (portainer#13248, flux#738) in test_git; a pull that fails in an update
(watchtower#1385), an image that only this device has (otaru#3003) in test_images; another platform (compose PR 14011)
and disks that are too small (balena#674) in test_bad_input; ports of strangers (ankaios#226) and people who kill what
is managed (portainer#10552) in test_loop; kill -9 at each step (ankaios#725) in faults/test_failpoints; power cuts
in faults/test_powerloss (containerd#10655); transfers that break off (moby#48539) in
hostile/test_registry_behaviour; clocks at 1970 (rancher/os#2848) in faults/test_clocks.
"""

import hashlib
import re
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device, cgroups
from tests.e2e.test_loop import sleeper
from tests.images import ARCHITECTURE, Built, OciLayout, busybox

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def metric(device: Device, pattern: str) -> float:
    """The value of the first series that matches."""
    found = re.search(rf"^{pattern} (\S+)$", device.curl("http://127.0.0.1:9470/metrics"), re.MULTILINE)
    return float(found[1]) if found else -1.0


def turns(device: Device) -> float:
    """How many turns the agent has made."""
    text = device.curl("http://127.0.0.1:9470/metrics")
    return sum(map(float, re.findall(r"^reconciler_reconcile_total\{.*\} (\S+)$", text, re.MULTILINE)))


def everything(device: Device) -> dict[str, str]:
    """Every file of the state directory by content and time, and what the kernel has of the device."""
    found = {}
    for path in sorted(device.state.rglob("*")):
        info = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = f"{info.st_mtime_ns} {info.st_mode:o} {info.st_size} {content}"
    for command in (["ip", "-o", "link"], ["ip", "-o", "address"], ["nft", "list", "ruleset"]):
        found[" ".join(command)] = device.inside(command).stdout
    for group in cgroups(device.instance):
        found[str(group)] = (group / "cgroup.procs").read_text()
    return found


def test_second_plan_after_apply_is_empty_however_the_same_is_said(device: Device, tmp_path: Path) -> None:
    """compose#13998, compose#14011, argo-cd#15898: after a restart, by index or by platform, with defaults spelled out.

    And `plan` leaves store, cgroups and network as they are to the byte, also with a replacement ahead (compose#14029).
    """
    built = busybox(tmp_path / "layout")
    by_index = OciLayout(built.layout).index({f"linux/{ARCHITECTURE}": built.digest}, tag="index")
    device.configure(bundles=[str(built.layout)])
    spec = sleeper("web", f"box.example/box:1@{by_index}")
    device.spec("web", spec)
    device.start()
    pid = device.running("web/main")
    device.logged("converged")
    assert device.reconciler("plan", str(device.specs)).stdout.count("web/main") == 0
    device.stop()
    assert "web/main" not in device.reconciler("plan", str(device.specs)).stdout
    spelled = (
        "    restart: always\n    read_only: false\n    volumes: []\n    environment: {}\n    ports: []\n"
    )
    for same in (
        spec.replace(str(by_index), str(built.digest)),
        spec + spelled,
        spec.replace("memory: 16Mi", "memory: 16384Ki"),
        spec.replace("stop_grace_period: 0s", "stop_grace_period: 0ms"),
    ):
        device.spec("web", same)
        planned = device.reconciler("plan", str(device.specs)).stdout
        assert not re.search(r"(stop|remove|create|start) web/main", planned), f"{same}\n{planned}"
    device.spec("web", spec.replace('"100000"', '"99999"'))
    before = everything(device)
    assert "create web/main" in device.reconciler("plan", str(device.specs), check=False).stdout
    assert everything(device) == before
    assert Path(f"/proc/{pid}").exists()


def test_typo_key_in_one_file_and_files_that_are_none_harm_nobody(device: Device, box: Built) -> None:
    """podman#18778; k8s website#45758, k8s#40331: backups and swap files of editors are no specs, and of two files that
    describe one app neither wins by chance.
    """
    device.configure(bundles=[str(box.layout)])
    text = sleeper("web", reference(box))
    device.spec("web", text)
    device.start()
    pid = device.running("web/main")
    for name in ("web.yaml-bak", ".web.yaml.swp", "web.yaml~", "#web.yaml#", "4913"):
        (device.specs / name).write_text(text.replace("name: web", "name: other"))
    device.spec("web", text.replace("limits:", "limts:"))
    device.spec("new", sleeper("new", reference(box)))
    device.running("new/main")
    device.until(lambda: metric(device, r'reconciler_spec_valid\{app="web"\}') == 0.0)
    assert device.reconciler("apply", check=False).returncode == 3
    assert device.pid("web/main") == pid
    assert set(device.ps()) == {"web/main", "new/main"}
    device.spec("web", text)
    device.until(lambda: metric(device, r'reconciler_spec_valid\{app="web"\}') == 1.0)
    device.spec("again", text.replace('"100000"', '"1"'))
    device.until(lambda: metric(device, "reconciler_spec_errors") > 0)
    assert "web" in device.reconciler("validate", str(device.specs), check=False).stderr
    assert device.pid("web/main") == pid


def test_edit_only_a_config_and_exactly_one_container_is_recreated(device: Device, box: Built) -> None:
    """compose#11900, doco-cd#488."""
    device.configure(bundles=[str(box.layout)])
    one = f"image: {reference(box)}, command: [sleep, '1000'], init: true, stop_grace_period: 0s"
    text = f"""
apiVersion: reconciler/v1
kind: App
name: web
containers:
  site: {{{one}, configs: [{{source: conf, target: /etc/conf}}]}}
  db: {{{one}}}
configs:
  conf: {{content: "first"}}
"""
    device.spec("web", text)
    device.start()
    site, database = device.running("web/site"), device.running("web/db")
    device.spec("web", text.replace("first", "second"))
    device.until(lambda: device.pid("web/site") not in (0, site))
    assert device.reconciler("exec", "web/site", "cat", "/etc/conf").stdout == "second"
    device.logged("converged")
    assert device.pid("web/db") == database
    assert len(re.findall("start web/site", device.output)) == 2
    assert len(re.findall("start web/db", device.output)) == 1


def test_gc_after_agent_restart_frees_exactly_the_unused(
    device: Device, box: Built, box2: Built, tmp_path: Path
) -> None:
    """nomad#26452, IoTEdge#6769, coolify#8765: no container is restarted, and the way back stays."""
    other = busybox(tmp_path / "other", config={"Env": ["PATH=/bin", "OTHER=1"]})
    device.configure(
        bundles=[str(item.layout) for item in (box, box2, other)], gc={"min_age": "1s", "keep_generations": 2}
    )
    device.spec("web", sleeper("web", reference(box)))
    device.start()
    first = device.running("web/main")
    device.spec("web", sleeper("web", reference(box2)))
    device.until(lambda: device.pid("web/main") not in (0, first))
    pid = device.running("web/main")
    device.reconciler("pull", reference(other, "box.example/other"))
    device.stop(signal.SIGKILL)
    device.start()
    device.logged("converged")
    time.sleep(1.1)  # the age at which what nobody wants goes
    device.reconciler("gc")
    here = {path.name for path in (device.state / "resolved").iterdir()}
    assert [any(item.digest.hex in name for name in here) for item in (box, box2, other)] == [
        True,
        True,
        False,
    ]
    assert device.pid("web/main") == pid
    device.configure(bundles=[], gc={"min_age": "1s", "keep_generations": 2})
    device.spec("web", sleeper("web", reference(box)))
    device.until(lambda: device.pid("web/main") not in (0, pid))  # back, from what was kept


def test_a_container_never_blocks_on_its_log_while_the_agent_is_away_and_idle_writes_nothing(
    device: Device, box: Built
) -> None:
    """moby PR 23213: megabytes go into the log while nobody reads; k3s#5042: a device at rest wears out no flash."""
    device.configure(bundles=[str(box.layout)], interval="100ms")
    flood = (
        "while [ ! -e /data/go ]; do sleep 0.05; done; seq 1 400000; echo done >/data/done; exec sleep 1000"
    )
    more = '    volumes: ["data:/data"]\nvolumes: {data: {}}'
    spec = sleeper("log", reference(box), more).replace('[sleep, "100000"]', f'[sh, -c, "{flood}"]')
    device.spec("log", spec)
    for name in ("a", "b"):
        device.spec(name, sleeper(name, reference(box)))
    device.start()
    for name in ("log", "a", "b"):
        device.running(f"{name}/main")
    device.logged("converged: 3 apps")
    count = device.until(lambda: turns(device))
    before = {key: value for key, value in everything(device).items() if key.startswith(str(device.state))}
    device.until(lambda: turns(device) >= count + 10)
    after = {key: value for key, value in everything(device).items() if key.startswith(str(device.state))}
    assert after == before

    device.stop(signal.SIGKILL)
    data = device.state / "volumes/log/data/data"
    (data / "go").touch()
    deadline = time.monotonic() + 60
    while not (data / "done").exists():
        assert time.monotonic() < deadline, "the container waits for somebody to read its log"
        time.sleep(0.05)
    device.start()
    device.until(lambda: "400000\n" in device.reconciler("logs", "--tail", "5", "log/main").stdout)
