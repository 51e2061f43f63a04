"""Programs run beside the container's own: with its identity and nothing more, on pipes or a terminal of its own."""

import json
import os
import pty
import re
import select
import signal
import socket
from pathlib import Path

import pytest

from reconciler.engine import cgroup
from reconciler.engine.bundle import CAPABILITIES
from reconciler.engine.process import Command, CommandError, Execution
from reconciler.errors import TimedOutError, UnreachableError
from reconciler.state.desired import Limits
from tests.kernel.shims import Case, Host, eventually, gone

pytestmark = pytest.mark.kernel


@pytest.fixture
def case(host: Host) -> Case:
    """A container that does nothing, for programs to be run in."""
    return host.case("/bin/sleep", "1000", env=("OWN=1", "HOME=/root")).start()


def test_output_and_exit_code_come_back(case: Case) -> None:
    assert case.exec_code("/bin/sh", "-c", "echo out; echo err >&2; exit 9") == (9, "out\nerr\n")
    assert case.exec_code("/bin/sh", "-c", "kill -KILL $$")[0] == 128 + signal.SIGKILL
    assert case.exec("id", "-u") == "0\n"  # found in the container's PATH


def test_input_goes_in_and_its_end_too(case: Case) -> None:
    (inside, feed), (output, outside) = os.pipe(), os.pipe()
    with (
        case.control() as control,
        control.execute(Command(("tr", "a", "b")), (inside, outside, outside)) as running,
    ):
        for fd in (inside, outside):
            os.close(fd)
        os.write(feed, b"banana\n")
        os.close(feed)
        assert running.wait(10) == 0
        assert os.read(output, 100) == b"bbnbnb\n"
    os.close(output)


def test_its_environment_is_the_containers_with_what_was_asked_for(case: Case) -> None:
    lines = case.exec("env", env=("ADDED=a b", "OWN=2")).splitlines()
    assert set(lines) == {"PATH=/usr/bin:/bin", "HOME=/root", "OWN=2", "ADDED=a b"}


def test_an_environment_too_large_for_a_packet_arrives(case: Case) -> None:
    large = "x" * 100_000
    assert case.exec("/bin/sh", "-c", "echo ${#LARGE}", env=(f"LARGE={large}",)) == "100000\n"


def test_s7_a_user_is_looked_up_in_the_container(case: Case) -> None:
    uid, gid, groups = case.exec("id", user="web").split()
    assert (uid, gid) == ("uid=1000(web)", "gid=1001(web)")
    assert set(groups.removeprefix("groups=").split(",")) == {"1001(web)", "44(logs)", "45(extra)"}
    assert case.exec("id", user="1234:44") == "uid=1234 gid=44(logs) groups=44(logs)\n"
    with pytest.raises(CommandError, match="passwd") as caught:
        case.exec("id", user="nosuch")
    assert caught.value.code == 125


def test_p2_the_working_directory_is_one_of_the_containers(case: Case) -> None:
    assert case.exec("pwd", cwd="/tmp") == "/tmp\n"
    for number in range(3, 12):
        with pytest.raises(CommandError) as caught:
            case.exec("pwd", cwd=f"/proc/self/fd/{number}")
        assert caught.value.code == 125
    case.exec("ln", "-sf", "/proc/self/fd/7", "/work")
    with pytest.raises(CommandError):
        case.exec("pwd", cwd="/work")
    with pytest.raises(CommandError, match="not a directory"):
        case.exec("pwd", cwd="/etc/passwd")


@pytest.mark.parametrize(
    ("program", "code"),
    [("nosuch", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/tmp", 126), ("/etc/passwd/x", 127)],
)
def test_what_cannot_run_has_the_code_of_a_shell(case: Case, program: str, code: int) -> None:
    with pytest.raises(CommandError) as caught:
        case.exec(program)
    assert caught.value.code == code


_PROBE = "; ".join(
    (
        "grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|SigBlk|SigIgn|SigCgt|Umask)' /proc/self/status",
        "ulimit -a",
        "cat /proc/self/cgroup",
        "ls -l /proc/self/ns | sed 's/.*-> //'",
        "cat /proc/self/oom_score_adj",
    )
)


def test_s14_it_is_what_the_containers_own_program_is(host: Host) -> None:
    case = host.shell(f"{_PROBE}; sleep 1000")
    process = case.bundle.config["process"]
    process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [1001, 44]}
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024}]
    process["oomScoreAdj"] = 321
    process["capabilities"]["ambient"] = process["capabilities"]["inheritable"] = ["CAP_NET_BIND_SERVICE"]
    case.start()
    case.until(b"321")
    own = b"\n".join(case.output()).decode()
    assert case.exec("/bin/sh", "-c", _PROBE).strip() == own.strip()
    assert "NoNewPrivs:\t1" in own


def test_s1_root_in_it_has_the_containers_capabilities(case: Case) -> None:
    text = case.exec("grep", "Cap", "/proc/self/status")
    assert dict(line.split(":\t") for line in text.splitlines()) == {
        "CapInh": "0000000000000000",
        "CapPrm": "00000000000405fb",
        "CapEff": "00000000000405fb",
        "CapBnd": "00000000000405fb",
        "CapAmb": "0000000000000000",
    }
    assert len(CAPABILITIES) == 10


def test_p3_it_gets_no_descriptor_but_its_three(case: Case) -> None:
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    listing = case.exec("ls", "/proc/self/fd").split()
    os.close(leaked)
    assert listing == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.cgroup
def test_it_runs_in_every_cgroup_of_the_container(host: Host) -> None:
    group = cgroup.create(
        cgroup.Hierarchies.detect(), "reconciler-exectest", str(os.getpid()), Limits(pids=20)
    )
    try:
        case = host.case("/bin/sleep", "1000")
        case.bundle.annotate("cgroup", group.annotation())
        case.start()
        pid = case.shim().init.pid
        with case.control() as control:
            null = os.open(os.devnull, os.O_RDWR)
            with control.execute(Command(("sleep", "1000")), (null, null, null)) as running:
                assert (
                    Path(f"/proc/{running.pid}/cgroup").read_text() == Path(f"/proc/{pid}/cgroup").read_text()
                )
                assert str(os.getpid()) in Path(f"/proc/{running.pid}/cgroup").read_text()
            os.close(null)
        case.kill()
    finally:
        cgroup.kill(group)
        cgroup.wait_empty(group, 5)
        cgroup.remove(group)


def test_p17_a_terminal_is_the_containers_own(case: Case) -> None:
    with case.control() as control:
        command = Command(("/bin/sh", "-c", "tty; stty size; read x; stty size; ls -l /proc/self/fd/0"))
        running = control.execute_terminal(command, 24, 80)
        assert running.master is not None
        assert read_until(running.master, b"24 80\r\n").startswith(b"/dev/pts/")
        running.resize(50, 132)
        eventually(lambda: os.get_terminal_size(running.master or 0) == (132, 50))
        os.write(running.master, b"\n")
        text = read_until(running.master, b"/dev/pts/0\r\n")
        assert b"50 132" in text
        assert running.wait(10) == 0
        running.close()


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        assert select.select([fd], [], [], 10)[0], data
        data += os.read(fd, 4096)
    return data


def test_p17_a_terminal_of_the_operators_never_goes_in(case: Case) -> None:
    master, slave = pty.openpty()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for stdio in ((slave, null, null), (null, slave, null), (null, null, master)):
            with case.control() as control, pytest.raises(CommandError, match="terminal"):
                control.execute(Command(("true",)), stdio)
    finally:
        for fd in (master, slave, null):
            os.close(fd)


def test_a_directory_of_the_hosts_never_goes_in(case: Case) -> None:
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    null = os.open(os.devnull, os.O_RDWR)
    with case.control() as control, pytest.raises(CommandError, match="directory"):
        control.execute(Command(("true",)), (directory, null, null))
    with case.control() as control, pytest.raises(CommandError, match="three"):
        control.execute(Command(("true",)), (null, null))  # type: ignore[arg-type]
    for fd in (directory, null):
        os.close(fd)


def start(case: Case, *arguments: str) -> tuple[Execution, int]:
    """Run a program whose output comes by a pipe."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    running = case.control().execute(Command(arguments), (null, writer, writer))
    os.close(writer)
    os.close(null)
    return running, reader


def test_hanging_up_kills_it_and_its_group(case: Case) -> None:
    running, reader = start(case, "/bin/sh", "-c", "sleep 1000 & echo go; wait")
    assert os.read(reader, 100) == b"go\n"
    running.close()
    assert os.read(reader, 100) == b""  # both holders of the pipe are gone
    os.close(reader)
    eventually(lambda: gone(running.pid))
    assert case.exec("true") == ""


def test_a_timeout_kills_it(case: Case) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    with case.control() as control, pytest.raises(TimedOutError):
        control.run(Command(("sleep", "1000")), (null, null, null), timeout=0.2)
    os.close(null)
    eventually(lambda: case.exec("ps").count("sleep 1000") == 1)


def test_the_end_of_the_container_is_its_end(case: Case) -> None:
    running, reader = start(case, "sleep", "1000")
    with case.control() as control:
        control.kill(signal.SIGKILL)
    assert running.wait(10) == 128 + signal.SIGKILL
    running.close()
    os.close(reader)
    assert case.ended().signal == signal.SIGKILL


def test_nothing_runs_in_a_container_that_does_not_run(host: Host) -> None:
    case = host.case("/bin/sleep", "1000")
    case.create()
    with pytest.raises(CommandError, match="does not run"):
        case.exec("true")
    case.start()
    case.kill()
    with pytest.raises(UnreachableError):
        case.exec("true")


def test_many_run_at_once(case: Case) -> None:
    running = [start(case, "/bin/sh", "-c", f"echo {number}; exit {number}") for number in range(12)]
    for number, (execution, reader) in enumerate(running):
        assert execution.wait(20) == number
        assert os.read(reader, 100) == b"%d\n" % number
        execution.close()
        os.close(reader)


def test_it_works_with_init_as_well_and_orphans_are_reaped(host: Host) -> None:
    case = host.case("/bin/sleep", "1000")
    case.bundle.annotate("init", "true")
    case.start()
    assert case.exec("/bin/sh", "-c", "(sleep 0.1 &) ; echo left") == "left\n"
    eventually(lambda: not re.search(r"\bZ\b", case.exec("ps", "-o", "stat")))


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "exec"},
        {"op": "exec", "args": []},
        {"op": "exec", "args": ["true"], "env": ["novalue"]},
        {"op": "exec", "args": ["true"], "cwd": "relative"},
        {"op": "exec", "args": ["tr\0ue"]},
        {"op": "exec", "args": ["true"], "tty": True, "size": [1]},
        {"op": "exec", "args": ["true"], "tty": True, "size": [-1, 70000]},
        {"op": "exec", "args": "true"},
        {"op": "exec", "args": ["true"], "user": 5},
    ],
)
def test_a_malformed_request_is_refused_by_name(case: Case, request_: dict[str, object]) -> None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(str(case.run / "control.sock"))
    null = os.open(os.devnull, os.O_RDWR)
    socket.send_fds(client, [json.dumps(request_).encode()], [null, null, null])
    os.close(null)
    answer = json.loads(client.recv(65536))
    client.close()
    assert answer["code"] == 125
    assert "exec" in answer["error"]["message"] or "process" in answer["error"]["message"]
