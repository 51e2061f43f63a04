"""The verbs that look and change nothing, and their options. Data and argparse only, as `options`."""

import argparse
from typing import Final

from reconciler.cli.arguments import Verbs, call, completes, filters, listing, output, span


def _ps(parser: argparse.ArgumentParser) -> None:
    call(parser, "status:ps")
    parser.add_argument("-a", "--all", action="store_true", help="also containers that do not run")
    parser.add_argument("-n", "--last", type=int, metavar="N", help="only the N made last, running or not")
    parser.add_argument("-l", "--latest", action="store_true", help="only the one made last")
    parser.add_argument("-w", "--watch", action="store_true", help="go on, and show what changes")
    filters(parser, "name, id, app, status, image, label, health, exited, publish, volume")
    listing(parser, quiet="only ids")


def _logs(parser: argparse.ArgumentParser) -> None:
    call(parser, "logs:logs")
    names = parser.add_argument(
        "names", nargs="+", metavar="NAME", help="APP/CONTAINER, APP for all of its, or the start of an id"
    )
    completes(names, "container", "app")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument(
        "-n", "--tail", metavar="N", default="all", help="only the last N lines of each (default all)"
    )
    span(parser)
    parser.add_argument("--grep", metavar="RE", help="only lines in which this regular expression is found")
    parser.add_argument("-i", "--ignore-case", action="store_true", help="--grep takes A and a for the same")
    parser.add_argument("-v", "--invert", action="store_true", help="only lines in which it is not found")
    parser.add_argument("-t", "--timestamps", action="store_true", help="the time before each line")
    parser.add_argument(
        "--previous", action="store_true", help="the log of the container that ran before this one"
    )
    output(parser, "jsonl")


def _inspect(parser: argparse.ArgumentParser) -> None:
    call(parser, "inspection:inspect")
    names = parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a container, image, volume or network, or the start of an id",
    )
    completes(names, "container", "image", "volume", "network")
    parser.add_argument(
        "--type",
        choices=("container", "image", "volume", "network"),
        help="what the names are names of (default any)",
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


def _events(parser: argparse.ArgumentParser) -> None:
    call(parser, "events:events")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on")
    parser.add_argument("-n", "--tail", metavar="N", type=int, help="only the last N of what is kept")
    span(parser)
    filters(parser, "kind (also called event), app, container, id, image, volume")
    parser.add_argument("--format", metavar="TEMPLATE", help="a line per event: '{{.time}} {{.message}}'")
    output(parser, "json", "yaml", "jsonl")


def _stats(parser: argparse.ArgumentParser) -> None:
    call(parser, "stats:stats")
    names = parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="APP/CONTAINER, APP, or the start of an id (default all that run)",
    )
    completes(names, "container", "app")
    parser.add_argument("-a", "--all", action="store_true", help="also containers that do not run")
    parser.add_argument(
        "--self",
        action="store_true",
        help="what this program itself costs: the agent, and a shim for each container",
    )
    parser.add_argument("--no-stream", action="store_true", help="once, not again and again")
    parser.add_argument(
        "--interval", metavar="DURATION", default="1s", help="how long one measurement takes (default 1s)"
    )
    listing(parser)


def _top(parser: argparse.ArgumentParser) -> None:
    call(parser, "processes:top")
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    listing(parser)


def _port(parser: argparse.ArgumentParser) -> None:
    call(parser, "ports:port")
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    parser.add_argument(
        "port", nargs="?", metavar="PORT[/PROTOCOL]", help="only this one of the container's ports"
    )
    output(parser, "json")


def _diff(parser: argparse.ArgumentParser) -> None:
    call(parser, "changes:diff")
    parser.add_argument("name", metavar="NAME", help="APP/CONTAINER, or the start of an id")
    listing(parser)


def _wait(parser: argparse.ArgumentParser) -> None:
    call(parser, "waiting:wait")
    names = parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="containers, or apps (default all apps, for other conditions than exited)",
    )
    completes(names, "container", "app")
    parser.add_argument(
        "--for",
        dest="condition",
        choices=("exited", "running", "healthy", "synced", "removed"),
        default="exited",
        help="what to wait for (default exited: print the exit codes)",
    )
    parser.add_argument("--timeout", metavar="DURATION", help="give up after this long, with exit code 6")


def _completion(parser: argparse.ArgumentParser) -> None:
    call(parser, "completion:completion")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


VERBS: Final[Verbs] = (
    ("ps", "List containers.", _ps),
    ("logs", "Print what a container wrote.", _logs),
    ("inspect", "Print everything known of containers, images and volumes, as JSON.", _inspect),
    ("stats", "Show what containers use: CPU, memory, network, disk, processes, pressure.", _stats),
    ("top", "List the processes of a container.", _top),
    ("port", "Print the published ports of a container.", _port),
    ("diff", "List what a container has changed in its file system.", _diff),
    ("wait", "Wait until containers have ended, run or are healthy.", _wait),
    ("events", "Print what the agent did and saw.", _events),
    ("completion", "Print the script that makes a shell complete command lines and names.", _completion),
)
