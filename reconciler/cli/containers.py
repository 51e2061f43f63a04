"""Verbs about one container: logs and exec. They talk to the disk and to the container's shim; no agent is needed."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from reconciler.cli import pipes, terminal
from reconciler.cli.common import find_container, layout_of, moment
from reconciler.engine import logs as log_files
from reconciler.engine.control import Command, Control
from reconciler.engine.layout import Layout
from reconciler.engine.logs import Record
from reconciler.engine.process import open_pidfd, read_shim
from reconciler.errors import NotFoundError, ReconcilerError, UnreachableError, UsageError
from reconciler.report.tables import printable


def logs(args: argparse.Namespace) -> int:
    """Print what a container wrote, its standard error on standard error."""
    layout = layout_of(args)
    tail = _tail(args.tail)
    since = moment(args.since, "--since") if args.since else None
    until = moment(args.until, "--until") if args.until else None
    if args.follow and (until is not None or args.previous):
        raise UsageError("--follow goes neither with --until nor with --previous")
    directory, container_id = _log_of(layout, args.name, previous=args.previous)
    if args.follow:
        records = _follow(layout, container_id, directory, tail, since)
    else:
        records = log_files.read(directory, tail=tail, since=since, until=until)
    for record in records:
        _print(record, args)
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    try:
        count = int(text)
    except ValueError as error:
        raise UsageError(f"--tail {text!r}: expected a number or all") from error
    return None if count < 0 else count


def _log_of(layout: Layout, name: str, *, previous: bool) -> tuple[Path, str]:
    """The log directory that `name` means, and the container's id ("" for a predecessor)."""
    if not previous:
        found = find_container(layout, name)
        return layout.log(found.id), found.id
    full_name = name
    if name.count("/") != 1:
        full_name = find_container(layout, name).full_name
    app, _, container = full_name.partition("/")
    directory = layout.previous(app, container) / "log"
    if not directory.is_dir():
        raise NotFoundError(f"container {full_name}: no container ran before this one")
    return directory, ""


def _follow(
    layout: Layout, container_id: str, directory: Path, tail: int | None, since: float | None
) -> Iterator[Record]:
    shim = read_shim(layout.shim_record(container_id))
    ended = open_pidfd(shim.shim) if shim is not None else None
    if ended is None:
        yield from log_files.read(directory, tail=tail, since=since)
        return
    try:
        yield from log_files.follow(directory, tail=tail, since=since, ended=ended)
    finally:
        os.close(ended)


def _print(record: Record, args: argparse.Namespace) -> None:
    stamp = datetime.fromtimestamp(record.time_ns / 1e9, UTC).isoformat(timespec="microseconds")
    if args.output == "jsonl":
        line = {
            "time": stamp,
            "stream": record.stream,
            "line": record.data.decode("utf-8", errors="replace"),
            "partial": record.partial,
        }
        if record.dropped:
            line["dropped"] = record.dropped
        print(json.dumps(line, ensure_ascii=False), flush=args.follow)
        return
    stream = sys.stdout if record.stream == "stdout" else sys.stderr
    if record.dropped:
        print(f"reconciler: {record.dropped} bytes of the log were lost here", file=sys.stderr)
        return
    data = record.data
    if stream.isatty():
        data = printable(data.decode("utf-8", errors="replace")).encode()
    prefix = f"{stamp} ".encode() if args.timestamps else b""
    stream.buffer.write(prefix + data + b"\n")
    if args.follow:
        stream.buffer.flush()


def execute(args: argparse.Namespace) -> int:
    """Run a command inside a running container; its exit code is ours, 125 to 127 as Docker's."""
    layout = layout_of(args)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("exec: no command was given")
    for variable in args.env:
        if "=" not in variable:
            raise UsageError(f"--env {variable!r}: expected NAME=VALUE")
    if args.tty and not sys.stdin.isatty():
        raise UsageError("--tty: standard input is not a terminal", hint="leave -t out")
    found = find_container(layout, args.name)
    wanted = Command(
        arguments=tuple(command),
        environment=tuple(args.env),
        user=args.user or None,
        cwd=args.workdir or None,
    )
    try:
        control = Control.connect(layout.control_socket(found.id))
    except UnreachableError as error:
        raise NotRunningError(
            f"container {found.full_name}: not running", hint="run: reconciler ps -a"
        ) from error
    with control:
        if args.tty:
            return terminal.attach(control, wanted, interactive=args.interactive)
        with ExitStack() as stack:
            return control.run(wanted, pipes.standard(stack, interactive=args.interactive))


class NotRunningError(ReconcilerError):
    """The container is there but nothing of it runs, so nothing can be run beside it."""

    exit_code = 125
