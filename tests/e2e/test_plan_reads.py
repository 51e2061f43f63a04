"""`plan` reads only: whatever it finds to do, disk and kernel are afterwards as they were (compose#14029)."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.e2e.test_git import Remote
from tests.e2e.test_loop import sleeper
from tests.images import Built
from tests.kernel.leaks import snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def tree(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Everything about every file: a directory's own times tell of a file that came and went."""
    found: dict[str, tuple[object, ...]] = {}
    for root in roots:
        for path in [root, *sorted(root.rglob("*"))] if root.exists() else []:
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (
                status.st_mode,
                status.st_ino,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                content,
            )
    return found


def kernel(device: Device) -> dict[str, object]:
    """What of the kernel a plan could touch: what a leak check looks at, and this device's network."""
    here = [str(device.root)]  # others come and go meanwhile
    if (device.state / "instance").exists():
        here.append(device.instance)
    found = snapshot()
    return {
        **{
            kind: sorted(thing for thing in found[kind] if any(mine in thing for mine in here))
            for kind in ("mounts", "cgroups")
        },
        # an IPv6 address is tentative for a second, whoever looks
        "links": device.inside(["ip", "-o", "address"]).stdout.replace("tentative ", ""),
        "rules": device.inside(["nft", "-s", "list", "ruleset"]).stdout,
        "forwarding": device.inside(["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf"]).stdout,
    }


@pytest.fixture
def scratch(device: Device) -> Iterator[Path]:
    """TMPDIR of the plans; nothing may stay in it."""
    path = device.root / "tmp"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


def planned(device: Device, scratch: Path, *args: str, code: int = 2) -> str:
    """Plan, and see that it changed nothing; return what it printed."""
    places = (device.state, device.run, device.specs)
    before = settled(device, *places)
    done = device.inside(
        ["env", f"TMPDIR={scratch}", *PROGRAM, "plan", "--detailed-exitcode", *args, *device.places],
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    after = tree(*places), kernel_of_own(device)
    assert after == before
    return done.stdout + done.stderr


def settled(device: Device, *places: Path) -> tuple[dict[str, tuple[object, ...]], dict[str, object]]:
    """Return what there is once it stays the same: an agent that has converged still has things to note."""
    end = time.monotonic() + 20
    before = tree(*places), kernel_of_own(device)
    while time.monotonic() < end:
        time.sleep(0.5)
        after = tree(*places), kernel_of_own(device)
        if after == before:
            break
        before = after
    return before


def kernel_of_own(device: Device) -> dict[str, object]:
    """The same, of the lists that others work on at the same time only what carries this device's names."""
    own = device.instance if (device.state / "instance").exists() else str(device.root)
    return {
        kind: sorted(thing for thing in things if own in thing) if isinstance(things, frozenset) else things
        for kind, things in kernel(device).items()
    }


def test_a_plan_for_a_device_that_has_never_run_makes_not_even_a_directory(
    device: Device, scratch: Path, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("web", sleeper("web", reference(box)))
    assert "create web/main" in planned(device, scratch, str(device.specs))
    assert not device.state.exists()
    assert not device.run.exists()


@pytest.mark.parametrize("agent", ["running", "killed"])
def test_a_plan_changes_nothing_whatever_there_is_to_do(
    device: Device, scratch: Path, box: Built, box2: Built, agent: str
) -> None:
    device.configure(bundles=[str(box.layout)], interval="1h")
    for name in ("web", "b", "gone"):
        device.spec(name, sleeper(name, reference(box)))
    device.start()
    pids = [device.running(f"{name}/main") for name in ("web", "b", "gone")]
    device.logged("converged: 3 apps")
    device.until(lambda: device.status()["gone"]["sync"] == "synced")
    if agent == "killed":
        device.stop(signal.SIGKILL)
    assert "nothing to do" in planned(device, scratch, str(device.specs), code=0)
    other = device.root / "other"
    other.mkdir()
    # to be replaced by an image that is not here yet, an image that nobody has, one that is new, one that goes
    insecure = {"insecure": ["127.0.0.1:5009"]}
    device.configure(bundles=[str(box.layout), str(box2.layout)], interval="1h", registries=insecure)
    serve = [sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", str(scratch), "5009"]
    device.spawn(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    device.until(lambda: device.curl("http://127.0.0.1:5009/"))
    (other / "web.yaml").write_text(sleeper("web", reference(box2)))
    nobodys = f"127.0.0.1:5009/box@sha256:{'0' * 64}"  # 404, which is not asked again as silence would be
    (other / "b.yaml").write_text(sleeper("b", nobodys))
    (other / "new.yaml").write_text(sleeper("new", reference(box2)))
    said = planned(device, scratch, str(other))
    for part in (
        "remove web/main",
        "create web/main",
        "waiting: b: keeps running its last good spec: b/main: 127",
        "create new/main",
    ):
        assert part in said
    assert "stop gone/main" in said
    (other / "bad.yaml").write_text("{")
    assert "bad.yaml:1:" in planned(device, scratch, str(other), code=3)
    assert [device.pid(f"{name}/main") for name in ("web", "b", "gone")] == pids


def test_a_plan_for_a_branch_leaves_no_repository_behind(
    device: Device, scratch: Path, box: Built, box2: Built
) -> None:
    device.configure(bundles=[str(box.layout), str(box2.layout)], interval="1h")
    remote = Remote(device.root)
    remote.commit({"site/web.yaml": sleeper("web", reference(box))})
    branch = ["--git", str(remote.bare), "--branch", "main", "--path", "site"]
    assert "create web/main" in planned(device, scratch, *branch)
    assert not device.state.exists()
    device.start(*branch, "--poll", "1h")
    pid = device.running("web/main")
    device.logged("converged: 1 apps")
    assert "nothing to do" in planned(device, scratch, *branch, code=0)
    remote.commit(
        {"site/web.yaml": sleeper("web", reference(box2)), "site/new.yaml": sleeper("new", reference(box))}
    )
    for args in (branch, []):  # without arguments it is the running agent's branch
        said = planned(device, scratch, *args)
        assert "create web/main" in said
        assert "create new/main" in said
    # Without the remote: what the agent fetched last, and a word about it.
    remote.bare.rename(device.root / "away.git")
    said = planned(device, scratch, *branch, code=0)
    assert "using commit" in said
    assert "nothing to do" in said
    assert device.pid("web/main") == pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_plan_that_is_interrupted_leaves_nothing_either(
    device: Device, scratch: Path, number: signal.Signals
) -> None:
    serve = "import socket, signal; s = socket.create_server(('127.0.0.1', 4443)); print(flush=True); "
    listening = f"{serve} signal.pause()"
    server = device.spawn([sys.executable, "-c", listening], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout as said:
        said.readline()
    before = tree(device.state, device.run)
    process = device.spawn(
        [
            "env",
            f"TMPDIR={scratch}",
            *PROGRAM,
            "plan",
            "--git",
            "https://127.0.0.1:4443/x.git",
            *device.places,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        preexec_fn=_default_signals,
    )
    children = device.until(lambda: asking(process.pid), message="for git to ask the remote")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, (out, err)
    assert b"Traceback" not in err
    assert list(scratch.iterdir()) == []
    assert tree(device.state, device.run) == before
    device.until(lambda: not any(map(alive, children)), message="for git's end")


def asking(pid: int) -> Sequence[int]:
    """The children of `pid` and theirs, once git-remote-https is among them."""
    found: list[int] = []
    todo = [pid]
    there = False
    while todo:
        for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            children = [int(child) for child in path.read_text().split()]
            found += children
            todo += children
            there |= any(b"remote-https" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
    return found if there else []


def alive(pid: int) -> bool:
    """Whether it still runs: an orphan that nobody reaps does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _default_signals() -> None:
    """A shell in the background ignores SIGINT for what it starts; a person's terminal does not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
