"""The verbs and options of `reconciler oci`: those that callers of an OCI runtime pass. Data and argparse only.

`build` adds them to a parser: to that of the program itself, so that the documentation and the shells' completion know
them, and to the small one that answers without the rest of the program.
"""

import argparse
from collections.abc import Callable

PROGRAM = "reconciler-oci"
VERSION = "0.1.0"
SPEC_VERSION = "1.2.0"
ROOT = "/run/reconciler/oci"
GLOBAL_WITH_VALUE = ("--root", "--log", "--log-format", "--rootless")

Add = Callable[[argparse.ArgumentParser], None]


def _container(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the container's id: letters, digits and _+.-")


def _making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--bundle", metavar="DIR", default="", help="the bundle (default .)")
    parser.add_argument(
        "--pid-file", metavar="FILE", default="", help="write the pid of its first process here"
    )
    parser.add_argument(
        "--console-socket", metavar="PATH", default="", help="a unix socket that takes the terminal"
    )
    _descriptors(parser)
    parser.add_argument(
        "--no-pivot", action="store_true", help="refused: without pivot_root the host stays in reach"
    )
    parser.add_argument("--no-new-keyring", action="store_true", help="keep the caller's session keyring")


def _descriptors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preserve-fds",
        metavar="N",
        type=int,
        default=0,
        help="hand on N descriptors of the caller's, from 3 on",
    )


def _create(parser: argparse.ArgumentParser) -> None:
    _making(parser)
    _container(parser)


def _run(parser: argparse.ArgumentParser) -> None:
    _making(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for its end")
    parser.add_argument("--keep", action="store_true", help="do not delete it when it has ended")
    _container(parser)


def _exec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--process", metavar="FILE", default="", help="the `process` of a config.json to run"
    )
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for its end")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument(
        "--console-socket", metavar="PATH", default="", help="a unix socket that takes the terminal"
    )
    parser.add_argument("--pid-file", metavar="FILE", default="", help="write its pid here")
    parser.add_argument("--cwd", metavar="DIR", default="", help="run it in this directory")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", default="", help="run it as this user")
    parser.add_argument(
        "-g",
        "--additional-gids",
        metavar="GID",
        type=int,
        action="append",
        default=[],
        help="a further group",
    )
    parser.add_argument(
        "-e", "--env", metavar="K=V", action="append", default=[], help="add to its environment"
    )
    parser.add_argument(
        "-c", "--cap", metavar="CAP", action="append", default=[], help="a further capability"
    )
    parser.add_argument("--no-new-privs", action="store_true", help="let it gain no privileges")
    parser.add_argument("--apparmor", metavar="PROFILE", default="", help="its AppArmor profile")
    parser.add_argument("--process-label", metavar="LABEL", default="", help="its SELinux label")
    _descriptors(parser)
    parser.add_argument(
        "--ignore-paused", action="store_true", help="also in a paused container, once that goes on"
    )
    _container(parser)
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments"
    )


def _kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="signal every process in the container")
    _container(parser)
    parser.add_argument("signal", nargs="?", metavar="SIGNAL", default="SIGTERM", help="default SIGTERM")


def _delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")
    _container(parser)


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="default table")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids")


def _ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="default table")
    _container(parser)
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help="of ps(1) (default -ef)")


# option, field of linux.resources, whether it is text
UPDATES = (
    ("--blkio-weight", ("blockIO", "weight"), False),
    ("--cpu-period", ("cpu", "period"), False),
    ("--cpu-quota", ("cpu", "quota"), False),
    ("--cpu-burst", ("cpu", "burst"), False),
    ("--cpu-share", ("cpu", "shares"), False),
    ("--cpu-rt-period", ("cpu", "realtimePeriod"), False),
    ("--cpu-rt-runtime", ("cpu", "realtimeRuntime"), False),
    ("--cpu-idle", ("cpu", "idle"), False),
    ("--cpuset-cpus", ("cpu", "cpus"), True),
    ("--cpuset-mems", ("cpu", "mems"), True),
    ("--memory", ("memory", "limit"), False),
    ("--memory-reservation", ("memory", "reservation"), False),
    ("--memory-swap", ("memory", "swap"), False),
    ("--kernel-memory", ("memory", "kernel"), False),
    ("--kernel-memory-tcp", ("memory", "kernelTCP"), False),
    ("--pids-limit", ("pids", "limit"), False),
)


def _update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--resources",
        metavar="FILE",
        default="",
        help="the linux.resources of a config.json; - is stdin",
    )
    for option, field, text in UPDATES:
        parser.add_argument(
            option,
            metavar="VALUE" if text else "N",
            type=str if text else int,
            help=f"resources.{'.'.join(field)}",
        )
    _container(parser)


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


VERBS: tuple[tuple[str, str, Add], ...] = (
    ("create", "Make a container of a bundle, up to its program.", _create),
    ("start", "Let the program of a created container run.", _container),
    ("run", "Create and start a container, and wait for its end.", _run),
    ("state", "Print the state of a container as JSON.", _container),
    ("exec", "Run one more program in a container.", _exec),
    ("kill", "Send a signal to a container's first process.", _kill),
    ("delete", "Remove a container that has ended.", _delete),
    ("pause", "Freeze all processes of a container.", _container),
    ("resume", "Let a paused container go on.", _container),
    ("update", "Change the limits of a container.", _update),
    ("ps", "List the processes of a container.", _ps),
    ("list", "List the containers below --root.", _list),
    ("features", "Print what this runtime can do, as JSON.", _nothing),
    ("spec", "Print a config.json to begin with.", _nothing),
)


def build(parser: argparse.ArgumentParser) -> None:
    """Add the options and the verbs of the runtime."""
    parser.add_argument(
        "--root", metavar="DIR", default=ROOT, help=f"where containers are kept (default {ROOT})"
    )
    parser.add_argument("--log", metavar="FILE", default="", help="append errors to this file")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default text")
    parser.add_argument("--debug", action="store_true", help="say more in the log")
    parser.add_argument(
        "--systemd-cgroup",
        action="store_true",
        help="have systemd make the cgroups: linux.cgroupsPath is SLICE:PREFIX:NAME",
    )
    parser.add_argument(
        "--rootless", choices=("auto", "true", "false"), default="auto", help="true is refused"
    )
    verbs = parser.add_subparsers(metavar="VERB", dest="action")
    for name, help_text, add in VERBS:
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        add(verb)
        verb.set_defaults(action=name)


def verb_of(arguments: list[str]) -> str:
    """Find the verb without parsing; "" where there is none."""
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in GLOBAL_WITH_VALUE:
            skip = True
        elif not argument.startswith("-"):
            return argument
    return ""


def version() -> str:
    """What --version prints, in the form of runc's."""
    return f"{PROGRAM} version {VERSION}\nspec: {SPEC_VERSION}"
