"""From created to the end: the two points at which the child waits, what goes wrong at each, terminals and PID 1."""

import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.linux import namespace
from tests.kernel.box import Box, Bundle, make_bundle, run, running

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def bundle(tmp_path: Path, busybox: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", "echo ran")


def ended(pid: int, timeout: float = 5.0) -> bool:
    """Wait until the process `pid` is gone or a zombie."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    gone = bool(poll.poll(timeout * 1000))
    os.close(fd)
    return gone


def test_a_created_container_waits_and_runs_nothing(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sh", "-c", "touch /ran; echo ran"]
    with Box(bundle) as box:
        assert box.create() is None
        assert not (bundle.upper / "ran").exists()
        assert Path(f"/proc/{box.pid}/root/bin/sh").exists()
        assert box.start() is None
        assert box.wait().output == "ran\n"
        assert (bundle.upper / "ran").exists()


def test_a_created_container_ends_silently_with_its_shim(bundle: Bundle) -> None:
    with Box(bundle) as box:
        assert box.create() is None
        box.kill_shim()
        assert ended(box.pid)


def test_a_running_container_dies_with_its_shim(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    for user in ("0", "1000"):
        with running(bundle.annotate("user", user)) as box:
            box.kill_shim()
            assert ended(box.pid)


def test_without_a_death_signal_the_container_outlives_who_made_it(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    with Box(bundle, death_signal=0) as box:
        assert box.create() is None
        assert box.start() is None
        box.kill_shim()
        assert not ended(box.pid, 0.2)
        os.kill(box.pid, signal.SIGKILL)
        assert ended(box.pid)


@pytest.mark.parametrize(
    ("args", "number", "text"),
    [
        (["/bin/missing"], errno.ENOENT, "exec: /bin/missing: no such file or directory"),
        (["missing"], errno.ENOENT, "exec: missing: no such program in PATH"),
        (["/etc/passwd"], errno.EACCES, "exec: /etc/passwd: permission denied"),
        (["/etc"], errno.EACCES, "exec: /etc: is a directory"),
        (["/etc/passwd/x"], errno.ENOTDIR, "exec: /etc/passwd/x: not a directory"),
    ],
)
def test_a_program_that_is_not_there_is_known_at_create(
    bundle: Bundle, args: list[str], number: int, text: str
) -> None:
    bundle.config["process"]["args"] = args
    with Box(bundle) as box:
        error = box.create()
        assert error is not None
        assert (error["step"], error["errno"], error["message"]) == ("exec", number, text)
        assert box.wait().code == (127 if number in (errno.ENOENT, errno.ENOTDIR) else 126)


@pytest.mark.parametrize(
    ("content", "number", "text"),
    [
        (b"#!/bin/nope -x\n", errno.ENOENT, "interpreter /bin/nope: no such file or directory"),
        (b"not a program at all", errno.ENOEXEC, "not a program, and no #! line says how to run it"),
        (b"", errno.ENOEXEC, "not a program"),
        (
            b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x02\0\xb7\0\x01" + b"\0" * 60,
            errno.ENOEXEC,
            "another processor",
        ),
    ],
)
def test_a_program_that_cannot_be_executed_says_why(
    bundle: Bundle, tmp_path: Path, busybox: Path, content: bytes, number: int, text: str
) -> None:
    layer = tmp_path / "layer/bin"
    layer.mkdir(parents=True)
    (layer / "program").write_bytes(content)
    (layer / "program").chmod(0o755)
    for init in (False, True):
        case = make_bundle(tmp_path / f"case{init}", [layer.parent, busybox], "program")
        if init:
            case.annotate("init", "true")
        with Box(case) as box:
            assert box.create() is None
            error = box.start()
            assert error is not None
            assert (error["step"], error["errno"]) == ("exec", number)
            assert text in error["message"]
            assert box.wait().code == (127 if number == errno.ENOENT else 126)


def test_the_first_program_in_path_wins_and_a_denied_one_is_remembered(
    bundle: Bundle, tmp_path: Path, busybox: Path
) -> None:
    layer = tmp_path / "layer"
    for folder in ("one", "two"):
        (layer / folder).mkdir(parents=True)
        (layer / folder / "tool").write_text(f"#!/bin/sh\necho {folder}\n")
    (layer / "two/tool").chmod(0o755)
    case = make_bundle(tmp_path / "case", [layer, busybox], "tool")
    case.config["process"]["env"] = ["PATH=/none:/one:/two"]
    assert run(case).output == "two\n"
    (layer / "two/tool").chmod(0o600)
    error = run(case).error
    assert error is not None
    assert error["errno"] == errno.EACCES


def test_a_working_directory_that_is_a_file_is_named(bundle: Bundle) -> None:
    bundle.config["process"]["cwd"] = "/etc/passwd"
    error = run(bundle).error
    assert error is not None
    assert error["message"] == "cwd: /etc/passwd: not a directory"


def test_a_network_namespace_can_be_joined(bundle: Bundle) -> None:
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["process"]["args"] = ["/bin/readlink", "/proc/self/ns/net"]
    holder = os.fork()
    if holder == 0:
        namespace.unshare(namespace.CLONE_NEWNET)
        signal.pause()
    try:
        path = f"/proc/{holder}/ns/net"
        deadline = time.monotonic() + 5
        while os.readlink(path) == os.readlink("/proc/self/ns/net") and time.monotonic() < deadline:
            time.sleep(0.005)
        next(entry for entry in spaces if entry["type"] == "network")["path"] = path
        assert run(bundle).output.strip() == os.readlink(path)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def test_exit_codes_and_signals_are_told_apart(bundle: Bundle) -> None:
    for script, code in (("exit 0", 0), ("exit 7", 7), ("exit 137", 137)):
        bundle.config["process"]["args"] = ["/bin/sh", "-c", script]
        assert run(bundle).code == code
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    with running(bundle) as box:
        os.kill(box.pid, signal.SIGKILL)
        assert box.wait().code == -signal.SIGKILL


# --- terminal -------------------------------------------------------------------------------------------------------


def test_p6_p17_a_terminal_is_the_containers_own(bundle: Bundle, tmp_path: Path, busybox: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "dev/pts").mkdir(parents=True)
    for name in ("console", "ptmx", "pts/ptmx"):
        (layer / "dev" / name).symlink_to("/etc/passwd")
    script = "tty; stat -c %t /dev/console; stty size; readlink /proc/self/fd/0; stat -c %u /dev/pts/0; echo >/dev/tty"
    case = make_bundle(tmp_path / "case", [layer, busybox], "/bin/sh", "-c", script)
    case.config["process"].update(terminal=True, consoleSize={"height": 40, "width": 120})
    case.annotate("user", "1000")
    before = set(os.listdir("/dev/pts"))
    with Box(case) as box:
        assert box.create() is None
        assert box.master >= 0
        assert box.start() is None
        output = b""
        while True:
            try:
                data = os.read(box.master, 4096)
            except OSError:  # EIO: the last slave was closed
                break
            output += data
        assert box.wait().code == 0
    assert output.decode().split() == ["/dev/pts/0", "88", "40", "120", "/dev/pts/0", "1000"]
    assert set(os.listdir("/dev/pts")) == before


def test_ctrl_c_on_the_terminal_reaches_the_program(bundle: Bundle) -> None:
    script = "trap 'echo got it; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    for init in ("", "true"):
        bundle.config["process"].update(terminal=True, args=["/bin/sh", "-c", script])
        with running(bundle.annotate("init", init)) as box:
            output = b""
            while b"ready" not in output:
                output += os.read(box.master, 4096)
            os.write(box.master, b"\x03")
            while b"got it" not in output:
                output += os.read(box.master, 4096)
            assert box.wait().code == 3


# --- PID 1 of our own -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_init(bundle: Bundle) -> Bundle:
    return bundle.annotate("init", "true")


def test_init_is_pid_1_with_no_more_than_the_program_has(with_init: Bundle) -> None:
    fields = "^(Name|PPid|Uid|Groups|Cap.*|NoNewPrivs):"
    script = f"grep -E '{fields}' /proc/1/status; echo --; grep -E '{fields}' /proc/self/status; ls -l /proc/1/fd 2>&1"
    with_init.config["process"]["args"] = ["/bin/sh", "-c", script]
    for user in ("0", "1000:44"):
        result = run(with_init.annotate("user", user))
        assert result.error is None
        one, _, own = result.output.partition("--\n")
        first = dict(line.split(":") for line in one.splitlines())
        mine = dict(line.split(":") for line in own.splitlines()[: len(first)])
        assert first.pop("Name").strip() == "init"
        assert (first.pop("PPid").strip(), mine.pop("PPid").strip() != "0") == ("0", True)
        mine.pop("Name")
        assert first == mine
        assert " 3 " not in own


def test_p1_init_cannot_be_opened_or_traced(with_init: Bundle) -> None:
    """The tests' interpreter is a file of the host's; the zygote's is a sealed memfd. Neither may be reached."""
    script = "(: >/proc/1/exe) 2>&1; cat /proc/1/environ 2>&1; ls /proc/1/root 2>&1; true"
    with_init.config["process"]["args"] = ["/bin/sh", "-c", script]
    before = os.stat("/proc/self/exe").st_mtime_ns
    lines = run(with_init.annotate("user", "1000")).lines()
    assert len(lines) == 3
    assert all("ermission denied" in line for line in lines)
    assert os.stat("/proc/self/exe").st_mtime_ns == before


def test_init_hands_on_signals_and_ends_as_the_program_ends(with_init: Bundle) -> None:
    script = "trap 'exit 9' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done"
    with_init.config["process"]["args"] = ["/bin/sh", "-c", script]
    with running(with_init) as box:
        assert box.read() == "ready\n"
        os.kill(box.pid, signal.SIGUSR1)
        assert box.read() == "usr1\n"
        os.kill(box.pid, signal.SIGTERM)
        assert box.wait().code == 9


def test_init_gives_128_and_the_signal_for_a_killed_program(with_init: Bundle) -> None:
    with_init.config["process"]["args"] = ["/bin/sh", "-c", "kill -SEGV $$"]
    assert run(with_init).code == 128 + signal.SIGSEGV
    with_init.config["process"]["args"] = ["/bin/sleep", "100"]
    with running(with_init) as box:
        os.kill(box.pid, signal.SIGTERM)
        assert box.wait().code == 128 + signal.SIGTERM


def test_init_reaps_orphans(with_init: Bundle) -> None:
    script = (
        "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 & ) ; done; sleep 0.3; "
        "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l; ls -d /proc/[0-9]* | wc -l"
    )
    with_init.config["process"]["args"] = ["/bin/sh", "-c", script]
    zombies, processes = run(with_init).lines()
    assert zombies == "0"
    assert int(processes) <= 4


def test_what_is_left_when_the_program_ends_dies_with_init(with_init: Bundle) -> None:
    with_init.config["process"]["args"] = ["/bin/sh", "-c", "sleep 100 & exit 4"]
    assert run(with_init).code == 4


def test_the_program_takes_the_default_of_every_signal_from_init(with_init: Bundle) -> None:
    with_init.config["process"]["args"] = ["/bin/cat", "/proc/self/status"]
    fields: dict[str, Any] = dict(line.split(":", 1) for line in run(with_init).lines())
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(fields[name], 16) == 0


def test_fifty_containers_at_once_do_not_mix_their_environments(tmp_path: Path, busybox: Path) -> None:
    """S8, CVE-2021-21334."""
    bundles = [
        make_bundle(tmp_path / str(n), [busybox], "/bin/sh", "-c", "echo $SECRET", env=(f"SECRET={n}",))
        for n in range(50)
    ]
    boxes = [Box(bundle) for bundle in bundles]
    try:
        for box in boxes:
            box.launch()
        assert [box.answer() for box in boxes] == [None] * 50
        assert [box.start() for box in boxes] == [None] * 50
        assert [box.wait().output for box in boxes] == [f"{n}\n" for n in range(50)]
    finally:
        for box in boxes:
            box.__exit__()
