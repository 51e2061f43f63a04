"""What a container does not notice: the death of agent and zygote, full disks, floods, clients that misbehave."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.engine import logs
from reconciler.engine.logfollow import Log, Window, follow_all
from reconciler.engine.process import Control, alive, open_pidfd, read_exit, read_shim
from reconciler.linux import mount
from tests.kernel.shims import Host, eventually, gone, wait

pytestmark = pytest.mark.kernel

# One MiB per second: 200 numbered lines of 525 bytes, twenty times a second.
_CHATTER = """
n=0; pad=$(head -c 515 /dev/zero | tr '\\0' x)
while [ $n -lt 3000 ]; do
  i=0; while [ $i -lt 100 ]; do echo "$n $pad"; n=$((n+1)); i=$((i+1)); done
  sleep 0.05
done
"""

_AGENT = """
import sys
from pathlib import Path
from reconciler.engine.layout import Layout
from reconciler.engine.process import Control, Zygote
base, bundle, run = map(Path, sys.argv[1:])
zygote = Zygote(Layout(base / "state", base / "run"))
created = zygote.create(bundle, run, timeout=30)
with Control.connect(run / "control.sock") as control:
    control.start()
print(zygote.pid, created.shim.pid, created.init.pid, flush=True)
sys.stdin.read()
"""


def test_r2_a_killed_agent_costs_neither_the_process_nor_a_line(host: Host) -> None:
    case = host.shell(_CHATTER)
    case.bundle.compile()
    (case.bundle.directory / "config.json").write_text(json.dumps(case.bundle.config))
    command = [sys.executable, "-c", _AGENT, str(host.directory), str(case.bundle.directory), str(case.run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        line = agent.stdout.readline().split()
        assert len(line) == 3
        zygote, shim, init = map(int, line)
        eventually(lambda: logs.size(case.log) > 100_000)
        agent.kill()
    eventually(lambda: gone(zygote))
    found = read_shim(case.run / "shim.json")
    assert found is not None
    assert (found.shim.pid, found.init.pid) == (shim, init)
    assert alive(found.shim)
    pidfd = open_pidfd(found.shim)
    assert pidfd is not None
    with Control.connect(case.run / "control.sock") as control:  # a new agent
        assert control.state()["phase"] == "running"
    assert "still" in case.exec("echo", "still there")
    assert wait(pidfd, 60 * host.patience)
    os.close(pidfd)
    record = read_exit(case.run / "exit.json")
    assert record is not None
    assert record.code == 0
    numbers = [int(record.data.split()[0]) for record in logs.read(case.log)]
    assert numbers == list(range(3000))


def test_a_killed_zygote_is_replaced_and_its_shims_stay(host: Host) -> None:
    first = host.case("/bin/sleep", "1000").start()
    before = host.zygote.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    second = host.case("/bin/sleep", "1000").start()
    assert host.zygote.pid != before
    for case in (first, second):
        assert alive(case.shim().shim)
        assert case.exec("echo", "yes") == "yes\n"


def test_a_killed_shim_takes_its_container_along_and_is_told_apart_from_an_exit(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    shim = case.shim()
    os.kill(shim.shim.pid, signal.SIGKILL)
    eventually(lambda: not alive(shim.init))
    assert not alive(shim.shim)
    assert read_exit(case.run / "exit.json") is None


def test_a_shim_ignores_what_a_shutdown_sends_to_everybody(host: Host) -> None:
    case = host.shell("trap 'echo ending; exit 4' TERM; echo ready; while :; do sleep 0.05; done").start()
    case.until(b"ready")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        os.kill(case.shim().shim.pid, number)
    os.kill(case.shim().init.pid, signal.SIGTERM)
    assert case.ended().code == 4
    assert case.output()[-1] == b"ending"


@pytest.fixture
def small_disk(host: Host) -> "Disk":
    return Disk(host)


class Disk:
    """A tmpfs of one MiB for a log."""

    def __init__(self, host: Host) -> None:
        self.path = host.directory / "disk"
        self.path.mkdir()
        mount.mount("small", str(self.path), "tmpfs", 0, "size=1m")

    def close(self) -> None:
        mount.umount(str(self.path), 2)


def test_r4_a_full_disk_blocks_nobody_and_what_it_cost_is_told(host: Host, small_disk: Disk) -> None:
    try:
        case = host.shell(
            "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo flooded; read line < /fifo; echo line $line"
        )
        os.mkfifo(host.directory / "fifo")
        case.bundle.mount("/fifo", "bind", str(host.directory / "fifo"), "bind")
        host.log(case.bundle, directory=str(small_disk.path), max_size=100 << 20)
        case.start()
        fifo = os.open(host.directory / "fifo", os.O_WRONLY)  # opens once the flood is over
        with case.control() as control:
            lost = control.state()["log"]
        assert isinstance(lost, dict)
        assert lost["dropped"] > 1_900_000
        assert lost["error"] == 28
        (small_disk.path / "current.log").write_bytes(b"")  # room again
        os.write(fifo, b"after\n")
        os.close(fifo)
        assert case.ended().code == 0
        records = list(logs.read(small_disk.path))
        assert records[-1].data == b"line after"
        assert sum(record.dropped for record in records) >= lost["dropped"]
    finally:
        for case in host.cases:
            case.kill()
        small_disk.close()


def test_r14_a_flood_stays_within_its_disk_space_and_loses_nothing_unseen(host: Host) -> None:
    case = host.shell(
        "i=0; while [ $i -lt 40 ]; do head -c 1000000 /dev/zero; i=$((i+1)); done; echo; echo end"
    )
    host.log(case.bundle, max_size=1 << 20, max_files=3)
    case.start()
    limit = 3 << 20
    assert case.created is not None
    while not wait(case.created.shim_pidfd, 0.02):
        assert logs.size(case.log) <= limit + 4096
    assert case.ended().code == 0
    assert case.output()[-1] == b"end"
    assert logs.size(case.log) <= limit


def test_rotation_changes_in_place(host: Host) -> None:
    case = host.shell(
        "head -c 300000 /dev/zero; echo half; read line < /fifo; head -c 300000 /dev/zero; echo end"
    )
    os.mkfifo(host.directory / "fifo")
    case.bundle.mount("/fifo", "bind", str(host.directory / "fifo"), "bind")
    case.start()
    with case.control() as control:
        control.update_logging(max_size=50_000, max_files=2, compress=False)
    (host.directory / "fifo").write_bytes(b"go\n")
    case.ended()
    assert logs.size(case.log) <= 100_000
    assert case.output()[-1].endswith(b"end")


def test_a1_clients_that_misbehave_cost_themselves_only(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    idle = [Control.connect(case.run / "control.sock") for _ in range(10)]
    for junk in (b"", b"junk", b"[]", b'{"op": 3}', b'{"op": "nonsense"}', b"[" * 40_000, b'{"body": true}'):
        client = connect(case.run)
        client.send(junk)
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            answer = client.recv(65536)
            assert answer == b"" or b"error" in answer
        client.close()
    vanished = connect(case.run)
    vanished.send(b'{"op": "state"}')
    vanished.close()
    with case.control() as control:
        assert control.state()["phase"] == "running"
    for control in idle:
        control.close()
    shim = case.shim()
    eventually(
        lambda: (
            Path(f"/proc/{shim.shim.pid}/task/{shim.shim.pid}/children").read_text().split()
            == [str(shim.init.pid)]
        )
    )


def connect(run: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.open(run, os.O_PATH)
    client.connect(f"/proc/self/fd/{fd}/control.sock")
    os.close(fd)
    return client


def test_only_root_may_ask(host: Host) -> None:
    case = host.case("/bin/sleep", "1000").start()
    sock = case.run / "control.sock"
    assert sock.stat().st_mode & 0o777 == 0o600
    sock.chmod(0o666)  # and even so:
    script = (
        "import os, socket, sys\n"
        "fd = os.open(sys.argv[1], os.O_PATH)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "client.connect(f'/proc/self/fd/{fd}')\n"
        "client.settimeout(10)\n"
        "try:\n"
        '    client.send(b\'{"op": "kill", "signal": 9}\')\n'
        "    print(client.recv(1000))\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(sock)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() in ("b''", "ConnectionResetError", "BrokenPipeError"), done
    assert alive(case.shim().init)


def test_a_deleted_run_directory_does_not_stop_the_pump(host: Host) -> None:
    case = host.shell("read line < /fifo; echo $line")
    os.mkfifo(host.directory / "fifo")
    case.bundle.mount("/fifo", "bind", str(host.directory / "fifo"), "bind")
    case.start()
    for file in case.run.iterdir():
        file.unlink()
    case.run.rmdir()
    (host.directory / "fifo").write_bytes(b"on\n")
    assert case.created is not None
    assert wait(case.created.shim_pidfd, 10)
    assert case.output() == [b"on"]
    assert "exit.json" in host.complaints()
    (host.layout.zygote / "stderr").write_text("")


def test_a_log_can_be_followed_while_it_is_written(host: Host) -> None:
    case = host.shell("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; sleep 0.2; echo last")
    host.log(case.bundle, max_size=4096, max_files=1000)
    created = case.create()
    case.start()
    got = [record.data for _, record in follow_all([Log(case.log, created.shim_pidfd)], Window())]
    assert got == [b"line %d" % number for number in range(300)] + [b"last"]


def test_the_pump_is_cheap(host: Host) -> None:
    case = host.shell("head -c 200000000 /dev/zero")
    host.log(case.bundle, max_size=10 << 20, max_files=2)
    began = time.monotonic()
    case.start()
    assert case.created is not None
    ticks = 0
    while not select.select([case.created.shim_pidfd], [], [], 0.05)[0]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{case.created.shim.pid}/stat").read_bytes().rpartition(b")")[2].split()
            ticks = max(ticks, int(fields[11]) + int(fields[12]))
    took = time.monotonic() - began
    seconds = ticks / os.sysconf("SC_CLK_TCK")
    print(
        f"200 MB in {took:.2f} s with {seconds:.2f} s of the shim's CPU: {seconds / 2:.0%} of a core at 100 MB/s"
    )
    assert seconds < 1.0 * host.patience
