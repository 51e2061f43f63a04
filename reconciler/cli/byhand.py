"""The verbs of single containers, and their options, which are Docker's. Data and argparse only, as `options`."""

import argparse
from typing import Final

from reconciler.cli.arguments import Verbs, call

_NAME: Final = "APP/CONTAINER, the name of an ad-hoc container, or the start of an id"


def _texts(parser: argparse.ArgumentParser, *names: str, metavar: str, help: str) -> None:
    parser.add_argument(*names, action="append", default=[], metavar=metavar, help=help)


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--memory", default="", metavar="SIZE", help="the most memory: 64m, 1g, 512Mi")
    parser.add_argument(
        "--memory-swap", default="", metavar="SIZE", help="memory and swap together (default: no swap)"
    )
    parser.add_argument("--cpus", default="", metavar="N", help="the most CPUs: 0.5, 2")
    parser.add_argument(
        "--pids-limit",
        default="",
        metavar="N",
        help="the most processes and threads (default 512); -1: any number",
    )
    _texts(
        parser,
        "--storage-opt",
        metavar="size=SIZE",
        help="the most that it may write to its own file system, beside volumes",
    )
    parser.add_argument(
        "--restart",
        default="",
        metavar="POLICY",
        help="no, on-failure[:N], always (as unless-stopped: what is stopped by hand stays stopped)",
    )


def _surroundings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        default="",
        metavar="NETWORK",
        help="bridge (the network of all ad-hoc containers), host (the device's own), none, one that apps share, or "
        "container:NAME, that of another container",
    )
    _texts(
        parser, "--network-alias", metavar="NAME", help="a further name in the network that --network names"
    )
    _texts(parser, "--dns", metavar="ADDRESS", help="a server to ask for names of the outside")
    _texts(parser, "--dns-search", metavar="DOMAIN", help="a domain in which short names are looked up")
    _texts(parser, "--dns-option", metavar="OPTION", help="an option of resolv.conf(5)")
    _texts(
        parser, "--add-host", metavar="NAME:ADDRESS", help="a line of /etc/hosts; host-gateway is the device"
    )
    parser.add_argument("--shm-size", default="", metavar="SIZE", help="the size of /dev/shm (default 64m)")
    _texts(parser, "--sysctl", metavar="K=V", help="a setting of the kernel that is the container's own")
    _texts(parser, "--ulimit", metavar="NAME=SOFT[:HARD]", help="a limit of each process")
    parser.add_argument("--cpuset-cpus", default="", metavar="CPUS", help="the CPUs to run on: 0-2,4")
    parser.add_argument(
        "--oom-score-adj", default="", metavar="N", help="how soon the kernel takes it: -1000 to 1000"
    )
    parser.add_argument("--log-driver", default="", metavar="DRIVER", help="file, journald or none")
    _texts(parser, "--log-opt", metavar="K=V", help="max-size, max-file or compress of the log")


def _privileges(parser: argparse.ArgumentParser) -> None:
    _texts(parser, "--group-add", metavar="GROUP", help="a further group of the user")
    _texts(parser, "--cap-add", metavar="CAPABILITY", help="a further capability of root inside, or ALL")
    _texts(parser, "--cap-drop", metavar="CAPABILITY", help="a capability that root inside has not, or ALL")
    _texts(
        parser,
        "--add-device",
        metavar="SOURCE[:TARGET[:rwm]]",
        help="a device that it may use (Docker's --device, which is another file here)",
    )
    parser.add_argument(
        "--privileged",
        action="store_true",
        help="all capabilities and devices: its root is the device's root",
    )
    parser.add_argument(
        "--userns",
        default="",
        metavar="MODE",
        help="auto: ids of its own, so that its root is nobody on the device (default, but not with host paths, "
        "devices and what else is the device's); host: the device's",
    )
    _texts(
        parser,
        "--security-opt",
        metavar="OPTION",
        help="no-new-privileges=false lets set-uid programs work; seccomp=unconfined filters no system calls, "
        "seccomp=FILE those that a profile in Docker's form says",
    )


def _container(parser: argparse.ArgumentParser) -> None:
    """What `run` and `create` take."""
    parser.add_argument("-i", "--interactive", action="store_true", help="keep its standard input open")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("--name", default="", metavar="NAME", help="its name (default: a random one)")
    _texts(
        parser,
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]TARGET[/udp]",
        help="publish a port; without PORT a free one",
    )
    parser.add_argument(
        "-P", "--publish-all", action="store_true", help="publish every port that the image exposes"
    )
    _texts(parser, "-e", "--env", metavar="K[=V]", help="set a variable; K alone: as it is here")
    _texts(parser, "--env-file", metavar="FILE", help="set the variables in a file of such lines")
    _texts(
        parser,
        "-v",
        "--volume",
        metavar="[SOURCE:]PATH[:ro]",
        help="mount a named volume, or a path of the device; PATH alone: a volume of its own",
    )
    _texts(
        parser, "--mount", metavar="KEY=VALUE,...", help="the same in words: type, source, target, readonly"
    )
    _texts(parser, "--tmpfs", metavar="PATH[:size=SIZE]", help="mount a file system in memory")
    parser.add_argument("--rm", action="store_true", help="remove it once it has ended")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="run it as this user")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="run it in this directory")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="in place of the image's; clears its CMD too")
    parser.add_argument(
        "--hostname", default="", metavar="NAME", help="its host name (default: its short id)"
    )
    parser.add_argument("--init", action="store_true", help="run a small init as PID 1, which reaps orphans")
    parser.add_argument("--read-only", action="store_true", help="make its root file system read-only")
    parser.add_argument("--stop-signal", default="", metavar="SIGNAL", help="the signal that asks it to end")
    parser.add_argument(
        "--stop-timeout", default="", metavar="SECONDS", help="how long it may take to end (default 10)"
    )
    _texts(parser, "-l", "--label", metavar="K=V", help="a label")
    _texts(parser, "--annotation", metavar="K=V", help="a note for people and tools")
    _limits(parser)
    _surroundings(parser)
    _privileges(parser)
    parser.add_argument(
        "--pull",
        default="missing",
        choices=("always", "missing", "never"),
        help="ask the registry for what the tag means now: always, when nothing here is called so (default), or never",
    )
    parser.add_argument(
        "--bundle",
        default="",
        metavar="LAYOUT",
        help="take the image from this OCI layout, by its name there",
    )
    parser.add_argument(
        "image", metavar="IMAGE", help="HOST/REPOSITORY[:TAG][@DIGEST], or a name in the bundle"
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments"
    )


def _attachment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detach-keys",
        default="",
        metavar="KEYS",
        help="what leaves a terminal without ending anything (default ctrl-p,ctrl-q)",
    )
    parser.add_argument(
        "--sig-proxy",
        default="true",
        choices=("true", "false"),
        help="pass signals on, unless what is typed reaches a terminal (default true); false: they leave",
    )


def _run(parser: argparse.ArgumentParser) -> None:
    call(parser, "run:run")
    parser.add_argument("-d", "--detach", action="store_true", help="print its id, and leave it running")
    _attachment(parser)
    _container(parser)


def _create(parser: argparse.ArgumentParser) -> None:
    call(parser, "run:create")
    _container(parser)


def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help=_NAME)


def _start(parser: argparse.ArgumentParser) -> None:
    call(parser, "run:start")
    parser.add_argument("-a", "--attach", action="store_true", help="show its output, and end as it ends")
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="the same, and pass standard input on"
    )
    _attachment(parser)
    _names(parser)


def _attach(parser: argparse.ArgumentParser) -> None:
    call(parser, "attaching:attach")
    parser.add_argument("--no-stdin", action="store_true", help="pass nothing on of what is typed")
    _attachment(parser)
    parser.add_argument("name", metavar="NAME", help=_NAME)


def _stop(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:stop")
    parser.add_argument(
        "-t", "--time", default="", metavar="SECONDS", help="kill it after this long (default: its own)"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="for a declared one: why it is held")
    _names(parser)


def _restart(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:restart")
    parser.add_argument(
        "-t", "--time", default="", metavar="SECONDS", help="kill it after this long (default: its own)"
    )
    _names(parser)


def _kill(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:kill")
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="the signal (default KILL)")
    _names(parser)


def _rm(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:remove")
    parser.add_argument(
        "-f", "--force", action="store_true", help="also one that runs; a declared one is replaced"
    )
    parser.add_argument(
        "-v",
        "--volumes",
        action="store_true",
        help="its anonymous volumes too; those with a name stay",
    )
    _names(parser)


def _pause(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:pause")
    _names(parser)


def _unpause(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:unpause")
    _names(parser)


def _update(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:update")
    _limits(parser)
    _names(parser)


def _rename(parser: argparse.ArgumentParser) -> None:
    call(parser, "lifecycle:rename")
    parser.add_argument("name", metavar="NAME", help=_NAME)
    parser.add_argument("new", metavar="NEW", help="what it is to be called")


VERBS: Final[Verbs] = (
    ("run", "Make an ad-hoc container and start it.", _run),
    ("create", "Make an ad-hoc container, without starting it.", _create),
    ("start", "Start containers that do not run; let go of those that are held.", _start),
    ("attach", "Show what a running container writes from now on, and pass on what is typed.", _attach),
    ("stop", "Stop containers, and keep them so; a declared one is held.", _stop),
    ("restart", "Stop containers and start them again.", _restart),
    ("kill", "Send a signal to the first process of containers.", _kill),
    ("rm", "Remove ad-hoc containers, with all that they wrote.", _rm),
    ("pause", "Freeze all that runs in containers.", _pause),
    ("unpause", "Let paused containers go on.", _unpause),
    ("update", "Change limits and restart policy of ad-hoc containers in place.", _update),
    ("rename", "Call an ad-hoc container by another name; what runs in it goes on.", _rename),
)
