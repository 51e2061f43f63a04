"""Verbs that ask registries and bundles: pull and digest."""

import argparse
import os
import sys
import threading
from contextlib import suppress
from typing import Any

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError, UsageError
from reconciler.report.progress import PullProgress, heard
from reconciler.report.tables import size
from reconciler.spec.reference import InvalidReferenceError, Reference


def pull(args: argparse.Namespace) -> int:
    """Fetch an image by digest or by tag, verify and unpack it, and print the digest that it has."""
    layout = layout_of(args)
    wanted = {
        "reference": args.reference,
        "bundle": os.path.realpath(args.bundle) if args.bundle else "",
        "platform": args.platform,
    }
    if not args.bundle:
        _reference(args.reference)
    pulled = _by_agent(layout, wanted) if client.running(layout) else _here(args, layout, wanted)
    if pulled["warning"]:
        print(f"reconciler: {pulled['warning']}", file=sys.stderr)
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "PulledImage", **pulled})
    else:
        if shares := pulled["bytes"]:
            parts = ", ".join(f"{size(count)} {name}" for name, count in sorted(shares.items()))
            print(f"pulled {size(sum(shares.values()))}: {parts}", file=sys.stderr)
        by_tag = "@" not in args.reference
        print(pulled["digest"] if by_tag else pulled["manifest"])
    return 0


def _reference(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except InvalidReferenceError as error:
        raise UsageError(str(error), hint=error.hint) from error


def _here(args: argparse.Namespace, layout: Layout, wanted: dict[str, str]) -> dict[str, Any]:
    # A store and a registry's client: not for a verb that asks the agent
    from reconciler.agent import pulling
    from reconciler.agent.images import open_images
    from reconciler.engine import instance
    from reconciler.engine.store import Store

    progress = PullProgress(sys.stderr)
    device = device_of(args)
    instance.prepare(layout)
    store = Store(layout)
    store.prepare()
    images = open_images(layout, device, store)
    try:
        with instance.StateLock(layout, "reconciler pull"):
            pulled = pulling.pull(
                pulling.Place(layout, device, store, images),
                wanted["reference"],
                progress,
                bundle=wanted["bundle"],
                platform=wanted["platform"],
            )
    finally:
        progress.close()
        images.close()
    return dict(pulled.document())


def _by_agent(layout: Layout, wanted: dict[str, str]) -> dict[str, Any]:
    """Have the agent pull, and show how far it is."""
    progress = PullProgress(sys.stderr)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with suppress(ReconcilerError):
                for item in client.request(layout, "GET", "/v1/progress")["layers"]:
                    progress(heard(item))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        return client.request(layout, "POST", "/v1/pull", wanted, timeout=24 * 3600)
    finally:
        over.set()
        watcher.join(1)
        progress.close()


def digest(args: argparse.Namespace) -> int:
    """Print the reference with the digest that its tag has now, ready to be pasted into a spec."""
    layout, device = layout_of(args), device_of(args)
    reference = _reference(args.reference)
    if reference.tag is None:
        raise UsageError(f"{reference}: no tag to look up")
    from reconciler.agent.images import open_images
    from reconciler.engine.store import Store

    found = open_images(layout, device, Store(layout)).digest(reference)
    print(Reference(reference.registry, reference.repository, reference.tag, found))
    return 0
