"""The verb fsck: is what is in the store what it should be?"""

import argparse
import sys
from contextlib import ExitStack

from reconciler.cli.common import device_of, layout_of
from reconciler.cli.listing import show
from reconciler.engine import instance
from reconciler.report.progress import CopyProgress, PullProgress
from reconciler.report.tables import Column, size

_FAILED = 7  # as for every digest that is not what it should be


def _columns(*, truncate: bool) -> tuple[Column, ...]:
    return (
        Column("KIND", lambda item: str(item["kind"])),
        Column("NAME", lambda item: str(item["name"])[: 19 if truncate else None]),
        Column("PROBLEM", lambda item: str(item["problem"])),
        Column("NEEDED BY", lambda item: str(item["needed_by"]) or "nothing"),
        Column("DONE", lambda item: str(item["done"] or item["failure"] or "-")),
        Column("NEXT", lambda item: str(item["next"] or "-")),
        Column("USED BY", lambda item: ", ".join(item["used_by"]) or "-", wide=True),
    )


def fsck(args: argparse.Namespace) -> int:
    """Check every blob, layer and record; with --repair put right what can be. Exit 7 while something is wrong."""
    from reconciler.agent.fsck import check, repair
    from reconciler.agent.loading import opened
    from reconciler.agent.stock import Stock
    from reconciler.engine.store import Store

    layout, device = layout_of(args), device_of(args)
    instance.read_id(layout)
    reading, layers = CopyProgress(sys.stderr, "checking"), PullProgress(sys.stderr)
    with ExitStack() as stack:
        stack.callback(layers.close)
        stack.callback(reading.close)
        store = stack.enter_context(opened(layout, "fsck")) if args.repair else Store(layout)
        stock = Stock(layout, device, store)
        findings, count = check(stock, reading)
        reading.close()
        if args.repair and findings:
            repair(stock, findings, layers)
    items = [finding.document() for finding in findings]
    if items or args.output != "table" or args.format is not None:
        show(args, "FsckList", items, _columns(truncate=not args.no_trunc))
    left = sum(not finding.done for finding in findings)
    if args.output in ("table", "wide") and args.format is None:
        wrong = f"{len(items)} wrong, {left} left" if items else "nothing is wrong"
        print(f"{count.objects} objects, {size(count.bytes)} read: {wrong}")
    return _FAILED if left else 0
