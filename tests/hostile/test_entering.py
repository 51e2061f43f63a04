"""The moments at which the engine is in a container with privileges: what it opens, writes and runs there is traced.

strace sees every call of the zygote and of all that it forks, while the container does its best to be in the way: a
false /proc, libraries and helpers of its own in every place that libc looks at, links that change under the hands.
Ids as in docs/security.md.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reconciler.engine.process import CommandError
from reconciler.linux.path import RENAME_EXCHANGE, renameat2
from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.test_loop import sleeper
from tests.images import Built
from tests.kernel.box import Bundle, make_bundle, run
from tests.kernel.leaks import LeakCheck
from tests.kernel.shims import Case, Host, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

_TIMES = 200
_CALLS = "execve,execveat,open,openat,openat2,setns,pivot_root,chroot"
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(.*)")


class Trace:
    """What the zygote and its children called, by pid and in order: (call, rest of the line)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def calls(self) -> dict[int, list[tuple[str, str]]]:
        found: dict[int, list[tuple[str, str]]] = {}
        waiting: dict[int, str] = {}
        for line in self._path.read_text(errors="replace").splitlines():
            matched = _LINE.match(line)
            if matched is None or matched[3].startswith("++"):
                continue
            pid, call, rest = int(matched[1]), matched[2], matched[3]
            if rest.endswith("<unfinished ...>"):
                waiting[pid] = rest.removesuffix("<unfinished ...>")
                continue
            if rest.startswith(" resumed>"):
                rest = waiting.pop(pid, "") + rest.removeprefix(" resumed>")
            found.setdefault(pid, []).append((call, rest))
        return found

    def inside(self) -> list[list[tuple[str, str]]]:
        """Of every process that entered a container: its calls from there on, the execve of the program included."""
        entered = []
        for calls in self.calls().values():
            for position, (call, rest) in enumerate(calls):
                if call == "pivot_root" or (call == "setns" and "CLONE_NEWNS" in rest):
                    after = calls[position + 1 :]
                    ends = [index for index, (name, _) in enumerate(after) if name == "execve"]
                    entered.append(after[: ends[0] + 1] if ends else after)
                    break
        return entered


@contextmanager
def traced(host: Host, path: Path) -> Iterator[Trace]:
    """Trace the zygote of `host`, and whatever it forks, until the end of the block."""
    host.zygote.start()
    command = ["strace", "-f", "-y", "-s", "200", "-e", f"trace={_CALLS}", "-o", str(path)]
    strace = subprocess.Popen(
        [*command, "-p", str(host.zygote.pid)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert strace.stderr is not None
    try:
        assert "attached" in strace.stderr.readline()
        yield Trace(path)
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(20 * host.patience)
        strace.stderr.close()


@pytest.fixture
def canary(tmp_path: Path, leak_check: LeakCheck) -> Iterator[Path]:
    """A file of the host's that nothing may change."""
    path = tmp_path / "canary"
    path.mkdir()
    (path / "file").write_text("untouched")
    yield path
    assert [(entry.name, entry.read_text()) for entry in path.iterdir()] == [("file", "untouched")]


# --- P7 ---------------------------------------------------------------------------------------------------------------


def test_p7_a_false_proc_gets_no_word_of_ours(host: Host, tmp_path: Path, canary: Path) -> None:
    """CVE-2025-52881: a /proc of the container's making, with links in the place of what an engine writes to."""
    false = tmp_path / "false"
    for name in ("self", "thread-self", "1", "self/attr", "self/task", "sys/net/ipv4"):
        (false / name).mkdir(parents=True)
    for name in (
        "self/oom_score_adj",
        "1/oom_score_adj",
        "self/attr/exec",
        "sys/net/ipv4/ip_unprivileged_port_start",
    ):
        (false / name).symlink_to(f"/../../../../..{canary}/file")
    case = host.case("/bin/sleep", "1000")
    mounts = case.bundle.config["mounts"]
    mounts[:] = [mount for mount in mounts if mount["destination"] != "/proc"]
    case.bundle.mount("/proc", "bind", str(false), "rbind")
    case.bundle.config["process"]["oomScoreAdj"] = 321
    case.bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "77"}
    case.bundle.config["linux"]["maskedPaths"] = []
    case.bundle.config["linux"]["readonlyPaths"] = []
    with traced(host, tmp_path / "trace") as trace:
        case.start()
        init = case.shim().init.pid
        assert Path(f"/proc/{init}/oom_score_adj").read_text() == "321\n"
        port = [
            "nsenter",
            f"--net=/proc/{init}/ns/net",
            "cat",
            "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        ]
        assert subprocess.check_output(port, text=True) == "77\n"
        case.exec("/bin/true")
    written = [
        rest
        for calls in trace.calls().values()
        for call, rest in calls
        if call.startswith("open") and re.search(r"oom_score_adj|sys/net", rest) and "O_WRONLY" in rest
    ]
    assert len(written) >= 3
    for rest in written:
        # By a descriptor of a procfs that was just made, no link followed; or on the host, before it sees the container
        beneath = "RESOLVE_BENEATH" in rest and "RESOLVE_NO_SYMLINKS" in rest
        assert beneath or re.search(r'AT_FDCWD[^,]*, "/proc/(self|\d+)/oom_score_adj"', rest), rest
    for calls in trace.inside():
        assert not [rest for call, rest in calls if "/proc" in rest.split("=")[0]]


# --- P10 --------------------------------------------------------------------------------------------------------------

# What may be opened with privileges once the container's root is the root: its users, its null device, its program.
_ALLOWED = re.compile(r'"(/|\.|/etc/passwd|/etc/group|/dev/null|/dev/pts/ptmx|/somewhere)"')


def test_p10_nothing_of_the_image_is_loaded_or_run_on_the_way_in(host: Host, tmp_path: Path) -> None:
    """CVE-2019-14271, CVE-2026-41567: libraries, modules, locales, helpers wherever one is looked for."""
    image = tmp_path / "image"
    mine = Path(os.__file__).parent
    for name in (
        "lib/x86_64-linux-gnu/libnss_files.so.2",
        "etc/ld.so.preload",
        "etc/nsswitch.conf",
        "usr/lib/locale/C.utf8/LC_CTYPE",
        "usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
        "usr/bin/python3",
        "usr/bin/tar",
        "usr/bin/xz",
        f"{mine.relative_to('/')}/encodings/idna.py",
        f"{mine.relative_to('/')}/pwd.py",
    ):
        (image / name).parent.mkdir(parents=True, exist_ok=True)
        (image / name).write_text("#!/bin/sh\necho taken >/taken\n")
        (image / name).chmod(0o755)
    (image / "somewhere").mkdir()
    case = host.shell("ls / | grep taken; exec sleep 1000")
    layers = [str(image), str(host.layer)]
    case.bundle.annotate("layers", layers).annotate("user", "web")
    with traced(host, tmp_path / "trace") as trace:
        case.start()
        assert (
            case.exec("/bin/sh", "-c", "id -u; pwd", user="web:logs", cwd="/somewhere")
            == "1000\n/somewhere\n"
        )
        eventually(
            lambda: len(trace.inside()) == 2 and all(calls[-1][0] == "execve" for calls in trace.inside())
        )
    for calls in trace.inside():
        for call, rest in calls[:-1]:
            assert call.startswith("open"), (call, rest)
            assert _ALLOWED.search(rest), rest
        assert calls[-1][1].startswith('("/bin/sh"'), calls[-1]
    assert case.output() == []
    assert not (case.bundle.upper / "taken").exists()


# --- P1 ---------------------------------------------------------------------------------------------------------------


def code_of(case: Case, program: str) -> int:
    """Run a program inside; the code of a refusal where the engine refuses."""
    try:
        return case.exec_code(program)[0]
    except CommandError as error:
        return error.code


_OVERWRITE = """
while :; do
    for exe in /proc/[0-9]*/exe; do
        { echo WROTE >"$exe"; } 2>/dev/null && echo "WROTE $exe" >>/wrote
    done
done
"""


def test_p1_fifty_execs_beside_one_that_overwrites_every_program_change_nothing(
    host: Host, tmp_path: Path
) -> None:
    """CVE-2019-5736: all the while, root inside opens /proc/*/exe of whatever joins, for writing."""
    image = tmp_path / "image"
    (image / "bin").mkdir(parents=True)
    (image / "bin/self").write_text("#!/proc/self/exe\n")
    (image / "bin/self").chmod(0o755)
    (image / "bin/link").symlink_to("/proc/self/exe")
    host_files = [
        Path(os.path.realpath("/proc/self/exe")),
        Path("/bin/busybox"),
        *Path("reconciler/shim").glob("*.py"),
    ]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in host_files]
    case = host.shell(f"{_OVERWRITE} exec sleep 1000")
    case.bundle.annotate("layers", [str(image), str(host.layer)])
    case.start()
    programs = ["/bin/true", "/bin/self", "/bin/link"]
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda number: code_of(case, programs[number % 3]), range(51)))
    assert set(codes[::3]) == {0}
    assert not {0} & {*codes[1::3], *codes[2::3]}
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in host_files] == before
    # What was overwritten, if anything, are files of the container's own: its copy of busybox.
    assert hashlib.sha256(Path(f"/proc/{host.zygote.pid}/exe").read_bytes()).hexdigest() == before[0]


# --- P2, P4, P5, P11: what changes under the hands --------------------------------------------------------------------


@contextmanager
def swapping(directory: Path, one: str, other: str) -> Iterator[None]:
    """Let another process exchange two names in `directory` without pause."""
    swapper = os.fork()
    if swapper == 0:
        fd = os.open(directory, os.O_RDONLY)
        while os.getppid() != 1:
            renameat2(fd, one, fd, other, RENAME_EXCHANGE)
    try:
        yield
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)


def outcomes(bundle: Bundle, count: int, steps: set[str]) -> list[str]:
    """Run a bundle `count` times: the output of each that ran; those refused must have failed at one of `steps`."""
    results = [run(bundle) for _ in range(count)]
    refused = {str(result.error["step"]) for result in results if result.error is not None}
    assert refused <= steps, refused
    return [result.output for result in results if result.error is None]


def test_p5_masks_are_the_null_device_while_dev_null_is_swapped(
    tmp_path: Path, busybox: Path, canary: Path
) -> None:
    """CVE-2025-31133: /dev is a volume that another container shares, in which null is now a device, now a link."""
    shared = tmp_path / "dev"
    shared.mkdir()
    os.mknod(shared / "null", 0o020666, os.makedev(1, 3))
    (shared / "link").symlink_to(f"/../../../../../..{canary}/file")
    script = (
        "wc -c </proc/timer_list; wc -c </proc/keys; echo 1 2>/dev/zero >/proc/sys/kernel/core_pattern; true"
    )
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", script)
    mounts = bundle.config["mounts"]
    mounts[:] = [mount for mount in mounts if mount["destination"] != "/dev"]
    mounts.insert(1, {"destination": "/dev", "type": "bind", "source": str(shared), "options": ["rbind"]})
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    with swapping(shared, "null", "link"):
        outputs = outcomes(bundle, _TIMES, {"device", "devices", "mask", "mount", "stdio", "console"})
    for output in outputs:
        assert output.split()[:2] == ["0", "0"], output
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert stat_of(shared / "null" if not (shared / "null").is_symlink() else shared / "link") == (1, 3)


def stat_of(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return os.major(info.st_rdev), os.minor(info.st_rdev)


@pytest.mark.parametrize("target", ["/v/d/file", "/v/d/new/file"])
def test_p4_p11_files_mounted_into_a_directory_that_is_swapped_stay_inside(
    tmp_path: Path, busybox: Path, canary: Path, target: str
) -> None:
    """CVE-2018-15664, CVE-2021-30465: a config's file in a volume, whose directory another container makes a link."""
    volume = tmp_path / "volume"
    (volume / "d").mkdir(parents=True)
    (volume / "l").symlink_to(f"/../../../../../../..{canary}")
    (tmp_path / "config").write_text("configured")
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", f"cat {target} 2>/dev/null; true")
    bundle.mount("/v", "bind", str(volume), "rbind")
    bundle.mount(target, "bind", str(tmp_path / "config"), "rbind", "ro")
    with swapping(volume, "d", "l"):
        outputs = outcomes(bundle, _TIMES // 2, {"mount"})
    assert outputs
    assert set(outputs) <= {"configured", ""}
    assert (tmp_path / "config").read_text() == "configured"


def test_p11_what_an_image_brings_for_a_volume_that_another_container_has_stays_inside(
    tmp_path: Path, busybox: Path, canary: Path
) -> None:
    """CVE-2018-15664: a volume gets its first content while whoever shares it turns directories into links."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    for number in range(20):
        (image / f"data/dir/d{number}").mkdir(parents=True)
        (image / f"data/dir/d{number}/file").write_text("from the image")
    bundle = make_bundle(tmp_path / "bundle", [image, busybox], "/bin/true")
    bundle.mount("/data", "bind", str(volume / "data"), "bind", "nosuid", "nodev")
    bundle.annotate("volumes", [{"destination": "/data", "root": str(volume)}])
    before = sorted(path.name for path in canary.iterdir())
    finished = 0
    for _ in range(_TIMES):
        shutil.rmtree(volume, ignore_errors=True)
        (volume / "data").mkdir(parents=True)
        (volume / "pending").touch()
        with turning_into_links(volume / "data", canary):
            finished += run(bundle).error is None
        assert sorted(path.name for path in canary.iterdir()) == before
    assert finished


@contextmanager
def turning_into_links(directory: Path, target: Path) -> Iterator[None]:
    """Let another process, which holds `directory` as a container holds a volume, make links of what appears there."""
    swapper = os.fork()
    if swapper == 0:
        fd = os.open(directory, os.O_RDONLY)
        number = 0
        while os.getppid() != 1:
            number += 1
            turn_into_link(fd, "dir", f"dir.{number}", target)
            with suppress(OSError):
                inner = os.open("dir", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                for name in ("d0", "d7"):
                    turn_into_link(inner, name, f"{name}.{number}", target)
                os.close(inner)
    try:
        yield
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)


def turn_into_link(fd: int, name: str, link: str, target: Path) -> None:
    with suppress(OSError):
        os.symlink(f"/../../../../../..{target}", link, dir_fd=fd)
        renameat2(fd, name, fd, link, RENAME_EXCHANGE)


def test_p2_a_working_directory_that_is_swapped_for_a_way_out_is_refused_or_inside(
    host: Host, canary: Path
) -> None:
    """CVE-2024-21626, the second attack: links through /proc/self/fd come and go while programs are run."""
    script = (
        "mkdir /w; i=0; while :; do rm -rf /work; ln -s /proc/self/fd/$((3 + i % 9)) /work; i=$((i + 1));"
    )
    case = host.shell(f"{script} rm /work; ln -s /w /work; done").start()
    eventually(lambda: case.exec_code("test", "-d", "/w")[0] == 0)
    seen: set[str] = set()
    refused: set[str] = set()
    for _ in range(_TIMES):
        try:
            text = case.exec_code("/bin/sh", "-c", f"pwd -P; cat ..{canary}/file 2>/dev/null", cwd="/work")[1]
            seen.add(text)
        except CommandError as error:
            refused.add(str(error).partition(":")[0])
    assert seen <= {"/w\n"}
    assert refused <= {"cwd", "exec"}


# --- P16 --------------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.network
def test_p16_no_socket_of_ours_is_reached_by_a_name_without_a_file(device: Device, box: Built) -> None:
    """CVE-2020-15257: abstract names are seen by whoever shares the network; files have owners and modes."""
    device.configure(bundles=[str(box.layout)])
    device.spec("web", sleeper("web", reference(box)))
    device.start()
    pid = device.running("web/main")
    for namespace in ([], ["nsenter", f"--net=/proc/{pid}/ns/net"]):
        listed = device.inside([*namespace, "cat", "/proc/net/unix"]).stdout.splitlines()[1:]
        paths = [fields[7] for line in listed if len(fields := line.split()) > 7]
        assert not [path for path in paths if not path.startswith("/")]
        assert paths or namespace
    sockets = [path for path in device.run.rglob("*") if path.is_socket()]
    assert len(sockets) >= 2
    for path in sockets:
        assert (path.stat().st_mode & 0o007, path.stat().st_uid) == (0, 0), path
