"""What running containers use and have written, read at the moment somebody asks: cgroups, links, indexes of logs.

Files stay open between two readings, because a scrape of fifty containers has five milliseconds. Nothing here walks a
disk; what a reading can't finish quickly (the first look at the logs after a start of the agent, a flood) goes on in a
thread of its own, and shows in the next one.
"""

import os
import threading
from collections.abc import Iterable
from typing import Any

from reconciler.engine import cgroup
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.logbytes import LogBytes
from reconciler.engine.usage import Meter, Usage
from reconciler.report.telemetry import Traffic
from reconciler.state.observed import Container, Running


class Gauges:
    """Reads the containers of one agent. One thread at a time; `close` lets every descriptor go."""

    def __init__(self, layout: Layout, cgroup_parent: str) -> None:
        self._layout = layout
        self._parent = cgroup_parent
        self._meters: dict[str, Meter] = {}
        self._logs = LogBytes()
        self._counting: threading.Thread | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        if self._counting is not None:
            self._counting.join()
        for meter in self._meters.values():
            meter.close()
        self._meters.clear()
        self._logs.close()

    def usage(self, containers: Iterable[Container]) -> dict[str, Usage]:
        """What each running container uses, by full name; without those whose cgroup is gone."""
        alive = {c.id: c for c in containers if isinstance(c.phase, Running)}
        for gone in self._meters.keys() - alive.keys():
            self._meters.pop(gone).close()
        hierarchies = Hierarchies.detect() if alive.keys() - self._meters.keys() else None
        usage: dict[str, Usage] = {}
        for identity, container in alive.items():
            if identity not in self._meters and hierarchies is not None:
                group = cgroup.open_existing(hierarchies, self._parent, identity)
                if group is None:
                    continue
                self._meters[identity] = Meter(group)
            usage[container.full_name] = self._meters[identity].read()
        return usage

    def written(self, containers: Iterable[Container]) -> dict[tuple[str, str], int]:
        """The bytes that each container has written, by (full name, stream), as counted by now."""
        directories = {c.full_name: self._layout.log(c.id) for c in containers}
        if self._counting is None or not self._counting.is_alive():
            self._counting = None
            if not self._logs.look(directories):
                self._counting = threading.Thread(
                    target=self._count, args=(directories,), name="log-bytes", daemon=True
                )
                self._counting.start()
        return self._logs.counts(directories)

    def _count(self, directories: dict[str, Any]) -> None:
        while not self._closed.is_set() and not self._logs.look(directories):
            pass


def traffic(containers: Iterable[Container]) -> dict[str, Traffic]:
    """What went through the link of each running container, by full name."""
    found = {
        container.full_name: read_traffic(container.phase.pid)
        for container in containers
        if isinstance(container.phase, Running)
    }
    return {name: counts for name, counts in found.items() if counts is not None}


def read_traffic(pid: int) -> Traffic | None:
    """The counters of eth0 as process `pid` sees them, None where there is no such process or link."""
    try:
        # Opened each time: an open one would keep the network namespace alive, and with it the link.
        fd = os.open(f"/proc/{pid}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 65536)
        finally:
            os.close(fd)
    except OSError:
        return None
    figures = text.partition(b" eth0:")[2].partition(b"\n")[0].split()
    if len(figures) < 12:
        return None
    n = [int(figure) for figure in figures]
    return Traffic(n[0], n[1], n[2], n[3], n[8], n[9], n[10], n[11])
