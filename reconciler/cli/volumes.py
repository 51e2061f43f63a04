"""Verbs about named volumes: ls and rm. A volume that no spec declares any more is listed as orphaned."""

import argparse
from datetime import UTC, datetime
from typing import Any, Final

from reconciler.agent import client
from reconciler.agent.history import read_last_good
from reconciler.agent.parts import open_parts
from reconciler.agent.requests import remove_volume
from reconciler.cli.common import device_of, layout_of
from reconciler.cli.listing import show
from reconciler.engine import instance, volumes
from reconciler.engine.layout import Layout
from reconciler.engine.record import records
from reconciler.errors import UsageError
from reconciler.report.tables import Column, age, size
from reconciler.spec.load import load
from reconciler.spec.terms import ANYTHING

_COLUMNS: Final = (
    Column("VOLUME", lambda item: str(item["name"])),
    Column("SIZE", lambda item: size(item["size"])),
    Column("CREATED", lambda item: age(datetime.fromisoformat(item["created"]).timestamp())),
    Column("USED BY", lambda item: "orphaned" if item["orphaned"] else ", ".join(item["users"])),
)


def declared(layout: Layout) -> set[str]:
    """The volumes that the last good specs declare, as app/volume."""
    found: set[str] = set()
    for good in read_last_good(layout).values():
        loaded = load({good.path: good.content}, dict(good.configs).__getitem__, terms=ANYTHING)
        found |= {f"{name}/{volume}" for name, app in loaded.apps.items() for volume in app.app.volumes}
    return found


def listing(args: argparse.Namespace) -> int:
    """List volumes with size, age and users."""
    layout = layout_of(args)
    users: dict[str, list[str]] = {}
    for record in records(layout):
        for name in record.volumes:
            users.setdefault(f"{record.app}/{name}", []).append(record.full_name)
    wanted = declared(layout)
    items: list[dict[str, Any]] = []
    for volume in volumes.volumes(layout):
        name = volume.full_name
        items.append(
            {
                "name": name,
                "size": 0
                if args.quiet or args.output == "name"
                else volumes.size(layout, volume.app, volume.name),
                "created": datetime.fromtimestamp(volume.created, UTC).isoformat(timespec="seconds"),
                "orphaned": name not in wanted and not users.get(name),
                "users": users.get(name, []),
            }
        )
    show(args, "VolumeList", items, _COLUMNS, quiet=lambda item: str(item["name"]))
    return 0


def remove(args: argparse.Namespace) -> int:
    """Delete volumes and their data for good; refused while a container or a spec wants one."""
    layout = layout_of(args)
    for name in args.names:
        if name.count("/") != 1 or not all(name.split("/")):
            raise UsageError(f"volume {name!r}: expected APP/VOLUME", hint="run: reconciler volume ls")
    if client.running(layout):
        for name in args.names:
            client.request(layout, "POST", "/v1/volumes/remove", {"name": name})
            print(name)
        return 0
    instance.read_id(layout)
    parts = open_parts(layout, device_of(args), lambda _: None)
    try:
        with instance.StateLock(layout, "reconciler volume rm"):
            wanted = declared(layout)
            for name in args.names:
                app, _, volume = name.partition("/")
                remove_volume(parts, app, volume, wanted=(volume,) if name in wanted else ())
                print(name)
    finally:
        parts.close()
    return 0
