"""The seccomp filter of somebody else's bundle: compiled on the spot, with a supervisor where it has questions.

The engine's bundles bring theirs compiled (shim.filter), and have no supervisors.
"""

import json
import os
import socket

from reconciler.linux.seccomp import compile, load
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.program import Process
from reconciler.shim.step import Step


def prepare(wanted: Process, config: dict[str, object]) -> None:
    """Compile the filter that `config` asks for, and connect to its supervisor; raise ConfigError, StepError."""
    if not wanted.filtered:
        return
    section = Section(config, "linux").section("seccomp")
    try:
        flags = compile.flags(section.values)
        wanted.filter = (compile.compile(section.values), flags)
        asks = compile.notifies(section.values)
    except ValueError as error:
        raise ConfigError(f"linux.seccomp: {error}") from error
    path = section.text("listenerPath")
    if not asks:
        if section.text("listenerMetadata") and not path:
            raise ConfigError("linux.seccomp.listenerMetadata: needs a listenerPath")
        return
    if not path:
        raise ConfigError("linux.seccomp: SCMP_ACT_NOTIFY needs a listenerPath")
    if "sendmsg" in _asked(section):
        raise ConfigError("linux.seccomp: SCMP_ACT_NOTIFY for sendmsg: the listener itself is sent by it")
    wanted.filter = (wanted.filter[0], flags | load.FLAG_NEW_LISTENER)
    with Step("seccomp", path):
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.connect(path)
        wanted.supervisor = (channel.detach(), b"")


def kept(wanted: Process) -> tuple[int, ...]:
    """The descriptor that stays open until the exec, if there is one."""
    return () if wanted.supervisor is None else (wanted.supervisor[0],)


def introduce(wanted: Process, config: dict[str, object], state: dict[str, object]) -> None:
    """Say who is asking: this process, as the host knows it. Call it while /proc is still the host's."""
    if wanted.supervisor is None:
        return
    section = Section(config, "linux").section("seccomp")
    told = {
        "ociVersion": state.get("ociVersion"),
        "fds": ["seccompFd"],
        "pid": int(os.readlink("/proc/self")),
        "metadata": section.text("listenerMetadata"),
        "state": state,
    }
    wanted.supervisor = (wanted.supervisor[0], json.dumps(told).encode())


def _asked(section: Section) -> set[str]:
    found: set[str] = set()
    for entry in section.sections("syscalls"):
        if entry.text("action") == "SCMP_ACT_NOTIFY":
            found.update(entry.strings("names"))
    return found
