"""The verb bundle: images for devices that no registry reaches, as a directory or one file."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from reconciler.cli.archives import output_file, wake
from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.cli.scratch import scratch_directory
from reconciler.errors import UsageError
from reconciler.report.progress import CopyProgress, PullProgress
from reconciler.report.tables import size


def create(args: argparse.Namespace) -> int:
    """Write an OCI layout with the images of specs, or with images by name, as far as a device lacks them."""
    from reconciler.agent.bundling import Have, create, read_have
    from reconciler.engine.outgoing import DirectoryLayout, Outgoing, TarLayout
    from reconciler.engine.platform import Platform, host_platform

    has = read_have(args.have) if args.have else Have(host_platform(), frozenset())
    if args.platform:
        has = Have(Platform.parse(args.platform), has.layers)
    layers = PullProgress(sys.stderr)
    sources = [Path(os.path.realpath(path)) for path in args.bundle]

    def write(out: Outgoing) -> None:
        made = create(layout_of(args), device_of(args), args.what, out, has, sources, layers)
        layers.close()
        for note in made.notes:
            print(f"reconciler: {note}", file=sys.stderr)
        images = f"{made.images_in} image{'s' if made.images_in != 1 else ''}"
        if made.signatures:
            images += f" with {made.signatures} signature{'s' if made.signatures != 1 else ''}"
        spared = f", {size(made.spared)} left out that the device has" if made.spared else ""
        print(f"{images}, {size(made.packed)} of layers written{spared}", file=sys.stderr)

    try:
        if args.to != "-" and not args.to.endswith(".tar"):
            write(DirectoryLayout(Path(args.to)))
            return 0
        target = Path(os.path.realpath(args.to)) if args.to != "-" else None
        with output_file(target, Path(os.environ.get("TMPDIR", "/tmp"))) as (out, scratch):
            write(TarLayout(out, scratch))
    finally:
        layers.close()
    return 0


def have(args: argparse.Namespace) -> int:
    """Print what this device has, as the list that `bundle create --for` takes."""
    from reconciler.agent.bundling import have

    for line in have(layout_of(args)).lines():
        print(line)
    return 0


def ingest(args: argparse.Namespace) -> int:
    """Bring the images of a bundle here, verify and unpack them; what is here already stays."""
    from reconciler.agent.loading import Loading, opened
    from reconciler.engine.archive import Archive, open_archive
    from reconciler.engine.archived import images, images_of

    path = Path(args.source)
    if args.source == "-" and sys.stdin.isatty():
        raise UsageError("bundle ingest: standard input is a terminal", hint="name a directory or a file")
    layout, device = layout_of(args), device_of(args)
    read, layers = CopyProgress(sys.stderr, "reading"), PullProgress(sys.stderr)
    items: list[dict[str, Any]] = []
    try:
        with opened(layout, "bundle ingest") as store, scratch_directory(layout.partial) as scratch:
            source: Path | Archive = path
            if not path.is_dir():
                source = open_archive(None if args.source == "-" else path, sys.stdin.buffer, scratch, read)
            found = images_of(source) if isinstance(source, Path) else images(source)
            read.close()
            loading = Loading(
                layout, device, store, source, f"bundle {args.source}", args.platform, moves=False
            )
            for loaded in loading.load(found, layers):
                for note in loaded.notes:
                    print(f"reconciler: {note}", file=sys.stderr)
                items.append(loaded.document())
                if args.output == "table":
                    print(f"{loaded.image.index} {' '.join(loaded.names)}".rstrip(), flush=True)
    finally:
        read.close()
        layers.close()
    wake(layout)
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "LoadedImageList", "items": items})
    return 0
