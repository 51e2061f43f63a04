"""Verbs that make room: image, container, volume and system prune, and df, which says where the room has gone.

From gentle to aggressive, and never without saying what: everything that would go is listed with its size and the
reason, a person is asked, and what was not listed then does not go.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from reconciler.agent import stock
from reconciler.agent.stock import Order, Stock
from reconciler.cli.asking import ask
from reconciler.cli.change import change
from reconciler.cli.common import device_of, layout_of, moment, print_json
from reconciler.cli.listing import show
from reconciler.engine import instance, volumes
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, NotFoundError, UsageError
from reconciler.plan import prune as plan
from reconciler.plan.prune import Going
from reconciler.report.tables import Column, short_digest, size, table

_KINDS: Final = {
    "image": frozenset({"image"}),
    "container": frozenset({"container"}),
    "volume": frozenset({"volume"}),
    "system": frozenset({"image", "container"}),
}


def prune(args: argparse.Namespace) -> int:
    """List what would go, ask, and take it away; without a terminal to ask on, only with --force."""
    layout = layout_of(args)
    instance.read_id(layout)
    order = _order(args)
    going = stock.decide(Stock(layout, device_of(args), Store(layout)), order)
    said = args.output == "table"
    if said and going:
        sys.stdout.write(_listed(going))
    if args.dry_run or not going:
        return _end(args, going, "would be" if args.dry_run else "were")
    if not args.force and not _agreed(going):
        print("nothing was removed", file=sys.stderr)
        return 1
    removed = [item for item in going if item.kind == "container" and _container_went(args, item.name)]
    keys = [item.key for item in going if item.kind != "container"]
    answer = change(
        args,
        f"{args.what} prune",
        "/v1/prune",
        stock.order_document(order, keys),
        lambda parts: {"removed": stock.removed(stock.carry_out(parts, order, frozenset(keys)))},
    )
    gone = {tuple(item["key"]) for item in answer["removed"]} | {item.key for item in removed}
    for item in going:
        if item.key not in gone:
            print(f"reconciler: {item.kind} {item.name}: kept: something uses it now", file=sys.stderr)
    return _end(args, [item for item in going if item.key in gone], "were")


def _container_went(args: argparse.Namespace, name: str) -> bool:
    """Remove an ad-hoc container as `rm` does, which refuses one that runs by now; say whether it is gone."""
    try:
        ask(args, "remove", {"name": name})
    except NotFoundError:
        return True
    except BlockedError:
        return False
    return True


def _end(args: argparse.Namespace, gone: Sequence[Going], verb: str) -> int:
    total = sum(item.size for item in gone)
    if args.output == "json":
        items = [
            {"kind": item.kind, "name": item.name, "size": item.size, "reason": item.reason} for item in gone
        ]
        print_json(
            {"apiVersion": "reconciler/v1", "kind": "PrunedList", "items": items, "bytes": total}
            | {"dry_run": args.dry_run}
        )
    elif not gone:
        print("nothing to remove")
    else:
        print(f"{len(gone)} {verb} removed, {size(total)} reclaimed".replace("were removed", "removed"))
    return 0


def _listed(going: Sequence[Going]) -> str:
    rows = [
        (item.kind, short_digest(item.name), size(item.size), item.reason)
        for item in sorted(going, key=lambda item: (item.kind, -item.size, item.name))
    ]
    return table(("KIND", "NAME", "SIZE", "REASON"), rows)


def _agreed(going: Sequence[Going]) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            f"prune: {len(going)} things would go, and nobody can be asked here",
            hint="--force removes them without asking, --dry-run only lists them",
        )
    total = size(sum(item.size for item in going))
    print(f"Remove these {len(going)}, {total}, for good? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _order(args: argparse.Namespace) -> Order:
    kinds = _KINDS[args.what]
    if args.what == "system" and args.volumes:
        kinds |= {"volume"}
    until: float | None = None
    labels: list[tuple[str, str | None]] = []
    without: list[tuple[str, str | None]] = []
    for text in args.filter:
        key, equals, value = text.partition("=")
        match key:
            case "until" if equals and value:
                until = min(moment(value, "--filter until"), until or time.time())
            case "label" if equals and value:
                labels.append(_label(value))
            case "label!" if equals and value:
                without.append(_label(value))
            case _:
                wrong = f"there is no key {key!r}" if equals else "expected KEY=VALUE"
                raise UsageError(
                    f"--filter {text!r}: {wrong}", hint="keys: until, label, label! (label!=KEY)"
                )
    return Order(kinds, bool(args.all), plan.Filter(until, tuple(labels), tuple(without)))


def _label(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    return key, value if equals else None


# --- df ------------------------------------------------------------------------------------------------------------

_USAGE: Final = (
    Column("TYPE", lambda item: str(item["name"])),
    Column("TOTAL", lambda item: str(item["total"])),
    Column("ACTIVE", lambda item: str(item["active"])),
    Column("SIZE", lambda item: size(item["size"])),
    Column("RECLAIMABLE", lambda item: size(item["reclaimable"])),
)
_THINGS: Final = (
    Column("KIND", lambda item: str(item["kind"])),
    Column("NAME", lambda item: short_digest(str(item["name"]))),
    Column("SIZE", lambda item: size(item["size"])),
    Column("RECLAIMABLE", lambda item: size(item["reclaimable"])),
    Column("USED BY", lambda item: ", ".join(item["users"])),
    Column("LIMIT", lambda item: "-" if item.get("limit") is None else size(item["limit"]), wide=True),
)


def df(args: argparse.Namespace) -> int:
    """Show what takes room in the state directory, and what a prune would give back."""
    layout = layout_of(args)
    instance.read_id(layout)
    held = Stock(layout, device_of(args), Store(layout))
    things = _things(held)
    if args.verbose:
        show(args, "DiskUsageList", things, _THINGS)
        return 0
    names = {
        "image": "images",
        "container": "containers",
        "volume": "volumes",
        "run": "runs before",
        "transfer": "transfers",
        "discarded": "discarded",
        "other": "other",
    }
    items = [
        {
            "name": names[kind],
            "total": sum(thing["kind"] == kind for thing in things),
            "active": sum(thing["kind"] == kind and bool(thing["users"]) for thing in things),
            "size": sum(thing["size"] for thing in things if thing["kind"] == kind),
            "reclaimable": sum(thing["reclaimable"] for thing in things if thing["kind"] == kind),
        }
        for kind in names
    ]
    show(args, "DiskUsageSummary", items, _USAGE)
    return 0


def _things(held: Stock) -> list[dict[str, Any]]:
    """All that takes room, to the last byte. What several images have is counted once, with the first of them."""
    order = Order(frozenset({"image", "container", "volume"}), True, plan.Filter())
    going = {(item.kind, item.name): item.size for item in stock.decide(held, order)}
    loose = sum(size for (kind, _), size in going.items() if kind in ("blob", "layer"))
    things: list[dict[str, Any]] = []

    def add(kind: str, name: str, size: int, users: Sequence[str]) -> None:
        back = going.get((kind, name), 0)
        things.append({"kind": kind, "name": name, "size": size, "reclaimable": back, "users": list(users)})

    objects = {(item.kind, item.name): item.size for item in held.observed.store.objects}
    counted: set[plan.Key] = set()
    for image in held.images:
        keys = [key for key in plan.objects_of(image) if key in objects and key not in counted]
        counted.update(keys)
        own = sorted(name for name, what in held.observed.store.tagged if what.manifest == image.manifest)
        known = held.names.get(str(image.manifest), ())
        name = own[0] if own else known[-1] if known else str(image.manifest)
        users = [f"{user['kind']} {user['name']}" for user in held.users(image) if user["kind"] != "tag"]
        add("image", name, sum(objects[key] for key in keys), users)
    for record in held.records:
        written = volumes.tree_size(held.layout.container(record.id))
        add("container", record.full_name, written, [record.id[:12]])
        things[-1]["limit"] = record.settings.limits.rootfs
    for volume in held.volumes:
        declared = ["its spec"] if volume.declared and not volume.users else []
        name = f"{volume.app}/{volume.name}"
        add("volume", name, volume.size, [*volume.users, *declared])
        things[-1]["limit"] = held.observed.volume_limits.get(name)
    for item in held.observed.store.objects:
        if item.kind == "previous":
            add("run", item.name, item.size, ())
    rest = sum(
        size for key, size in objects.items() if key not in counted and key[0] in ("blob", "layer", "image")
    )
    if loose or rest:
        add("image", "packed layers and documents", rest, ())
        things[-1]["reclaimable"] = loose
    layout = held.layout
    add(
        "transfer",
        "partial downloads",
        volumes.tree_size(layout.partial) + volumes.tree_size(layout.downloads),
        (),
    )
    add("discarded", "being deleted", volumes.tree_size(layout.trash), ())
    add("discarded", "replaced under who runs", volumes.tree_size(layout.replaced), ())
    # What is left of all that is on the disk: records, file indexes, directories, and what blocks round up
    whole = volumes.tree_size(layout.state)
    add("other", "records and directories", max(0, whole - sum(thing["size"] for thing in things)), ())
    return things
