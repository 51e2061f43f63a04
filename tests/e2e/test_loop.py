"""What a person sees of the loop: specs become containers, stay so, and nothing else is touched."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, Device
from tests.images import Built, busybox, directory, layer

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def web(image: str, *, command: str = "httpd -f -p 80 -h /www", extra: str = "", volumes: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: web
containers:
  page:
    image: {image}
    command: [sh, -c, "mkdir -p /www; echo $GREETING > /www/index.html; exec {command}"]
    environment: {{GREETING: hello}}
    ports: ["8080:80"]
    limits: {{memory: 32Mi, pids: 32}}
    restart: {{policy: always, delay: 1s}}
    stop_grace_period: 1s
{extra}
{volumes}
"""


def sleeper(name: str, image: str, extra: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: [sleep, "100000"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    init: true
{extra}
"""


@pytest.fixture
def ready(device: Device, box: Built, box2: Built) -> Device:
    device.configure(bundles=[str(box.layout), str(box2.layout)])
    return device


def answers(device: Device, text: str, port: int = 8080) -> None:
    device.until(
        lambda: text in device.curl(f"http://127.0.0.1:{port}/"), message=f"for {text!r} on port {port}"
    )


def test_a_directory_of_specs_becomes_running_containers(ready: Device, box: Built) -> None:
    ready.spec("web", web(reference(box)))
    ready.start()
    answers(ready, "hello")
    assert ready.status()["web"]["sync"] == "synced"
    assert ready.ps()["web/page"]["state"] == "running"


def test_editing_a_file_replaces_exactly_the_changed_container(
    ready: Device, box: Built, box2: Built
) -> None:
    ready.spec("web", web(reference(box)))
    ready.spec("other", sleeper("other", reference(box)))
    ready.start()
    answers(ready, "hello")
    other = ready.running("other/main")
    ready.spec("web", web(reference(box2)).replace("GREETING: hello", "GREETING: changed"))
    answers(ready, "changed")
    assert ready.pid("other/main") == other


def test_a_broken_file_changes_nothing_and_says_where_it_is_wrong(ready: Device, box: Built) -> None:
    ready.spec("web", web(reference(box)))
    ready.start()
    answers(ready, "hello")
    pid = ready.pid("web/page")
    ready.spec("web", web(reference(box)).replace("    ports:", "    prots:"))
    ready.logged(r"web\.yaml:10:5: error: unknown key 'prots'")
    assert ready.pid("web/page") == pid
    ready.spec("web", web(reference(box)))
    ready.logged("converged")
    assert ready.pid("web/page") == pid


def test_a_broken_file_keeps_its_app_alive_also_across_a_restart_of_the_agent(
    ready: Device, box: Built
) -> None:
    ready.spec("web", web(reference(box)))
    ready.start()
    answers(ready, "hello")
    ready.spec("web", "{")
    ready.logged("keeps running its last good spec")
    ready.stop()
    ready.start()
    pid = ready.running("web/page")
    os.kill(pid, signal.SIGKILL)
    ready.until(lambda: ready.pid("web/page") not in (0, pid))
    answers(ready, "hello")


def test_a_killed_process_comes_back(ready: Device, box: Built) -> None:
    ready.spec("web", web(reference(box)))
    ready.start()
    pid = ready.running("web/page")
    os.kill(pid, signal.SIGKILL)
    ready.until(lambda: ready.pid("web/page") not in (0, pid))
    answers(ready, "hello")
    assert ready.ps()["web/page"]["restarts"] == 1


def test_deleting_a_file_removes_the_app_and_keeps_its_volume(ready: Device, box: Built) -> None:
    volume = "volumes: {data: {}}"
    ready.spec("web", web(reference(box), extra='    volumes: ["data:/data"]', volumes=volume))
    ready.spec("other", sleeper("other", reference(box)))
    ready.start()
    ready.running("web/page")
    ready.running("other/main")
    ready.reconciler("exec", "web/page", "sh", "-c", "echo kept > /data/file")
    (ready.specs / "web.yaml").unlink()
    ready.until(lambda: "web/page" not in ready.ps())
    assert re.search(r"web/data\s.*orphaned", ready.reconciler("volume", "ls").stdout)
    assert ready.pid("other/main")
    assert (ready.state / "volumes/web/data/data/file").read_text() == "kept\n"
    refused = ready.reconciler("volume", "rm", "web/none", check=False)
    assert refused.returncode == 8
    ready.reconciler("volume", "rm", "web/data")
    assert not (ready.state / "volumes/web").exists()


def test_data_in_a_volume_survives_replacement(ready: Device, box: Built, box2: Built) -> None:
    volume = "volumes: {data: {}}"
    ready.spec("web", web(reference(box), extra='    volumes: ["data:/data"]', volumes=volume))
    ready.start()
    ready.running("web/page")
    ready.reconciler("exec", "web/page", "sh", "-c", "echo kept > /data/file")
    before = ready.ps()["web/page"]["id"]
    ready.spec("web", web(reference(box2), extra='    volumes: ["data:/data"]', volumes=volume))
    ready.until(
        lambda: ready.ps().get("web/page", {}).get("id") not in (None, before) and ready.pid("web/page")
    )
    assert ready.reconciler("exec", "web/page", "cat", "/data/file").stdout == "kept\n"


def test_containers_keep_their_pid_while_the_agent_is_killed_and_their_logs_lose_no_line(
    ready: Device, box: Built
) -> None:
    counting = "i=0; while true; do echo line $i; i=$((i+1)); usleep 2000; done"
    ready.spec("log", sleeper("log", reference(box)).replace('[sleep, "100000"]', f'[sh, -c, "{counting}"]'))
    ready.start()
    pid = ready.running("log/main")
    for _ in range(3):
        ready.stop(signal.SIGKILL)
        ready.start()
        ready.logged("converged")
    assert ready.running("log/main") == pid
    lines = ready.reconciler("logs", "log/main").stdout.split("\n")
    numbers = [int(line.removeprefix("line ")) for line in lines if line.startswith("line ")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 50


def test_a_second_agent_refuses_and_names_the_first(ready: Device, box: Built) -> None:
    ready.spec("web", sleeper("web", reference(box)))
    ready.start()
    pid = ready.running("web/main")
    second = ready.reconciler("agent", str(ready.specs), check=False)
    assert second.returncode == 5
    assert f"reconciler agent (pid {ready.agent_pid})" in second.stderr
    assert ready.pid("web/main") == pid


def test_an_emptied_directory_deletes_nothing(ready: Device, box: Built) -> None:
    ready.spec("web", sleeper("web", reference(box)))
    ready.start()
    pid = ready.running("web/main")
    (ready.specs / "web.yaml").unlink()
    ready.logged("refusing: the source removes 1 of 1 app")
    assert ready.pid("web/main") == pid
    done = ready.reconciler("apply", "--allow-empty", check=False)
    assert done.returncode == 0, done.stderr
    assert not ready.ps()


def test_a_directory_that_vanishes_deletes_nothing(ready: Device, box: Built) -> None:
    ready.spec("web", sleeper("web", reference(box)))
    ready.start()
    pid = ready.running("web/main")
    ready.specs.rename(ready.root / "gone")
    ready.logged("source: ")
    assert ready.pid("web/main") == pid
    (ready.root / "gone").rename(ready.specs)
    ready.logged("source: readable again")
    assert ready.pid("web/main") == pid


@pytest.mark.parametrize("damage", ["table", "link", "bridge", "shim", "directory", "limit"])
def test_drift_is_repaired(ready: Device, box: Built, damage: str) -> None:
    ready.configure(bundles=[str(box.layout)], interval="1s")
    ready.spec("web", web(reference(box)))
    ready.start()
    answers(ready, "hello")
    pid = ready.pid("web/page")
    identity = ready.ps()["web/page"]["id"]
    match damage:
        case "table":
            ready.inside(["nft", "flush", "ruleset"])
        case "link":
            links = re.findall(r"\d+: (rv\S*?)@", ready.inside(["ip", "-o", "link"]).stdout)
            ready.inside(["ip", "link", "del", links[0]])
        case "bridge":
            bridges = re.findall(
                r"\d+: (rc[^:@]*):", ready.inside(["ip", "-o", "link", "show", "type", "bridge"]).stdout
            )
            ready.inside(["ip", "link", "del", bridges[0]])
        case "shim":
            shims = subprocess.run(
                ["pgrep", "-f", "reconciler shim web/page"], capture_output=True, text=True, check=False
            )
            for shim in shims.stdout.split():
                if str(ready.root) in Path(f"/proc/{shim}/environ").read_text() or True:
                    parent = Path(f"/proc/{pid}/status").read_text()
                    if f"PPid:\t{shim}\n" in parent:
                        os.kill(int(shim), signal.SIGKILL)
        case "directory":
            shutil.rmtree(ready.state / "containers" / identity)
        case "limit":
            group = next(Path("/sys/fs/cgroup").glob(f"**/reconciler-{ready.instance}/{identity}/pids.max"))
            group.write_text("7")
            ready.until(lambda: group.read_text() == "32\n")
            assert ready.pid("web/page") == pid
    answers(ready, "hello")
    if damage in ("shim", "directory"):
        ready.until(lambda: ready.pid("web/page") not in (0, pid))
        answers(ready, "hello")
    elif damage != "link":
        assert ready.pid("web/page") == pid


def test_a_reboot_starts_everything_again(ready: Device, box: Built) -> None:
    ready.spec("web", web(reference(box)))
    ready.start()
    answers(ready, "hello")
    pid = ready.pid("web/page")
    ready.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    ready.until(lambda: not Path(f"/proc/{pid}").exists())
    shutil.rmtree(ready.run)
    ready.inside(["nft", "flush", "ruleset"])
    ready.start()
    answers(ready, "hello")


def test_a_second_plan_is_empty_and_plan_changes_nothing(ready: Device, box: Built) -> None:
    ready.spec("web", web(reference(box)))
    first = ready.reconciler("plan", str(ready.specs), "--detailed-exitcode", check=False)
    assert first.returncode == 2, first.stderr
    assert "create web/page" in first.stdout
    assert not ready.state.exists()
    assert ready.reconciler("apply", str(ready.specs)).returncode == 0
    again = ready.reconciler("plan", str(ready.specs), "--detailed-exitcode", check=False)
    assert again.returncode == 0, again.stdout


def test_a_command_that_the_image_does_not_have_holds_up_its_own_app_only(ready: Device, box: Built) -> None:
    ready.spec("bad", sleeper("bad", reference(box)).replace('[sleep, "100000"]', "[/no/such/program]"))
    ready.spec("good", sleeper("good", reference(box)))
    ready.start()
    ready.running("good/main")
    ready.logged(r"/no/such/program")
    assert ready.status()["bad"]["health"] in ("degraded", "progressing", "missing")


def test_a_port_that_is_taken_is_found_before_anything_starts(ready: Device, box: Built) -> None:
    taken = ready.spawn(["busybox", "nc", "-l", "-p", "8080"])
    ready.until(lambda: ":8080" in ready.inside(["ss", "-ltn"]).stdout)
    ready.spec("web", web(reference(box)))
    ready.start()
    ready.logged(rf"port 0\.0\.0\.0:8080/tcp.* used by .*\(pid {taken.pid}\)")
    assert not ready.pid("web/page")
    taken.kill()
    taken.wait()
    ready.reconciler("apply", check=False, timeout=30 * PATIENCE)
    answers(ready, "hello")


def test_the_root_directory_is_the_images_own(device: Device, tmp_path: Path) -> None:
    odd = busybox(tmp_path / "odd", more=[layer([directory("./", 0o751, uid=7, gid=8)])])
    device.configure(bundles=[str(odd.layout)])
    device.spec("web", sleeper("web", reference(odd)))
    device.start()
    device.running("web/main")
    seen = device.reconciler("exec", "web/main", "stat", "-c", "%a %u %g", "/").stdout
    assert seen == "751 7 8\n"
