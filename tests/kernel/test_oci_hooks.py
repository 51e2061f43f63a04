"""Hooks of the OCI command line: their order, the namespaces they see, the state, and what a failing one does."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime import Runtime, Sample, eventually, runtime

__all__ = ["runtime"]

pytestmark = pytest.mark.kernel

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
INSIDE = ("createContainer", "startContainer")


def hooks(box: Sample, note: Path, *kinds: str) -> None:
    """Have each hook write what it sees into a directory that is the same one in the container."""
    note.mkdir()
    note.chmod(0o777)
    box.mount("/note", "bind", note, "bind")
    box.config["hooks"] = {}
    for kind in kinds:
        where = "/note" if kind == "startContainer" else str(note)
        script = (
            f"cat >{where}/{kind}.state; echo {kind} $WORD >>{where}/order; "
            f"for n in mnt net uts pid; do readlink /proc/self/ns/$n; done >{where}/{kind}.ns; "
            f"readlink /proc/self/root >>{where}/{kind}.ns; env >{where}/{kind}.env; "
            f"[ ! -e /bin/busybox-of-the-box ] || echo inside >{where}/{kind}.root"
        )
        box.config["hooks"][kind] = [
            {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WORD=one", "PATH=/bin:/usr/bin"]},
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} two >>{where}/order"]},
        ]


def namespaces(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_all_six_run_in_their_order_and_where_they_belong(runtime: Runtime) -> None:
    note = runtime.path / "note"
    box = runtime.shell("echo program >>/note/order; exec sleep 1000")
    (box.rootfs / "bin/busybox-of-the-box").touch()
    hooks(box, note, *KINDS)
    box.config["annotations"] = {"a": "b"}
    box.create()
    order = (note / "order").read_text().split("\n")
    created = [f"{kind} {word}" for kind in KINDS[:3] for word in ("one", "two")]
    assert order == [*created, ""]
    pid = box.pid
    box.start()
    eventually(lambda: "program" in (note / "order").read_text(), runtime.patience)
    inside = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net", "uts", "pid")]
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "uts", "pid")]
    box.kill()
    box.delete()
    order = (note / "order").read_text().split("\n")
    assert set(order[6:11]) == {
        "startContainer one",
        "startContainer two",
        "program",
        "poststart one",
        "poststart two",
    }
    assert order.index("startContainer two") < order.index("program")
    assert order[11:] == ["poststop one", "poststop two", ""]
    states: dict[str, dict[str, Any]] = {
        kind: json.loads((note / f"{kind}.state").read_text()) for kind in KINDS
    }
    told = dict.fromkeys(KINDS[:3], "creating") | {
        "startContainer": "created",
        "poststart": "running",
        "poststop": "stopped",
    }
    for kind, state in states.items():
        assert (state["id"], state["status"], state["annotations"]) == (box.id, told[kind], {"a": "b"})
        assert state["bundle"] == str(box.directory)
        assert namespaces(note / f"{kind}.ns")[:4] == (inside if kind in INSIDE else outside), kind
        assert (note / f"{kind}.root").exists() == (kind == "startContainer"), "whose /bin it is found in"
        assert {line.partition("=")[0] for line in (note / f"{kind}.env").read_text().split()} <= {
            *("WORD", "PATH", "PWD", "SHLVL", "_", "OLDPWD")
        }
    assert states["createRuntime"]["pid"] == states["poststart"]["pid"] == pid
    assert states["startContainer"]["pid"] == 1


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_fails_create_which_leaves_nothing(runtime: Runtime, kind: str) -> None:
    box = runtime.sample("true")
    note = runtime.path / "poststop"
    box.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo complaint >&2; exit 3"]}],
        "poststop": [{"path": "/bin/touch", "args": ["touch", str(note)]}],
    }
    assert box.refused() == f"error running {kind} hook #0: exit status 3, output: complaint"
    assert note.exists(), "what fails from the hooks on goes on with the destruction"


def test_a_failing_hook_fails_start(runtime: Runtime) -> None:
    first = runtime.sample("sleep", "1000")
    first.config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}
    first.create()
    assert runtime.fails("start", first.id) == "error running startContainer hook #0: exit status 1"
    assert first.status == "stopped"
    second = runtime.sample("sleep", "1000")
    second.config["hooks"] = {"poststart": [{"path": "/no/such/hook"}]}
    second.create()
    assert "error running poststart hook #0: execve" in runtime.fails("start", second.id).replace(
        "no such file", "execve: no such file"
    )
    assert second.status == "stopped"


def test_a_hook_may_not_take_for_ever(runtime: Runtime) -> None:
    box = runtime.sample("true")
    box.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    assert box.refused() == "error running createRuntime hook #0: it took longer than 1 s"


def test_a_failing_poststop_hook_is_a_warning(runtime: Runtime) -> None:
    note = runtime.path / "second"
    box = runtime.sample("true")
    box.config["hooks"] = {
        "poststop": [{"path": "/bin/false"}, {"path": "/bin/touch", "args": ["touch", str(note)]}],
    }
    done = box.run()
    assert "warning: poststop hook #0: " in done.err
    assert note.exists()


def test_a_hook_leaves_no_descriptor_of_the_runtimes(runtime: Runtime) -> None:
    note = runtime.path / "fds"
    box = runtime.sample("true")
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"ls /proc/self/fd >>{note}"]}
    box.config["hooks"] = {"createRuntime": [hook], "createContainer": [hook], "poststop": [hook]}
    box.run()
    assert note.read_text().split() == ["0", "1", "2", "3"] * 3, "3 is the directory itself"
