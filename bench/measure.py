"""Measuring: programs and functions by wall clock and CPU, contestants in turns, processes by what /proc says of them.

It starts and reads; it knows no contestant. Times are in seconds, memory in bytes.
"""

import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A benchmark, or a contestant in it, can't be run; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contestant."""

    wall: float
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Figure:
    """What a contestant reached over all rounds, in the unit of its row."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def best(self) -> float:
        return min(self.values)


Round = Callable[[], Sample]


def interleave(
    rounds: int, contestants: Mapping[str, Round], *, quiet: float = 0.0
) -> dict[str, list[Sample]]:
    """Let the contestants take turns, `rounds` times, each round beginning with another one.

    `quiet` seconds pass before each turn.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            time.sleep(quiet)
            samples[name].append(contestants[name]())
    return samples


def walls(samples: Iterable[Sample], scale: float = 1.0) -> Figure:
    return Figure(tuple(sample.wall * scale for sample in samples))


def cpus(samples: Iterable[Sample], scale: float = 1.0) -> Figure:
    return Figure(tuple(sample.cpu * scale for sample in samples))


# --- programs --------------------------------------------------------------------------------------------------------


def run(command: Sequence[str], *, timeout: float = 120.0) -> str:
    """Run a program that is not measured, and give its output; raise BenchError with what it says on failure."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def timed(command: Sequence[str], *, daemon: int | None = None) -> Sample:
    """Run a program to its end; its CPU time includes every process it waited for.

    With `daemon`, what that process and its descendants used meanwhile is added.
    """
    with tempfile.TemporaryFile() as said:
        before = tree_cpu(daemon) if daemon is not None else 0.0
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        after = tree_cpu(daemon) if daemon is not None else 0.0
        if process.returncode != 0:
            said.seek(0)
            text = said.read().decode(errors="replace").strip()[-2000:]
            raise BenchError(f"{' '.join(command)}: exit {process.returncode}: {text}")
    return Sample(wall, usage.ru_utime + usage.ru_stime + after - before)


def end(process: subprocess.Popen[bytes], *, timeout: float = 30.0) -> None:
    """Ask a process that we started to end, kill it if it does not, and reap it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def until(what: Callable[[], bool], *, timeout: float, message: str, step: float = 0.02) -> None:
    """Wait until `what` returns True, or raise BenchError."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {timeout:g} s in vain for {message}")
        time.sleep(step)


# --- the container's first instruction -------------------------------------------------------------------------------


def boottime() -> int:
    """Nanoseconds of the clock that the measured program reads."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Moments:
    """The FIFO on which containers say when their first instruction ran. `directory` is mounted there as /out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        path = directory / "first"
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self._seen: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def take(self, names: Iterable[str], *, timeout: float = 60.0) -> dict[str, int]:
        """Wait until each of `names` has spoken; give, and forget, the moments in nanoseconds of boottime."""
        wanted = set(names)
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not wanted <= self._seen.keys():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                missing = sorted(wanted - self._seen.keys())
                raise BenchError(f"no first instruction within {timeout:g} s: {', '.join(missing[:5])}")
            *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
            for line in lines:
                name, _, moment = line.decode().partition(" ")
                self._seen[name] = int(moment)
        return {name: self._seen.pop(name) for name in sorted(wanted)}

    def after(self, began: int, name: str) -> Sample:
        """Wait for `name` and give the time from `began` to its first instruction."""
        return Sample((self.take([name])[name] - began) / 1e9)


# --- processes -------------------------------------------------------------------------------------------------------


def processes() -> dict[int, int]:
    """Every process of this pid namespace, and its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            found[int(entry)] = int(fields[1])
    return found


def descendants(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents = processes()
    found = [pid]
    for member in found:
        found += sorted(child for child, parent in parents.items() if parent == member)
    return found


def own_cpu(pid: int) -> float:
    """The CPU time of a process and of every child that it has reaped, to a tick (10 ms)."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) * _TICK if fields else 0.0


def tree_cpu(pid: int) -> float:
    """The same of a process and all its descendants."""
    return sum(own_cpu(member) for member in descendants(pid))


def exact_cpu(pids: Iterable[int]) -> float:
    """The CPU time of these processes alone, all threads, to a nanosecond; threads that ended meanwhile are missing."""
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(path.read_text(encoding="ascii").split()[0])
    return total / 1e9


def written(pids: Iterable[int]) -> int:
    """The bytes that these processes have caused to be written to storage (proc_pid_io(5))."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(": ")
            total += int(value) if name == "write_bytes" else 0
    return total


def memory(pids: Iterable[int]) -> tuple[int, int]:
    """Give (PSS, private) of these processes, in bytes."""
    shared = private = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                shared += int(rest.split()[0]) * 1024
            elif name in ("Private_Clean", "Private_Dirty"):
                private += int(rest.split()[0]) * 1024
    return shared, private


def named(*prefixes: str) -> list[int]:
    """The processes of this pid namespace whose program's file name begins with one of these."""
    found = []
    for pid in processes():
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue  # it has ended, or is a kernel thread
        if program.startswith(prefixes):
            found.append(pid)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; [] where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
