"""Verbs about images: images, pull, digest."""

import argparse
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from reconciler.agent import client
from reconciler.agent.history import read_generations
from reconciler.agent.images import open_images
from reconciler.cli.common import device_of, layout_of
from reconciler.cli.listing import show
from reconciler.engine import instance
from reconciler.engine.layout import Layout
from reconciler.engine.progress import Phase, Progress
from reconciler.engine.record import records
from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError, UsageError
from reconciler.report.progress import PullProgress
from reconciler.report.tables import Column, short_digest, size
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference


def images(args: argparse.Namespace) -> int:
    """List the images that are here whole, with what uses them."""
    layout = layout_of(args)
    instance.read_id(layout)
    items = image_items(layout)
    show(args, "ImageList", items, _columns(truncate=not args.no_trunc), quiet=_digest(not args.no_trunc))
    return 0


def _columns(*, truncate: bool) -> tuple[Column, ...]:
    return (
        Column("IMAGE", lambda item: str(item["reference"])),
        Column("DIGEST", _digest(truncate)),
        Column("PLATFORM", lambda item: str(item["platform"])),
        Column("SIZE", lambda item: size(item["size"])),
        Column("COMPLETE", lambda item: "yes" if item["complete"] else "no"),
        Column("USED BY", lambda item: ", ".join(item["users"])),
        Column(
            "CONFIG", lambda item: short_digest(item["config"]) if truncate else item["config"], wide=True
        ),
        Column("LAYERS", lambda item: str(len(item["layers"])), wide=True),
    )


def _digest(truncate: bool) -> Callable[[Mapping[str, Any]], str]:
    return lambda item: short_digest(item["digest"]) if truncate else str(item["digest"])


def image_items(layout: Layout) -> list[dict[str, Any]]:
    """The images as data: `size` is what the layers take unpacked; `reference` is a name by which it was asked for."""
    store = Store(layout)
    users: dict[str, list[str]] = {}
    names = {manifest: found[-1] for manifest, found in image_names(layout).items()}
    for record in records(layout):
        users.setdefault(record.manifest, []).append(record.full_name)
    items: list[dict[str, Any]] = []
    for image in store.images():
        manifest = str(image.manifest)
        found = [store.layer(layer.chain_id) for layer in image.layers]
        items.append(
            {
                "name": names.get(manifest, "") or manifest,
                "reference": names.get(manifest, ""),
                "digest": manifest,
                "index": str(image.index),
                "config": str(image.config),
                "platform": image.platform,
                "size": sum(layer.size for layer in found if layer is not None),
                "complete": None not in found,
                "layers": [layer.chain_id.hex for layer in image.layers],
                "users": sorted(users.get(manifest, [])),
            }
        )
    return sorted(items, key=lambda item: (item["reference"], item["digest"]))


def image_names(layout: Layout) -> dict[str, list[str]]:
    """The names by which images were asked for, by manifest digest; the one used last is the last."""
    names: dict[str, list[str]] = {}

    def note(manifest: str, reference: str) -> None:
        name, known = reference.partition("@")[0], names.setdefault(manifest, [])
        if name in known:
            known.remove(name)
        known.append(name)

    for generation in read_generations(layout):
        for app in generation.apps:
            for reference, manifest, _ in app.images:
                note(manifest, reference)
    for record in records(layout):
        note(record.manifest, record.reference)
    return names


def _reference(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except InvalidReferenceError as error:
        raise UsageError(str(error), hint=error.hint) from error


def pull(args: argparse.Namespace) -> int:
    """Fetch an image, verify and unpack it; show how far it is."""
    layout, device = layout_of(args), device_of(args)
    reference = _reference(args.reference)
    if reference.digest is None:
        raise UsageError(f"{reference}: not pinned by digest", hint=f"run: reconciler digest {reference}")
    if client.running(layout):
        print(_pull_by_agent(layout, reference))
        return 0
    progress = PullProgress(sys.stderr)
    instance.prepare(layout)
    store = Store(layout)
    store.prepare()
    found = open_images(layout, device, store)
    try:
        with instance.StateLock(layout, "reconciler pull"):
            image = found.resolve(reference)
            found.pull(image, reference, progress)
    finally:
        progress.close()
        found.close()
    print(image.manifest)
    return 0


def _pull_by_agent(layout: Layout, reference: Reference) -> str:
    """Have the agent pull, and show how far it is; return the manifest's digest."""
    progress = PullProgress(sys.stderr)
    with ThreadPoolExecutor(1) as pool:
        body = {"reference": str(reference)}
        answer = pool.submit(client.request, layout, "POST", "/v1/pull", body, timeout=24 * 3600)
        while not answer.done():
            wait([answer], 0.2)
            with suppress(ReconcilerError):
                for item in client.request(layout, "GET", "/v1/progress")["layers"]:
                    layer = Digest.parse(item["layer"])
                    progress(
                        Progress(layer, item["done"], item["total"], Phase(item["phase"]), item["resumed"])
                    )
    progress.close()
    return str(answer.result()["digest"])


def digest(args: argparse.Namespace) -> int:
    """Print the reference with the digest that its tag has now, ready to be pasted into a spec."""
    layout, device = layout_of(args), device_of(args)
    reference = _reference(args.reference)
    if reference.tag is None:
        raise UsageError(f"{reference}: no tag to look up")
    found = open_images(layout, device, Store(layout)).digest(reference)
    print(Reference(reference.registry, reference.repository, reference.tag, found))
    return 0
