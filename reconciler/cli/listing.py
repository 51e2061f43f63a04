"""Printing a list of things in the form that was asked for: the same options mean the same for every verb."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reconciler.errors import UsageError
from reconciler.report.tables import Column, listing, printable, table, use_color
from reconciler.report.template import Template

Item = Mapping[str, Any]


def show(
    args: argparse.Namespace,
    kind: str,
    items: Sequence[Item],
    columns: Sequence[Column],
    *,
    quiet: Callable[[Item], str] | None = None,
    fields: Callable[[Item], Item] = lambda item: item,
) -> None:
    """Print `items` as -q, -o or --format say. `quiet` is the word for one item, `fields` what templates may name."""
    sys.stdout.write(rendered(args, kind, items, columns, quiet=quiet, fields=fields))


def rendered(
    args: argparse.Namespace,
    kind: str,
    items: Sequence[Item],
    columns: Sequence[Column],
    *,
    quiet: Callable[[Item], str] | None = None,
    fields: Callable[[Item], Item] = lambda item: item,
) -> str:
    """The text that `show` prints."""
    if quiet is not None and args.quiet:
        if args.format is not None or args.output != "table":
            raise UsageError("-q goes neither with --format nor with -o")
        return "".join(f"{quiet(item)}\n" for item in items)
    if args.format in ("json", "table") and args.output == "table":  # Docker's words for two of ours
        return listing(kind, items, columns, output="jsonl" if args.format == "json" else "")
    if args.format is not None:
        if args.output != "table":
            raise UsageError("--format does not go with -o", hint="-o json prints every field")
        return _formatted(args, [fields(item) for item in items])
    return listing(
        kind,
        items,
        columns,
        output="" if args.output == "table" else args.output,
        with_headers=not args.no_headers,
        color=use_color(sys.stdout, args.color, os.environ),
    )


def _formatted(args: argparse.Namespace, items: Sequence[Item]) -> str:
    template = Template(args.format)
    lines = [template.render(item) for item in items]
    if template.table:
        heading = template.heading().split("\t")
        width = max([len(heading), *(line.count("\t") + 1 for line in lines)])
        rows = [line.split("\t") + [""] * (width - line.count("\t") - 1) for line in lines]
        return table(heading + [""] * (width - len(heading)), rows, with_headers=not args.no_headers)
    return printed("".join(f"{line}\n" for line in lines))


def printed(text: str) -> str:
    """`text` as it may be printed: to a terminal only with its control characters made visible."""
    return printable(text) if sys.stdout.isatty() else text
