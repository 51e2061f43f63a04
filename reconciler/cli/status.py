"""Verbs that look at the whole: status and ps. They ask the running agent, and look for themselves where none runs."""

import argparse
import sys
import time
from typing import Any

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of
from reconciler.engine import instance
from reconciler.errors import NotFoundError, UnreachableError
from reconciler.report import status as report
from reconciler.report.tables import dump_json, listing


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
    sys.stdout.write(listing("Status", items, report.APP_COLUMNS, output=_output(args)))
    if args.output == "name":
        return 0
    if args.app is not None:
        for item in items:
            columns = report.ps_columns(now=time.time())
            sys.stdout.write(
                "\n" + listing("ContainerList", item["containers"], columns, output=_output(args))
            )
    for note in _notes(document):
        print(note, file=sys.stderr)
    return 0


def ps(args: argparse.Namespace) -> int:
    """List containers; with -a also those that do not run."""
    document = status_document(args)
    items = report.containers(document, everything=args.all)
    if args.quiet:
        for item in items:
            if item["id"]:
                print(item["id"] if args.no_trunc else item["id"][:12])
        return 0
    columns = report.ps_columns(now=time.time(), truncate=not args.no_trunc)
    sys.stdout.write(
        listing("ContainerList", items, columns, output=_output(args), with_headers=not args.no_headers)
    )
    return 0


def _output(args: argparse.Namespace) -> str:
    return "" if args.output == "table" else str(args.output)


def _notes(document: dict[str, Any]) -> list[str]:
    notes = []
    if document.get("agent") == "not running":
        notes.append("the agent is not running: this is what is on disk and in the kernel")
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
