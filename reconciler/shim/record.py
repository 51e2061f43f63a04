"""The files a shim leaves in the container's run directory: who it is (shim.json), how it ended (exit.json).

They carry a version, are replaced by rename, and are not synced: the run directory is a tmpfs. `engine.process` reads
them, of this release and of every earlier one.
"""

import json
import os
import time

VERSION = 1
SHIM = "shim.json"
EXIT = "exit.json"
SOCKET = "control.sock"


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def started(pid: int) -> int:
    """Give field 22 of /proc/PID/stat: the start of the process in clock ticks since boot."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def replace(directory: int, name: str, value: dict[str, object]) -> None:
    """Replace `name` in the open `directory`, so that a reader sees the old file or the new one."""
    data = json.dumps({"version": VERSION, **value}, sort_keys=True).encode() + b"\n"
    partial = f".{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
