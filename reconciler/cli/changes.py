"""The verb diff: what a container has changed in its file system; no agent is needed."""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from reconciler.cli.common import find_container, layout_of
from reconciler.cli.listing import show
from reconciler.engine.bundle import PREFIX
from reconciler.engine.changes import ADDED, CHANGED, DELETED, changes
from reconciler.errors import NotFoundError
from reconciler.report.tables import GREEN, RED, YELLOW, Column, size

_PAINTS: Final = {ADDED: GREEN, CHANGED: YELLOW, DELETED: RED}
_COLUMNS: Final = (
    Column("KIND", lambda item: str(item["kind"]), paint=lambda item: _PAINTS[item["kind"]]),
    Column("PATH", lambda item: str(item["name"])),
    Column("SIZE", lambda item: size(item["size"]), wide=True),
)


def diff(args: argparse.Namespace) -> int:
    """List what was added (A), changed (C) and deleted (D) in a container since it was made, as Docker does."""
    layout = layout_of(args)
    found = find_container(layout, args.name)
    try:
        config = json.loads(layout.config(found.id).read_bytes())
        upper = Path(config["annotations"][PREFIX + "upper"])
        layers = [Path(layer) for layer in json.loads(config["annotations"][PREFIX + "layers"])]
        mounted = [str(mount["destination"]) for mount in config["mounts"]]
        differences = changes(upper, layers, mounted)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(f"container {found.full_name}: its file system is not here any more") from error
    items: list[dict[str, Any]] = [
        {"name": change.path, "kind": change.kind, "size": change.size} for change in differences
    ]
    args.no_headers = args.no_headers or args.output == "table"  # Docker's has none
    show(args, "ChangeList", items, _COLUMNS)
    return 0
