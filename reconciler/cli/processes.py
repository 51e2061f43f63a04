"""The verb top: the processes of a container, by their numbers on the host and inside; no agent is needed."""

import argparse
import time
from typing import Any, Final

from reconciler.cli.common import find_container, layout_of, running
from reconciler.cli.listing import show
from reconciler.engine import cgroup, instance
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.proctable import Process, read_processes
from reconciler.report.inspection import rfc3339
from reconciler.report.tables import Column, size


def top(args: argparse.Namespace) -> int:
    """List the processes of a running container, those that `exec` started among them."""
    layout = layout_of(args)
    found = find_container(layout, args.name)
    running(layout, found)
    parent = f"reconciler-{instance.read_id(layout)}"
    group = cgroup.open_existing(Hierarchies.detect(), parent, found.id)
    processes = read_processes(cgroup.processes(group), found.ids) if group is not None else []
    inside = {process.pid: process.inside for process in processes}
    items = [_item(process, inside.get(process.parent, 0)) for process in processes]
    show(args, "ProcessList", sorted(items, key=lambda item: int(item["inside"])), _COLUMNS)
    return 0


def _item(process: Process, parent: int) -> dict[str, Any]:
    """`parent` is the parent's number inside, 0 where it is outside."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return {
        "name": str(process.pid),
        "pid": process.pid,
        "inside": process.inside,
        "parent": process.parent,
        "parent_inside": parent,
        "uid": process.uid,
        "host_uid": process.host_uid,
        "state": process.state,
        "threads": process.threads,
        "cpu_seconds": process.cpu_seconds,
        "started": rfc3339(round(booted + process.started, 2)),
        "memory": process.resident,
        "command": process.command,
    }


_COLUMNS: Final = (
    Column("PID", lambda item: str(item["pid"])),
    Column("INSIDE", lambda item: str(item["inside"])),
    Column("PARENT", lambda item: str(item["parent_inside"])),
    Column("UID", lambda item: str(item["uid"])),
    Column("HOST-UID", lambda item: str(item["host_uid"]), wide=True),
    Column("STATE", lambda item: str(item["state"])),
    Column("TIME", lambda item: f"{item['cpu_seconds'] // 60:.0f}:{item['cpu_seconds'] % 60:05.2f}"),
    Column("MEM", lambda item: size(item["memory"])),
    Column("THREADS", lambda item: str(item["threads"]), wide=True),
    Column("STARTED", lambda item: str(item["started"]), wide=True),
    Column("COMMAND", lambda item: str(item["command"])),
)
