"""What several verbs need: places, the device's settings, names of containers, times that people type."""

import argparse
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.engine.layout import Layout
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.spec.quantity import parse_duration

if TYPE_CHECKING:  # what containers are takes longer to load than a verb that asks the agent takes to run
    from reconciler.config import Device
    from reconciler.engine.record import Record
    from reconciler.state.observed import Running


def layout_of(args: argparse.Namespace) -> Layout:
    """The layout that --state and --run name; absolute, whatever the working directory becomes.

    Links are resolved here, once: where something is mounted from them, the shim follows none.
    """
    return Layout(Path(os.path.realpath(args.state)), Path(os.path.realpath(args.run)))


def device_of(args: argparse.Namespace) -> "Device":
    """The device's settings. A missing file means the defaults, unless it was named on the command line."""
    from reconciler.cli.arguments import DEVICE
    from reconciler.config import load_device  # pydantic: a tenth of a second that most verbs need not spend

    path = Path(args.device)
    try:
        data: bytes | None = path.read_bytes()
    except FileNotFoundError as error:
        if args.device != DEVICE:
            raise NotFoundError(
                f"{path}: no such file", hint="leave --device out to use the defaults"
            ) from error
        data = None
    return load_device(str(path), data)


def duration(text: str, option: str) -> float:
    """Seconds, or a usage error that names the option."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from error


def moment(text: str, option: str) -> float:
    """Wall seconds from RFC 3339, seconds since 1970, or a duration ago; `+10m` is ten minutes from now."""
    if re.fullmatch(r"\d{9,12}(\.\d+)?", text):
        return float(text)
    if text.startswith("+"):
        return time.time() + duration(text[1:], option)
    try:
        value = datetime.fromisoformat(text)
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return time.time() - duration(text, option)


def find_container(layout: Layout, name: str) -> "Record":
    """The newest container that `name` means: APP/CONTAINER, an ad-hoc one's name, or the start of an id."""
    from reconciler.engine import named

    return named.find(layout, name)


def running(layout: Layout, record: "Record") -> "Running":
    """How `record`'s program runs, or an error that says that it does not."""
    from reconciler.engine.sight import phase_of
    from reconciler.state.observed import Running

    phase = phase_of(layout, record.id)
    if not isinstance(phase, Running):
        raise ReconcilerError(f"container {record.full_name}: not running", hint="run: reconciler ps -a")
    return phase


def find_containers(layout: Layout, name: str) -> "list[Record]":
    """The containers that `name` means: all of an app, or the one that `find_container` finds."""
    from reconciler.engine.record import records

    if "/" not in name:
        newest = {
            record.full_name: record
            for record in sorted(records(layout), key=lambda record: record.created)
            if record.app == name
        }
        if newest:
            return [newest[full_name] for full_name in sorted(newest)]
    return [find_container(layout, name)]


def print_json(value: Any) -> None:
    """One document on standard output."""
    import json

    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def document(kind: str, items: list[Any]) -> dict[str, Any]:
    """The shape of every `-o json`: kubectl's list."""
    return {"apiVersion": "reconciler/v1", "kind": kind, "items": items}
