"""What containers use, as series with cAdvisor's names and labels, so that existing dashboards work. Pure.

What a kernel does not count is left out, never shown as zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from reconciler.engine.usage import Usage
from reconciler.report.exposition import Family, Histogram, Labels
from reconciler.report.telemetry import Telemetry, Traffic
from reconciler.spec.adhoc import ADHOC

_CPU_PERIOD: Final = 100_000

Container = Mapping[str, Any]
Sample = tuple[Labels, float | Histogram]


def gauge(name: str, text: str, samples: Iterable[Sample]) -> Family:
    """A family of gauges."""
    return Family(name, "gauge", text, list(samples))


def counter(name: str, text: str, samples: Iterable[Sample]) -> Family:
    """A family of counters; its name ends in _total."""
    return Family(name, "counter", text, list(samples))


def full_name(container: Container) -> str:
    """The name by which what was counted of a container is kept."""
    return f"{container['app']}/{container['container']}"


def labels_of(container: Container) -> Labels:
    """The labels of our own container series; `name` is added for those that cAdvisor has."""
    name, dot, replica = str(container["container"]).partition(".")
    if container["app"] == ADHOC:
        name, dot = str(container["container"]), ""
    return ("app", container["app"]), ("container", name), ("replica", replica if dot else "1")


_USAGE: Final[tuple[tuple[str, str, str, Callable[[Usage], float | None]], ...]] = (
    ("container_cpu_usage_seconds_total", "counter", "CPU time used.", lambda u: u.cpu_seconds),
    (
        "container_cpu_cfs_periods_total",
        "counter",
        "Periods in which a CPU limit was in force.",
        lambda u: u.cpu_periods,
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "counter",
        "Periods in which the container was throttled.",
        lambda u: u.cpu_throttled_periods,
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Time for which the container was throttled.",
        lambda u: u.cpu_throttled_seconds,
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Memory used without inactive file cache.",
        lambda u: u.memory_working_set,
    ),
    ("container_memory_rss", "gauge", "Anonymous memory in bytes.", lambda u: u.memory_rss),
    ("container_memory_usage_bytes", "gauge", "Memory used, with all caches.", lambda u: u.memory),
    ("container_memory_max_usage_bytes", "gauge", "The most memory ever used.", lambda u: u.memory_max),
    ("container_oom_events_total", "counter", "Processes killed at the memory limit.", lambda u: u.oom_kills),
    ("container_processes", "gauge", "Processes and threads.", lambda u: u.processes),
    ("container_fs_reads_bytes_total", "counter", "Bytes read from block devices.", lambda u: u.read_bytes),
    (
        "container_fs_writes_bytes_total",
        "counter",
        "Bytes written to block devices.",
        lambda u: u.written_bytes,
    ),
)
_TRAFFIC: Final[tuple[tuple[str, str, Callable[[Traffic], int]], ...]] = (
    ("container_network_receive_bytes_total", "Bytes received.", lambda n: n.received_bytes),
    ("container_network_receive_packets_total", "Packets received.", lambda n: n.received_packets),
    ("container_network_receive_errors_total", "Errors while receiving.", lambda n: n.received_errors),
    (
        "container_network_receive_packets_dropped_total",
        "Packets dropped on receipt.",
        lambda n: n.received_dropped,
    ),
    ("container_network_transmit_bytes_total", "Bytes sent.", lambda n: n.sent_bytes),
    ("container_network_transmit_packets_total", "Packets sent.", lambda n: n.sent_packets),
    ("container_network_transmit_errors_total", "Errors while sending.", lambda n: n.sent_errors),
    (
        "container_network_transmit_packets_dropped_total",
        "Packets dropped on sending.",
        lambda n: n.sent_dropped,
    ),
)


def resource_families(t: Telemetry, containers: Sequence[Container]) -> Iterator[Family]:
    labelled = [((("name", c["name"]), *labels_of(c)), c) for c in containers]
    measured = [(labels, t.usage[full_name(c)]) for labels, c in labelled if full_name(c) in t.usage]
    for name, kind, text, value in _USAGE:
        found = [(labels, value(usage)) for labels, usage in measured]
        yield Family(name, kind, text, [(labels, number) for labels, number in found if number is not None])
    for resource in ("cpu", "memory", "io"):
        yield counter(
            f"container_pressure_{resource}_waiting_seconds_total",
            f"Time for which some task waited for {resource}.",
            [(labels, usage.pressure[resource]) for labels, usage in measured if resource in usage.pressure],
        )
    talking = [
        ((*labels, ("interface", t.traffic[full_name(c)].interface)), t.traffic[full_name(c)])
        for labels, c in labelled
        if full_name(c) in t.traffic
    ]
    for name, text, count in _TRAFFIC:
        yield counter(name, text, [(labels, count(traffic)) for labels, traffic in talking])
    yield gauge(
        "container_fs_usage_bytes",
        "Bytes in the container's writable layer.",
        [(labels, t.upper_bytes[full_name(c)]) for labels, c in labelled if full_name(c) in t.upper_bytes],
    )
    yield gauge(
        "container_fs_limit_bytes",
        "What the container may write to its own file system, of those with a limit.",
        [(labels, c["limits"]["rootfs"]) for labels, c in labelled if c["limits"].get("rootfs") is not None],
    )
    yield gauge(
        "container_start_time_seconds",
        "When the program was started.",
        [(labels, c["started_at"]) for labels, c in labelled if c["started_at"] is not None],
    )
    limits = [(labels, c["limits"]) for labels, c in labelled]
    yield gauge(
        "container_spec_memory_limit_bytes",
        "The memory limit; 0 for none.",
        [(labels, limit.get("memory") or 0) for labels, limit in limits],
    )
    limited = [(labels, limit["cpus"]) for labels, limit in limits if limit.get("cpus") is not None]
    yield gauge(
        "container_spec_cpu_quota",
        "CPU time allowed per period, in microseconds.",
        [(labels, round(cpus * _CPU_PERIOD)) for labels, cpus in limited],
    )
    yield gauge(
        "container_spec_cpu_period",
        "The period, in microseconds.",
        [(labels, _CPU_PERIOD) for labels, _ in limited],
    )
