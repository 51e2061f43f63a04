"""The verb events: what the agent did and saw and what `exec` ran, from the bounded log on disk; no agent is needed."""

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from reconciler.cli.common import layout_of, moment
from reconciler.cli.listing import printed
from reconciler.engine import instance
from reconciler.errors import UsageError
from reconciler.report.eventfollow import follow_events
from reconciler.report.events import read_events
from reconciler.report.filters import Filters, Match
from reconciler.report.inspection import rfc3339
from reconciler.report.tables import RED, YELLOW, dump_json, dump_yaml, json_line, quoted, use_color
from reconciler.report.template import Template

_KINDS: Final = 8  # columns of the longest kind
_PAINTS: Final = {"failed": RED, "exit": YELLOW}


def events(args: argparse.Namespace) -> int:
    """Print the events that are kept, oldest first; with --follow also those that come."""
    layout = layout_of(args)
    instance.read_id(layout)
    since = moment(args.since, "--since") if args.since else float("-inf")
    until = moment(args.until, "--until") if args.until else float("inf")
    wanted = Filters(args.filter, _KEYS)
    if args.follow and (args.tail is not None or args.output in ("json", "yaml")):
        raise UsageError("--follow goes neither with --tail nor with -o json or yaml", hint="use -o jsonl")
    if args.follow:
        limit = until if args.until else None
        source = follow_events(layout.events, until=limit)
    else:
        source = read_events(layout.events)
    found: Iterator[Mapping[str, Any]] = (
        {**event, "time": rfc3339(event["time"], "milliseconds")}
        for event in source
        if since <= event["time"] <= until and wanted.matches(event)
    )
    if args.tail is not None:
        found = iter(deque(found, maxlen=max(0, args.tail)))
    if args.output in ("json", "yaml"):
        document = {"apiVersion": "reconciler/v1", "kind": "EventList", "items": list(found)}
        sys.stdout.write(dump_json(document) if args.output == "json" else dump_yaml(document))
        return 0
    show = _form(args)
    for event in found:
        sys.stdout.write(show(event))
        if args.follow:
            sys.stdout.flush()
    return 0


def _form(args: argparse.Namespace) -> Callable[[Mapping[str, Any]], str]:
    """How one event is printed."""
    if args.output == "jsonl" or args.format == "json":
        return json_line
    if args.format is not None:
        template = Template(args.format)
        return lambda event: printed(template.render({**dict.fromkeys(_FIELDS), **event}) + "\n")
    color = use_color(sys.stdout, args.color, os.environ)

    def line(event: Mapping[str, Any]) -> str:
        kind = quoted(str(event.get("kind", ""))).ljust(_KINDS)
        paint = _PAINTS.get(str(event.get("kind")), "") if color else ""
        shown = f"\x1b[{paint}m{kind}\x1b[0m" if paint else kind
        text = quoted(str(event.get("message", "")))
        return f"{event['time']}  {shown}  {quoted(str(event.get('subject', '')))}  {text}\n"

    return line


_FIELDS: Final = (
    "time", "kind", "subject", "message", "container", "id", "image", "volume", "exit_code", "oom", "memory_peak",
    "exec", "command", "user", "tty", "origin", "login_uid", "seconds", "error", "cut",
)  # fmt: skip


def _container(event: Mapping[str, Any], value: str) -> bool:
    """`page` or `web/page`."""
    name = str(event.get("container", ""))
    return bool(name) and value in (name, f"{event.get('subject')}/{name}")


def _kind(event: Mapping[str, Any], value: str) -> bool:
    return bool(event.get("kind") == value)


_KEYS: Final[Mapping[str, Match]] = {
    "kind": _kind,
    "event": _kind,
    "app": lambda event, value: bool(event.get("subject") == value),
    "container": _container,
    "id": lambda event, value: bool(value) and str(event.get("id", "")).startswith(value),
    "image": lambda event, value: value in str(event.get("image", "")) and bool(value),
    "volume": lambda event, value: bool(event.get("volume") == value),
}
