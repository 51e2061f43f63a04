"""What test runs that were killed have left: the next run removes it.

Every device of a test has a root of its own in memory, with a file that the test's process holds a lock on. A root
whose lock nobody holds is one of a run that was ended before it could clean up: its processes are ended, and its
instance is removed with the program's own `uninstall`.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")
_MARK: Final = "held-by-a-test"
_REPOSITORY: Final = Path(__file__).parents[2]
_held: dict[Path, int] = {}


def make_root(name: str) -> Path:
    """Make the root of the device `name`, held until `let_go` or the end of this process."""
    root = Path(tempfile.mkdtemp(prefix=f"rct-{name}-", dir=MEMORY))
    fresh = root / ".fresh"
    _held[root] = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(_held[root], fcntl.LOCK_EX)
    fresh.rename(root / _MARK)  # it is found only once it is held
    return root


def let_go(root: Path) -> None:
    """Hold `root` no longer: it is being removed."""
    fd = _held.pop(root, None)
    if fd is not None:
        os.close(fd)


def finish() -> None:
    """Remove what killed runs have left."""
    for mark in MEMORY.glob(f"rct-*/{_MARK}"):
        with contextlib.suppress(OSError), mark.open("rb") as file:
            ours = {mark.parent.lstat().st_uid, os.fstat(file.fileno()).st_uid} == {os.geteuid()}
            if not ours or mark.parent.is_symlink():
                continue  # anybody may put something there
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: a run that goes on
            _remove(mark.parent)


def _remove(root: Path) -> None:
    namespace = f"rct-{root.name.split('-')[1]}"
    inside = []
    if (Path("/run/netns") / namespace).exists():
        inside = ["nsenter", f"--net=/run/netns/{namespace}", "--"]
        pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        _kill(int(pid) for pid in pids.stdout.split())
    _kill(_with_open_files_below(root))
    if (root / "clone").exists():
        subprocess.run([*inside, "make", "-C", str(root / "clone"), "clean-run"], check=False)
    elif (root / "state/instance").exists():
        places = ["--state", str(root / "state"), "--run", str(root / "run")]
        command = [sys.executable, "-m", "reconciler", "uninstall", *places, "--yes"]
        subprocess.run([*inside, *command], cwd=_REPOSITORY, check=False)
    if inside:
        subprocess.run(["ip", "netns", "del", namespace], check=False)
    shutil.rmtree(root, ignore_errors=True)


def _kill(pids: Iterator[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _with_open_files_below(root: Path) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(link).startswith(f"{root}/") for link in (process / "fd").iterdir()):
                yield int(process.name)
