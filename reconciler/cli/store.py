"""The verb gc: what would go and why, and letting it go."""

import argparse
from typing import Any

from reconciler.agent import client, reading
from reconciler.agent.parts import open_parts
from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.cli.listing import show
from reconciler.engine import instance
from reconciler.report.tables import Column, size


def _columns(*, truncate: bool) -> tuple[Column, ...]:
    return (
        Column("ACTION", lambda item: "keep" if item["kept"] else "remove"),
        Column("KIND", lambda item: str(item["kind"])),
        Column("NAME", lambda item: str(item["name"])[: 19 if truncate else None]),
        Column("SIZE", lambda item: size(item["size"])),
        Column("REASON", lambda item: str(item["reason"])),
    )


def gc(args: argparse.Namespace) -> int:
    """Delete what nothing wants any more; with --dry-run list every object with the reason it stays or goes."""
    layout, device = layout_of(args), device_of(args)
    instance.read_id(layout)
    explained = reading.explain_garbage(layout, device)
    if not args.dry_run:
        if client.running(layout):
            answer = client.request(layout, "POST", "/v1/gc", timeout=600)
            removed, reclaimed = answer["removed"], answer["bytes"]
        else:
            parts = open_parts(layout, device, lambda _: None)
            try:
                with instance.StateLock(layout, "reconciler gc"):
                    removed, reclaimed = reading.collect(parts, explained)
            finally:
                parts.close()
        if args.output == "json":
            print_json(
                {"apiVersion": "reconciler/v1", "kind": "Garbage", "removed": removed, "bytes": reclaimed}
            )
        else:
            print(f"removed {removed} objects, {size(reclaimed)}")
        return 0
    items: list[Any] = [
        {
            "kind": entry.object.kind,
            "name": entry.object.name,
            "size": entry.object.size,
            "kept": entry.kept,
            "reason": entry.reason,
        }
        for entry in explained
    ]
    show(args, "GarbageList", items, _columns(truncate=not args.no_trunc))
    if args.output not in ("table", "wide") or args.format is not None:
        return 0
    going = [item for item in items if not item["kept"]]
    print(f"{len(going)} of {len(items)} objects would go, {size(sum(item['size'] for item in going))}")
    return 0
