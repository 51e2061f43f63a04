"""Verbs about images: images, rmi, tag. What brings them here is in `pulling`."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli.change import change
from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.cli.listing import show
from reconciler.cli.signed import verdicts_of
from reconciler.engine import instance
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.errors import NotFoundError, ReconcilerError, UsageError, VerificationError
from reconciler.report.filters import Filters, Match, like
from reconciler.report.tables import Column, age, short_digest, size
from reconciler.state.image import Image

if TYPE_CHECKING:
    from reconciler.agent.parts import Parts
    from reconciler.agent.stock import Stock

_TRUE: Final = {"true": True, "1": True, "false": False, "0": False}


def images(args: argparse.Namespace) -> int:
    """List the images that are here, with what each takes and what uses it."""
    from reconciler.agent.stock import Stock  # what a loop needs: not for a verb that asks the agent

    layout = layout_of(args)
    instance.read_id(layout)
    held = Stock(layout, device_of(args), Store(layout))
    items = image_items(held)
    which = Filters(args.filter, _keys(held, items))
    shown = [item for item in which.select(items) if args.all or item["complete"]]
    truncate = not args.no_trunc
    show(
        args,
        "ImageList",
        shown,
        _columns(truncate=truncate, digests=args.digests),
        quiet=lambda item: short_digest(item["digest"]) if truncate else str(item["digest"]),
    )
    return 0


def _columns(*, truncate: bool, digests: bool) -> tuple[Column, ...]:
    def short(key: str, *, whole: bool = False) -> Callable[[Mapping[str, Any]], str]:
        return lambda item: str(item[key]) if whole or not truncate else short_digest(item[key])

    return (
        Column("IMAGE", lambda item: ", ".join(item["names"])),
        Column("DIGEST", short("digest", whole=digests)),
        Column("CREATED", lambda item: age(_moment(item["created"]))),
        Column("SIZE", lambda item: size(item["size"])),
        Column("UNIQUE", lambda item: size(item["unique_size"])),
        Column("COMPLETE", lambda item: "yes" if item["complete"] else "no"),
        Column("USED BY", _used_by),
        Column("SIGNED", lambda item: str(item["signed"]), wide=True),
        Column("PLATFORM", lambda item: str(item["platform"]), wide=True),
        Column("CONFIG", short("config"), wide=True),
        Column("LAYERS", lambda item: str(len(item["layers"])), wide=True),
    )


def _used_by(item: Mapping[str, Any]) -> str:
    """Containers, then specs that have none yet; a generation only where it is all that needs the image."""
    words = list(item["users"])
    words += [
        f"spec {one['name']}"
        for one in item["wanted_by"]
        if one["kind"] == "spec" and one["name"] not in item["users"]
    ]
    return ", ".join(
        words or [f"generation {one['name']}" for one in item["wanted_by"] if one["kind"] == "generation"]
    )


def image_items(held: "Stock") -> list[dict[str, Any]]:
    """The images as data. `size` is what the layers take unpacked, `unique_size` those that no other image here has.

    `reference` is the name by which it was asked for last, `names` all; `dangling`: it has no name, nothing needs it.
    """
    store = held.store
    sharing = Counter(layer.chain_id for image in held.images for layer in image.layers)
    items: list[dict[str, Any]] = []
    for image in held.images:
        manifest = str(image.manifest)
        sizes = {layer.chain_id: store.layer(layer.chain_id) for layer in image.layers}
        names = list(reversed(held.names.get(manifest, ())))
        wanted = held.users(image)
        items.append(
            {
                "name": names[0] if names else manifest,
                "reference": names[0] if names else "",
                "names": names,
                "digest": manifest,
                "index": str(image.index),
                "config": str(image.config),
                "platform": image.platform,
                "created": created(store, image),
                "size": sum(layer.size for layer in sizes.values() if layer is not None),
                "unique_size": sum(
                    layer.size
                    for chain_id, layer in sizes.items()
                    if layer is not None and sharing[chain_id] == 1
                ),
                "complete": None not in sizes.values(),
                **_signed(held, image, names),
                "dangling": not names and not wanted,
                "labels": dict(image.labels),
                "layers": [layer.chain_id.hex for layer in image.layers],
                "users": sorted(one["name"] for one in wanted if one["kind"] == "container"),
                "wanted_by": wanted,
            }
        )
    return sorted(items, key=lambda item: (item["reference"], item["digest"]))


def _signed(held: "Stock", image: Image, names: Sequence[str]) -> dict[str, Any]:
    """Whether it is signed as the rules about its names ask: yes, no, or - where none asks; and by whom."""
    verdicts = verdicts_of(held.device.trust, held.layout, image, names)
    words = {verdict["signed"] for verdict in verdicts}
    return {"signed": "no" if False in words else "yes" if words else "-", "trust": verdicts}


def created(store: Store, image: Image) -> str:
    """When the image says that it was made; "" where it does not say, or its config can't be read."""
    try:
        value = json.loads(store.read_blob(image.config)).get("created")
    except (OSError, ValueError, VerificationError, AttributeError, RecursionError):
        return ""
    return value if isinstance(value, str) and _moment(value) else ""


def _moment(text: str) -> float:
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0.0


def _keys(held: "Stock", items: list[dict[str, Any]]) -> dict[str, Match]:
    def dangling(item: Mapping[str, Any], value: str) -> bool:
        if value not in _TRUE:
            raise UsageError(f"--filter dangling={value}: expected true or false")
        return bool(item["dangling"] is _TRUE[value])

    def made(value: str) -> float:
        digest = str(held.find(value).manifest)
        return next((_moment(item["created"]) for item in items if item["digest"] == digest), 0.0)

    def label(item: Mapping[str, Any], value: str) -> bool:
        key, equals, wanted = value.partition("=")
        return key in item["labels"] and (not equals or item["labels"][key] == wanted)

    return {
        "dangling": dangling,
        "reference": lambda item, value: any(
            like(name, value) or like(name.rpartition(":")[0], value) for name in item["names"]
        ),
        "label": label,
        "before": lambda item, value: _moment(item["created"]) < made(value),
        "since": lambda item, value: _moment(item["created"]) > made(value),
    }


def image_names(layout: Layout) -> dict[str, list[str]]:
    """The names by which images were asked for, by manifest digest; the one used last is the last."""
    from reconciler.agent import stock

    return stock.image_names(layout, Store(layout))


def tag(args: argparse.Namespace) -> int:
    """Give an image another name on this device; specs pin digests and are not touched by it."""
    answer = change(
        args,
        "tag",
        "/v1/images/tag",
        {"source": args.source, "target": args.target},
        lambda parts: _tag_here(parts, args.source, args.target),
    )
    print(answer["name"])
    return 0


def _tag_here(parts: "Parts", source: str, target: str) -> dict[str, Any]:
    from reconciler.agent import stock

    return {"name": stock.tag(parts, source, target)}


def remove(args: argparse.Namespace) -> int:
    """Take names away, and images with their last one, unless something needs them; go on after a refusal."""
    instance.read_id(layout_of(args))
    failed: ReconcilerError | None = None
    items: list[dict[str, Any]] = []
    for name in args.images:
        try:
            answer = change(
                args,
                "rmi",
                "/v1/images/remove",
                {"name": name, "force": args.force},
                lambda parts, name=name: _remove_here(parts, name, force=args.force),  # type: ignore[misc]
            )
        except ReconcilerError as error:
            if args.force and error.exit_code == NotFoundError.exit_code:
                continue
            if failed is not None:
                print(f"reconciler: {failed}", file=sys.stderr)
            failed = error
            continue
        items.append({"name": name, **answer})
        if args.output == "table":
            _tell(answer)
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "RemovedImageList", "items": items})
    if failed is not None:
        raise failed
    return 0


def _remove_here(parts: "Parts", name: str, *, force: bool) -> dict[str, Any]:
    from reconciler.agent import stock

    return stock.remove_image(parts, name, force=force)


def _tell(answer: Mapping[str, Any]) -> None:
    for name in answer["untagged"]:
        print(f"untagged {name}")
    for digest in answer["deleted"]:
        print(f"deleted {digest}, {size(answer['bytes'])}")
