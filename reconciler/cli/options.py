"""The verbs and their options. Data and argparse only: nothing else is imported, nothing is done.

Each entry of VERBS is (name, one sentence of help, function that adds the options); `call` names the function that
performs the verb as `module:function` under reconciler.cli.
"""

import argparse
from collections.abc import Callable
from typing import Final

STATE: Final = "/var/lib/reconciler"
RUN: Final = "/run/reconciler"
DEVICE: Final = "/etc/reconciler/device.yaml"

Add = Callable[[argparse.ArgumentParser], None]


def _places(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("places")
    group.add_argument("--state", metavar="DIR", default=STATE, help=f"state directory (default {STATE})")
    group.add_argument("--run", metavar="DIR", default=RUN, help=f"run directory (default {RUN})")
    group.add_argument(
        "--device", metavar="FILE", default=DEVICE, help=f"the device's own file (default {DEVICE})"
    )


def _output(parser: argparse.ArgumentParser, *formats: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", *formats),
        default="table",
        help="output format (default table)",
    )


def _call(parser: argparse.ArgumentParser, call: str) -> None:
    parser.set_defaults(call=call)
    _places(parser)


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", metavar="SPECS", help="directory of specs (default: the running agent's)"
    )
    parser.add_argument("--git", metavar="URL", help="follow a git repository instead of a directory")
    parser.add_argument("--branch", metavar="B", default="main", help="the branch to follow (default main)")
    parser.add_argument(
        "--path", metavar="P", dest="subpath", default="", help="the directory in the repository"
    )


def _agent(parser: argparse.ArgumentParser) -> None:
    _call(parser, "agent:agent")
    _source(parser)
    parser.add_argument(
        "--poll", metavar="DURATION", default="1m", help="how often a git branch is fetched (default 1m)"
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    _call(parser, "specs:validate")
    parser.add_argument(
        "path", nargs="?", default=".", metavar="PATH", help="a directory or one file (default .)"
    )
    _output(parser, "json")


def _plan(parser: argparse.ArgumentParser) -> None:
    _call(parser, "specs:plan")
    _source(parser)
    parser.add_argument(
        "--detailed-exitcode",
        action="store_true",
        help="exit 0 if nothing is to do, 2 if something is, 1 on error",
    )
    _output(parser, "json")


def _apply(parser: argparse.ArgumentParser) -> None:
    _call(parser, "specs:apply")
    _source(parser)
    parser.add_argument(
        "--wait", action="store_true", help="wait until everything runs, not only until it was tried"
    )
    parser.add_argument(
        "--timeout", metavar="DURATION", default="5m", help="give up after this long (default 5m)"
    )
    parser.add_argument("--allow-empty", action="store_true", help="let the shrink guard pass: apps may go")
    parser.add_argument(
        "--detailed-exitcode", action="store_true", help="exit 2 if changes were made, 0 if none were needed"
    )


def _status(parser: argparse.ArgumentParser) -> None:
    _call(parser, "status:status")
    parser.add_argument("app", nargs="?", metavar="APP", help="only this app, in detail")
    _output(parser, "wide", "json", "name")


def _ps(parser: argparse.ArgumentParser) -> None:
    _call(parser, "status:ps")
    parser.add_argument("-a", "--all", action="store_true", help="also containers that do not run")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids")
    parser.add_argument("--no-trunc", action="store_true", help="full ids and digests")
    parser.add_argument("--no-headers", action="store_true", help="no heading")
    _output(parser, "wide", "json", "name")


def _logs(parser: argparse.ArgumentParser) -> None:
    _call(parser, "containers:logs")
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("--tail", metavar="N", default="all", help="only the last N lines (default all)")
    parser.add_argument(
        "--since", metavar="TIME", help="only what is newer: RFC 3339, or a duration ago such as 10m"
    )
    parser.add_argument("--until", metavar="TIME", help="only what is older")
    parser.add_argument("-t", "--timestamps", action="store_true", help="the time before each line")
    parser.add_argument(
        "--previous", action="store_true", help="the log of the container that ran before this one"
    )
    _output(parser, "jsonl")


def _exec(parser: argparse.ArgumentParser) -> None:
    _call(parser, "containers:execute")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument(
        "-u", "--user", default="", metavar="USER[:GROUP]", help="run it as this user of the image"
    )
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="run it in this directory")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="K=V", help="add to its environment"
    )
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments"
    )


def _images(parser: argparse.ArgumentParser) -> None:
    _call(parser, "images:images")
    parser.add_argument("-q", "--quiet", action="store_true", help="only digests")
    parser.add_argument("--no-trunc", action="store_true", help="full digests")
    _output(parser, "json")


def _pull(parser: argparse.ArgumentParser) -> None:
    _call(parser, "images:pull")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY[:TAG]@DIGEST")


def _digest(parser: argparse.ArgumentParser) -> None:
    _call(parser, "images:digest")
    parser.add_argument("reference", metavar="IMAGE", help="HOST/REPOSITORY:TAG")


def _volume(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    listing = actions.add_parser("ls", help="list volumes", description="List volumes, with size and users.")
    _call(listing, "volumes:listing")
    listing.add_argument("-q", "--quiet", action="store_true", help="only names")
    _output(listing, "json")
    removal = actions.add_parser(
        "rm", help="delete volumes", description="Delete volumes and their data for good."
    )
    _call(removal, "volumes:remove")
    removal.add_argument("names", nargs="+", metavar="APP/VOLUME")


def _gc(parser: argparse.ArgumentParser) -> None:
    _call(parser, "store:gc")
    parser.add_argument(
        "--dry-run", action="store_true", help="list every object, kept or not, with the reason"
    )
    _output(parser, "json")


def _doctor(parser: argparse.ArgumentParser) -> None:
    _call(parser, "device:doctor")
    parser.add_argument("-q", "--quick", action="store_true", help="only what is missing")
    _output(parser, "json")


def _schema(parser: argparse.ArgumentParser) -> None:
    _call(parser, "device:schema")
    parser.add_argument(
        "kind", nargs="?", choices=("app", "device"), default="app", help="which schema (default app)"
    )


def _version(parser: argparse.ArgumentParser) -> None:
    _call(parser, "device:version")
    _output(parser, "json")


def _uninstall(parser: argparse.ArgumentParser) -> None:
    _call(parser, "device:uninstall")
    parser.add_argument("--yes", action="store_true", help="do not ask; volumes and their data go too")


VERBS: Final[tuple[tuple[str, str, Add], ...]] = (
    ("agent", "Run the agent: keep this device equal to the specs, until stopped.", _agent),
    ("validate", "Check spec files, offline, and print every error of all of them.", _validate),
    ("plan", "Print what an apply would do. Changes nothing.", _plan),
    ("apply", "Bring the device to what the specs say, once; a running agent is asked to do it.", _apply),
    ("status", "Show for each app whether it is as desired and healthy, and why not.", _status),
    ("ps", "List containers.", _ps),
    ("logs", "Print what a container wrote.", _logs),
    ("exec", "Run a command inside a running container.", _exec),
    ("images", "List the images that are here.", _images),
    ("pull", "Fetch an image, verify and unpack it.", _pull),
    ("digest", "Print the reference of an image with the digest that its tag has now.", _digest),
    ("volume", "List and delete named volumes.", _volume),
    ("gc", "Delete what nothing wants any more from the store.", _gc),
    ("doctor", "Check what this host offers and say what is missing.", _doctor),
    ("schema", "Print the JSON Schema of specs, for editors.", _schema),
    ("version", "Print the version.", _version),
    ("uninstall", "Stop and remove everything of this state directory, volumes included.", _uninstall),
)
