"""What `stats` shows: rates between two looks at a container's counters, and gauges of the second. Pure.

What this kernel, or this version of cgroups, does not count is None in JSON and `-` in the table, never zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from reconciler.engine.traffic import Traffic
from reconciler.engine.usage import Usage
from reconciler.report.tables import Column, short_digest, size

_KINDS: Final = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: `at` in monotonic seconds."""

    at: float
    usage: Usage
    traffic: Traffic | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """The container that is looked at; `pid` is None where it does not run. A limit of None is none."""

    name: str
    id: str
    pid: int | None
    memory_limit: int | None
    pids_limit: int | None


def item(subject: Subject, before: Sample | None, now: Sample | None, *, total_memory: int) -> dict[str, Any]:
    """One container's row; without two looks, rates are not known, without one, nothing is."""
    usage = now.usage if now is not None else Usage()
    traffic = now.traffic if now is not None else None
    memory = usage.memory_working_set if usage.memory_working_set is not None else usage.memory
    limit = min(subject.memory_limit or total_memory, total_memory)
    return {
        "name": subject.name,
        "id": subject.id,
        "pid": subject.pid,
        "cpu_percent": _rate(before, now, lambda sample: sample.usage.cpu_seconds),
        "memory": memory,
        "memory_limit": limit,
        "memory_percent": round(100 * memory / limit, 2) if memory is not None and limit else None,
        "network_received": traffic.received if traffic is not None else None,
        "network_sent": traffic.sent if traffic is not None else None,
        "disk_read": usage.read_bytes,
        "disk_written": usage.written_bytes,
        "pids": usage.processes,
        "pids_limit": subject.pids_limit,
        "pressure": {kind: _rate(before, now, _waited(kind)) for kind in _KINDS},
    }


def _rate(
    before: Sample | None, now: Sample | None, counter: Callable[[Sample], float | None]
) -> float | None:
    """Seconds counted per second, in per cent."""
    if before is None or now is None or now.at <= before.at:
        return None
    first, second = counter(before), counter(now)
    if first is None or second is None:
        return None
    return round(max(0.0, 100 * (second - first) / (now.at - before.at)), 2)


def _waited(kind: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.usage.pressure.get(kind)


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `stats --format` may name: the fields of `-o json`, and those that Docker has, with its names."""
    return {
        **row,
        "Name": row["name"],
        "Container": row["name"],
        "ID": short_digest(row["id"]),
        "CPUPerc": _percent(row["cpu_percent"]),
        "MemUsage": f"{_size(row['memory'])} / {_size(row['memory_limit'])}",
        "MemPerc": _percent(row["memory_percent"]),
        "NetIO": f"{_size(row['network_received'])} / {_size(row['network_sent'])}",
        "BlockIO": f"{_size(row['disk_read'])} / {_size(row['disk_written'])}",
        "PIDs": "-" if row["pids"] is None else str(row["pids"]),
        "Pressure": _pressure(row["pressure"]),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def _size(value: int | None) -> str:
    return "-" if value is None else size(value)


def _pressure(pressure: Mapping[str, float | None]) -> str:
    """cpu, memory and io; one `-` where nothing of it is counted."""
    shown = ["-" if pressure[kind] is None else f"{pressure[kind]:.1f}%" for kind in _KINDS]
    return "-" if set(shown) == {"-"} else " / ".join(shown)


def columns(*, truncate: bool) -> tuple[Column, ...]:
    """The columns of the table."""

    def field(key: str) -> Any:
        return lambda row: str(fields(row)[key])

    return (
        Column("NAME", field("Name")),
        Column("CPU %", field("CPUPerc")),
        Column("MEM USAGE / LIMIT", field("MemUsage")),
        Column("MEM %", field("MemPerc")),
        Column("NET I/O", field("NetIO")),
        Column("DISK I/O", field("BlockIO")),
        Column("PIDS", field("PIDs")),
        Column("PRESSURE (CPU / MEM / IO)", field("Pressure")),
        Column("ID", lambda row: short_digest(row["id"]) if truncate else str(row["id"]), wide=True),
        Column("PID", lambda row: str(row["pid"] or "-"), wide=True),
    )
