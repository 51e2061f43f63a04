"""The life of a container under its shim: created, running, ended, each told apart; and what a shim costs and shows."""

import contextlib
import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.engine import cgroup
from reconciler.engine.process import ExitRecord, StepError, alive, identify, open_pidfd, read_exit, read_shim
from reconciler.errors import TimedOutError, UnreachableError
from reconciler.linux import path
from reconciler.shim import protocol
from reconciler.state.desired import Limits
from tests.kernel.shims import Host, eventually, gone, wait

pytestmark = pytest.mark.kernel


def status(pid: int, key: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(key + ":"))


def test_a_container_is_created_then_runs_then_has_ended(host: Host) -> None:
    case = host.shell("echo out; echo err >&2; exit 7")
    created = case.create()
    before = case.shim()
    assert (before.shim, before.init) == (created.shim, created.init)
    assert before.started_boot is None
    assert case.output() == []
    assert read_exit(case.run / "exit.json") is None
    namespace = os.stat(f"/proc/{created.init.pid}/ns/net")
    assert os.path.samestat(namespace, os.fstat(created.netns_fd))
    case.start()
    record = case.ended()
    after = case.shim()
    assert (record.code, record.signal, record.oom) == (7, None, False)
    assert record.started_boot == after.started_boot
    assert before.created_boot <= (after.started_boot or 0) <= record.finished_boot
    assert record.boot == created.shim.boot
    assert sorted(case.output()) == [b"err", b"out"]
    assert not alive(created.shim)
    assert not (case.run / "control.sock").exists()


def test_an_end_by_signal_is_no_exit_code(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    with case.control() as control:
        control.kill(signal.SIGKILL)
    record = case.ended()
    assert (record.code, record.signal, record.oom) == (None, signal.SIGKILL, False)


def test_under_init_a_program_ended_by_a_signal_gives_the_code_of_a_shell(host: Host) -> None:
    case = host.shell("kill -TERM $$; sleep 1000")
    case.bundle.annotate("init", "true")
    assert case.start().ended().code == 128 + signal.SIGTERM


def test_a_signal_reaches_the_program(host: Host) -> None:
    case = host.shell("trap 'echo hup; exit 3' HUP; echo ready; while :; do sleep 0.05; done").start()
    case.until(b"ready")
    with case.control() as control:
        control.kill(signal.SIGHUP)
        with pytest.raises(StepError, match="no such signal"):
            control.kill(4711)
    assert case.ended().code == 3
    assert case.output() == [b"ready", b"hup"]


@pytest.mark.cgroup
def test_an_end_for_lack_of_memory_is_told_apart(host: Host) -> None:
    name = "reconciler-shimtest"
    hierarchies = cgroup.Hierarchies.detect()
    group = cgroup.create(hierarchies, name, str(os.getpid()), Limits(memory=16 << 20))
    try:
        hungry = host.shell("x=0123456789abcdef; while :; do x=$x$x; done")
        hungry.bundle.annotate("cgroup", group.annotation())
        record = hungry.start().ended()
        assert (record.signal, record.oom) == (signal.SIGKILL, True)
        # The same cgroup counts on; the next container in it is told by what it adds.
        modest = host.case("/bin/sleep", "1000")
        modest.bundle.annotate("cgroup", group.annotation())
        modest.start()
        modest.exec("/bin/true")
        assert modest.created is not None
        signal.pidfd_send_signal(modest.created.init_pidfd, signal.SIGKILL)
        record = modest.ended()
        assert (record.signal, record.oom) == (signal.SIGKILL, False)
    finally:
        cgroup.kill(group)
        cgroup.wait_empty(group, 5)
        cgroup.remove(group)


HOG = "x=0123456789abcdef; while :; do x=$x$x; done"


@pytest.mark.parametrize("init", [pytest.param("", marks=pytest.mark.cgroup), "true"])
def test_s13_where_one_process_runs_out_of_memory_all_of_the_container_end_and_no_other(
    host: Host, init: str
) -> None:
    """The hog is no first process, and what starts it waits for ever: half of a container must not go on."""
    hierarchies = cgroup.Hierarchies.detect()
    groups = [
        cgroup.create(hierarchies, "reconciler-shimtest", f"{os.getpid()}-{number}", Limits(memory=16 << 20))
        for number in range(2)
    ]
    try:
        neighbour, shared = (host.shell(f"( {script} ) & sleep 1000") for script in ("sleep 1000", HOG))
        for case, group in zip((neighbour, shared), groups, strict=True):
            case.bundle.annotate("init", init)
            case.bundle.annotate("cgroup", group.annotation())
        neighbour.start()
        record = shared.start().ended()
        assert (record.signal, record.oom) == (signal.SIGKILL, True)
        if _counts_peaks():
            assert record.peak is not None
            assert 14 << 20 < record.peak <= 16 << 20
        assert not cgroup.populated(groups[1])
        # Once more, by what is run beside a program that uses nothing.
        neighbour.exec("/bin/true")
        assert neighbour.exec_code("/bin/sh", "-c", HOG)[0] == 128 + signal.SIGKILL
        record = neighbour.ended()
        assert (record.signal, record.oom) == (signal.SIGKILL, True)
        assert "Traceback" not in host.complaints()
    finally:
        for group in groups:
            cgroup.kill(group)
            cgroup.wait_empty(group, 5)
            cgroup.remove(group)


def _counts_peaks() -> bool:
    """Whether this kernel keeps the most memory that a cgroup had: version 1, or Linux 5.19."""
    numbers = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return cgroup.Hierarchies.detect().version("memory") == 1 or numbers >= (5, 19)


def test_s13_memory_that_runs_out_above_a_container_ends_nobody_but_whom_the_kernel_chose(host: Host) -> None:
    """Version 1 tells every cgroup below the one that is short; the kill is in one of them."""
    hierarchies = cgroup.Hierarchies.detect()
    parent = f"reconciler-shimtest-{os.getpid()}"
    groups = [cgroup.create(hierarchies, parent, name, Limits()) for name in ("hungry", "modest")]
    try:
        above = groups[0].file("memory", "memory.max", "memory.limit_in_bytes")
        assert above is not None
        (above.parent.parent / above.name).write_text(str(24 << 20))
        modest, hungry = host.case("/bin/sleep", "1000"), host.shell(f"( {HOG} ) & sleep 1000")
        for case, group in zip((hungry, modest), groups, strict=True):
            case.bundle.annotate("cgroup", group.annotation())
        modest.start()
        record = hungry.start().ended()
        assert (record.signal, record.oom) == (signal.SIGKILL, True)
        shim = modest.shim().shim.pid
        eventually(lambda: _children(shim) == [str(modest.shim().init.pid)], 10 * host.patience)
        modest.exec("/bin/true")
        assert modest.created is not None
        signal.pidfd_send_signal(modest.created.init_pidfd, signal.SIGKILL)
        assert not modest.ended().oom
    finally:
        for group in groups:
            cgroup.kill(group)
            cgroup.wait_empty(group, 5)
            cgroup.remove(group)


def test_a_failed_creation_says_where_and_leaves_nothing(host: Host) -> None:
    case = host.case("/bin/true")
    case.bundle.mount("/data", "bind", str(host.directory / "missing"), "rbind", "rw")
    with pytest.raises(StepError) as caught:
        case.create()
    assert caught.value.step == "mount"
    assert caught.value.errno == 2
    assert "missing" in str(caught.value)
    assert list(case.run.iterdir()) == []


def test_a_program_that_does_not_exist_fails_the_creation(host: Host) -> None:
    case = host.case("/no/such/program")
    with pytest.raises(StepError) as caught:
        case.create()
    assert (caught.value.step, caught.value.path, caught.value.errno) == ("exec", "/no/such/program", 2)


def test_a_bundle_that_is_no_bundle_is_named(host: Host) -> None:
    case = host.case("/bin/true")
    case.bundle.config["hooks"] = {"prestart": [{"path": "/bin/true"}]}
    with pytest.raises(StepError) as caught:
        case.create()
    assert caught.value.step == "config"
    (case.bundle.directory / "config.json").write_text("{")
    with pytest.raises(StepError) as caught:
        host.zygote.create(case.bundle.directory, case.run, timeout=10)
    assert caught.value.step == "config"
    with pytest.raises(StepError) as caught:
        host.zygote.create(host.directory / "none", case.run, timeout=10)
    assert caught.value.step == "bundle"


def test_a_program_that_cannot_be_executed_fails_the_start_and_leaves_no_record(host: Host) -> None:
    (host.directory / "junk").write_bytes(b"\x00junk")
    (host.directory / "junk").chmod(0o755)
    case = host.case("/junk")
    case.bundle.mount("/junk", "bind", str(host.directory / "junk"), "bind", "ro")
    created = case.create()
    with pytest.raises(StepError) as caught:
        case.start()
    assert caught.value.step == "exec"
    assert caught.value.errno == 8
    assert wait(created.shim_pidfd, 10)
    assert not (case.run / "exit.json").exists()


def test_a_container_killed_before_its_start_leaves_no_record(host: Host) -> None:
    case = host.case("/bin/true")
    created = case.create()
    signal.pidfd_send_signal(created.init_pidfd, signal.SIGKILL)
    assert wait(created.shim_pidfd, 10)
    assert not (case.run / "exit.json").exists()
    with pytest.raises(UnreachableError):
        case.control()


def test_a_start_repeated_succeeds(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    first = case.shim()
    case.start()
    assert case.shim() == first


def test_a_start_is_answered_by_the_shim_itself_and_a_silent_client_costs_no_process(host: Host) -> None:
    case = host.case("/bin/sleep", "1000")
    case.create()
    with case.control() as silent, case.control() as control:
        control.start()
        shim = case.shim()
        assert shim.started_boot is not None
        eventually(lambda: _children(shim.shim.pid) == [str(shim.init.pid)])
        control.start()
        assert control.state()["phase"] == silent.state()["phase"] == "running"
        assert len(_children(shim.shim.pid)) == 3
    eventually(lambda: _children(shim.shim.pid) == [str(shim.init.pid)])
    assert case.shim() == shim


def test_clients_that_ask_for_the_start_together_are_all_answered(host: Host) -> None:
    case = host.case("/bin/sleep", "1000")
    case.create()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(case.control()) for _ in range(8)]
        for client in clients:
            protocol.send(client._channel, {"op": "start"})
        gone = case.control()
        protocol.send(gone._channel, {"op": "start"})
        gone.close()
        answers = [protocol.receive(client._channel) for client in clients]
    assert answers == [({"ok": True}, [])] * 8


def test_a_start_in_another_form_is_a_start(host: Host) -> None:
    case = host.case("/bin/sleep", "1000")
    case.create()
    with case.control() as control:
        control._channel.send(b'{ "op": "start" }')
        assert protocol.receive(control._channel) == ({"ok": True}, [])
    assert case.shim().started_boot is not None


def test_an_agent_that_gives_up_leaves_nothing(host: Host) -> None:
    host.zygote.start()
    case = host.case("/bin/true")
    with pytest.raises(TimedOutError):
        case.create(timeout=0.0005)
    eventually(lambda: list(case.run.iterdir()) == [])
    eventually(lambda: _shims(host) == [])


def _children(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _shims(host: Host) -> list[str]:
    """The zygote's children, zombies too, but its spare."""
    return [pid for pid in _children(host.zygote.pid) if title(int(pid)) != "reconciler spare"]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def spare(host: Host) -> int:
    """Wait until the zygote has its spare, complete, and give its pid."""
    found: list[int] = []

    def there() -> bool:
        pids = [int(pid) for pid in _children(host.zygote.pid)]
        found[:] = [pid for pid in pids if title(pid) == "reconciler spare" and _children(pid)]
        return bool(found)

    host.zygote.start()
    eventually(there)
    (pid,) = found
    return pid


def test_a_container_gets_the_spare_and_the_next_one_another(host: Host) -> None:
    first, cases = spare(host), [host.case("/bin/sleep", "1000") for _ in range(2)]
    assert cases[0].create().shim.pid == first
    assert title(first) == "reconciler shim test/case0"
    second = spare(host)
    assert cases[1].create().shim.pid == second != first
    for case in cases:
        case.start()
        assert case.exec("/bin/echo", "well") == "well\n"


@pytest.mark.parametrize("whom", ["the spare", "its maker"])
def test_a_spare_that_is_killed_is_not_missed(host: Host, whom: str) -> None:
    pid = spare(host)
    (maker,) = _children(pid)
    os.kill(pid if whom == "the spare" else int(maker), signal.SIGKILL)
    eventually(lambda: gone(pid) and gone(int(maker)))
    case = host.case("/bin/sleep", "1000").start()
    assert case.shim().shim.pid != pid
    assert spare(host) != pid


def test_a_spare_ends_with_its_zygote(host: Host) -> None:
    pid = spare(host)
    (maker,) = _children(pid)
    case = host.case("/bin/sleep", "1000").start()
    pids = [pid, int(maker), spare(host)]
    assert case.shim().shim.pid == pid
    host.zygote.close()
    eventually(lambda: [gone(pid) for pid in pids] == [False, True, True])


def test_a_request_that_is_not_understood_is_refused_with_a_spare_and_without(host: Host) -> None:
    spare(host)
    for _ in range(2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            host.zygote._send({"op": "dance"}, theirs.fileno())
            theirs.close()
            received = protocol.receive(ours)
        assert received is not None
        assert "request not understood" in str(received[0]["error"])


def test_twenty_are_created_side_by_side_and_a_slow_one_holds_up_nobody(host: Host) -> None:
    host.zygote.start()
    cases = [host.case("/bin/sleep", "1000") for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        for created in pool.map(lambda case: case.create(), cases):
            assert alive(created.shim)
        list(pool.map(lambda case: case.start(), cases))
    assert len({case.shim().init.pid for case in cases}) == 20


def test_no_zombie_stays_behind(host: Host) -> None:
    cases = [host.case("/bin/true").start() for _ in range(5)]
    for case in cases:
        case.ended()
    eventually(lambda: _shims(host) == [])


def test_ps_shows_who_is_who(host: Host) -> None:
    case = host.case("/bin/sleep", "1000", name="web/app").start()
    assert case.created is not None
    shim = case.created.shim.pid
    lines = subprocess.run(
        ["ps", "-o", "args=", "-p", f"{host.zygote.pid},{shim}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.strip() for line in lines] == ["reconciler zygote", "reconciler shim web/app"]
    assert os.getsid(shim) == shim
    assert os.getsid(host.zygote.pid or 0) == host.zygote.pid


def test_p1_zygote_and_shims_run_from_a_sealed_copy(host: Host) -> None:
    interpreter = Path(os.path.realpath("/proc/self/exe"))
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    case = host.case("/bin/sleep", "1000")
    created = case.create()
    for pid in (host.zygote.pid, created.shim.pid, created.init.pid):
        assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:reconciler")
        fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        assert path.seals(fd) == path.SEAL_ALL
        os.close(fd)
        with pytest.raises(OSError, match=r"Text file busy|Operation not permitted"):
            os.open(f"/proc/{pid}/exe", os.O_WRONLY)
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


def test_p18_shims_have_nothing_of_the_agents(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")
    leaked_read, leaked_write = os.pipe()
    for fd in (leaked_read, leaked_write):
        os.set_inheritable(fd, True)
    case = host.case("/bin/sleep", "1000")
    created = case.create()
    inode = os.fstat(leaked_read).st_ino
    for pid in (host.zygote.pid, created.shim.pid, created.init.pid):
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert f"pipe:[{inode}]" not in descriptors(pid or 0)
    for fd in (leaked_read, leaked_write):
        os.close(fd)


def descriptors(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def test_p3_the_program_gets_three_descriptors_and_the_shim_keeps_what_it_needs(host: Host) -> None:
    case = host.shell("ls /proc/self/fd | tr '\\n' ' '; echo; sleep 1000").start()
    eventually(lambda: case.output() != [])
    assert case.output()[0].split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads
    before = descriptors(case.shim().shim.pid)
    for _ in range(5):
        case.exec("/bin/true")
        with case.control() as control:
            control.state()
    # The connection that started the container may still have been open when `before` was taken: fewer is right, too.
    eventually(lambda: set(descriptors(case.shim().shim.pid)) <= set(before))
    assert len(before) < 20


def test_an_idle_shim_does_not_wake_up(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    with case.control() as control:
        control.state()
    pid = case.shim().shim.pid
    eventually(lambda: _children(pid) == [str(case.shim().init.pid)])
    select.select([], [], [], 0.05)
    before = status(pid, "voluntary_ctxt_switches")
    assert case.created is not None
    assert not wait(case.created.init_pidfd, 0.5)
    assert status(pid, "voluntary_ctxt_switches") == before


def test_a_shim_is_small(host: Host, record_property: Callable[[str, object], None]) -> None:
    cases = [host.case("/bin/sleep", "1000").start() for _ in range(4)]
    sizes = [memory(case.shim().shim.pid) for case in cases]
    record_property("private_kib", sizes)
    print("private KiB of four shims:", sizes)
    assert max(sizes) < 1024


def test_the_zygotes_rehearsal_leaves_nothing(host: Host) -> None:
    host.zygote.start()
    assert host.zygote.pid is not None
    pid = spare(host)
    assert _children(host.zygote.pid) == [str(pid)]
    assert [path.name for path in host.layout.zygote.iterdir()] == ["stderr"]
    own = {host.zygote.pid, pid, *map(int, _children(pid))}
    assert set(_holders(host.layout.zygote / "stderr")) == own
    names = descriptors(host.zygote.pid)
    standard = ["/dev/null", "/dev/null", str(host.layout.zygote / "stderr")]
    assert sorted(re.sub(r"\[\d+\]", "", name) for name in names) == sorted(
        [*standard, "socket:", "socket:", "anon_inode:[pidfd]"]
    )
    names = descriptors(pid)
    assert sorted(re.sub(r"\[\d+\]", "", name) for name in names) == sorted([*standard, "socket:"])
    score = Path(f"/proc/{host.zygote.pid}/oom_score_adj").read_text()
    assert score == Path("/proc/self/oom_score_adj").read_text()


def _holders(file: Path) -> list[int]:
    """The processes whose standard error is `file`, orphans included."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "fd/2") == str(file):
                found.append(int(entry.name))
    return found


def memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(value) for value in re.findall(r"Private_(?:Dirty|Clean):\s+(\d+) kB", text))


def test_a_terminal_is_the_containers_own_and_its_output_is_logged(host: Host) -> None:
    case = host.shell("tty; stty size; echo to stderr >&2")
    case.bundle.config["process"]["terminal"] = True
    case.bundle.config["process"]["consoleSize"] = {"height": 31, "width": 99}
    assert case.start().ended().code == 0
    assert case.output() == [b"/dev/pts/0\r", b"31 99\r", b"to stderr\r"]


def test_output_without_a_log_is_drained(host: Host) -> None:
    case = host.case("/bin/sh", "-c", "head -c 5000000 /dev/zero; echo done", log=False).start()
    assert case.ended().code == 0


@pytest.mark.parametrize(
    "content", ["", "{", "null", '{"version": 1}', '{"boot": 1, "shim": 2}', "[" * 100_000]
)
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert read_shim(tmp_path / "record.json") is None
    assert read_exit(tmp_path / "record.json") is None


def test_a_process_is_known_by_its_start_not_by_its_number() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert alive(me)
    fd = open_pidfd(me)
    assert fd is not None
    os.close(fd)
    stranger = type(me)(me.pid, me.started + 1, me.boot)
    assert not alive(stranger)
    assert open_pidfd(stranger) is None
    assert not alive(type(me)(me.pid, me.started, "another boot"))


def test_r18_a_zombie_counts_as_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    who = identify(child.pid)
    assert who is not None
    assert child.stdout is not None
    child.stdout.read()
    eventually(lambda: gone(child.pid))
    assert not alive(who)
    assert open_pidfd(who) is None
    child.wait()
    child.stdout.close()
    assert identify(child.pid) is None


def test_an_end_that_was_written_before_peaks_were_kept_is_read(tmp_path: Path) -> None:
    """Release 0.1.0 of the first days wrote none."""
    times = '"started_boot": 1.0, "started_wall": 2.0, "finished_boot": 3.0, "finished_wall": 4.0'
    path = tmp_path / "exit.json"
    path.write_text(f'{{"version": 1, "boot": "b", "code": 0, "signal": null, "oom": false, {times}}}')
    assert read_exit(path) == ExitRecord(0, None, False, 1.0, 2.0, 3.0, 4.0, "b", None)
    path.write_text(
        f'{{"version": 1, "boot": "b", "code": 0, "signal": null, "oom": false, "peak": 77, {times}}}'
    )
    found = read_exit(path)
    assert found is not None
    assert found.peak == 77


def test_the_shims_records_are_json_of_version_1(host: Host) -> None:
    case = host.case("/bin/true").start()
    case.ended()
    for name in ("shim.json", "exit.json"):
        assert json.loads((case.run / name).read_text())["version"] == 1
        assert (case.run / name).stat().st_mode & 0o777 == 0o600
