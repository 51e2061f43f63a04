"""Arguments that many verbs share, so that they are called and mean the same everywhere. Data and argparse only."""

import argparse
from collections.abc import Callable
from typing import Final

STATE: Final = "/var/lib/reconciler"
RUN: Final = "/run/reconciler"
DEVICE: Final = "/etc/reconciler/device.yaml"

Add = Callable[[argparse.ArgumentParser], None]
Verbs = tuple[tuple[str, str, Add], ...]


def places(parser: argparse.ArgumentParser) -> None:
    """Where the device is, and whether to colour: every verb takes these."""
    group = parser.add_argument_group("places")
    group.add_argument("--state", metavar="DIR", default=STATE, help=f"state directory (default {STATE})")
    group.add_argument("--run", metavar="DIR", default=RUN, help=f"run directory (default {RUN})")
    group.add_argument(
        "--device", metavar="FILE", default=DEVICE, help=f"the device's own file (default {DEVICE})"
    )
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours: auto is only on a terminal, and not with NO_COLOR",
    )


def call(parser: argparse.ArgumentParser, function: str) -> None:
    """What performs the verb, as `module:function` under reconciler.cli."""
    parser.set_defaults(call=function)
    places(parser)


def output(parser: argparse.ArgumentParser, *formats: str) -> None:
    """-o, for a verb that has a form of its own and these."""
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", *formats),
        default="table",
        help="output format (default table)",
    )


def listing(parser: argparse.ArgumentParser, quiet: str = "") -> None:
    """What every verb that lists things takes; -q, which prints `quiet`, where one word per thing makes sense."""
    if quiet:
        parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    parser.add_argument("--no-trunc", action="store_true", help="full ids and digests")
    parser.add_argument("--no-headers", action="store_true", help="no heading")
    parser.add_argument(
        "--format",
        metavar="TEMPLATE",
        help="a line per item: '{{.name}} {{.status}}', '{{json .}}', 'table {{.name}}'",
    )
    output(parser, "wide", "json", "yaml", "jsonl", "name")


def filters(parser: argparse.ArgumentParser, keys: str) -> None:
    """--filter, once or more often."""
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE", help=f"only what matches: {keys}"
    )


def span(parser: argparse.ArgumentParser) -> None:
    """--since and --until."""
    parser.add_argument(
        "--since", metavar="TIME", help="only what is newer: RFC 3339, or a duration ago such as 10m"
    )
    parser.add_argument(
        "--until", metavar="TIME", help="only what is older; a time to come, or +10m, ends --follow then"
    )


# --- what the shells complete --------------------------------------------------------------------------------------

_KINDS: Final = {
    "NAME": ("container",),
    "CONTAINER": ("container",),
    "APP": ("app",),
    "APP/VOLUME": ("volume",),
    "VOLUME": ("volume",),
    "IMAGE": ("image",),
    "NETWORK": ("network",),
    "FILE": ("files",),
    "PATH": ("files",),
    "DIR": ("directories",),
    "SPECS": ("directories",),
}


def completes(action: argparse.Action, *kinds: str) -> None:
    """Say what names stand for an argument, where its metavar does not say it or not all of it."""
    vars(action)["completes"] = kinds


def kinds_of(action: argparse.Action) -> tuple[str, ...]:
    """The kinds of names that may stand for an argument: container, app, volume, image, network, files, directories."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    found: tuple[str, ...] = vars(action).get("completes", _KINDS.get(metavar, ()))
    return found
