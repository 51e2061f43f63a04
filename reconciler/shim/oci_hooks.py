"""Hooks: other people's programs at six points of a container's life (config.md, POSIX-platform Hooks).

The caller decides where they run, by being there: before pivot_root in the container's namespaces, or outside. A hook
has the state on its standard input, exactly its own environment, and none of this program's descriptors.
"""

import json
import os
import select
import signal
import time

from reconciler.linux import process
from reconciler.shim import start
from reconciler.shim.fields import ConfigError, Section, encode
from reconciler.shim.step import StepError, reason

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_KEPT = 4096  # bytes of what a failing hook has printed


class Hook:
    """One program to run. `timeout` is in seconds, None for as long as it takes."""

    __slots__ = ("arguments", "environment", "kind", "number", "path", "timeout")

    def __init__(self, kind: str, number: int, entry: Section) -> None:
        self.kind = kind
        self.number = number
        self.path = entry.text("path")
        if not self.path.startswith("/"):
            raise ConfigError(f"{entry.name}.path: {self.path!r}: expected an absolute path")
        where = f"{entry.name}.args"
        self.arguments = [encode(value, where) for value in entry.strings("args")]
        self.arguments = self.arguments or [encode(self.path, where)]
        self.environment: dict[bytes, bytes] = {}
        for pair in entry.strings("env"):
            name, equals, value = pair.partition("=")
            if not name or not equals:
                raise ConfigError(f"{entry.name}.env: {pair}: expected NAME=value")
            self.environment[encode(name, "env")] = encode(value, "env")
        self.timeout = entry.number("timeout") if entry.raw("timeout") is not None else None
        if self.timeout is not None and self.timeout <= 0:
            raise ConfigError(f"{entry.name}.timeout: {self.timeout}: expected more than 0 seconds")

    def __str__(self) -> str:
        return f"{self.kind} hook #{self.number}"


Hooks = dict[str, tuple[Hook, ...]]


def read(config: dict[str, object]) -> Hooks:
    """Read the hooks of a config.json, by kind; raise ConfigError naming the field."""
    section = Section(config, "hooks")
    for kind in section.values:
        if kind not in KINDS and section.raw(kind):
            raise ConfigError(f"hooks.{kind}: no such point in a container's life")
    return {
        kind: tuple(Hook(kind, number, entry) for number, entry in enumerate(section.sections(kind)))
        for kind in KINDS
    }


def run_all(hooks: Hooks, kind: str, state: dict[str, object]) -> None:
    """Run the hooks of one kind in their order; raise StepError at the first that fails."""
    if hooks.get(kind):
        told = json.dumps(state).encode()
        for hook in hooks[kind]:
            run(hook, told)


def run(hook: Hook, state: bytes) -> None:
    """Run one hook to its end; raise StepError with what it printed where it fails or takes too long."""
    told = os.memfd_create(
        "state", os.MFD_CLOEXEC
    )  # unlike a pipe it takes any size from who does not read it
    output, output_write = os.pipe2(os.O_CLOEXEC)
    failed, failed_write = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(told, state)
        os.lseek(told, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become(hook, (told, output_write, output_write), failed_write)
    finally:
        for fd in (told, output_write, failed_write):
            os.close(fd)
    try:
        said, late = _await(pid, output, hook.timeout)
        why = os.read(failed, _KEPT).decode(errors="replace")
    finally:
        os.close(output)
        os.close(failed)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if late:
        why = f"it took longer than {hook.timeout} s"
    elif not why and code:
        why = f"exit status {code}" if code > 0 else f"signal: {process.signal_name(-code)}"
    if why:
        text = said.decode(errors="replace").strip()
        raise StepError(
            "hook", hook.path, 0, f"error running {hook}: {why}{', output: ' if text else ''}{text}"
        )


def _await(pid: int, output: int, timeout: int | None) -> tuple[bytes, bool]:
    """Take what the hook prints until it ends; give the last of it, and whether it had to be killed."""
    pidfd = os.pidfd_open(pid)
    deadline = None if timeout is None else time.monotonic() + timeout
    said, late = b"", False
    os.set_blocking(output, False)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(output, select.POLLIN)
    try:
        while True:
            left = None if deadline is None or late else max(0.0, deadline - time.monotonic())
            ready = dict(poll.poll(None if left is None else left * 1000))
            if output in ready:
                try:
                    chunk = os.read(output, 65536)
                except BlockingIOError:
                    chunk = b""
                said = (said + chunk)[-_KEPT:]
                if not chunk:
                    poll.unregister(output)
            elif pidfd in ready:  # what it has left behind may go on; nobody waits for that
                return said, late
            elif not ready:
                late = True
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _become(hook: Hook, stdio: tuple[int, int, int], failed: int) -> None:
    try:
        high = os.dup(failed)
        os.set_inheritable(high, False)
        start.set_descriptors(stdio)
        process.close_except((0, 1, 2, high))
        os.umask(0o022)
        start.reset_signals()
        try:
            os.execve(hook.path, hook.arguments, hook.environment)
        except OSError as error:
            os.write(high, reason(error).encode())
    finally:
        os._exit(127)
