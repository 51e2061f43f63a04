"""The verbs run, create and start: ad-hoc containers, in the background or shown here until they end.

In the foreground we are attached to it from its beginning, and signals go on to it; ending this
program ends nothing. The exit code is the container's, 125 for a failure of ours, 126 and 127 as a shell's.
"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from reconciler.cli.asking import ask
from reconciler.cli.attaching import Attached, manner
from reconciler.cli.common import layout_of
from reconciler.cli.lifecycle import each
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.spec.commandline import security_option

_OURS: Final = 125  # as Docker: the failure was not the program's
_SHELL: Final = (126, 127)
_TEXTS: Final = (
    *("user", "workdir", "hostname", "restart", "stop_signal", "stop_timeout"),
    *("userns", "memory", "memory_swap", "cpus", "pids_limit", "shm_size", "cpuset_cpus", "oom_score_adj"),
    *("network", "log_driver"),
)
_LISTS: Final = (
    *("dns", "dns_search", "dns_option", "add_host", "group_add", "cap_add", "cap_drop", "security_opt"),
    *("add_device", "ulimit", "sysctl", "annotation", "log_opt", "network_alias", "storage_opt"),
)


def run(args: argparse.Namespace) -> int:
    """Make an ad-hoc container and start it; show its output and end as it ends, or print its id with -d."""
    with _Failing():
        if args.tty and not args.detach:
            _demand_terminal(args)
        if args.detach:
            print(_made(args, start=True)["id"])
            return 0
        how = manner(args)
        answer = _made(args, start=False)
        name = str(answer["name"])
        try:
            with Attached(layout_of(args), name, how, stdin=args.interactive) as watch:
                ask(args, "start", {"name": name})
                code = watch.follow()
        except ReconcilerError:
            if args.rm:
                with suppress(ReconcilerError):
                    ask(args, "remove", {"name": name, "force": True})
            raise
        if args.rm and not watch.left:
            with suppress(NotFoundError):
                ask(args, "remove", {"name": name})
        return code


def create(args: argparse.Namespace) -> int:
    """Make an ad-hoc container and print its id."""
    with _Failing():
        print(_made(args, start=False)["id"])
        return 0


def start(args: argparse.Namespace) -> int:
    """Start containers; with -a show the output of one, and end as it ends."""
    if not (args.attach or args.interactive):
        return each(args, "start", {})
    if len(args.names) != 1:
        raise UsageError("start: -a and -i go with one name only")
    layout, name = layout_of(args), args.names[0]
    with Attached(layout, name, manner(args), fresh=True, stdin=args.interactive) as watch:
        ask(args, "start", {"name": args.names[0]})
        return watch.follow()


def _demand_terminal(args: argparse.Namespace) -> None:
    if args.interactive and not sys.stdin.isatty():
        raise UsageError("-it: standard input is not a terminal", hint="leave -t out")
    if args.log_driver in ("none", "journald"):
        raise UsageError(
            f"-t: what a terminal shows comes from the log, and --log-driver {args.log_driver} keeps none here",
            hint="use --log-driver file, or -d",
        )


class _Failing:
    """Gives a failure of ours the exit code that Docker gives it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ReconcilerError) and error.exit_code not in _SHELL:
            error.exit_code = _OURS


def _made(args: argparse.Namespace, *, start: bool) -> dict[str, Any]:
    """Bring the image here and make the container; the image's digest is said where none was named."""
    bundle = os.path.realpath(args.bundle) if args.bundle else ""
    wanted = _options(args)
    found = ask(args, "fetch", {"image": args.image, "bundle": bundle, "pull": args.pull})
    if found["image"] != args.image:
        print(f"image {found['image']}", file=sys.stderr)
    if found["warning"]:
        print(f"reconciler: {found['warning']}; it is used all the same", file=sys.stderr)
    body = {
        "image": found["image"],
        "name": args.name,
        "rm": args.rm,
        "start": start,
        "publish_all": args.publish_all,
        "tty": args.tty,
        "stdin": ("open" if getattr(args, "detach", False) else "once") if args.interactive else "",
        "options": wanted,
    }
    answer = ask(args, "create", body)
    for port in answer["ports"] if args.publish_all or any(":" not in text for text in args.publish) else ():
        print(f"published {port}", file=sys.stderr)
    return answer


def _options(args: argparse.Namespace) -> dict[str, Any]:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    options: dict[str, Any] = {
        "command": command,
        "ports": args.publish,
        "environment": _environment(args),
        "volumes": [_absolute(text) for text in args.volume],
        "mounts": args.mount,
        "tmpfs": args.tmpfs,
        "labels": args.label,
        "init": args.init,
        "read_only": args.read_only,
        "privileged": args.privileged,
    }
    options |= {name: getattr(args, name) for name in (*_TEXTS, *_LISTS)}
    options["security_opt"] = [_with_profile(text) for text in args.security_opt]
    if args.entrypoint is not None:
        options["entrypoint"] = args.entrypoint
    return options


def _environment(args: argparse.Namespace) -> list[str]:
    """The variables in their order: files first, as with Docker; a name alone stands for what it is here, if it is."""
    lines: list[str] = []
    for file in args.env_file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--env-file {file}: {error}") from error
        lines += [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for line in [*lines, *args.env]:
        name, equals, _ = line.partition("=")
        if equals:
            found.append(line)
        elif name.strip() in os.environ:
            found.append(f"{name.strip()}={os.environ[name.strip()]}")
    return found


def _with_profile(text: str) -> str:
    """`seccomp=FILE` with what is in the file: the agent reads no files that people name."""
    name, value = security_option(text)
    if name != "seccomp" or value in ("", "default", "builtin", "unconfined"):
        return text
    try:
        return f"seccomp={Path(value).read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--security-opt {text}: {error}") from error


def _absolute(text: str) -> str:
    """A path of the device that is written relative to where we are."""
    source, colon, rest = text.partition(":")
    if not colon or not source.startswith((".", "~")):
        return text
    return f"{os.path.abspath(os.path.expanduser(source))}:{rest}"
