"""The verbs of the OCI runtime command line: what callers of runc rely on, and what they read of it."""

import array
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.kernel.runtime import PROGRAM, Runtime, eventually, runtime

__all__ = ["runtime"]

pytestmark = pytest.mark.kernel


def test_a_container_lives_as_the_specification_says(runtime: Runtime) -> None:
    box = runtime.shell("echo on >/note; exec sleep 1000")
    box.config["annotations"] = {"com.example.a": "b"}
    pid_file = runtime.path / "pid"
    box.create("--pid-file", str(pid_file))
    state = box.state()
    assert state == {
        "ociVersion": "1.2.0",
        "id": box.id,
        "status": "created",
        "pid": int(pid_file.read_text()),
        "bundle": str(box.directory),
        "rootfs": str(box.rootfs),
        "created": state["created"],
        "owner": "",
        "annotations": {"com.example.a": "b"},
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", state["created"])
    assert not (box.rootfs / "note").exists(), "the program ran before start"
    box.start()
    assert (box.status, (box.rootfs / "note").read_text()) == ("running", "on\n")
    assert "cannot start an already running container" in runtime.fails("start", box.id)
    assert f'cannot delete container "{box.id}" that is not stopped: running' in runtime.fails(
        "delete", box.id
    )
    box.kill()
    assert (box.status, box.state()["pid"]) == ("stopped", 0)
    assert runtime.fails("kill", box.id) == "container not running"
    assert runtime.fails("start", box.id) == "cannot start a container that has stopped"
    assert runtime.fails("exec", box.id, "true") == "cannot exec in a stopped container"
    box.delete()
    assert runtime.fails("state", box.id) == f'container "{box.id}" does not exist'
    assert runtime.fails("delete", box.id) == f'container "{box.id}" does not exist'
    runtime("delete", "--force", box.id)


def test_changes_of_the_bundle_after_create_do_not_count(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").create()
    box.config["process"]["args"] = ["false"]
    box.write()
    box.start()
    assert box.proc("cmdline") == "sleep\x001000\x00"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "-x/", "a" * 1025])
def test_an_id_is_what_runc_takes_for_one(runtime: Runtime, name: str) -> None:
    box = runtime.sample("true").write()
    said = runtime.fails("create", "--bundle", str(box.directory), "--", name)
    assert "invalid id format" in said
    assert not runtime.root.exists()


def test_the_caller_owns_the_process_and_its_output(runtime: Runtime) -> None:
    """No death signal, the caller's own descriptors, and a parent that is whoever reaps for the caller."""
    box = runtime.shell("read line; echo got $line; echo complaint >&2").write()
    reader, writer = os.pipe()
    fed, feed = os.pipe()
    command = [PROGRAM, "--root", str(runtime.root), "create", "--bundle", str(box.directory), box.id]
    subprocess.run(command, stdin=fed, stdout=writer, stderr=writer, check=True)
    os.close(writer)
    os.close(fed)
    assert f"PPid:\t{os.getpid()}\n" in box.proc("status")
    box.start()
    os.write(feed, b"word\n")
    os.close(feed)
    with open(reader, encoding="utf-8") as file:
        assert file.read() == "got word\ncomplaint\n"
    eventually(lambda: box.status == "stopped", runtime.patience)


def test_run_gives_the_exit_code_and_leaves_nothing(runtime: Runtime) -> None:
    box = runtime.shell("echo out; echo err >&2; exit 7")
    done = box.run(check=False)
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert box.runtime.shell("kill -9 $$").run(check=False).code in (137, 0)
    assert os.listdir(runtime.root) == []


def test_run_passes_signals_on_and_detaches_when_asked(runtime: Runtime) -> None:
    box = runtime.shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done").write()
    command = [PROGRAM, "--root", str(runtime.root), "run", "--bundle", str(box.directory), box.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "bye\n"
        assert process.wait() == 3
    detached = runtime.sample("sleep", "1000").write()
    runtime("run", "--detach", "--bundle", str(detached.directory), detached.id)
    assert detached.status == "running"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope"], 'exec: "nope": executable file not found in $PATH'),
        (["/bin/nope"], 'exec: "/bin/nope": no such file or directory'),
        (["/etc"], 'exec: "/etc": is a directory'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_a_program_that_is_none_fails_at_create(runtime: Runtime, args: list[str], said: str) -> None:
    assert runtime.sample(*args).refused() == said


def test_a_program_that_can_not_be_executed_fails_at_start(runtime: Runtime) -> None:
    box = runtime.sample("/script")
    (box.rootfs / "script").write_text("#!/no/such/interpreter\n")
    (box.rootfs / "script").chmod(0o755)
    box.create()
    assert "interpreter /no/such/interpreter" in runtime.fails("start", box.id)
    assert box.status == "stopped"


def test_errors_go_to_the_callers_log_too(runtime: Runtime) -> None:
    log = runtime.path / "log"
    runtime.fails("--log", str(log), "--log-format", "json", "state", "nobody")
    entry = json.loads(log.read_text())
    assert (entry["level"], entry["msg"]) == ("error", 'container "nobody" does not exist')
    runtime.fails("--log", str(log), "state", "nobody")
    assert log.read_text().splitlines()[1].endswith(r'level=error msg="container \"nobody\" does not exist"')
    assert runtime.fails("frobnicate", "x").startswith("reconciler-oci: argument VERB: invalid choice")
    if not Path("/run/systemd/system").exists():
        made = runtime.sample("true")
        made.linux["cgroupsPath"] = "system.slice:oci:x"
        create = ("create", "--bundle", str(made.write().directory), made.id)
        said = (
            "--systemd-cgroup: systemd does not run here: use the manager cgroupfs (podman: --cgroup-manager"
        )
        assert said in runtime.fails("--systemd-cgroup", *create)
        assert "needs --systemd-cgroup; or use the manager cgroupfs" in runtime.fails(*create)
    assert "--no-pivot: not supported" in runtime.fails("create", "--no-pivot", "x")


def test_of_two_creates_one_wins(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").write()
    command = [PROGRAM, "--root", str(runtime.root), "create", "--bundle", str(box.directory), box.id]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **quiet) for _ in range(2)]  # type: ignore[call-overload]
    assert sorted(process.wait() for process in both) == [0, 1]
    assert box.status == "created"
    assert "container with given ID already exists" in runtime.fails(
        "create", "--bundle", str(box.directory), box.id
    )


def test_a_cgroup_that_is_in_use_is_not_shared(runtime: Runtime) -> None:
    first = runtime.sample("sleep", "1000").up()
    second = runtime.sample("sleep", "1000")
    second.linux["cgroupsPath"] = first.linux["cgroupsPath"]
    second.write()
    said = runtime.fails("create", "--bundle", str(second.directory), second.id)
    assert "container's cgroup is not empty: 1 process(es) found" in said
    assert first.status == "running", "the failed create took the other's cgroup along"


def test_a_create_that_was_killed_can_be_deleted(runtime: Runtime) -> None:
    """At whatever moment: a hook that waits is one that a test can aim at."""
    box = runtime.sample("sleep", "1000")
    box.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    box.write()
    command = [PROGRAM, "--root", str(runtime.root), "create", "--bundle", str(box.directory), box.id]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        state = runtime.root / box.id / "state.json"
        eventually(lambda: state.exists() and '"pid": 0' not in state.read_text(), runtime.patience)
        assert box.status == "creating"
        process.kill()
    runtime("delete", "--force", box.id)
    assert not (runtime.root / box.id).exists()


def test_a_pid_that_is_somebody_elses_by_now_is_not_signalled(runtime: Runtime) -> None:
    box = runtime.sample("true").up()
    eventually(lambda: box.status == "stopped", runtime.patience)
    state = runtime.root / box.id / "state.json"
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            kept = json.loads(state.read_text())
            state.write_text(json.dumps({**kept, "pid": stranger.pid}))
            assert box.status == "stopped"
            assert runtime.fails("kill", box.id, "KILL") == "container not running"
            runtime("delete", "--force", box.id)
            assert stranger.poll() is None
        finally:
            stranger.kill()


# --- kill, delete -----------------------------------------------------------------------------------------------------


def test_signals_by_name_and_number_and_to_all(runtime: Runtime) -> None:
    script = "trap 'echo one' USR1; trap 'echo two' USR2; echo up; while :; do sleep 0.05; done"
    box = runtime.shell(script).write()
    command = [PROGRAM, "--root", str(runtime.root), "run", "--bundle", str(box.directory), box.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for given, heard in (("USR1", "one"), ("SIGUSR2", "two"), (str(int(signal.SIGUSR1)), "one")):
            runtime("kill", box.id, given)
            assert process.stdout.readline() == f"{heard}\n"
        assert runtime.fails("kill", box.id, "FOO") == 'unknown signal "FOO"'
        runtime("kill", "--all", box.id, "KILL")
        assert process.wait() == 137


def test_the_end_of_one_without_pids_of_its_own_takes_all_along(runtime: Runtime) -> None:
    box = runtime.shell("sleep 1000 & sleep 1000 & exec sleep 1000").without("pid").up()
    eventually(lambda: len(box.ps()) == 3, runtime.patience)
    ends = [os.pidfd_open(pid) for pid in box.ps()]
    runtime("delete", "--force", box.id)
    for pidfd in ends:
        assert select.select([pidfd], [], [], 20 * runtime.patience)[0]
        os.close(pidfd)


# --- exec -------------------------------------------------------------------------------------------------------------


def test_exec_is_in_the_container_and_gives_its_exit_code(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    done = runtime("exec", box.id, "sh", "-c", "hostname; echo err >&2; exit 5", check=False)
    assert (done.code, done.out, done.err) == (5, "box\n", "err\n")
    assert box.execute("sh", "-c", "cat /proc/self/cgroup") == box.execute("sh", "-c", "cat /proc/1/cgroup")
    lines = "grep -E '^(Cap|NoNew|Seccomp|Groups)' /proc/{}/status"
    assert box.execute("sh", "-c", lines.format("self")) == box.execute("sh", "-c", lines.format(1))
    assert box.execute("ls", "/proc/self/fd").split() == ["0", "1", "2", "3"], "3 is the directory itself"


def test_exec_takes_what_callers_change(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    (box.rootfs / "work").mkdir()
    script = "id -u; id -g; id -G; echo $WORD; pwd; grep CapBnd /proc/self/status"
    options = (
        "--user",
        "1000:1001",
        "-g",
        "44",
        "--env",
        "WORD=hello",
        "--cwd",
        "/work",
        "--cap",
        "CAP_NET_RAW",
    )
    out = runtime("exec", *options, box.id, "sh", "-c", script).out.splitlines()
    assert out[:5] == ["1000", "1001", "1001 44", "hello", "/work"]
    assert int(out[5].split()[1], 16) >> 13 & 1, "CAP_NET_RAW"
    file = runtime.path / "process.json"
    file.write_text(
        json.dumps(
            {
                "args": ["sh", "-c", "umask; id -u"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 7, "gid": 7, "umask": 63},
            }
        )
    )
    assert runtime("exec", "--process", str(file), box.id).out.split() == ["0077", "7"]


def test_an_exec_that_fails_says_so_as_a_shell_does(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    done = runtime("exec", box.id, "nope", check=False)
    assert (done.code, done.err) == (
        255,
        'reconciler-oci: exec: "nope": executable file not found in $PATH\n',
    )
    assert "no such file or directory" in runtime.fails("exec", "--cwd", "/nowhere", box.id, "true")
    assert "expected a command" in runtime.fails("exec", box.id)


def test_a_detached_exec_is_the_callers_and_its_pid_is_written(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    pid_file = runtime.path / "pid"
    runtime("exec", "--detach", "--pid-file", str(pid_file), box.id, "sleep", "1001")
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}/cmdline").read_text() == "sleep\x001001\x00"
    assert f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()
    for kind in ("pid", "net", "mnt", "uts", "ipc", "cgroup", "user"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{box.pid}/ns/{kind}")
    assert sorted(box.ps()) == sorted([box.pid, pid])


# --- terminals --------------------------------------------------------------------------------------------------------


class Console:
    """A console socket, and the terminal that came through it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.master = -1
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            _, rights, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
        self.master = array.array("i", rights[0][2])[0]

    def read_until(self, text: str) -> str:
        self._thread.join()
        found = ""
        while text not in found:
            found += os.read(self.master, 4096).decode()
        return found

    def close(self) -> None:
        self._listener.close()
        os.close(self.master)


def test_a_terminal_goes_through_the_console_socket(runtime: Runtime) -> None:
    script = "tty; stty size; ls -l /dev/console; readlink /proc/self/fd/0; echo end; exec sleep 1000"
    box = runtime.shell(script, terminal=True, consoleSize={"height": 33, "width": 77})
    box.write()
    assert "console socket" in runtime.fails("create", "--bundle", str(box.directory), box.id)
    console = Console(runtime.path / "console")
    box.create("--console-socket", str(console.path))
    box.start()
    said = console.read_until("end")
    assert "/dev/pts/0" in said
    assert "33 77" in said
    console.close()


def test_an_exec_gets_a_terminal_too(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    console = Console(runtime.path / "console")
    runtime(
        "exec",
        "--detach",
        "--tty",
        "--console-socket",
        str(console.path),
        box.id,
        "sh",
        "-c",
        "tty; echo end; sleep 1000",
    )
    assert "/dev/pts/" in console.read_until("end")
    console.close()
    assert "console socket" in runtime.fails("exec", "--detach", "--tty", box.id, "true")


def test_run_and_exec_bring_the_terminal_to_the_callers_own(runtime: Runtime) -> None:
    box = runtime.shell("tty; read x; echo got $x; exit 4", terminal=True).write()
    script = f"{PROGRAM} --root {runtime.root} run --bundle {box.directory} {box.id}; echo code $?"
    done = subprocess.run(
        ["script", "-qec", script, "/dev/null"], input="word\n", capture_output=True, text=True, check=True
    )
    assert "/dev/pts/0" in done.stdout
    assert "got word" in done.stdout
    assert "code 4" in done.stdout


# --- descriptors, pause, update, lists --------------------------------------------------------------------------------


def test_descriptors_are_handed_on_only_when_asked(runtime: Runtime) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    command = f"exec 3>&{writer} {writer}>&-; exec {PROGRAM} --root {runtime.root}"
    keeping = runtime.shell("ls /proc/self/fd; echo word >&3").write()
    run = f"{command} run --bundle {keeping.directory} --preserve-fds 1 {keeping.id}"
    done = subprocess.run(["bash", "-c", run], pass_fds=(writer,), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1", "2", "3", "4"], "4 is the directory itself"
    assert os.read(reader, 64) == b"word\n"
    closing = runtime.shell("ls /proc/self/fd").write()
    run = f"{command} run --bundle {closing.directory} {closing.id}"
    done = subprocess.run(["bash", "-c", run], pass_fds=(writer,), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1", "2", "3"]
    box = runtime.sample("true").write()
    said = runtime.fails("create", "--bundle", str(box.directory), "--preserve-fds", "2", box.id)
    assert said == "--preserve-fds: descriptor 3 is not open"
    os.close(reader)
    os.close(writer)


def test_sockets_of_systemd_come_with_their_number(runtime: Runtime) -> None:
    box = runtime.shell("echo $LISTEN_FDS $LISTEN_PID; readlink /proc/self/fd/3").write()
    reader, writer = os.pipe()
    os.dup2(writer, 99)
    run = f"{PROGRAM} --root {runtime.root} run --bundle {box.directory} {box.id}"
    script = f"exec 3>&99 99>&-; LISTEN_FDS=1 exec {run}"
    try:
        done = subprocess.run(
            ["bash", "-c", script], pass_fds=(99,), capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["1 1", os.readlink(f"/proc/self/fd/{reader}")]
    finally:
        for fd in (reader, writer, 99):
            os.close(fd)


@pytest.mark.cgroup
def test_a_paused_container_rests(runtime: Runtime) -> None:
    box = runtime.shell("while :; do echo x >>/count; sleep 0.01; done").up()
    count = box.rootfs / "count"
    eventually(count.exists, runtime.patience)
    runtime("pause", box.id)
    assert box.status == "paused"
    before = count.stat().st_size
    select.select([], [], [], 0.1)
    assert count.stat().st_size == before
    assert "cannot exec in a paused container" in runtime.fails("exec", box.id, "true")
    runtime("resume", box.id)
    eventually(lambda: count.stat().st_size > before, runtime.patience)
    assert runtime.fails("resume", box.id) == "container not paused"
    runtime("pause", box.id)
    box.kill()
    assert box.status == "stopped"


@pytest.mark.cgroup
def test_limits_change_while_it_runs(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").up()
    runtime("update", "--memory", "67108864", "--pids-limit", "55", box.id)
    runtime(
        "update",
        "--resources",
        "-",
        box.id,
        input=json.dumps({"cpu": {"quota": 50000, "period": 100000}}),
    )
    memory, pids, cpu = (box.cgroup(name) for name in ("memory", "pids", "cpu"))
    v2 = (memory / "memory.max").exists()
    assert (memory / ("memory.max" if v2 else "memory.limit_in_bytes")).read_text() == "67108864\n"
    assert (pids / "pids.max").read_text() == "55\n"
    assert (cpu / ("cpu.max" if v2 else "cpu.cfs_quota_us")).read_text().split()[0] == "50000"
    assert "not supported" in runtime.fails(
        "update", "--resources", "-", box.id, input='{"rdma": {"mlx5": {"hcaHandles": 3}}}'
    )
    assert "not JSON" in runtime.fails("update", "--resources", "-", box.id, input="{")


def test_lists_are_what_callers_read(runtime: Runtime) -> None:
    assert runtime("list", "--format", "json").out == "[]\n"
    box = runtime.sample("sleep", "1000").up()
    assert runtime("list", "--quiet").out == f"{box.id}\n"
    (told,) = json.loads(runtime("list", "--format", "json").out)
    assert (told["id"], told["status"], told["pid"]) == (box.id, "running", box.pid)
    head, row = runtime("list").out.splitlines()
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split()[:3] == [box.id, str(box.pid), "running"]
    table = runtime("ps", box.id).out.splitlines()
    assert [line.split()[1] for line in table] == ["PID", str(box.pid)]


def test_features_and_version_tell_what_this_is(runtime: Runtime) -> None:
    told = json.loads(runtime("features").out)
    assert told["ociVersionMin"] == "1.0.0"
    assert set(told["linux"]["namespaces"]) >= {"user", "time", "cgroup"}
    assert {"rro", "idmap", "rbind", "tmpcopyup"} <= set(told["mountOptions"])
    assert re.match(r"reconciler-oci version \d+\.\d+\.\d+\nspec: 1\.\d+\.\d+\n", runtime("--version").out)
    spec = json.loads(runtime("spec").out)
    assert spec["process"]["args"] == ["sh"]


def test_p1_what_enters_a_container_is_a_sealed_copy(runtime: Runtime) -> None:
    """CVE-2019-5736: what waits in a created container is this program, which /proc/PID/exe gives to who is inside."""
    box = runtime.sample("sleep", "1000").create()
    exe = os.open(f"/proc/{box.pid}/exe", os.O_RDONLY)
    try:
        assert os.readlink(f"/proc/self/fd/{exe}").startswith("/memfd:reconciler")
    finally:
        os.close(exe)
    with pytest.raises(OSError, match=r"Text file busy|Operation not permitted"):
        os.close(os.open(f"/proc/{box.pid}/exe", os.O_WRONLY))
    box.start()


def test_p2_no_directory_of_the_host_is_left_to_go_to(runtime: Runtime) -> None:
    """CVE-2024-21626, in a new container and in exec: a working directory that is a descriptor of the runtime's."""
    box = runtime.sample("pwd")
    for number in range(3, 13):
        box.process["cwd"] = f"/proc/self/fd/{number}"
        assert "cwd: /proc/self/fd/" in box.refused()
    box = runtime.sample("sleep", "1000").up()
    for number in range(3, 13):
        assert "cwd: /proc/self/fd/" in runtime.fails(
            "exec", "--cwd", f"/proc/self/fd/{number}", box.id, "pwd"
        )
