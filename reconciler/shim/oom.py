"""How often the kernel killed for memory in a cgroup: what tells an out-of-memory end from any other SIGKILL."""


def count(v2: str | None, v1: tuple[str, ...]) -> int:
    """Give the number of processes killed at the memory limit of these cgroups; 0 where no file tells.

    v2: memory.events, `oom_kill` (4.13); v1: memory.oom_control, `oom_kill` (4.13).
    """
    total = 0
    files = [f"{directory}/memory.oom_control" for directory in v1]
    if v2:
        files.append(f"{v2}/memory.events")
    for name in files:
        try:
            with open(name, "rb") as file:
                lines = file.read(4096).splitlines()
        except OSError:
            continue  # no memory controller in this hierarchy, or the cgroup was removed already
        for line in lines:
            key, _, value = line.partition(b" ")
            if key == b"oom_kill" and value.isdigit():
                total += int(value)
    return total
