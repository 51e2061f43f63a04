"""Memory that ran out: what tells such an end from any other SIGKILL, how much was used, and that nobody stays behind.

cgroup version 2 kills all of a cgroup by itself (memory.oom.group). Version 1 kills one process, and says beforehand
that it is about to: that is when somebody looks, for a moment, whether it came to that here.
"""

import os
import time
from signal import SIGKILL, pidfd_send_signal

_LOOKS = 12  # each twice as long after the last: four seconds in all
_FIRST = 0.001


def count(cgroups: tuple[str, ...]) -> int:
    """Give the number of processes killed at the memory limit of these cgroups; 0 where no file tells.

    v2: memory.events, v1: memory.oom_control; `oom_kill` is in both since Linux 4.13.
    """
    for line in _read(cgroups, "memory.events", "memory.oom_control").splitlines():
        key, _, value = line.partition(b" ")
        if key == b"oom_kill" and value.isdigit():
            return int(value)
    return 0


def peak(cgroups: tuple[str, ...]) -> int | None:
    """Give the most memory that was in use at once, in bytes; None where the kernel does not keep it.

    v2: memory.peak, since Linux 5.19; v1: memory.max_usage_in_bytes.
    """
    text = _read(cgroups, "memory.peak", "memory.max_usage_in_bytes").strip()
    return int(text) if text.isdigit() else None


def _read(cgroups: tuple[str, ...], v2: str, v1: str) -> bytes:
    """Read a file of the one cgroup of these that counts memory: `v2` of the first, `v1` of another; b"" for none."""
    if cgroups and cgroups[0] and (text := _content(f"{cgroups[0]}/{v2}")):
        return text
    for directory in _likely(cgroups):
        if text := _content(f"{directory}/{v1}"):
            return text
    return b""


def _likely(cgroups: tuple[str, ...]) -> list[str]:
    """The version 1 cgroups, that of the memory controller first as far as its path tells: a start waits for this."""
    return sorted(cgroups[1:], key=lambda directory: "/memory/" not in directory)


def _content(file: str) -> bytes:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # no memory controller in this hierarchy, or the cgroup was removed already
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def announced(cgroups: tuple[str, ...]) -> int:
    """Give a descriptor that becomes readable when version 1 is about to kill in one of these cgroups or above them.

    -1 where no version 1 cgroup of these counts memory. OSError where the kernel takes no such wish.
    """
    for directory in _likely(cgroups):
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            wish = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(wish, f"{event} {control}".encode())
            finally:
                os.close(wish)
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)  # the kernel has what it needs of it
        return event
    return -1


def end_all(cgroups: tuple[str, ...], killed: int, init: int) -> int:
    """Wait until more than `killed` were killed in these cgroups, which has been announced, and kill `init`, a pidfd.

    With the first process of its PID namespace the kernel kills all in it, and nothing else. The announcement comes
    before the kill, which may then not be needed, or have been another cgroup's: after four seconds nothing is done.
    """
    delay = _FIRST
    for _ in range(_LOOKS):
        if count(cgroups) > killed:
            try:
                pidfd_send_signal(init, SIGKILL)
            except ProcessLookupError:
                pass  # it was the one
            break
        time.sleep(delay)
        delay *= 2
    return 0
