"""The verb `image unpack`: an image's root file system as a directory."""

import argparse
import os
import sys
from pathlib import Path

from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.cli.scratch import scratch_directory
from reconciler.errors import UnreachableError
from reconciler.report.progress import CopyProgress, PullProgress


def unpack(args: argparse.Namespace) -> int:
    """Write the root file system of an image into a new or empty directory, and print the image's digest."""
    from reconciler.agent.unpacking import Listeners, Wish, check_target, unpack

    if os.geteuid() != 0:
        raise UnreachableError("image unpack: takes root: files have owners", hint="run it with sudo")
    target = Path(os.path.realpath(args.directory))
    check_target(target)
    wish = Wish(args.reference, os.path.realpath(args.bundle) if args.bundle else "", args.platform)
    layers, copied = PullProgress(sys.stderr), CopyProgress(sys.stderr)
    try:
        with scratch_directory(target.parent) as scratch:
            tell = Listeners(layers, copied)
            image = unpack(layout_of(args), device_of(args), wish, target, scratch, tell)
    finally:
        layers.close()
        copied.close()
    if args.output == "json":
        print_json(
            {
                "apiVersion": "reconciler/v1",
                "kind": "UnpackedImage",
                "directory": str(target),
                "manifest": str(image.manifest),
                "config": str(image.config),
                "platform": image.platform,
            }
        )
    else:
        print(image.manifest)
    return 0
