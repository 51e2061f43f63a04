"""Verbs about one container: exec. They talk to the disk and to the container's shim; no agent is needed."""

import argparse
import sys
from contextlib import ExitStack

from reconciler.cli import pipes, terminal
from reconciler.cli.common import find_container, layout_of
from reconciler.engine import cgroup, instance
from reconciler.engine.control import Command, Control
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.record import Record
from reconciler.errors import ReconcilerError, UnreachableError, UsageError
from reconciler.state.desired import called


def execute(args: argparse.Namespace) -> int:
    """Run a command inside a running container; its exit code is ours, 125 to 127 as Docker's."""
    layout = layout_of(args)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("exec: no command was given")
    for variable in args.env:
        if "=" not in variable:
            raise UsageError(f"--env {variable!r}: expected NAME=VALUE")
    if args.tty and not sys.stdin.isatty():
        raise UsageError("--tty: standard input is not a terminal", hint="leave -t out")
    found = find_container(layout, args.name)
    wanted = Command(
        arguments=tuple(command),
        environment=tuple(args.env),
        user=args.user or None,
        cwd=args.workdir or None,
        origin="exec",
    )
    try:
        control = Control.connect(layout.control_socket(found.id))
    except UnreachableError as error:
        raise NotRunningError(
            f"container {found.full_name}: not running", hint="run: reconciler ps -a"
        ) from error
    with control:
        demand_moving(layout, found)
        if args.tty:
            return terminal.attach(control, wanted, interactive=args.interactive)
        with ExitStack() as stack:
            stdio = pipes.standard(stack, interactive=args.interactive)
            with control.execute(wanted, stdio) as execution:
                terminal.warn(execution)
                return execution.wait()


def demand_moving(layout: Layout, found: Record) -> None:
    """Raise PausedError where all that runs in the container stands still."""
    group = cgroup.open_existing(Hierarchies.detect(), f"reconciler-{instance.read_id(layout)}", found.id)
    if group is not None and cgroup.frozen(group):
        raise PausedError(
            f"container {found.full_name}: is paused, and whoever waits for it would stand still too",
            hint=f"run: reconciler unpause {called(found.app, found.name)}",
        )


class NotRunningError(ReconcilerError):
    """The container is there but nothing of it runs, so nothing can be run beside it."""

    exit_code = 125


class PausedError(ReconcilerError):
    """The container's cgroup is frozen, and whatever is started in it would be at once."""

    exit_code = 125
