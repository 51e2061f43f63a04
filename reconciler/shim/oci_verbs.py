"""What the verbs of `reconciler oci` do with a container; each prints what callers read and gives an exit code.

The texts of errors that callers look for are runc's.
"""

import argparse
import json
import os
import select
import signal
import sys

from reconciler.linux import process
from reconciler.shim import (
    oci_cgroup,
    oci_hooks,
    oci_log,
    oci_options,
    oci_resources,
    oci_scope,
    oci_state,
)
from reconciler.shim.fields import Section
from reconciler.shim.oci_state import Container, NotThereError, OciError
from reconciler.shim.step import Step, StepError, problem

_END = 10.0  # seconds for a killed process to be gone


def start(args: argparse.Namespace) -> int:
    start_program(oci_state.find(args.root, args.id, lock=True))
    return 0


def start_program(container: Container) -> None:
    """Let the program run, and give back once it does; raise OciError, or StepError where it can't."""
    found = container.status()
    if found == "running":
        raise OciError("cannot start an already running container")
    if found != "created":
        raise OciError("cannot start a container that has stopped")
    directory = container.directory
    said = os.open(oci_state.SAID, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        with Step("start", container.id):
            go = os.open(oci_state.START, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        os.write(go, b"g")
        os.close(go)
        os.unlink(oci_state.START, dir_fd=directory)
        line = b""
        poll = select.poll()
        poll.register(said, select.POLLIN)
        while poll.poll():
            chunk = os.read(said, 65536)
            if not chunk:  # nobody has it open for writing any more: the program runs
                break
            line += chunk
            if line.endswith(b"\n"):
                break
    finally:
        os.close(said)
    if line:
        raise problem(line)
    try:
        oci_hooks.run_all(oci_hooks.read(container.config()), "poststart", container.state("running"))
    except StepError:
        _kill_all(container)
        raise


def kill(args: argparse.Namespace) -> int:
    container = oci_state.find(args.root, args.id)
    try:
        number = process.signal_number(args.signal)
    except ValueError:
        raise OciError(f'unknown signal "{args.signal}"') from None
    group = oci_cgroup.of(container)
    if args.all:
        oci_cgroup.kill(group, number)
    elif not container.alive():
        raise OciError("container not running")
    elif number == signal.SIGKILL and not container.values.get("own_pids"):
        oci_cgroup.kill(group)  # no end of a PID namespace takes the others along
    else:
        _signal(container, number)
    if number == signal.SIGKILL and not group.v2 and oci_cgroup.frozen(group):
        oci_cgroup.freeze(group, False)  # what version 1 has frozen does not even die
    return 0


def _signal(container: Container, number: int) -> None:
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        raise OciError("container not running") from None
    try:
        if not container.alive():  # looked at again now that the descriptor pins the process
            raise OciError("container not running")
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise OciError("container not running") from None
    finally:
        os.close(pidfd)


def delete(args: argparse.Namespace) -> int:
    try:
        container = oci_state.find(args.root, args.id, lock=True)
    except NotThereError:
        if args.force:
            return 0
        raise
    destroy(container, force=args.force)
    return 0


def destroy(container: Container, *, force: bool) -> None:
    """Take away all that is left of it, with `force` also while it runs; raise OciError."""
    found = oci_cgroup.status(container)
    if found != "stopped":
        if not force:
            raise OciError(f'cannot delete container "{container.id}" that is not stopped: {found}')
        _kill_all(container)
    group = oci_cgroup.of(container)
    oci_cgroup.remove(group)
    if group.unit:
        oci_scope.leave(group)
    state, hooks = container.state("stopped"), _hooks(container)
    container.remove()
    for hook in hooks.get("poststop", ()):
        try:
            oci_hooks.run(hook, json.dumps(state).encode())
        except StepError as error:  # the specification has the rest go on, and a warning
            oci_log.warn(f"{hook}: {error}")


def _hooks(container: Container) -> oci_hooks.Hooks:
    try:
        return oci_hooks.read(container.config())
    except (FileNotFoundError, ValueError):
        return {}  # its create has died before it got that far


def _kill_all(container: Container) -> None:
    """Kill the first process and all in its cgroup, and wait for the first one's end."""
    group = oci_cgroup.of(container)
    try:
        pidfd = os.pidfd_open(container.pid) if container.alive() else -1
    except ProcessLookupError:
        pidfd = -1
    oci_cgroup.kill(group)
    if pidfd >= 0:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if not group.v2 and oci_cgroup.frozen(group):
            oci_cgroup.freeze(group, False)
        if not select.select([pidfd], [], [], _END)[0]:
            raise OciError(f'container "{container.id}" does not end within {_END:g} s of SIGKILL')
        os.close(pidfd)


def pause(args: argparse.Namespace) -> int:
    container = oci_state.find(args.root, args.id, lock=True)
    if (found := oci_cgroup.status(container)) not in ("created", "running"):
        raise OciError(f"container not running: {found}")
    oci_cgroup.freeze(oci_cgroup.of(container), True)
    return 0


def resume(args: argparse.Namespace) -> int:
    container = oci_state.find(args.root, args.id, lock=True)
    if oci_cgroup.status(container) != "paused":
        raise OciError("container not paused")
    oci_cgroup.freeze(oci_cgroup.of(container), False)
    return 0


def update(args: argparse.Namespace) -> int:
    container = oci_state.find(args.root, args.id, lock=True)
    if oci_cgroup.status(container) == "stopped":
        raise OciError("container not running")
    group = oci_cgroup.of(container)
    resources = Section({"resources": _resources(args, group)}, "resources")
    oci_resources.apply(resources, group)
    if group.unit:
        oci_scope.update(group, oci_scope.properties(oci_resources.plan(resources, group)))
    return 0


def _resources(args: argparse.Namespace, group: oci_cgroup.Cgroup) -> dict[str, object]:
    wanted: dict[str, object] = {}
    if args.resources:
        with Step("resources", args.resources):
            text = sys.stdin.read() if args.resources == "-" else _text(args.resources)
        try:
            wanted = json.loads(text)
        except ValueError as error:
            raise StepError("resources", args.resources, 0, f"not JSON: {error}") from error
        if not isinstance(wanted, dict):
            raise StepError("resources", args.resources, 0, "not an object")
    for option, (section, key), _ in oci_options.UPDATES:
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None:
            inner = dict(Section(wanted, section).values)
            inner[key] = value
            wanted[section] = inner
    memory = Section(wanted, "memory")
    if memory.raw("swap") and not memory.raw("limit") and "memory" in group.controllers:
        # Swap is said as memory and swap together, and version 2 wants swap alone
        now = oci_cgroup.read(f"{group.v2}/memory.max").strip()
        if now.isdigit():
            wanted["memory"] = {**memory.values, "limit": int(now)}
    wanted.pop("devices", None)  # what a container may use is decided once; callers send the list back
    return wanted


def _text(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return opened.read()
