"""The files a shim leaves in the container's run directory: who it is (shim.json), how it ended (exit.json).

They carry a version, are replaced by rename, and are not synced: the run directory is a tmpfs. `engine.process` reads
them, of this release and of every earlier one. Written by hand: a JSON encoder would stay in every shim's memory.
"""

import os
import time

VERSION = 1
SHIM = "shim.json"
EXIT = "exit.json"
SOCKET = "control.sock"

Identity = tuple[
    int, int, int, int, str, float
]  # shim's pid and start, init's pid and start, boot id, creation


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def started(pid: int) -> int:
    """Give field 22 of /proc/PID/stat: the start of the process in clock ticks since boot."""
    return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def shim(identity: Identity, started_boot: float | None, started_wall: float | None) -> str:
    """Give the text of shim.json."""
    pid, start, init, init_start, boot, created = identity
    return (
        f'{{"version": {VERSION}, "boot": "{boot}", "created_boot": {created!r}, '
        f'"shim": {{"pid": {pid}, "started": {start}}}, "init": {{"pid": {init}, "started": {init_start}}}, '
        f'"started_boot": {_number(started_boot)}, "started_wall": {_number(started_wall)}}}\n'
    )


def exit(
    boot: str,
    code: int | None,
    signal: int | None,
    oom: bool,
    started: tuple[float, float],
    finished: tuple[float, float],
    peak: int | None,
) -> str:
    """Give the text of exit.json; times are (boottime, wall), `peak` bytes of memory."""
    return (
        f'{{"version": {VERSION}, "boot": "{boot}", "code": {_number(code)}, "signal": {_number(signal)}, '
        f'"oom": {"true" if oom else "false"}, "peak": {_number(peak)}, '
        f'"started_boot": {started[0]!r}, "started_wall": {started[1]!r}, '
        f'"finished_boot": {finished[0]!r}, "finished_wall": {finished[1]!r}}}\n'
    )


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value)


def replace(directory: int, name: str, text: str) -> None:
    """Replace `name` in the open `directory`, so that a reader sees the old file or the new one."""
    partial = f".{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        data = text.encode()
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
