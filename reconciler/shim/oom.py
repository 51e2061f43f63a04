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
    total = 0
    for name in ("memory.events", "memory.oom_control"):
        for text in _read(cgroups, name):
            for line in text.splitlines():
                key, _, value = line.partition(b" ")
                if key == b"oom_kill" and value.isdigit():
                    total += int(value)
    return total


def peak(cgroups: tuple[str, ...]) -> int | None:
    """Give the most memory that was in use at once, in bytes; None where the kernel does not keep it.

    v2: memory.peak, since Linux 5.19; v1: memory.max_usage_in_bytes.
    """
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        for text in _read(cgroups, name):
            if text.strip().isdigit():
                return int(text)
    return None


def _read(cgroups: tuple[str, ...], name: str) -> list[bytes]:
    found = []
    for directory in filter(None, cgroups):
        try:
            fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # no memory controller in this hierarchy, or the cgroup was removed already
        try:
            found.append(os.read(fd, 4096))
        except OSError:
            pass
        finally:
            os.close(fd)
    return found


def announced(cgroups: tuple[str, ...]) -> int:
    """Give a descriptor that becomes readable when version 1 is about to kill in one of these cgroups or above them.

    -1 where no version 1 cgroup of these counts memory. OSError where the kernel takes no such wish.
    """
    for directory in cgroups[1:]:
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
