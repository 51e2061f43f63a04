"""The processes of a container as the host's /proc tells of them. Reads only; what ends meanwhile is left out."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One process: `pid` and `parent` are the host's numbers, `inside` is the container's own for it.

    `uid` is the effective one as it is inside, `host_uid` as the device has it. `state` is a letter of proc(5),
    `started` seconds since boot, `resident` bytes. `command` is what the process says of itself, so it may be anything;
    a process without arguments is its name in brackets.
    """

    pid: int
    inside: int
    parent: int
    uid: int
    host_uid: int
    state: str
    threads: int
    cpu_seconds: float
    started: float
    resident: int
    command: str


def read_processes(pids: Iterable[int], ids: int = 0) -> list[Process]:
    """What /proc says of these pids now. `ids` is the first of the container's range of ids, 0 without one."""
    found = []
    for pid in pids:
        try:
            found.append(_read(pid, ids))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _read(pid: int, ids: int) -> Process:
    # One descriptor for all three files: a pid that is taken by somebody else in between gives ESRCH.
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name, _, rest = _text(directory, "stat").partition("(")[2].rpartition(")")
        numbers = rest.split()  # from field 3 of proc(5) on
        status = dict(
            (key, value.split())
            for key, _, value in (line.partition(":") for line in _text(directory, "status").splitlines())
        )
        command = _text(directory, "cmdline").rstrip("\0").replace("\0", " ")
    finally:
        os.close(directory)
    uid = int(status["Uid"][1])
    return Process(
        pid=pid,
        inside=int(status.get("NSpid", [str(pid)])[-1]),
        parent=int(numbers[1]),
        uid=uid - ids if uid >= ids else uid,
        host_uid=uid,
        state=numbers[0],
        threads=int(numbers[17]),
        cpu_seconds=(int(numbers[11]) + int(numbers[12])) / _TICKS,
        started=int(numbers[19]) / _TICKS,
        resident=int(numbers[21]) * _PAGE,
        command=command or f"[{name}]",
    )


def private_memory(pid: int) -> int | None:
    """Bytes of memory that only this process has: what would be free if it ended. None where that can't be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _text(directory: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        return file.read().decode(errors="replace")
