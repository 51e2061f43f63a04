"""The verbs and their options. Data and argparse only: nothing else is imported, nothing is done.

Each entry of VERBS is (name, one sentence of help, function that adds the options); `call` names the function that
performs the verb as `module:function` under reconciler.cli.
"""

import argparse
from collections.abc import Mapping
from typing import Final

from reconciler.cli import byhand, oci, stock, watching
from reconciler.cli.arguments import Add, Verbs, call, listing, output
from reconciler.cli.stock import noun


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
    call(parser, "agent:agent")
    _source(parser)
    parser.add_argument(
        "--poll", metavar="DURATION", default="1m", help="how often a git branch is fetched (default 1m)"
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    call(parser, "specs:validate")
    parser.add_argument(
        "path", nargs="?", default=".", metavar="PATH", help="a directory or one file (default .)"
    )
    output(parser, "json")


def _plan(parser: argparse.ArgumentParser) -> None:
    call(parser, "specs:plan")
    _source(parser)
    parser.add_argument(
        "--detailed-exitcode",
        action="store_true",
        help="exit 0 if nothing is to do, 2 if something is, 1 on error",
    )
    output(parser, "json")


def _apply(parser: argparse.ArgumentParser) -> None:
    call(parser, "specs:apply")
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
    call(parser, "status:status")
    parser.add_argument("app", nargs="?", metavar="APP", help="only this app, in detail")
    listing(parser, quiet="only names")


def _exec(parser: argparse.ArgumentParser) -> None:
    call(parser, "containers:execute")
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


def _doctor(parser: argparse.ArgumentParser) -> None:
    call(parser, "device:doctor")
    parser.add_argument("-q", "--quick", action="store_true", help="only what is missing")
    output(parser, "json", "yaml", "jsonl", "name")


def _schema(parser: argparse.ArgumentParser) -> None:
    call(parser, "device:schema")
    parser.add_argument(
        "kind", nargs="?", choices=("app", "device"), default="app", help="which schema (default app)"
    )


def _version(parser: argparse.ArgumentParser) -> None:
    call(parser, "device:version")
    output(parser, "json")


def _uninstall(parser: argparse.ArgumentParser) -> None:
    call(parser, "device:uninstall")
    parser.add_argument("--yes", action="store_true", help="do not ask; volumes and their data go too")


_VERBS: Final[Verbs] = (
    ("agent", "Run the agent: keep this device equal to the specs, until stopped.", _agent),
    ("validate", "Check spec files, offline, and print every error of all of them.", _validate),
    ("plan", "Print what an apply would do. Changes nothing.", _plan),
    ("apply", "Bring the device to what the specs say, once; a running agent is asked to do it.", _apply),
    ("status", "Show for each app whether it is as desired and healthy, and why not.", _status),
    *watching.VERBS,
    *byhand.VERBS,
    ("exec", "Run a command inside a running container.", _exec),
    *stock.VERBS,
    *oci.VERBS,
    ("doctor", "Check what this host offers and say what is missing.", _doctor),
    ("schema", "Print the JSON Schema of specs, for editors.", _schema),
    ("version", "Print the version.", _version),
    ("uninstall", "Stop and remove everything of this state directory, volumes included.", _uninstall),
)

# Docker's nouns: each word is that verb under another name, as far as the verb exists.
_CONTAINER: Final = {
    word: word
    for word in (
        *("attach", "cp", "create", "exec", "inspect", "kill", "logs", "pause", "port", "rename", "restart"),
        *("rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait"),
    )
} | {"ls": "ps"}
_IMAGE: Final = {
    "ls": "images",
    "rm": "rmi",
    "pull": "pull",
    "tag": "tag",
    "inspect": "inspect",
    "save": "save",
    "load": "load",
}


def _same_as(noun: str, verb: str, add: Add) -> Add:
    def build(parser: argparse.ArgumentParser) -> None:
        add(parser)
        parser.set_defaults(same_as=verb, **({"type": noun} if verb == "inspect" else {}))

    return build


def _words(noun: str, words: Mapping[str, str]) -> Verbs:
    known = {name: (help_text, add) for name, help_text, add in _VERBS}
    return tuple(
        (word, known[verb][0], _same_as(noun, verb, known[verb][1]))
        for word, verb in sorted(words.items())
        if verb in known
    )


VERBS: Final[Verbs] = (
    *_VERBS,
    (
        "container",
        "Containers, by Docker's noun: ls, logs, prune and the others.",
        noun((*_words("container", _CONTAINER), *stock.CONTAINER)),
    ),
    (
        "image",
        "Images, by Docker's noun: ls, pull, rm, tag, inspect, prune.",
        noun((*_words("image", _IMAGE), *stock.IMAGE)),
    ),
    (
        "volume",
        "Make, list and delete named volumes.",
        noun((*stock.VOLUME, *_words("volume", {"inspect": "inspect"}))),
    ),
    (
        "network",
        "List and inspect the networks of apps.",
        noun((*stock.NETWORK, *_words("network", {"inspect": "inspect"}))),
    ),
)
