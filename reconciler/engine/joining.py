"""Joining the network namespace of another container: whose it is, where it is found, and whether two share one.

A namespace belongs to the processes in it and to nothing else: no file keeps it, and each container's is made with its
first process. It is told by its inode, which no other has for as long as somebody is in it. Reads only.
"""

import json
import os
from dataclasses import dataclass

from reconciler.engine import record
from reconciler.engine.layout import Layout
from reconciler.engine.process import ProcessId, alive, read_shim
from reconciler.errors import ReconcilerError
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import called


@dataclass(frozen=True, slots=True)
class Joined:
    """The container whose network is joined: its id and host name, its namespace as a path, and the inode of that."""

    id: str
    hostname: str
    path: str
    inode: int


def inode(process: ProcessId) -> int | None:
    """The inode of the network namespace of that very process, None where it has ended."""
    try:
        found = os.stat(_path(process.pid)).st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found if alive(process) else None  # asked last: the pid was its own all the time


def _path(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


def find(layout: Layout, who: str, joins: str) -> Joined:
    """The container that `joins` means, which must run, for the container `who`; or a transient ReconcilerError."""
    app, _, name = joins.partition("/")
    shown = called(app, name[:12] if app == ADHOC else name)
    for found in record.records(layout):
        if found.app != app or name != (found.id if app == ADHOC else found.name):
            continue
        shim = read_shim(layout.shim_record(found.id))
        if shim is None or shim.started_boot is None:
            continue
        there = inode(shim.init)
        if there is not None:
            return Joined(found.id, _hostname(layout, found.id), _path(shim.init.pid), there)
    raise ReconcilerError(f"{who}: {shown}, whose network it joins, does not run", transient=True)


def _hostname(layout: Layout, container_id: str) -> str:
    try:
        return str(json.loads(layout.config(container_id).read_bytes()).get("hostname", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # deleted or damaged: that container is made again, and who joined it too


def demand(layout: Layout, found: record.Record) -> None:
    """Raise a transient ReconcilerError unless the container is in the namespace that the one has which it joins."""
    joined, shim = find(layout, found.full_name, found.joins), read_shim(layout.shim_record(found.id))
    if shim is None or inode(shim.init) != joined.inode:
        raise ReconcilerError(
            f"{found.full_name}: the container whose network it joined has another one now", transient=True
        )
