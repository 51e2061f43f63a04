"""The verbs save and load: images as one file, in the form that Docker, podman and skopeo read and write."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.cli.scratch import scratch_directory
from reconciler.engine import instance
from reconciler.engine.durable import sync_directory
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError, UsageError
from reconciler.report.progress import CopyProgress, PullProgress


def wake(layout: Layout) -> None:
    """Have a running agent look at once: it may have waited for what has come in."""
    if client.running(layout):
        with suppress(ReconcilerError):
            client.request(layout, "POST", "/v1/reconcile", timeout=10)


def _unheard(_: object) -> None:
    """Show nothing."""


def save(args: argparse.Namespace) -> int:
    """Write images that are here into one archive: a file that appears when it is whole, or standard output."""
    from reconciler.agent.saving import Saving
    from reconciler.agent.stock import Stock
    from reconciler.engine.outgoing import TarLayout
    from reconciler.engine.store import Store

    layout = layout_of(args)
    instance.read_id(layout)
    if not args.file and sys.stdout.isatty():
        raise UsageError("save: standard output is a terminal", hint="write it into a file: -o FILE")
    target = Path(os.path.realpath(args.file)) if args.file else None
    layers = PullProgress(sys.stderr)
    stock = Stock(layout, device_of(args), Store(layout))
    try:
        with output_file(target, layout.partial) as (out, scratch):
            archive = TarLayout(out, scratch)
            Saving(stock, archive, layers, lambda note: print(f"reconciler: {note}", file=sys.stderr)).save(
                args.images
            )
    finally:
        layers.close()
    return 0


@contextmanager
def output_file(target: Path | None, elsewhere: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file that becomes `target` at the end, if nothing is raised, and a directory for what it takes meanwhile.

    Without `target`, standard output, and a directory in `elsewhere`.
    """
    if target is None:
        with scratch_directory(elsewhere) as scratch:
            yield sys.stdout.buffer, scratch
            return
    if target.is_dir() or not target.parent.is_dir():
        raise UsageError(f"{target}: is a directory, or in none", hint="name a file")
    if target.exists() and not target.is_file():  # a rename would put a file in the place of /dev/null
        raise UsageError(
            f"{target}: is there and no regular file", hint="name a file, or pipe standard output"
        )
    with scratch_directory(target.parent) as scratch:
        with open(scratch / "archive", "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            yield file, scratch
            file.flush()
            os.fsync(file.fileno())
        (scratch / "archive").rename(target)
        sync_directory(target.parent)


def load(args: argparse.Namespace) -> int:
    """Bring the images of an archive here, verify and unpack them, and say what they are called."""
    from reconciler.agent.loading import Loading, opened
    from reconciler.engine.archive import open_archive
    from reconciler.engine.archived import images

    path = None if args.input in ("", "-") else Path(args.input)
    if path is None and sys.stdin.isatty():
        raise UsageError("load: standard input is a terminal", hint="name the archive: -i FILE")
    layout, device = layout_of(args), device_of(args)
    read, layers = CopyProgress(sys.stderr, "reading"), PullProgress(sys.stderr)
    items: list[dict[str, Any]] = []
    try:
        with opened(layout, "load") as store, scratch_directory(layout.partial) as scratch:
            archive = open_archive(path, sys.stdin.buffer, scratch, read)
            read.close()
            loading = Loading(layout, device, store, archive, archive.name, args.platform)
            for loaded in loading.load(images(archive), _unheard if args.quiet else layers):
                for note in loaded.notes:
                    print(f"reconciler: {note}", file=sys.stderr)
                items.append(loaded.document())
                if args.output == "table":
                    names = [f"Loaded image: {name}" for name in loaded.names]
                    print("\n".join(names or [f"Loaded image ID: {loaded.image.manifest}"]), flush=True)
    finally:
        read.close()
        layers.close()
    wake(layout)
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "LoadedImageList", "items": items})
    return 0
