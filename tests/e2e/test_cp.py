"""`cp` as people know it from Docker: out of containers and into them, running and not, and nowhere else."""

import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, PROGRAM, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

APP = """
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sh, -c, "{script}"]
    limits: {{memory: 32Mi}}
    stop_grace_period: 0s
    restart: {{policy: "no"}}
    volumes: ["data:/data", "data:/sealed:ro"]
    tmpfs: ["/scratch"]
  sealed:
    image: {image}
    command: [sleep, "100000"]
    read_only: true
    stop_grace_period: 0s
volumes: {{data: {{}}}}
"""
SETUP = (
    "mkdir -p /tree/in/er /empty; echo one >/tree/one; echo two >/tree/in/er/two; ln -s one /tree/link; "
    "chmod 640 /tree/one; chown 1000:1001 /tree/one; ln /tree/one /tree/hard; ln -s /tree /way; "
    "echo volume >/data/kept; mkfifo /tree/pipe; "
)


@pytest.fixture
def files() -> Iterator[Path]:
    """A directory of the host to copy from and to."""
    with tempfile.TemporaryDirectory(prefix="rct-cp-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture(params=["running", "ended"])
def there(request: pytest.FixtureRequest, device: Device, box: Built) -> Device:
    """A device with `web/main`, which runs or has ended; both have made the same files."""
    device.configure(bundles=[str(box.layout)])
    last = "exec sleep 100000" if request.param == "running" else "exit 0"
    device.spec("web", APP.format(image=reference(box), script=SETUP + "touch /tree/done; " + last))
    device.start()
    device.logged("converged", timeout=60)
    if request.param == "ended":
        device.until(lambda: device.ps()["web/main"]["state"] == "exited")
    else:
        device.until(lambda: not copy(device, "web/main:/tree/done", "/dev/shm/").returncode)
        Path("/dev/shm/done").unlink()
    return device


def copy(
    device: Device, *args: str, data: bytes | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    return device.reconciler("cp", *args, input=data, check=check, timeout=60 * PATIENCE)


def stream(device: Device, source: str) -> dict[str, tarfile.TarInfo]:
    """The members of the archive that `cp SOURCE -` writes."""
    target = device.root / "out.tar"
    script = f'"$@" > {target}'
    words = ["sh", "-c", script, "sh", *device_command(device, "cp", source, "-")]
    device.inside(words)
    with tarfile.open(target) as archive:
        return {member.name: member for member in archive}


def device_command(device: Device, verb: str, *args: str) -> list[str]:
    return [*PROGRAM, verb, *device.places, *args]


def test_files_come_out_as_docker_copies_them(there: Device, files: Path) -> None:
    copy(there, "web/main:/tree/one", str(files), check=True)
    assert (files / "one").read_text() == "one\n"
    info = (files / "one").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (os.getuid(), os.getgid(), 0o640)
    copy(there, "web/main:/tree/one", f"{files}/renamed", check=True)
    assert (files / "renamed").read_text() == "one\n"
    copy(there, "-a", "web/main:/tree/one", f"{files}/owned", check=True)
    assert (files / "owned").stat().st_uid == 1000
    # A directory: under its own name where the target is there, else under the target's
    copy(there, "web/main:/tree", str(files), check=True)
    assert (files / "tree/in/er/two").read_text() == "two\n"
    assert (files / "tree/link").readlink() == Path("one")
    assert (files / "tree/hard").stat().st_ino == (files / "tree/one").stat().st_ino
    copy(there, "web/main:/tree", f"{files}/fresh", check=True)
    assert (files / "fresh/one").exists()
    (files / "into").mkdir()
    copy(there, "web/main:/tree/.", f"{files}/into", check=True)
    assert (files / "into/in/er/two").exists()
    assert not (files / "into/tree").exists()
    # A link is copied as a link, what it leads to with -L
    copy(there, "web/main:/tree/link", f"{files}/as-link", check=True)
    assert (files / "as-link").is_symlink()
    copy(there, "-L", "web/main:/tree/link", f"{files}/as-file", check=True)
    assert (files / "as-file").read_text() == "one\n"
    copy(there, "web/main:/way/", f"{files}/way", check=True)
    assert (files / "way/one").exists()
    # A volume is part of what the container sees
    copy(there, "web/main:/data/kept", str(files), check=True)
    assert (files / "kept").read_text() == "volume\n"


def test_files_go_in_as_docker_copies_them(there: Device, files: Path) -> None:
    (files / "dir/sub").mkdir(parents=True)
    (files / "dir/sub/deep").write_text("deep\n")
    (files / "file").write_text("hello\n")
    (files / "file").chmod(0o751)
    os.chown(files / "file", 1234, 1235)
    copy(there, f"{files}/file", "web/main:/empty", check=True)
    copy(there, f"{files}/file", "web/main:/empty/other", check=True)
    copy(there, "-a", f"{files}/file", "web/main:/empty/owned", check=True)
    copy(there, f"{files}/dir", "web/main:/empty", check=True)
    copy(there, f"{files}/dir", "web/main:/empty/fresh", check=True)
    copy(there, f"{files}/dir/.", "web/main:/empty", check=True)
    copy(there, f"{files}/file", "web/main:/tree/link", check=True)  # over what the link leads to
    copy(there, f"{files}/file", "web/main:/data/from-host", check=True)
    members = stream(there, "web/main:/empty")
    assert members["empty"].isdir()
    assert {
        "empty/file",
        "empty/other",
        "empty/dir/sub/deep",
        "empty/fresh/sub/deep",
        "empty/sub/deep",
    } <= set(members)
    assert (members["empty/file"].uid, members["empty/file"].mode) == (0, 0o751)
    assert (members["empty/owned"].uid, members["empty/owned"].gid) == (1234, 1235)
    tree = stream(there, "web/main:/tree/.")
    assert tree["./link"].linkname == "one"
    assert tree["./one"].size == len("hello\n")
    assert (there.state / "volumes/web/data/data/from-host").read_text() == "hello\n"
    if there.pid("web/main"):
        seen = there.reconciler("exec", "web/main", "cat", "/empty/dir/sub/deep", "/tree/one").stdout
        assert seen == "deep\nhello\n"


def test_what_docker_refuses_is_refused(there: Device, files: Path) -> None:
    (files / "file").write_text("x")
    (files / "dir").mkdir()
    for args, code, words in (
        (("web/main:/nothing", str(files)), 8, "/nothing: no such file"),
        (("web/main:/tree/one/", str(files)), 8, "no such directory"),
        (("web/main:/tree", f"{files}/file"), 1, "not a directory"),
        ((f"{files}/dir", "web/main:/tree/one"), 1, "not a directory"),
        ((f"{files}/file", "web/main:/no/where/"), 8, "no such directory"),
        ((f"{files}/file", "web/main:/no/where"), 8, "is not there"),
        ((f"{files}/file", "web/main:/tree/pipe"), 1, "would be replaced"),
        ((f"{files}/file", "web/main:/sealed/new"), 1, "read-only"),
        ((f"{files}/file", "web/sealed:/new"), 1, "read-only"),
        (("-", "web/main:/tree/one"), 8, "no such directory"),
        (("web/main:/tree/one", "web/main:/tree"), 64, "both are"),
        ((str(files), str(files)), 64, "neither is"),
        (("web/nobody:/tree", str(files)), 8, "not found"),
    ):
        done = copy(there, *args, data=b"")
        assert done.returncode == code, (args, done.stderr)
        assert words in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in files.iterdir()) == ["dir", "file"]
    assert not [name for name in stream(there, "web/main:/tree") if "reconciler-cp" in name]


def test_an_archive_goes_in_and_comes_out_whole(there: Device) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, kind, more in (
            ("./", tarfile.DIRTYPE, {}),
            ("./a/b/file", tarfile.REGTYPE, {"size": 3, "uid": 77, "mode": 0o4755}),
            ("./a/link", tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
            ("a/hard", tarfile.LNKTYPE, {"linkname": "./a/b/file"}),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(b"abc"))
    copy(there, "-", "web/main:/empty", data=made.getvalue(), check=True)
    members = stream(there, "web/main:/empty/.")
    assert (members["./a/b/file"].uid, members["./a/b/file"].mode) == (77, 0o4755)
    assert members["./a/link"].linkname == "/etc/passwd"
    assert {members["./a/b/file"].type, members["./a/hard"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    bad = io.BytesIO()
    with tarfile.open(fileobj=bad, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    done = copy(there, "-", "web/main:/empty", data=bad.getvalue())
    assert done.returncode == 1
    assert ".." in done.stderr
    assert copy(there, "-", "web/main:/empty", data=b"no archive at all" * 100).returncode == 7


def test_nothing_of_the_kernels_is_copied(there: Device, files: Path) -> None:
    if not there.pid("web/main"):
        return
    for path in ("/proc/self/status", "/sys/kernel", "/proc/1/root/etc/passwd"):
        assert copy(there, f"web/main:{path}", str(files)).returncode in (1, 8)
    (files / "file").write_text("x")
    assert copy(there, f"{files}/file", "web/main:/proc/sys/kernel/core_pattern").returncode != 0
    done = copy(there, "web/main:/.", f"{files}/all", check=True)
    assert "/proc" in done.stderr
    assert (files / "all/bin/busybox").exists()
    assert not list((files / "all/proc").iterdir())
    assert not list((files / "all/sys").iterdir())


def test_a_program_of_the_containers_does_not_become_one_of_the_hosts(there: Device, files: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo("program")
        info.mode, info.uid = 0o6755, 1000
        archive.addfile(info)
    copy(there, "-", "web/main:/empty", data=made.getvalue(), check=True)
    copy(there, "web/main:/empty/program", str(files), check=True)
    assert stat.S_IMODE((files / "program").stat().st_mode) == 0o755


ATTACK = """
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sh, -c, "{script}"]
    limits: {{memory: 32Mi, cpus: 0.5}}
    stop_grace_period: 0s
"""
SWAP = (
    "mkdir -p /d/{where}/sub /{where}/sub; for f in /d/{where}/canary /d/{where}/sub/canary /{where}/canary "
    "/{where}/sub/canary; do echo inside >$f; done; cd /; touch /ready; while true; do "
    "mv d x; ln -s / d; rm d; mv d/{where}/sub d/{where}/y; mv x d; "
    "mv d/{where}/sub d/{where}/y; ln -s / d/{where}/sub; rm d/{where}/sub; mv d/{where}/y d/{where}/sub; done"
)
MANY = """
import os, sys
from reconciler.cli.main import run
places, where, out = sys.argv[1:4], sys.argv[4], sys.argv[5]
places = [word for pair in zip(("--state", "--run", "--device"), places) for word in pair]
good = 0
for number in range(125):
    for source, target in (
        (f"web/main:/d/{where}/canary", f"{out}/file"),
        (f"web/main:/d/{where}/.", f"{out}/tree"),
        (f"{out}/bait", f"web/main:/d/{where}/canary"),
        (f"{out}/baits", f"web/main:/d/{where}/sub/"),
    ):
        good += run(["cp", *places, source, target]) == 0
print(good)
"""


@pytest.mark.hostile
def test_p11_a_container_that_swaps_directories_and_links_reaches_nothing_of_the_host(
    device: Device, box: Built, files: Path
) -> None:
    canaries = files / "host"
    (canaries / "sub").mkdir(parents=True)
    for path in (canaries / "canary", canaries / "sub/canary"):
        path.write_text("of the host\n")
    before = {path: path.stat() for path in (canaries, *canaries.rglob("*"))}
    root = {path.name for path in Path("/").iterdir()}
    out = files / "out"
    (out / "baits").mkdir(parents=True)
    (out / "bait").write_text("bait\n")
    (out / "baits/canary").write_text("bait\n")
    device.configure(bundles=[str(box.layout)])
    where = str(canaries).strip("/")
    device.spec("web", ATTACK.format(image=reference(box), script=SWAP.replace("{where}", where)))
    device.start()
    device.running("web/main")
    device.until(lambda: copy(device, "web/main:/ready", str(out)).returncode == 0)
    places = [str(device.state), str(device.run), str(device.device_yaml)]
    done = device.inside([sys.executable, "-c", MANY, *places, where, str(out)], timeout=400)
    assert int(done.stdout) > 20, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    # What came out was always the container's, and nothing went anywhere but into it
    for path in out.rglob("*canary"):
        if path.is_file() and not path.is_symlink():
            assert path.read_text() in ("inside\n", "bait\n")
    assert {path: path.stat() for path in (canaries, *canaries.rglob("*"))} == before
    assert (canaries / "canary").read_text() == (canaries / "sub/canary").read_text() == "of the host\n"
    assert {path.name for path in Path("/").iterdir()} == root


@pytest.mark.hostile
def test_p10_nothing_is_loaded_or_run_from_a_containers_root(there: Device, files: Path) -> None:
    """What a copy opens by path is the host's; it neither changes its root nor becomes another program."""
    trace = files / "trace"
    command = device_command(there, "cp", "web/main:/tree", str(files))
    there.inside(
        ["strace", "-f", "-qq", "-e", "trace=execve,chroot,setns,pivot_root", "-o", str(trace), *command]
    )
    calls = [line.split(None, 1)[1] for line in trace.read_text().splitlines() if "+++" not in line]
    assert all(call.startswith("execve(") for call in calls), calls
    assert len([call for call in calls if call.endswith("= 0")]) == 1
