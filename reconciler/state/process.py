"""A process by identity, and how a container's process ended: values shared by the shim's records and the planner."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for ever: `started` is field 22 of /proc/PID/stat (clock ticks since boot), `boot` the boot id.

    A bare pid names another process tomorrow; this does not.
    """

    pid: int
    started: int
    boot: str


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a container's process ended: exactly one of `code` and `signal` is set.

    Times are seconds, `*_boot` on the boottime clock of the boot `boot`, `*_wall` since the epoch; `started_*` is None
    where the program was never started. `oom` says that the kernel killed a process of it at its memory limit.
    `peak` is the most memory in bytes that it had at once, None where the kernel does not say. `reason` is why
    the agent ended it, where it was neither a plan's nor a person's wish.
    """

    code: int | None
    signal: int | None
    oom: bool
    started_boot: float | None
    started_wall: float | None
    finished_boot: float
    finished_wall: float
    boot: str
    peak: int | None = None
    reason: str = ""
