"""What lasts: a day without a network, a large image, programs that will not end, churn for as long as you like.

Ids as in docs/security.md. `SOAK_SECONDS=43200 pytest -k r21` lets the churn go on for half a day; what is drawn comes
from the seed that a failure names, and SOAK_SEED brings it back.
"""

import hashlib
import json
import os
import random
import re
import signal
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.engine.image import OCI_LAYER
from reconciler.spec.reference import Digest
from tests.e2e.device import Device
from tests.e2e.test_git import Remote
from tests.e2e.test_git import follow as follow_git
from tests.e2e.world import Registry, upon
from tests.faults.test_agent_faults import app, groups, kill, layout, running
from tests.images import Built, LayerBlob, busybox, file
from tests.kernel import shims
from tests.probes import KERNEL_LACKS

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_MIB = 1 << 20
_BLOCK = 400 << 10


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    device.configure(bundles=[str(box.layout)], interval="1s")
    return device


def memory(pid: int, key: str) -> int:
    """A figure of /proc/PID/status in bytes: VmHWM is the most that was ever resident, VmRSS what is now."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


# --- R7 ---------------------------------------------------------------------------------------------------------------

_PARTITION = """
table inet partition {
    chain out { type filter hook output priority -150; tcp dport 5000 reject with tcp reset; }
}
"""


def test_r7_without_a_network_everything_goes_on_and_little_is_said(
    device: Device, box: Built, tmp_path: Path
) -> None:
    """The registry and the repository are cut off: what runs runs, what dies is repaired, what waits comes later."""
    registry = Registry(device, tmp_path / "registry")
    first, later = (
        registry.push(box, "box"),
        upon(box, tmp_path / "later", [file("later", b"x")], tag="later"),
    )
    waiting = registry.push(later, "later")
    device.configure(registries={"insecure": [registry.name]}, interval="1s")
    remote = Remote(device.root)
    specs = {name: app(name, box).replace(f"box.example/box:1@{box.digest}", first) for name in ("a", "b")}
    remote.commit({f"site/{name}.yaml": text for name, text in specs.items()})
    follow_git(device, remote)
    pids = running(device, 2)

    remote.commit({"site/later.yaml": app("later", box).replace(f"box.example/box:1@{box.digest}", waiting)})
    device.inside(["nft", "-f", "-"], input=_PARTITION.encode())
    device.until(lambda: "later" in device.status(), timeout=20)
    remote.bare.rename(device.root / "away.git")
    device.until(lambda: failed_fetches(device) >= 2)
    device.until(lambda: "refused" in device.reason("later"))
    assert "fleet.git: " in (told := device.reconciler("status").stderr)
    assert "; using commit " in told
    said = device.output.count("\n")
    before = failed_fetches(device)
    device.until(lambda: failed_fetches(device) >= before + 10, timeout=30)
    assert device.output.count("\n") - said <= 2, device.output
    assert {name: device.pid(name) for name in pids} == pids
    kill(pids["a/main"])
    device.until(lambda: device.pid("a/main") not in (0, pids["a/main"]))
    device.stop(signal.SIGKILL)  # a new agent, too, has all that it needs
    follow_git(device, remote)
    device.until(lambda: failed_fetches(device) >= 2)
    assert device.pid("b/main") == pids["b/main"]
    assert device.running("a/main")

    device.inside(["nft", "delete", "table", "inet", "partition"])
    (device.root / "away.git").rename(remote.bare)
    device.running("later/main", timeout=60)
    assert device.pid("b/main") == pids["b/main"]


def failed_fetches(device: Device) -> float:
    text = device.curl("http://127.0.0.1:9470/metrics")
    found = re.search(r'^reconciler_source_fetch_total\{.*result="error"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


# --- R11 --------------------------------------------------------------------------------------------------------------


def large_layer(size: int, files: int) -> LayerBlob:
    """A layer of one large file and many small ones; it packs a hundredfold, which is no bomb yet."""

    def archive() -> Iterator[bytes]:
        if size:
            yield _header("big", size // _BLOCK * _BLOCK)
            yield from (block for _ in range(size // _BLOCK))
        for number in range(files):
            yield _header(f"many/{number // 1000}/{number}", 512) + block[number % 2048 :][:512]
        yield bytes(1024)

    block = random.Random(11).randbytes(4096) + bytes(_BLOCK - 4096)
    digest = hashlib.sha256()
    packer = zlib.compressobj(1, wbits=31)
    packed = []
    for piece in archive():
        digest.update(piece)
        packed.append(packer.compress(piece))
    packed.append(packer.flush())
    return LayerBlob(b"".join(packed), OCI_LAYER + "+gzip", Digest("sha256", digest.hexdigest()))


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.USTAR_FORMAT)


def test_r11_a_large_image_takes_no_more_memory_than_a_small_one(
    device: Device, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A layer of 1 GiB and one of thirty thousand files are fetched and unpacked beside each other."""
    registry = Registry(device, tmp_path / "registry")
    size, files = 1 << 30, 20_000
    more = [large_layer(size, 0), large_layer(0, files)]
    image = busybox(tmp_path / "large", more=more)
    pinned = registry.push(image, "large")
    device.configure(registries={"insecure": [registry.name]})
    look = f"stat -c %s /big; ls /many/{files // 1000 - 1} | wc -l; exec sleep 1000"
    device.spec("large", app("large", image, look).replace(f"box.example/box:1@{image.digest}", pinned))
    device.start()
    device.running("large/main", timeout=120)
    most = memory(device.agent_pid, "VmHWM")
    record_property("most resident", f"{most / _MIB:.1f} MiB")
    assert most <= 80 * _MIB, f"{most / _MIB:.1f} MiB"
    seen = [str(size // _BLOCK * _BLOCK), "1000"]
    device.until(lambda: device.reconciler("logs", "large/main").stdout.split() == seen)


# --- R12, R13 ---------------------------------------------------------------------------------------------------------

_STUBBORN = "trap 'cp /proc/uptime /data/asked' TERM; while :; do sleep 0.05; done"


def test_r12_a_program_that_ignores_sigterm_has_its_grace_and_no_more(
    ready: Device, box: Built, patience: float
) -> None:
    """Both times are on the boot clock: the program's own note of SIGTERM, and the end of its process."""
    grace = 2.0
    volume = '    volumes: ["data:/data"]\nvolumes: {data: {}}'
    spec = app("stubborn", box, _STUBBORN, more=volume).replace(
        "stop_grace_period: 0s", f"stop_grace_period: {grace:g}s"
    )
    ready.spec("stubborn", spec.replace("init: true", "init: false"))
    ready.spec("other", app("other", box))
    ready.start()
    running(ready, 2)
    process = os.pidfd_open(ready.running("stubborn/main"))
    try:
        (ready.specs / "stubborn.yaml").unlink()
        assert shims.wait(process, 20 * patience)
        ended = time.clock_gettime(time.CLOCK_BOOTTIME)
    finally:
        os.close(process)
    asked = layout(ready).volume_data("stubborn", "data") / "asked"
    took = ended - float(asked.read_text().split()[0])
    assert grace - 0.1 <= took <= grace + 1.0 * patience, took
    ready.until(lambda: "stubborn/main" not in ready.ps(), timeout=3)


# A program that was replaced by one that never waits for its children, as images do that forget an init.
_ZOMBIES = "i=0; while [ $i -lt 14 ]; do sleep 0.01 & i=$((i+1)); done; exec sleep 100000"  # of 16 processes


@contextmanager
def frozen(pid: int) -> Iterator[Path]:
    """Keep a process from running, and so from dying: it is as a process that waits for storage which hangs."""
    group = Path(f"/sys/fs/cgroup/freezer/rct-frozen-{os.getpid()}")
    if not (group.parent / "cgroup.procs").exists():
        pytest.skip(f"{KERNEL_LACKS}the freezer of cgroup version 1, which holds even what was killed")
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        shims.eventually(lambda: not (group / "cgroup.procs").read_text(), 20)
        group.rmdir()


def test_r13_zombies_and_what_can_not_die_hold_up_nobody_else(ready: Device, box: Built) -> None:
    """Zombies fill only their own limit of processes; what hangs is said to, tried again, and gone once it can be."""
    for name, command in (
        ("zombies", _ZOMBIES),
        ("stuck", "exec sleep 100000"),
        ("other", "exec sleep 100000"),
    ):
        ready.spec(name, app(name, box, command).replace("init: true", "init: false"))
    ready.start()
    pids = running(ready, 3)
    zombies = Path(f"/proc/{pids['zombies/main']}/task/{pids['zombies/main']}/children")
    ready.until(lambda: len(zombies.read_text().split()) >= 10)
    (ready.specs / "zombies.yaml").unlink()
    ready.until(lambda: "zombies/main" not in ready.ps())
    assert shims.gone(pids["zombies/main"])

    with frozen(pids["stuck/main"]):
        (ready.specs / "stuck.yaml").unlink()
        ready.spec("new", app("new", box))
        ready.running("new/main")
        ready.logged("its processes do not end although they were killed", timeout=30)
        assert not shims.gone(pids["stuck/main"])
        ready.spec("newer", app("newer", box))
        ready.running("newer/main")
        assert ready.pid("other/main") == pids["other/main"]
        assert "stuck/main" in ready.ps()
    ready.until(lambda: "stuck/main" not in ready.ps(), timeout=40)
    assert shims.gone(pids["stuck/main"])
    assert len({path.name for path in groups(ready)}) == 3


# --- R21 --------------------------------------------------------------------------------------------------------------


class Churn:
    """Apps that come, change and go at random, while what carries them is killed."""

    def __init__(self, device: Device, box: Built, seed: int) -> None:
        self._device = device
        self._box = box
        self._dice = random.Random(seed)
        self._serial = 0
        self.done: list[str] = []
        self.killed = 0  # agents

    @property
    def apps(self) -> list[Path]:
        return sorted(self._device.specs.glob("churn-*.yaml"))

    def step(self) -> None:
        """Do one thing."""
        acts: list[tuple[int, Callable[[], str]]] = [
            (6, self._create),
            (4, self._change),
            (3, self._delete),
            (2, self._exec),
            (2, self._kill_program),
            (1, self._kill_agent),
            (1, self._collect),
            (1, self._break),
        ]
        act = self._dice.choices([one for _, one in acts], [weight for weight, _ in acts])[0]
        self.done.append(act())

    def _text(self, name: str) -> str:
        self._serial += 1
        volume = '    volumes: ["data:/data"]\nvolumes: {data: {}}' if self._dice.random() < 0.3 else ""
        ports = (
            f'    ports: ["{self._dice.randrange(20_000, 20_050)}:80"]' if self._dice.random() < 0.3 else ""
        )
        return app(name, self._box, more="\n".join(filter(None, (ports, volume))), mark=str(self._serial))

    def _create(self) -> str:
        if len(self.apps) >= 12:
            return self._delete()
        name = f"churn-{self._dice.randrange(30):02}"
        self._device.spec(name, self._text(name))
        return f"create {name}"

    def _some(self) -> Path | None:
        return self._dice.choice(self.apps) if self.apps else None

    def _change(self) -> str:
        if (path := self._some()) is None:
            return self._create()
        self._device.spec(path.stem, self._text(path.stem))
        return f"change {path.stem}"

    def _delete(self) -> str:
        if (path := self._some()) is None:
            return self._create()
        path.unlink()
        return f"delete {path.stem}"

    def _break(self) -> str:
        if (path := self._some()) is None:
            return self._create()
        self._device.spec(path.stem, "apiVersion: reconciler/v1\nkind: App\nname: [\n")
        return f"break {path.stem}"

    def _exec(self) -> str:
        if (path := self._some()) is not None:
            self._device.reconciler("exec", f"{path.stem}/main", "true", check=False)
        return "exec"

    def _kill_program(self) -> str:
        pids = [
            pid for name in self._device.ps() if name.startswith("churn") and (pid := self._device.pid(name))
        ]
        if pids:
            kill(self._dice.choice(pids))
        return "kill a program"

    def _kill_agent(self) -> str:
        self._device.stop(self._dice.choice([signal.SIGKILL, signal.SIGTERM]))
        self._device.start()
        self.killed += 1
        return "kill the agent"

    def _collect(self) -> str:
        self._device.reconciler("gc", check=False)
        return "collect garbage"


# What the churn itself brings about; any other failure is a fault of ours.
_EXPECTED = re.compile(
    r"already (used|published) by|ended while|ended before|port |killed|canceled|cancelled"
)


def test_r21_churn_leaves_nothing_and_grows_nothing(ready: Device, box: Built) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "30"))
    seed = int(os.environ.get("SOAK_SEED", 0)) or int.from_bytes(os.urandom(4), "big")
    churn = Churn(ready, box, seed)
    ready.spec("still", app("still", box))
    ready.start()
    still = ready.running("still/main")
    end = time.monotonic() + seconds
    resident: list[int] = []
    while time.monotonic() < end:
        churn.step()
        time.sleep(0.2)
        if churn.killed == 0 or churn.done[-1] != "kill the agent":
            resident.append(memory(ready.agent_pid, "VmRSS"))
    where = f"SOAK_SEED={seed}: {churn.done}"
    assert ready.pid("still/main") == still, where
    for path in churn.apps:
        path.unlink()
    ready.reconciler("apply", "--allow-empty", timeout=60)
    assert set(running(ready, 1)) == {"still/main"}, where
    descriptors = len(os.listdir(f"/proc/{ready.agent_pid}/fd"))
    assert descriptors < 60, where
    assert max(resident) < 80 * _MIB, f"{max(resident) / _MIB:.1f} MiB, {where}"
    assert os.listdir(layout(ready).containers) == os.listdir(layout(ready).run_containers), where
    assert len({path.name for path in groups(ready)}) == 1, where
    links = re.findall(r"\d+: (r[cv][^:@]*)", ready.inside(["ip", "-o", "link"]).stdout)
    assert len(links) <= 2, f"{links} {where}"
    failures = [
        event["message"]
        for event in map(json.loads, layout(ready).events.read_text().splitlines())
        if event["kind"] == "failed"
    ]
    assert [text for text in failures if not _EXPECTED.search(text)] == [], where
