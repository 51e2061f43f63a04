"""Verbs that look at the whole: status and ps. They ask the running agent, and look for themselves where none runs."""

import argparse
import sys
import time
from typing import Any, Final

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of
from reconciler.cli.listing import rendered, show
from reconciler.cli.screen import Screen, pause
from reconciler.engine import instance
from reconciler.errors import NotFoundError, UnreachableError
from reconciler.report import status as report
from reconciler.report.filters import CONTAINER_KEYS, Filters
from reconciler.report.tables import dump_json, dump_yaml, printable

_WATCH_EVERY: Final = 1.0  # seconds


def status_document(args: argparse.Namespace) -> dict[str, Any]:
    """The status document: the agent's, or one made here from what is on disk, without looking at a source."""
    layout = layout_of(args)
    try:
        return client.request(layout, "GET", "/v1/status")
    except UnreachableError:
        from reconciler.agent import reading  # everything that a loop needs: only where no agent has it ready

        instance.read_id(layout)
        return reading.status_here(layout, device_of(args))


def status(args: argparse.Namespace) -> int:
    """Show each app's state; exit 0 if all is as desired, whatever the health."""
    document = status_document(args)
    items = document["items"]
    if args.app is not None:
        items = [item for item in items if item["name"] == args.app]
        if not items:
            raise NotFoundError(f"app {args.app}: not found", hint="run: reconciler status")
    if args.output == "json":
        sys.stdout.write(dump_json({**document, "items": items}))
        return 0
    if args.output == "yaml":
        sys.stdout.write(dump_yaml({**document, "items": items}))
        return 0
    show(args, "Status", items, report.APP_COLUMNS, quiet=lambda item: str(item["name"]))
    if args.output not in ("table", "wide") or args.format is not None or args.quiet:
        return 0
    if args.app is not None:
        for item in items:
            columns = report.ps_columns(now=time.time(), truncate=not args.no_trunc)
            print()
            show(args, "ContainerList", item["containers"], columns)
    for note in _notes(document):
        print(printable(note) if sys.stderr.isatty() else note, file=sys.stderr)
    return 0


def ps(args: argparse.Namespace) -> int:
    """List containers; with -a also those that do not run."""
    wanted = Filters(args.filter, CONTAINER_KEYS)
    if not args.watch:
        sys.stdout.write(_containers(args, wanted))
        return 0
    with Screen(again=False) as screen:
        while True:
            screen.draw(_containers(args, wanted))
            pause(_WATCH_EVERY)


def _containers(args: argparse.Namespace, wanted: Filters) -> str:
    last = 1 if args.latest else args.last
    everything = args.all or last is not None or "status" in wanted or "exited" in wanted
    items = wanted.select(report.containers(status_document(args), everything=everything))
    if last is not None:
        made = sorted((item for item in items if item["created"]), key=lambda item: str(item["created"]))
        items = made[::-1][: max(0, last)]
    now, truncate = time.time(), not args.no_trunc
    return rendered(
        args,
        "ContainerList",
        [item for item in items if item["id"]] if args.quiet else items,
        report.ps_columns(now=now, truncate=truncate),
        quiet=lambda item: str(item["id"])[: 12 if truncate else None],
        fields=lambda item: report.ps_fields(item, now=now, truncate=truncate),
    )


def _notes(document: dict[str, Any]) -> list[str]:
    notes = []
    if document.get("agent") == "not running":
        notes.append(f"the agent is not running: this is what is on disk and in the kernel; {report.START}")
    if document["source"]["problem"]:
        notes.append(f"source: {document['source']['problem']}")
    if document["source"]["stale"]:
        notes.append(f"source: {document['source']['stale']}")
    if document["guard"]:
        notes.append(document["guard"])
    notes += [item["reason"] for item in document["blocked"]]
    errors = [problem for problem in document["problems"] if problem["severity"] == "error"]
    notes += [
        f"{problem['file']}:{problem['line']}:{problem['column']}: {problem['message']}" for problem in errors
    ]
    return [*notes, *document["notes"]]
