"""Every verb as people and scripts use it: output that parses, exit codes that mean something, terminals, pipes.

The verbs are asked of a running agent and of a device where none runs; both must say the same.
"""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, PROGRAM, REPOSITORY, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def app(name: str, image: str, script: str, extra: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: [sh, -c, "{script}"]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    restart: {{policy: always, delay: 100ms}}
{extra}
"""


SLEEP = "echo out; echo err >&2; exec sleep 100000"


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    """A device whose agent runs `web/main`, and has a volume."""
    device.configure(bundles=[str(box.layout)])
    volume = '    volumes: ["data:/data"]\n    ports: ["8080:80"]\nvolumes: {data: {}}'
    device.spec("web", app("web", reference(box), SLEEP, volume))
    device.start()
    device.logged("converged")
    return device


# --- documents and exit codes ----------------------------------------------------------------------------------------

DOCUMENTS = {
    "status": ("status", "Status"),
    "ps": ("ps -a", "ContainerList"),
    "images": ("images", "ImageList"),
    "volume": ("volume ls", "VolumeList"),
    "network": ("network ls", "NetworkList"),
    "gc": ("gc --dry-run", "GarbageList"),
    "plan": ("plan", "StepList"),
    "doctor": ("doctor", "CheckList"),
    "version": ("version", "Version"),
}


def test_every_verb_that_lists_gives_a_document_with_and_without_an_agent(ready: Device, box: Built) -> None:
    found: dict[bool, dict[str, object]] = {}
    for running in (True, False):
        documents = {}
        for name, (verb, kind) in DOCUMENTS.items():
            source = [str(ready.specs)] if verb == "plan" and not running else []
            document = json.loads(ready.reconciler(*verb.split(), *source, "-o", "json").stdout)
            assert document["apiVersion"] == "reconciler/v1", name
            assert document["kind"] == kind, name
            documents[name] = document
        assert [item["name"] for item in documents["ps"]["items"]] == ["web/main"]
        assert documents["plan"]["items"] == []
        same = ("id", "pid", "state", "image", "fingerprint", "ports", "restarts", "started", "limits")
        container = documents["ps"]["items"][0]
        found[running] = {key: container[key] for key in same}
        found[running] |= {name: documents[name]["items"] for name in ("images", "volume", "network")}
        if not running:
            break
        # Tables hold the same names; -q and -o name are for scripts.
        assert "web/main" in ready.reconciler("ps").stdout
        assert ready.reconciler("ps", "-q").stdout.strip() == str(container["id"])[:12]
        assert ready.reconciler("ps", "-o", "name").stdout == "web/main\n"
        assert ready.reconciler("status", "-o", "name").stdout == "web\n"
        assert ready.reconciler("volume", "ls", "-q").stdout == "web/data\n"
        assert ready.reconciler("network", "ls", "-q").stdout == "web\n"
        [network] = documents["network"]["items"]
        assert network["state"] == "up"
        assert ready.inside(["ip", "-br", "link", "show", network["bridge"]]).stdout
        [inside] = network["containers"]
        assert (inside["name"], inside["id"], inside["connected"]) == ("web/main", container["id"], True)
        assert inside["address"] in ready.reconciler("exec", "web/main", "hostname", "-i").stdout.split()
        wide = ready.reconciler("ps", "-o", "wide", "--no-headers").stdout
        assert str(container["pid"]) in wide.split()
        ready.stop()
    assert found[True] == found[False]


def test_exit_codes_mean_what_the_documentation_says(ready: Device, box: Built) -> None:
    def code(verb: str, *args: str) -> int:
        done = ready.reconciler(verb, *args, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode

    assert code("status", "web") == 0
    assert code("status", "nothing") == 8
    assert code("logs", "nothing/main") == 8
    assert code("exec", "nothing/main", "true") == 8
    assert code("volume", "rm", "web/nothing") == 8
    assert code("volume", "rm", "web/data") == 5
    assert code("logs", "web/main", "--tail", "x") == 64
    assert code("digest", "no registry") == 64
    assert ready.inside([*PROGRAM, "frobnicate"], check=False).returncode == 64
    assert ready.inside([*PROGRAM, "ps", "--colour"], check=False).returncode == 64
    assert ready.inside([*PROGRAM], check=False).returncode == 64
    assert code("validate", str(ready.specs)) == 0
    assert code("plan", "--detailed-exitcode") == 0
    ready.spec("more", app("more", reference(box), SLEEP).replace("memory", "memmory"))
    assert code("validate", str(ready.specs)) == 3
    assert code("plan") == 3
    assert code("apply") == 3
    ready.stop()
    ready.spec("more", app("more", reference(box), SLEEP))
    specs = str(ready.specs)
    assert code("plan", specs, "--detailed-exitcode") == 2
    assert code("plan", specs) == 0
    assert code("apply", specs, "--detailed-exitcode") == 2
    assert code("apply", specs, "--detailed-exitcode") == 0
    (ready.specs / "more.yaml").unlink()
    (ready.specs / "web.yaml").unlink()
    assert code("plan", specs) == 5
    assert code("apply", specs) == 5
    assert code("apply", specs, "--allow-empty", "--detailed-exitcode") == 2


def test_apply_is_done_by_the_agent_that_runs_or_else_here(ready: Device, box: Built) -> None:
    ready.spec("more", app("more", reference(box), SLEEP))
    done = ready.reconciler("apply", "--wait")
    assert "converged" in done.stdout
    assert ready.pid("more/main")
    # It was the agent's own work: its output tells, and it still runs.
    assert "start more/main" in ready.output
    other = ready.root / "other"
    other.mkdir()
    refused = ready.reconciler("apply", str(other), check=False)
    assert refused.returncode == 5
    assert "the agent that runs with" in refused.stderr
    ready.stop()
    ready.spec("third", app("third", reference(box), SLEEP))
    ready.reconciler("apply", "--wait", str(ready.specs))
    assert ready.pid("third/main")


# --- logs ------------------------------------------------------------------------------------------------------------

COUNT = "for i in 1 2 3 4 5; do echo line $i; done; echo warning >&2; exec sleep 100000"


def test_logs_are_shown_as_asked_for(ready: Device, box: Built) -> None:
    ready.spec("log", app("log", reference(box), COUNT))
    ready.running("log/main")
    ready.until(lambda: "warning" in ready.reconciler("logs", "log/main").stderr)
    everything = ready.reconciler("logs", "log/main")
    assert everything.stdout == "".join(f"line {i}\n" for i in range(1, 6))
    assert everything.stderr == "warning\n"
    assert ready.reconciler("logs", "log/main", "--tail", "2").stdout == "line 5\n"
    assert ready.reconciler("logs", "log/main", "--tail", "0").stdout == ""
    stamped = ready.reconciler("logs", "log/main", "-t").stdout.splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{15}\+00:00 line \d", line) for line in stamped), stamped
    assert ready.reconciler("logs", "log/main", "--since", "1h").stdout == everything.stdout
    assert ready.reconciler("logs", "log/main", "--since", "2100-01-01T00:00:00Z").stdout == ""
    assert ready.reconciler("logs", "log/main", "--until", "2001-01-01T00:00:00Z").stdout == ""
    lines = [
        json.loads(line) for line in ready.reconciler("logs", "log/main", "-o", "jsonl").stdout.splitlines()
    ]
    assert [line["line"] for line in lines if line["stream"] == "stdout"] == everything.stdout.splitlines()
    assert [line["line"] for line in lines if line["stream"] == "stderr"] == ["warning"]

    identity = str(ready.ps()["log/main"]["id"])
    assert ready.reconciler("logs", identity[:6], "--tail", "1").stderr == "warning\n"
    assert ready.reconciler("logs", "log/main", "--previous", check=False).returncode == 8
    pid = ready.pid("log/main")
    os.kill(pid, signal.SIGKILL)
    ready.until(lambda: ready.pid("log/main") not in (0, pid))
    ready.until(lambda: "line 5" in ready.reconciler("logs", "log/main", "--previous", check=False).stdout)


def test_logs_are_followed_until_the_reader_or_the_container_goes(ready: Device, box: Built) -> None:
    ticking = "i=0; while [ ! -e /stop ]; do echo tick $i; i=$((i+1)); usleep 20000; done"
    ready.spec("log", app("log", reference(box), ticking))
    ready.running("log/main")
    places = " ".join(ready.places)
    head = f"{' '.join(PROGRAM)} logs -f log/main {places} | head -3; echo ${{PIPESTATUS[0]}}"
    done = ready.inside(["bash", "-c", head])
    assert done.stdout == "tick 0\ntick 1\ntick 2\n141\n"
    assert done.stderr == ""
    seen = ready.root / "seen"
    with seen.open("wb") as output:
        followed = ready.spawn(
            [*PROGRAM, "logs", "-f", "--tail", "1", "log/main", *ready.places], stdout=output, cwd=REPOSITORY
        )
    ready.until(lambda: seen.stat().st_size > 0)  # or it would follow what comes after this one
    ready.reconciler("exec", "log/main", "touch", "/stop")
    assert followed.wait(20 * PATIENCE) == 0


# --- exec ------------------------------------------------------------------------------------------------------------


def test_exec_runs_beside_the_program_with_its_streams_user_directory_and_environment(ready: Device) -> None:
    def run(*args: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return ready.reconciler("exec", *args, check=False, input=input)

    done = run("web/main", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert run("-i", "web/main", "cat", input=b"through\n").stdout == "through\n"
    assert run("web/main", "cat", input=b"not passed on\n").stdout == ""
    binary = bytes(range(256)) * 4096
    counted = run("-i", "web/main", "sha256sum", input=binary).stdout.split()[0]
    assert counted == _sha256(binary)
    assert (
        run("-u", "app", "web/main", "id").stdout
        == "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)\n"
    )
    assert run("-u", "12:34", "web/main", "id", "-g").stdout == "34\n"
    assert run("-w", "/tmp", "web/main", "sh", "-c", "pwd").stdout == "/tmp\n"
    assert run("-e", "A=b", "-e", "C=", "web/main", "sh", "-c", "echo $A$C.").stdout == "b.\n"
    assert run("web/main", "--", "echo", "-n", "x").stdout == "x"
    # The codes that Docker made people know.
    assert run("web/main", "/no/such/program").returncode == 127
    assert run("web/main", "/etc/passwd").returncode == 126
    assert run("web/main", "sh", "-c", "kill -9 $$").returncode == 137
    assert run("-w", "/no/such/directory", "web/main", "pwd").returncode == 125
    nobody = run("-u", "nosuchuser", "web/main", "true")
    assert nobody.returncode == 125
    assert "nosuchuser" in nobody.stderr
    identity = str(ready.ps()["web/main"]["id"])
    assert run(identity[:8], "hostname").stdout == "web-main\n"
    # Each of them is on record, with its end.
    begun, ended = told(ready, "container=web/main")[:2]
    assert begun["command"] == ended["command"] == "sh -c 'echo out; echo err >&2; exit 7'"
    assert (begun["container"], begun["id"], begun["user"]) == ("main", identity, "0")
    assert (begun["origin"], begun["tty"], "exit_code" in begun) == ("exec", False, False)
    assert (ended["exec"], ended["exit_code"]) == (begun["exec"], 7)
    codes = {event["command"]: event["exit_code"] for event in told(ready) if "exit_code" in event}
    assert codes["/no/such/program"] == 127
    assert codes["/etc/passwd"] == 126
    assert codes["sh -c 'kill -9 $$'"] == 137
    assert "as app" in next(event["message"] for event in told(ready) if event["user"] == "app")
    assert "C=" not in ready.reconciler("events").stdout
    # It is a sibling of the program, in all its namespaces.
    links = [run("web/main", "readlink", f"/proc/{pid}/ns/pid").stdout for pid in ("1", "self")]
    assert links[0] == links[1] != ""
    ready.stop(signal.SIGKILL)
    assert run("web/main", "echo", "without an agent").stdout == "without an agent\n"
    last = ready.reconciler("events", "--filter", "event=exec", "--tail", "1").stdout
    assert last.endswith("  exec      web  exec web/main: echo 'without an agent': exit 0\n")
    # A disk on which nothing can be written stops nobody, and says what is missing.
    events = ready.state / "events.jsonl"
    events.rename(ready.state / "away")
    events.symlink_to("elsewhere")
    done = run("web/main", "echo", "unrecorded")
    assert (done.returncode, done.stdout) == (0, "unrecorded\n")
    assert (
        done.stderr
        == f"reconciler: exec: no event was recorded: {events}: Too many levels of symbolic links\n"
    )
    assert not (ready.state / "elsewhere").exists()


def told(device: Device, *filters: str) -> list[dict[str, Any]]:
    """The events of programs that were run beside containers."""
    wanted = [word for one in ("event=exec", *filters) for word in ("--filter", one)]
    items: list[dict[str, Any]]
    items = json.loads(device.reconciler("events", "-o", "json", *wanted).stdout)["items"]
    return items


def test_what_somebody_was_killed_over_is_on_record_to_its_end(ready: Device) -> None:
    """Neither the verb's own end nor odd bytes keep an event back, or reach a terminal."""
    odd = os.fsdecode(b"\x1b[2J\xff")
    command = [*PROGRAM, "exec", *ready.places, "web/main", "sh", "-c", "echo up; exec sleep 1000", odd]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as verb:
        assert verb.stdout is not None
        assert verb.stdout.readline() == b"up\n"
        verb.kill()
    ready.until(lambda: any("exit_code" in event for event in told(ready)))
    begun, ended = told(ready)
    assert (begun["exec"], ended["exit_code"]) == (ended["exec"], 137)
    shown = ready.reconciler("events", "--filter", "event=exec").stdout
    assert shown.count("'\\x1b[2J\\udcff'") == 2
    assert "\x1b" not in shown


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@contextmanager
def terminal(device: Device, *args: str, rows: int = 33, columns: int = 77) -> Iterator["Terminal"]:
    """`reconciler exec -t` on a pseudo-terminal of our own."""
    with on_terminal(device, [*PROGRAM, "exec", *device.places, *args], rows=rows, columns=columns) as made:
        yield made


@contextmanager
def on_terminal(
    device: Device, command: list[str], *, rows: int = 33, columns: int = 77
) -> Iterator["Terminal"]:
    """A command line of the program on a pseudo-terminal of our own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{device.namespace}", "--", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=REPOSITORY,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


class Terminal:
    """The operator's side of a terminal."""

    def __init__(self, master: int, slave: int, process: "subprocess.Popen[bytes]") -> None:
        self._master = master
        self._slave = slave
        self.process = process
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str) -> str:
        """Read until `pattern` was seen, and forget everything up to its end."""
        deadline = time.monotonic() + 20 * PATIENCE
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, (pattern, self.seen)
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found[0]

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def identity(self) -> tuple[int, int]:
        status = os.fstat(self._slave)
        return status.st_dev, status.st_ino

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self._slave)


def test_exec_on_a_terminal_follows_its_size_and_puts_it_back(ready: Device) -> None:
    with terminal(ready, "-it", "web/main", "sh") as screen:
        before = screen.modes
        screen.expect(r"# ")
        screen.type("stty size 2>/dev/null || busybox stty size\n")
        screen.expect(r"\r\n33 77\r\n")
        screen.resize(20, 50)
        screen.type("sleep 0.1; busybox stty size\n")
        screen.expect(r"\r\n20 50\r\n")
        screen.type("busybox tty\n")
        screen.expect(r"/dev/(pts/0|console)")
        # Ctrl-C goes to the program inside, not to ours.
        screen.type("sleep 1000\n")
        screen.expect("sleep 1000")
        time.sleep(0.2)
        screen.type("\x03")
        screen.expect(r"# ")
        screen.type("exit 9\n")
        assert screen.process.wait(20 * PATIENCE) == 9
        assert screen.modes == before


def test_what_runs_inside_never_holds_the_operators_terminal(ready: Device) -> None:
    """So it can't type into it (TIOCSTI) or change its modes: what it has is another terminal, made inside."""
    first = ready.pid("web/main")
    with terminal(ready, "-it", "web/main", "sh", "-c", "echo on $(busybox tty).; exec sleep 1000") as screen:
        screen.expect(r"on /dev/(pts/\d+|console)\.")
        outside = screen.identity
        inside = [pid for pid in os.listdir("/proc") if pid.isdigit() and _in_container(int(pid), first)]
        assert len(inside) >= 2
        for pid in inside:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                opened = os.stat(f"/proc/{pid}/fd/{fd}")
                assert (opened.st_dev, opened.st_ino) != outside, (pid, fd)


def _in_container(pid: int, first: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{first}/ns/pid")
    except OSError:
        return False


def test_exec_without_a_terminal_refuses_to_make_one(ready: Device) -> None:
    done = ready.reconciler("exec", "-t", "web/main", "sh", check=False)
    assert done.returncode == 64
    assert "standard input is not a terminal" in done.stderr


# --- people's terminals and other programs' pipes --------------------------------------------------------------------


def test_a_closed_pipe_ends_a_verb_quietly(ready: Device, box: Built) -> None:
    flood = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exec sleep 100000"
    ready.spec("log", app("log", reference(box), flood))
    ready.until(lambda: "19999" in ready.reconciler("logs", "--tail", "1", "log/main", check=False).stdout)
    places = " ".join(ready.places)
    for verb in ("logs log/main", "exec log/main yes"):
        name, _, rest = verb.partition(" ")
        line = f"{' '.join(PROGRAM)} {name} {places} {rest} | head -1; echo ${{PIPESTATUS[0]}}"
        done = ready.inside(["bash", "-c", line])
        assert done.stdout.splitlines()[1] == "141", (verb, done)
        assert done.stderr == "", verb


def test_colours_are_for_terminals_and_only_without_no_color(ready: Device, box: Built) -> None:
    ready.spec("bad", app("bad", reference(box), SLEEP).replace("memory", "memmory"))
    command = [*PROGRAM, "validate", str(ready.specs), *ready.places[4:]]
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        master, slave = pty.openpty()
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        environment |= {"TERM": "xterm", **variables}
        done = subprocess.run(
            command, stdout=slave, stderr=slave, env=environment, cwd=REPOSITORY, check=False
        )
        os.close(slave)
        said = os.read(master, 65536).decode()
        os.close(master)
        assert done.returncode == 3
        assert "unknown key 'memmory'" in said
        assert ("\x1b[" in said) is coloured, (variables, said)
    assert "\x1b" not in ready.inside(command, check=False).stderr


def test_uninstall_empties_a_state_directory_that_is_a_mount(device: Device) -> None:
    device.configure()
    device.state.mkdir(exist_ok=True)
    places = shlex.join(device.places)
    program = shlex.join(PROGRAM)
    script = f"""
        mount -t tmpfs tmpfs {device.state} && {program} volume create {places} keep/data && ls {device.state}
        {program} uninstall {places} --yes; echo "status $?"; ls -A {device.state}
    """
    done = device.inside(["unshare", "--mount", "sh", "-c", script])
    before, _, after = done.stdout.partition("status ")
    assert "volumes" in before
    assert after == "0\n"
    assert f"emptied {device.state}: a file system is mounted there" in done.stderr
    assert f"removed {device.run}" in done.stderr
