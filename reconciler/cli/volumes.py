"""Verbs about named volumes: create, ls, rm. A volume that no spec declares any more is listed as orphaned."""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from reconciler.agent import client
from reconciler.cli.change import change
from reconciler.cli.common import device_of, layout_of
from reconciler.cli.listing import show
from reconciler.engine import instance, volumes
from reconciler.engine.layout import Layout
from reconciler.engine.record import records
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.report.filters import Filters, Match, like, truth
from reconciler.report.tables import Column, age, size

if TYPE_CHECKING:
    from reconciler.agent.parts import Parts

_COLUMNS: Final = (
    Column("VOLUME", lambda item: str(item["name"])),
    Column("SIZE", lambda item: size(item["size"])),
    Column("LIMIT", lambda item: "-" if item["size_limit"] is None else size(item["size_limit"])),
    Column("CREATED", lambda item: age(datetime.fromisoformat(item["created"]).timestamp())),
    Column("USED BY", lambda item: _used(item)),
    Column("LABELS", lambda item: ",".join(f"{k}={v}" for k, v in item["labels"].items()), wide=True),
    Column("MOUNTPOINT", lambda item: str(item["mountpoint"]), wide=True),
)


def declared(layout: Layout) -> set[str]:
    """The volumes that the last good specs declare, as app/volume."""
    from reconciler.agent.history import read_last_good
    from reconciler.spec.load import load  # the models of specs: not for a verb that asks the agent
    from reconciler.spec.terms import ANYTHING

    found: set[str] = set()
    for good in read_last_good(layout).values():
        loaded = load({good.path: good.content}, dict(good.configs).__getitem__, terms=ANYTHING)
        found |= {f"{name}/{volume}" for name, app in loaded.apps.items() for volume in app.app.volumes}
    return found


def listing(args: argparse.Namespace) -> int:
    """List volumes with size, age and users."""
    from reconciler.agent.stock import volume_users

    layout = layout_of(args)
    which = Filters(args.filter, _KEYS)
    users = volume_users(records(layout))
    wanted = declared(layout)
    items: list[dict[str, Any]] = []
    for volume in volumes.volumes(layout):
        name = volume.full_name
        item = {
            "name": name,
            "size": 0,
            "size_limit": volumes.size_limit(layout, volume.app, volume.name),
            "created": datetime.fromtimestamp(volume.created, UTC).isoformat(timespec="seconds"),
            "orphaned": name not in wanted and not users.get(name),
            "anonymous": volume.anonymous,
            "labels": dict(volume.labels),
            "mountpoint": str(layout.volume_data(volume.app, volume.name)),
            "users": users.get(name, []),
        }
        if which.matches(item):
            if not args.quiet and args.output != "name":
                item["size"] = volumes.size(layout, volume.app, volume.name)
            items.append(item)
    show(args, "VolumeList", items, _COLUMNS, quiet=lambda item: str(item["name"]))
    return 0


def _used(item: Mapping[str, Any]) -> str:
    text = "orphaned" if item["orphaned"] else ", ".join(item["users"])
    return f"{text} (anonymous)" if item["anonymous"] else text


def _label(item: Mapping[str, Any], value: str) -> bool:
    key, equals, wanted = value.partition("=")
    return key in item["labels"] and (not equals or item["labels"][key] == wanted)


_KEYS: Final[dict[str, Match]] = {
    "dangling": lambda item, value: (not item["users"]) is truth("dangling", value),
    "name": lambda item, value: like(item["name"], value),
    "label": _label,
    "orphaned": lambda item, value: item["orphaned"] is truth("orphaned", value),
}


def create(args: argparse.Namespace) -> int:
    """Make a volume; succeeds if it is there. One that a spec declares later is taken over with what is in it."""
    volumes.split(args.name)
    labels = {}
    for text in args.label:
        key, _, value = text.partition("=")
        if not key:
            raise UsageError(f"--label {text!r}: expected KEY=VALUE")
        labels[key] = value
    answer = change(
        args,
        "volume create",
        "/v1/volumes/create",
        {"name": args.name, "labels": labels},
        lambda parts: _create_here(parts, args.name, labels),
    )
    print(answer["name"])
    return 0


def _create_here(parts: "Parts", name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    from reconciler.agent.requests import create_volume

    return {"name": create_volume(parts, name, labels)}


def remove(args: argparse.Namespace) -> int:
    """Delete volumes and their data for good; refused while a container or a spec wants one."""
    layout = layout_of(args)
    names = ["/".join(volumes.split(name)) for name in args.names]
    if not client.running(layout):
        instance.read_id(layout)
    failed: ReconcilerError | None = None
    for name in names:
        try:
            _remove(args, layout, name)
        except ReconcilerError as error:
            if not (args.force and error.exit_code == NotFoundError.exit_code):
                failed = failed or error
        else:
            print(name)
    if failed is not None:
        raise failed
    return 0


def _remove(args: argparse.Namespace, layout: Layout, name: str) -> None:
    if client.running(layout):
        client.request(layout, "POST", "/v1/volumes/remove", {"name": name})
        return
    from reconciler.agent.parts import open_parts
    from reconciler.agent.requests import remove_volume

    app, _, volume = name.partition("/")
    parts = open_parts(layout, device_of(args), lambda _: None)
    try:
        with instance.StateLock(layout, "reconciler volume rm"):
            remove_volume(parts, app, volume, wanted=(volume,) if name in declared(layout) else ())
    finally:
        parts.close()
