"""The verbs that look and change nothing, and their options. Data and argparse only, as `options`."""

import argparse
from typing import Final

from reconciler.cli.arguments import Verbs, call, filters, listing, output, span


def _ps(parser: argparse.ArgumentParser) -> None:
    call(parser, "status:ps")
    parser.add_argument("-a", "--all", action="store_true", help="also containers that do not run")
    parser.add_argument("-n", "--last", type=int, metavar="N", help="only the N made last, running or not")
    parser.add_argument("-l", "--latest", action="store_true", help="only the one made last")
    parser.add_argument("-w", "--watch", action="store_true", help="go on, and show what changes")
    filters(parser, "name, id, app, status, image, label, health, exited, publish, volume")
    listing(parser, quiet="only ids")


def _logs(parser: argparse.ArgumentParser) -> None:
    call(parser, "containers:logs")
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("--tail", metavar="N", default="all", help="only the last N lines (default all)")
    span(parser)
    parser.add_argument("-t", "--timestamps", action="store_true", help="the time before each line")
    parser.add_argument(
        "--previous", action="store_true", help="the log of the container that ran before this one"
    )
    output(parser, "jsonl")


def _inspect(parser: argparse.ArgumentParser) -> None:
    call(parser, "inspection:inspect")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="a container, an image, a volume, or the start of an id"
    )
    parser.add_argument(
        "--type", choices=("container", "image", "volume"), help="what the names are names of (default any)"
    )
    parser.add_argument(
        "--format",
        metavar="TEMPLATE",
        help="a line for each: '{{.State.Status}}', or json for a document per line",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("json", "yaml", "jsonl"),
        default="json",
        help="output format (default json)",
    )


VERBS: Final[Verbs] = (
    ("ps", "List containers.", _ps),
    ("logs", "Print what a container wrote.", _logs),
    ("inspect", "Print everything known of containers, images and volumes, as JSON.", _inspect),
)
