"""The verb wait: until containers have ended, run or are healthy, or until an app or the device is as desired."""

import argparse
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from reconciler.cli.common import duration, find_containers, layout_of
from reconciler.cli.status import status_document
from reconciler.engine.layout import Layout
from reconciler.engine.process import open_pidfd, read_exit, read_shim
from reconciler.engine.record import CorruptRecordError, Record, parse
from reconciler.engine.sight import phase_of
from reconciler.errors import NotFoundError, ReconcilerError, TimedOutError, UsageError
from reconciler.state.observed import Exited, Lost
from reconciler.state.process import ExitRecord

_LOOK_EVERY: Final = 0.25  # seconds
_Item = Mapping[str, Any]


def wait(args: argparse.Namespace) -> int:
    """Wait; exit 6 if it did not come to pass in time. For `exited`, print the exit codes in the order of the names."""
    timeout = duration(args.timeout, "--timeout") if args.timeout else None
    deadline = time.monotonic() + timeout if timeout is not None else None
    if args.condition != "exited":
        _until(args, _CONDITIONS[args.condition], deadline)
        return 0
    if not args.names:
        raise UsageError("wait: which container?", hint="run: reconciler ps")
    layout = layout_of(args)
    found = [record for name in args.names for record in find_containers(layout, name)]
    for code in _codes(layout, found, deadline, args):
        print(code)
    return 0


# --- ends ----------------------------------------------------------------------------------------------------------


def _codes(
    layout: Layout, found: Sequence[Record], deadline: float | None, args: argparse.Namespace
) -> list[int]:
    """The exit codes of these very containers, not of those that take their places."""
    ends: dict[str, ExitRecord] = {}
    poll = select.poll()
    with ExitStack() as stack:
        waiting: dict[int, Record] = {}
        for record in found:
            shim = read_shim(layout.shim_record(record.id))
            fd = open_pidfd(shim.shim) if shim is not None else None
            if fd is None:
                ends[record.id] = _end(layout, record)
                continue
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
            waiting[fd] = record
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = poll.poll(None if left is None else left * 1000)
            for fd, _ in ready:
                record = waiting.pop(fd)
                poll.unregister(fd)
                ends[record.id] = _end(layout, record)
            if not ready:
                raise _late(args, ", ".join(record.full_name for record in waiting.values()))
    return [_code(ends[record.id]) for record in found]


def _end(layout: Layout, record: Record) -> ExitRecord:
    """How a container that has ended did: the shim's record is there before the shim ends.

    The agent may have replaced the container meanwhile: then its records are the predecessor's.
    """
    for _ in range(2):  # it may be moved between the two looks
        match phase_of(layout, record.id):
            case Exited(ended):
                return ended
            case Lost(reason):
                kept = layout.previous(record.app, record.name)
                ended_before = read_exit(kept / "exit.json")
                if ended_before is not None and _is_of(layout, record):
                    return ended_before
            case _:
                reason = "its shim is gone"
    raise ReconcilerError(f"container {record.full_name}: how it ended is not known: {reason}")


def _is_of(layout: Layout, record: Record) -> bool:
    path = layout.previous(record.app, record.name) / "identity.json"
    try:
        return parse(path.read_bytes(), str(path)).id == record.id
    except (OSError, CorruptRecordError):
        return False


def _code(record: ExitRecord) -> int:
    return record.code if record.code is not None else 128 + (record.signal or 0)


# --- conditions ----------------------------------------------------------------------------------------------------


def _until(
    args: argparse.Namespace, condition: Callable[[_Item | None], bool], deadline: float | None
) -> None:
    """Ask for the status again and again until all that was named is so; nothing named is every app."""
    while True:
        document = status_document(args)
        items: dict[str, _Item] = {item["name"]: item for item in document["items"]}
        rows = {row["name"]: row for item in items.values() for row in item["containers"]}
        names = args.names or sorted(items)
        there = [_find(name, items, rows) for name in names]
        if args.condition != "removed":
            for name, item in zip(names, there, strict=True):
                if item is None:
                    raise NotFoundError(f"{name}: no such container or app", hint="run: reconciler status")
        open_ones = [name for name, item in zip(names, there, strict=True) if not condition(item)]
        if not open_ones:
            return
        left = float("inf") if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise _late(args, ", ".join(open_ones))
        time.sleep(min(_LOOK_EVERY, left))


def _find(name: str, items: Mapping[str, _Item], rows: Mapping[str, _Item]) -> _Item | None:
    if name in items:
        return items[name]
    if name in rows:
        return rows[name]
    starting = [row for row in rows.values() if len(name) >= 2 and str(row["id"]).startswith(name)]
    return starting[0] if len(starting) == 1 else None


def _late(args: argparse.Namespace, names: str) -> TimedOutError:
    return TimedOutError(
        f"wait: {names}: not {args.condition} after {args.timeout}", hint="run: reconciler status"
    )


def _running(item: _Item | None) -> bool:
    """A container that runs; an app all of whose containers do."""
    rows = [] if item is None else item.get("containers", [item])
    return all(row["state"] == "running" for row in rows)


def _healthy(item: _Item | None) -> bool:
    """By its health check; where it has none, running is all that can be known."""
    if item is None:
        return False
    if "containers" in item:
        return bool(item["health"] == "healthy")
    return _running(item) and item["health"] in ("healthy", "none")


def _synced(item: _Item | None) -> bool:
    if item is None:
        return False
    return bool(item["sync"] == "synced" if "containers" in item else item["up_to_date"])


_CONDITIONS: Final[Mapping[str, Callable[[_Item | None], bool]]] = {
    "running": _running,
    "healthy": _healthy,
    "synced": _synced,
    "removed": lambda item: item is None,
}
