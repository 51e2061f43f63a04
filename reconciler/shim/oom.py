"""How often the kernel killed for memory in a cgroup: what tells an out-of-memory end from any other SIGKILL."""

import os


def count(cgroups: tuple[str, ...]) -> int:
    """Give the number of processes killed at the memory limit of these cgroups; 0 where no file tells.

    v2: memory.events, v1: memory.oom_control; `oom_kill` is in both since Linux 4.13.
    """
    total = 0
    for directory in filter(None, cgroups):
        for name in ("memory.events", "memory.oom_control"):
            try:
                fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # no memory controller in this hierarchy, or the cgroup was removed already
            try:
                lines = os.read(fd, 4096).splitlines()
            except OSError:
                continue
            finally:
                os.close(fd)
            for line in lines:
                key, _, value = line.partition(b" ")
                if key == b"oom_kill" and value.isdigit():
                    total += int(value)
    return total
