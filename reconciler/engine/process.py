"""Processes by identity, and what the shims' records say about them.

A pid is checked against the start time and the boot before anything is done to it, and held by pidfd from then on.
Reads only. A damaged record is None, never an exception: its container is lost, nobody else's. One that is there and
can't be read (EMFILE, EIO) is an OSError: nothing is known of its container, least of all that it is lost.
"""

import errno
import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from reconciler.engine.control import Command, CommandError, Control, Execution
from reconciler.engine.zygote import Created, StepError, Zygote
from reconciler.errors import TimedOutError
from reconciler.linux.process import signal_number
from reconciler.shim import record
from reconciler.state.process import ExitRecord, ProcessId

__all__ = [
    "Command",
    "CommandError",
    "Control",
    "Created",
    "Execution",
    "ExitRecord",
    "ProcessId",
    "ShimRecord",
    "StepError",
    "Zygote",
    "alive",
    "boot_id",
    "end",
    "identify",
    "open_pidfd",
    "read_exit",
    "read_shim",
]

_T = TypeVar("_T")
_LARGEST = 1 << 20

_LAST_WAIT = 5.0  # seconds that a killed process may take


@dataclass(frozen=True, slots=True)
class ShimRecord:
    """shim.json: the shim, the container's first process, and when (boottime) it was made.

    `started_boot` and `started_wall` are None until the program runs.
    """

    shim: ProcessId
    init: ProcessId
    created_boot: float
    started_boot: float | None
    started_wall: float | None


@cache
def boot_id() -> str:
    """The id of this boot of the kernel, which no process of it outlives."""
    return record.boot_id()


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has `pid` now; None where there is none."""
    try:
        return ProcessId(pid, record.started(pid), boot_id())
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(process: ProcessId) -> bool:
    """Say whether that very process runs. A zombie does not: PID 1 of a device may not reap it."""
    try:
        fd = os.open(f"/proc/{process.pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 4096).rpartition(b")")[2].split(maxsplit=20)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == process.started and fields[0] not in (b"Z", b"X") and process.boot == boot_id()


def open_pidfd(process: ProcessId) -> int | None:
    """Hold that very process, or give None where it is gone; OSError where that can't be told (EMFILE).

    Checked after opening: from then on the pid can't be reused without the descriptor telling.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except OSError as error:
        # EINVAL, and ENOENT since 6.15: the number is a thread's by now
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise
    try:
        there = alive(process)
    except BaseException:
        os.close(fd)
        raise
    if not there:
        os.close(fd)
        return None
    return fd


def read_shim(path: Path | str) -> ShimRecord | None:
    """Read shim.json; None where it is missing or damaged, OSError where that can't be told (EMFILE, EIO)."""
    return _read(path, _shim)


def read_exit(path: Path | str) -> ExitRecord | None:
    """Read exit.json; None where it is missing or damaged, OSError where that can't be told (EMFILE, EIO)."""
    return _read(path, _exit)


def _read(path: Path | str, parse: Callable[[dict[str, Any]], _T]) -> _T | None:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_LARGEST))
        return parse(value)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _shim(value: dict[str, Any]) -> ShimRecord:
    boot = str(value["boot"])
    return ShimRecord(
        shim=ProcessId(int(value["shim"]["pid"]), int(value["shim"]["started"]), boot),
        init=ProcessId(int(value["init"]["pid"]), int(value["init"]["started"]), boot),
        created_boot=float(value["created_boot"]),
        started_boot=_optional(value["started_boot"]),
        started_wall=_optional(value["started_wall"]),
    )


def _exit(value: dict[str, Any]) -> ExitRecord:
    code, signal = value["code"], value["signal"]
    if (code is None) == (signal is None):
        raise ValueError("exactly one of code and signal is expected")
    return ExitRecord(
        code=None if code is None else int(code),
        signal=None if signal is None else int(signal),
        oom=bool(value["oom"]),
        started_boot=_optional(value["started_boot"]),
        started_wall=_optional(value["started_wall"]),
        finished_boot=float(value["finished_boot"]),
        finished_wall=float(value["finished_wall"]),
        boot=str(value["boot"]),
        peak=None if value.get("peak") is None else int(value["peak"]),
        reason=str(value.get("reason", "")),
    )


def _optional(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise TypeError("a number is expected")
    return float(value)


def end(pidfd: int, grace: float) -> None:
    """Wait up to `grace` seconds for the process to end, then kill it and wait; closes the descriptor.

    Raise TimedOutError where it is still there after that.
    """
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(grace * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not poll.poll(_LAST_WAIT * 1000):
                raise TimedOutError(
                    "a process does not end although it was killed (uninterruptible sleep: hanging storage?)"
                )
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def stop_signal(name: str) -> int:
    """The number of a stop signal as a spec or an image writes it; SIGTERM for what an image has made up."""
    try:
        return signal_number(name)
    except ValueError:
        return signal.SIGTERM
