"""The verb pin: digests for the images of spec files, in place."""

import argparse
import sys
from contextlib import closing

from reconciler.cli.common import device_of, document, layout_of, print_json
from reconciler.engine.store import Store

_PENDING = 2  # as `plan --detailed-exitcode`: nothing failed, and something is to change


def pin(args: argparse.Namespace) -> int:
    """Write the digest behind each tag that has none; with --check only say what would change, and exit 2."""
    from reconciler.agent.images import open_images
    from reconciler.agent.pin import rewrites

    layout = layout_of(args)
    with closing(open_images(layout, device_of(args), Store(layout))) as images:
        found = rewrites(args.files, images.digest, update=args.update)
    if args.output == "json":
        items = [change.document() for rewrite in found for change in rewrite.changes]
        print_json(document("PinList", items))
    else:
        for rewrite in found:
            print("\n".join(rewrite.diff()))
    if args.check:
        if found and args.output != "json":
            count = sum(len(rewrite.changes) for rewrite in found)
            print(f"reconciler: {count} images to pin; run pin without --check", file=sys.stderr)
        return _PENDING if found else 0
    for rewrite in found:
        rewrite.write()
    return 0
