"""The verb logs: what containers wrote, one or several at once. It reads their files; no agent is needed."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from reconciler.cli.common import find_container, find_containers, layout_of, moment
from reconciler.engine.layout import Layout
from reconciler.engine.logfollow import Keep, Log, Window, follow_all, read_all
from reconciler.engine.logs import Record, log_driver
from reconciler.engine.process import open_pidfd, read_shim
from reconciler.errors import NotFoundError, UsageError
from reconciler.report.tables import json_line, printable, quoted, use_color, width

_COLORS: Final = ("36", "33", "32", "35", "34", "31")  # SGR: cyan, yellow, green, magenta, blue, red


@dataclass(frozen=True, slots=True)
class _Source:
    """A log with the name to print before its lines; `id` is "" for a predecessor's."""

    name: str
    directory: Path
    id: str


def logs(args: argparse.Namespace) -> int:
    """Print what containers wrote, their standard error on standard error."""
    layout = layout_of(args)
    window = Window(
        tail=_tail(args.tail),
        since=moment(args.since, "--since") if args.since else None,
        until=moment(args.until, "--until") if args.until else None,
        keep=_keep(args),
    )
    if args.follow and args.previous:
        raise UsageError("--follow does not go with --previous: nobody writes there any more")
    sources = _sources(layout, args.names, previous=args.previous)
    _refuse_journal(layout, sources, follow=args.follow)
    printer = _Printer(args, [source.name for source in sources])
    if not args.follow:
        for number, record in read_all([Log(source.directory) for source in sources], window):
            printer.print(number, record)
        return 0
    with ExitStack() as stack:
        found = []
        for source in sources:
            shim = read_shim(layout.shim_record(source.id))
            ended = open_pidfd(shim.shim) if shim is not None else None
            if ended is not None:
                stack.callback(os.close, ended)
            found.append(Log(source.directory, ended))
        for number, record in follow_all(found, window):
            printer.print(number, record)
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    try:
        count = int(text)
    except ValueError as error:
        raise UsageError(f"--tail {text!r}: expected a number or all") from error
    return None if count < 0 else count


def _keep(args: argparse.Namespace) -> Keep | None:
    if args.grep is None:
        if args.invert or args.ignore_case:
            raise UsageError("-v and -i are about --grep, which is missing")
        return None
    try:
        wanted = re.compile(args.grep, re.IGNORECASE if args.ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {args.grep!r}: {error}") from error
    invert = bool(args.invert)
    return lambda record: bool(wanted.search(record.data.decode(errors="replace"))) is not invert


def _sources(layout: Layout, names: Sequence[str], *, previous: bool) -> list[_Source]:
    """The logs that are meant, each once, in the order of the names."""
    found: dict[Path, _Source] = {}
    for name in names:
        if not previous:
            for record in find_containers(layout, name):
                directory = layout.log(record.id)
                found[directory] = _Source(record.full_name, directory, record.id)
            continue
        full_name = name if name.count("/") == 1 else find_container(layout, name).full_name
        app, _, container = full_name.partition("/")
        directory = layout.previous(app, container) / "log"
        if not directory.is_dir():
            raise NotFoundError(f"container {full_name}: no container ran before this one")
        found[directory] = _Source(full_name, directory, "")
    return list(found.values())


def _refuse_journal(layout: Layout, sources: Sequence[_Source], *, follow: bool) -> None:
    """Say how to read what a container has written into the device's journal: that has a reader of its own."""
    for source in sources:
        if source.id and log_driver(layout, source.id) == "journald":
            raise UsageError(
                f"{source.name}: its log is in the device's journal",
                hint=f"run: journalctl {'-f ' if follow else ''}CONTAINER_ID_FULL={source.id}",
            )


class _Printer:
    """Prints records as the options say. Lines of several containers carry the container's name."""

    def __init__(self, args: argparse.Namespace, names: Sequence[str]) -> None:
        self._json = args.output == "jsonl"
        self._stamps = args.timestamps
        self._flush = args.follow
        self._names = names
        self._prefixes = [""] * len(names)
        self._last: BinaryIO | None = None
        if len(names) > 1:
            color = use_color(sys.stdout, args.color, os.environ)
            room = max(width(quoted(name)) for name in names)
            for number, name in enumerate(names):
                shown = quoted(name)
                prefix = f"{shown}{' ' * (room - width(shown))} | "
                self._prefixes[number] = (
                    f"\x1b[{_COLORS[number % len(_COLORS)]}m{prefix}\x1b[0m" if color else prefix
                )

    def print(self, number: int, record: Record) -> None:
        stamp = datetime.fromtimestamp(record.time_ns / 1e9, UTC).isoformat(timespec="microseconds")
        if self._json:
            line = {
                "time": stamp,
                "name": self._names[number],
                "stream": record.stream,
                "line": record.data.decode("utf-8", errors="replace"),
                "partial": record.partial,
            }
            if record.dropped:
                line["dropped"] = record.dropped
            sys.stdout.write(json_line(line))
            if self._flush:
                sys.stdout.flush()
            return
        stream = sys.stdout if record.stream == "stdout" and not record.dropped else sys.stderr
        if record.dropped:
            data = f"reconciler: {record.dropped} bytes of the log were lost here".encode()
        elif stream.isatty():
            data = printable(record.data.decode("utf-8", errors="replace")).encode()
        else:
            data = record.data
        prefix = self._prefixes[number] + (f"{stamp} " if self._stamps and not record.dropped else "")
        self._write(stream.buffer, prefix.encode() + data + b"\n")

    def _write(self, stream: BinaryIO, line: bytes) -> None:
        """Both streams may be one terminal or one file: what was written first must be there first."""
        if self._last is not None and self._last is not stream:
            self._last.flush()
        self._last = stream
        stream.write(line)
        if self._flush:
            stream.flush()
