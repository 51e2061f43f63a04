"""The cgroup of a container that systemd makes: `--systemd-cgroup`, with SLICE:PREFIX:NAME in linux.cgroupsPath.

A transient scope PREFIX-NAME.scope in SLICE, delegated to us, so that its limits are ours to write; systemd is told of
those that it knows too, because it writes its own view again at every daemon-reload. systemd needs a process to make a
scope for: one holds it until the container's own is there, and systemd takes the scope away once nobody is in it. Only
with cgroup version 2, where a scope is one directory.
"""

import os
import select
import signal
import time

from reconciler.shim import oci_cgroup
from reconciler.shim.oci_cgroup import Cgroup
from reconciler.shim.oci_state import OciError

_BOOTED = "/run/systemd/system"
_DEFAULT_SLICE, _DEFAULT_PREFIX = "system.slice", "reconciler-oci"
_PATIENCE = 30.0  # seconds for systemd to make a scope, or to take one away
_INSTEAD = "use the manager cgroupfs (podman: --cgroup-manager cgroupfs; containerd: SystemdCgroup = false)"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")  # systemd.unit(5)
_CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

# The files of version 2 that systemd has a property for (systemd.resource-control(5)). cpu.max is two of them.
_PROPERTIES = {
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.min": "MemoryMin",
    "cpu.weight": "CPUWeight",
    "cpuset.cpus": "AllowedCPUs",
    "cpuset.mems": "AllowedMemoryNodes",
    "pids.max": "TasksMax",
    "io.weight": "IOWeight",
}


def place(path: str, name: str) -> Cgroup:
    """Find the directory that systemd will make for linux.cgroupsPath `path`, empty for the container `name`'s own.

    Raise OciError where the path is none of systemd's, or systemd or version 2 is not there.
    """
    parts = path.split(":") if path else [_DEFAULT_SLICE, _DEFAULT_PREFIX, name]
    if len(parts) != 3 or not parts[2]:
        raise OciError(f"linux.cgroupsPath: {path}: expected SLICE:PREFIX:NAME with --systemd-cgroup")
    if not os.path.isdir(_BOOTED):
        raise OciError(f"--systemd-cgroup: systemd does not run here: {_INSTEAD}")
    found = oci_cgroup.Hierarchies()
    if not found.v2 or "pids" not in found.controllers:
        raise OciError(
            f"--systemd-cgroup: its scopes have to be of cgroup version 2, which has no controllers here: {_INSTEAD}"
        )
    slice_, prefix, own = parts
    unit = f"{prefix}-{own}.scope" if prefix else f"{own}.scope"
    for text in (slice_ or _DEFAULT_SLICE, unit):
        if not _NAME.issuperset(text) or text.startswith("."):
            raise OciError(f"linux.cgroupsPath: {path}: {text!r} is no name of a unit")
    group = Cgroup(f"{found.v2}{directory_of(slice_ or _DEFAULT_SLICE)}/{unit}", {}, found.controllers)
    group.unit, group.slice = unit, slice_ or _DEFAULT_SLICE
    return group


def directory_of(slice_: str) -> str:
    """Give the path of a slice: a-b.slice is below a.slice (systemd.slice(5)); raise OciError for what is none."""
    stem = slice_.removesuffix(".slice")
    if stem == slice_ or (stem != "-" and not all(stem.split("-"))):
        raise OciError(f"linux.cgroupsPath: {slice_}: no name of a slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    return "".join(f"/{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)))


def properties(writes: list[tuple[str, str, str, str]]) -> list[str]:
    """Give what systemd is to be told of these writes (`oci_resources.plan`), as NAME=VALUE."""
    found = []
    for _, file, text, _ in writes:
        if file == "cpu.max":
            quota, _, period = text.partition(" ")
            length = int(period or 100_000)
            share = "" if quota == "max" else f"{-(-int(quota) * 100 // length)}%"
            found += [f"CPUQuota={share}", f"CPUQuotaPeriodSec={length}us"]
        elif file in _PROPERTIES:
            found.append(f"{_PROPERTIES[file]}={'infinity' if text == 'max' else text}")
    return found


class Holder:
    """The process that a scope is made for; `end` it once another is in there."""

    def __init__(self, group: Cgroup, wanted: list[str]) -> None:
        """Have systemd make the scope; raise OciError with its words where it does not."""
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        options = ["Delegate=yes", "DefaultDependencies=no", "TasksMax=infinity", *wanted]
        command = ["systemd-run", "--scope", "--quiet", "--collect"]
        command += [f"--unit={group.unit}", f"--slice={group.slice}"]
        command += [f"--description={group.unit.removesuffix('.scope')}"]
        command += [*(f"--property={option}" for option in options), "--", "cat"]
        try:
            self._pid, said = _spawn(command, reader)
        except OciError:
            os.close(self._writer)
            raise
        finally:
            os.close(reader)
        try:
            self._wait(group, said)
        except BaseException:
            self.end()
            raise
        finally:
            os.close(said)

    def _wait(self, group: Cgroup, said: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while str(self._pid) not in oci_cgroup.read(f"{group.v2}/cgroup.procs").split():
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
                code = os.waitstatus_to_exitcode(status)
                text = os.read(said, 4096).decode(errors="replace").strip() or f"exit code {code}"
                raise OciError(f"{group.unit}: systemd-run: {text}")
            if time.monotonic() > deadline:
                raise OciError(f"{group.unit}: systemd has not made it within {_PATIENCE:.0f} s")
            select.select([], [], [], 0.002)

    def end(self) -> None:
        """End the process; without another in it the scope goes."""
        os.close(self._writer)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def update(group: Cgroup, wanted: list[str]) -> None:
    """Tell systemd of limits that have changed; raise OciError with its words where it refuses."""
    if wanted:
        _systemctl("set-property", "--runtime", "--", group.unit, *wanted)


def leave(group: Cgroup) -> None:
    """Wait until systemd has taken the empty scope away; stop it where that takes long. Raise OciError."""
    deadline = time.monotonic() + _PATIENCE
    asked = False
    while os.path.isdir(group.v2):
        late = time.monotonic() > deadline - _PATIENCE + 2.0
        if late and not asked:
            _systemctl("stop", "--", group.unit)
            asked = True
        if time.monotonic() > deadline:
            raise OciError(f"{group.v2}: systemd has not taken {group.unit} away within {_PATIENCE:.0f} s")
        select.select([], [], [], 0.005)


def _systemctl(*arguments: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid, said = _spawn(["systemctl", "--quiet", *arguments], null)
    finally:
        os.close(null)
    with open(said, "rb") as file:
        text = file.read(4096).decode(errors="replace").strip()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OciError(f"systemctl {arguments[0]}: {text}")


def _spawn(command: list[str], stdin: int) -> tuple[int, int]:
    """Run a program of systemd's: its pid, and a descriptor to read what it says on standard error."""
    said, said_write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, null, said_write))]
        return os.posix_spawnp(command[0], command, _CLEAN, file_actions=actions), said
    except OSError as error:
        os.close(said)
        raise OciError(f"{command[0]}: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        os.close(said_write)
        os.close(null)
