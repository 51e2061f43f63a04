"""The verb stats: what containers use, read from their cgroups here and now; no agent is needed."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from reconciler.cli.common import duration, find_containers, layout_of
from reconciler.cli.costs import COLUMNS, costs
from reconciler.cli.listing import rendered, show
from reconciler.cli.screen import Screen, pause
from reconciler.engine import cgroup, instance
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.record import Record, records
from reconciler.engine.sight import phase_of
from reconciler.engine.traffic import read_traffic
from reconciler.engine.usage import Meter
from reconciler.errors import UsageError
from reconciler.report import stats as report
from reconciler.report.inspection import rfc3339
from reconciler.report.stats import Sample, Subject
from reconciler.report.tables import json_line
from reconciler.state.observed import Running

_SHORTEST: Final = 0.1  # seconds


def stats(args: argparse.Namespace) -> int:
    """Show what containers use, again and again, or once with --no-stream."""
    every = duration(args.interval, "--interval")
    if every < _SHORTEST:
        raise UsageError(f"--interval {args.interval}: expected at least 100ms")
    layout = layout_of(args)
    if args.self:
        if args.names:
            raise UsageError("--self takes no names")
        show(args, "CostList", list(costs(layout)), COLUMNS)
        return 0
    once = args.no_stream or args.output in ("json", "yaml", "name")
    with ExitStack() as stack:
        watcher = _Watcher(layout, args.names, everything=args.all)
        stack.callback(watcher.close)
        watcher.look()
        screen = None
        while True:
            pause(every)
            items = watcher.look()
            if args.output == "jsonl":
                now = rfc3339(time.time())
                sys.stdout.write("".join(json_line({"time": now, **item}) for item in items))
                sys.stdout.flush()
            else:
                text = rendered(
                    args, "StatsList", items, report.columns(truncate=not args.no_trunc), fields=report.fields
                )
                if once:
                    sys.stdout.write(text)
                else:
                    screen = screen or stack.enter_context(Screen(again=True))
                    screen.draw(text)
            if once:
                return 0


class _Watcher:
    """Looks at containers again and again; control files stay open between two looks."""

    def __init__(self, layout: Layout, names: Sequence[str], *, everything: bool) -> None:
        self._layout = layout
        self._parent = f"reconciler-{instance.read_id(layout)}"
        self._names = names
        self._everything = everything
        self._meters: dict[str, Meter] = {}
        self._last: dict[str, Sample] = {}
        self._total = _total_memory()

    def close(self) -> None:
        """Let go of every control file."""
        for meter in self._meters.values():
            meter.close()
        self._meters.clear()

    def look(self) -> list[dict[str, Any]]:
        """A row for each container that runs, or that was named; rates are those since the last look."""
        items, seen = [], set()
        for record in self._wanted():
            phase = phase_of(self._layout, record.id)
            pid = phase.pid if isinstance(phase, Running) else None
            if pid is None and not (self._names or self._everything):
                continue
            seen.add(record.id)
            sample = self._sample(record.id, pid) if pid is not None else None
            limits = record.settings.limits
            subject = Subject(record.full_name, record.id, pid, limits.memory, limits.pids)
            items.append(report.item(subject, self._last.get(record.id), sample, total_memory=self._total))
            if sample is not None:
                self._last[record.id] = sample
        for gone in self._meters.keys() - seen:
            self._meters.pop(gone).close()
            self._last.pop(gone, None)
        return items

    def _wanted(self) -> list[Record]:
        found = (
            [record for name in self._names for record in find_containers(self._layout, name)]
            if self._names
            else list(records(self._layout))
        )
        unique = {record.id: record for record in found}
        return sorted(unique.values(), key=lambda record: (record.full_name, record.created))

    def _sample(self, container_id: str, pid: int) -> Sample | None:
        if container_id not in self._meters:
            group = cgroup.open_existing(Hierarchies.detect(), self._parent, container_id)
            if group is None:
                return None
            self._meters[container_id] = Meter(group)
        return Sample(time.monotonic(), self._meters[container_id].read(), read_traffic(pid))


def _total_memory() -> int:
    """The memory of this device: what a container without a limit may use."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(file.readline().split()[1]) * 1024
