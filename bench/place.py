"""A place of its own for a run: namespaces, file systems and cgroups that go with it, however it ends.

`contain` starts the run again inside new pid, mount, network, ipc and uts namespaces. Whatever it starts there ends
with its first process, whatever it mounts or configures goes with the namespaces; only cgroup directories outlive
them, and those it notes before it makes them, for `contain` to remove, or for the next run where it was killed.
Unpacking happens on a journaled ext4 on a loop device: its file has no name any more once it is mounted, so that a
killed run leaves no image behind.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from bench.measure import BenchError

_UNSHARE: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--propagation", "private"),
    *("--net", "--ipc", "--uts"),
)
# The first process of a pid namespace inherits every orphan and has to reap it; a waiting shell does.
_INIT: Final = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
_DISK_SIZE: Final = 6 << 30  # bytes; sparse, so that it takes what is written only
_PREFIX: Final = "rcbench-"
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PRIVATE_COPIES: Final = (
    Path("/etc"),
    Path("/var/lib"),
)  # where container engines write whatever they are told


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run keeps things: `root` is a tmpfs with a short path, `disk` an ext4, `cgroup` a name of its own."""

    root: Path
    disk: Path
    cgroup: str
    _notes: Path

    def own_cgroup(self, name: str) -> None:
        """Note, before it is made, that cgroups called `name` in any hierarchy belong to this run."""
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(f"{name}\n")

    def settle(self) -> None:
        """Write out what is dirty on the disk, so that one contestant does not pay for another."""
        subprocess.run(["sync", "--file-system", str(self.disk)], check=True)

    def clear(self, directory: Path) -> None:
        """Delete a directory of the disk and let the disk settle."""
        shutil.rmtree(directory, ignore_errors=True)
        self.settle()


def contain(arguments: Sequence[str], disk: Path) -> int:
    """Run this program again with `arguments` in a place of its own, and return its exit code.

    `disk` is the directory that holds the file of the ext4 file system.
    """

    def ended(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    _finish_killed_runs()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, _held(Path(name)):
        outside = Path(name)
        (outside / "cgroups").touch()
        (outside / "namespaces").write_text(_namespaces(), encoding="utf-8")
        (outside / "in").mkdir()
        program = [sys.executable, str(Path(__file__).with_name("run.py")), "--inside", name]
        command = [*_UNSHARE, *_INIT, *program, "--disk", str(disk), *arguments]
        try:
            return subprocess.run(command, check=False).returncode
        finally:
            _remove_cgroups((outside / "cgroups").read_text(encoding="utf-8").split())


@contextmanager
def _held(outside: Path) -> Iterator[None]:
    """Hold the lock that says that the run of this directory goes on."""
    fd = os.open(outside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _finish_killed_runs() -> None:
    """Remove what a run that was killed has left: empty cgroups, and the directory that names them."""
    for outside in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        notes = outside / "cgroups"
        if not notes.is_file():
            continue  # just begun, or not ours
        try:
            with _held(outside):
                _remove_cgroups(notes.read_text(encoding="utf-8").split())
                shutil.rmtree(outside)
        except BlockingIOError:
            continue  # it goes on


def arrange(outside: Path, disk: Path) -> Place:
    """Furnish the place, from inside its namespaces: file systems, loopback, a cgroup name."""
    _check_inside(outside)
    root = outside / "in"
    _mount("-t", "tmpfs", "-o", "mode=755", "rcbench", str(root))
    for directory in ("/run", "/dev/shm"):  # podman's locks and docker's sockets have fixed names there
        _mount("-t", "tmpfs", "-o", "mode=755", "rcbench", directory)
    for number, copied in enumerate(_PRIVATE_COPIES):
        upper, work = root / f"private{number}/upper", root / f"private{number}/work"
        upper.mkdir(parents=True)
        work.mkdir()
        options = f"lowerdir={copied},upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "-o", options, "rcbench", str(copied))
    _mount_disk(root / "disk", disk)
    _run("ip", "link", "set", "lo", "up")
    (root / "disk" / "tmp").mkdir()
    os.environ["TMPDIR"] = str(root / "disk" / "tmp")
    tempfile.tempdir = None
    place = Place(root, root / "disk", outside.name, outside / "cgroups")
    place.own_cgroup(place.cgroup)
    return place


def _namespaces() -> str:
    return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid"))


def _check_inside(outside: Path) -> None:
    """Refuse to mount or configure anything where a namespace is the machine's."""
    theirs = (outside / "namespaces").read_text(encoding="utf-8").split()
    if set(theirs) & set(_namespaces().split()):
        raise BenchError("--inside is for the program's own use, in namespaces that it has made")


def _mount_disk(target: Path, directory: Path) -> None:
    handle, name = tempfile.mkstemp(prefix="rcbench-", suffix=".ext4", dir=directory)
    try:
        os.truncate(handle, _DISK_SIZE)
        # Everything is initialized now: the kernel would do it later, in the background, while something is measured.
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", name)
        target.mkdir()
        _mount("-o", "loop,noatime", name, str(target))
    finally:
        os.close(handle)
        os.unlink(name)


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")


def _remove_cgroups(names: Sequence[str]) -> None:
    """Remove the cgroups of these names from every hierarchy; what was in them was killed, which takes a while."""
    deadline = time.monotonic() + 10
    left = [
        path for name in names for path in (*_CGROUPS.glob(f"*/{name}"), _CGROUPS / name) if path.is_dir()
    ]
    while left and time.monotonic() < deadline:
        for top in left:
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    continue  # still populated: tried again until the deadline, and said then
        left = [path for path in left if path.is_dir()]
        time.sleep(0.1 if left else 0)
    for path in left:
        print(f"bench: {path} can't be removed", file=sys.stderr)
