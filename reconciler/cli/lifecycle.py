"""The verbs stop, restart, kill, rm, pause, unpause, update and rename: one question per name, and one answer each.

The name goes to standard output, what the loop will do next to standard error. One that fails does not keep the others
from being asked for.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from reconciler.cli.asking import ask
from reconciler.cli.main import complain
from reconciler.errors import ReconcilerError, UsageError


def each(args: argparse.Namespace, verb: str, body: Mapping[str, Any]) -> int:
    """Ask for each name, and return the exit code of the first that failed, or 0."""
    code = 0
    for name in args.names:
        try:
            answer = ask(args, verb, {**body, "name": name})
        except ReconcilerError as error:
            complain(error, sys.stderr)
            code = code or error.exit_code
            continue
        print(answer["name"], flush=True)
        if answer["message"]:
            print(answer["message"], file=sys.stderr)
    return code


def stop(args: argparse.Namespace) -> int:
    """Stop containers, and keep them so."""
    return each(args, "stop", {"timeout": args.time, "reason": args.reason})


def restart(args: argparse.Namespace) -> int:
    """Stop containers and start them again."""
    return each(args, "restart", {"timeout": args.time})


def kill(args: argparse.Namespace) -> int:
    """Send a signal to the first process of containers."""
    return each(args, "kill", {"signal": args.signal})


def remove(args: argparse.Namespace) -> int:
    """Remove ad-hoc containers."""
    return each(args, "remove", {"force": args.force, "volumes": args.volumes})


def pause(args: argparse.Namespace) -> int:
    """Freeze all that runs in containers."""
    return each(args, "pause", {})


def unpause(args: argparse.Namespace) -> int:
    """Let paused containers go on."""
    return each(args, "unpause", {})


def update(args: argparse.Namespace) -> int:
    """Change limits and restart policy of ad-hoc containers in place."""
    names = ("memory", "memory_swap", "cpus", "pids_limit", "storage_opt", "restart")
    options = {name: getattr(args, name) for name in names if getattr(args, name)}
    if not options:
        raise UsageError(
            "update: nothing to change was named",
            hint="--memory, --memory-swap, --cpus, --pids-limit, --storage-opt, --restart",
        )
    return each(args, "update", {"options": options})


def rename(args: argparse.Namespace) -> int:
    """Call an ad-hoc container by another name."""
    print(ask(args, "rename", {"name": args.name, "new": args.new})["name"])
    return 0
