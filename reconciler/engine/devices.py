"""Devices: which nodes a container gets, and what its cgroup lets it do with them.

Every container may use the harmless ones of `DEFAULT`; what a spec asks for is added. A node that comes about in
another way (mknod, a layer, a file system) is of no use to it: the cgroup refuses the open.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reconciler.errors import BlockedError, ReconcilerError
from reconciler.state.desired import Device, Identity


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be done with devices of `kind` (c or b); None is any number; `access` of r, w and m (mknod)."""

    kind: str
    major: int | None
    minor: int | None
    access: str

    def __str__(self) -> str:
        """As a version 1 cgroup takes it (Documentation/admin-guide/cgroup-v1/devices.rst)."""
        numbers = ("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.kind} {':'.join(numbers)} {self.access}"

    def document(self) -> dict[str, Any]:
        """As config.json takes it (config-linux.md, "Allowed Device list")."""
        found: dict[str, Any] = {"allow": True, "type": self.kind, "access": self.access}
        if self.major is not None:
            found["major"] = self.major
        if self.minor is not None:
            found["minor"] = self.minor
        return found


@dataclass(frozen=True, slots=True)
class Node:
    """A node in the container's /dev, with the owner and the permission bits that the device's own has."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"

    @property
    def rule(self) -> Rule:
        return Rule(self.kind, self.major, self.minor, self.access)

    def document(self) -> dict[str, Any]:
        """As config.json takes it."""
        return {
            "path": self.path,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }


# Docker's and runc's list without /dev/net/tun. Any node may be made, as `tar` and `mknod` in images expect; only those
# below may be opened.
DEFAULT: Final = (
    Rule("c", None, None, "m"),
    Rule("b", None, None, "m"),
    Rule("c", 1, 3, "rwm"),  # null
    Rule("c", 1, 5, "rwm"),  # zero
    Rule("c", 1, 7, "rwm"),  # full
    Rule("c", 1, 8, "rwm"),  # random
    Rule("c", 1, 9, "rwm"),  # urandom
    Rule("c", 5, 0, "rwm"),  # tty
    Rule("c", 5, 1, "rwm"),  # console
    Rule("c", 5, 2, "rwm"),  # ptmx
    Rule("c", 136, None, "rwm"),  # pts
)
# Not of the host: the container has its own of these.
_OWN: Final = frozenset(
    ("/dev/console", "/dev/fd", "/dev/mqueue", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/.udev", "/dev/.lxc")
)
_MOST: Final = 4096


def nodes(identity: Identity) -> tuple[Node, ...]:
    """Return the nodes that the container gets now, or raise BlockedError for a device that is not there.

    A directory stands for every device below it; one that is optional and absent for none. Privileged containers get
    all of the device's own.
    """
    found: dict[str, Node] = {}
    if identity.privileged:
        found |= {node.path: node for node in _below("/dev", "/dev", "rwm")}
    for device in identity.devices:
        try:
            found |= {node.path: node for node in _nodes(device)}
        except (FileNotFoundError, NotADirectoryError) as error:
            if not device.optional:
                raise BlockedError(f"waiting for {device.source}", transient=True) from error
    return tuple(found[path] for path in sorted(found))


def rules(identity: Identity, made: Sequence[Node]) -> tuple[Rule, ...] | None:
    """Return what the container may do with devices; None for everything (privileged)."""
    if identity.privileged:
        return None
    return (*DEFAULT, *(node.rule for node in made))


def needed(identity: Identity) -> bool:
    """Say whether the rules are all that stands between the container and devices: a kernel without them won't do."""
    added = {"ALL", "CAP_MKNOD", "CAP_SYS_ADMIN"} & set(identity.cap_add)
    return bool(identity.devices or added)


def present(paths: Iterable[str]) -> frozenset[str]:
    """Return those of `paths` that lead to a device, or to a directory."""
    found = set()
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode):
            found.add(path)
    return frozenset(found)


def _nodes(device: Device) -> Iterator[Node]:
    status = os.stat(device.source)  # links are followed: those in /dev/serial/by-id are the host's own
    if stat.S_ISDIR(status.st_mode):
        yield from _below(device.source, device.target, device.permissions)
    elif node := _node(device.target, status, device.permissions):
        yield node
    else:
        raise ReconcilerError(f"{device.source}: not a device", hint="see: ls -l /dev")


def _node(path: str, status: os.stat_result, access: str) -> Node | None:
    for kind, fits in (("c", stat.S_ISCHR), ("b", stat.S_ISBLK)):
        if fits(status.st_mode):
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            mode = stat.S_IMODE(status.st_mode) & 0o777
            return Node(path, kind, major, minor, mode, status.st_uid, status.st_gid, access)
    return None


def _below(source: str, target: str, access: str) -> Iterator[Node]:
    """Every device in a directory, without links, in order; an absurd number of them is an error."""
    count = 0
    for inner, directories, names in os.walk(source):
        directories[:] = sorted(name for name in directories if f"{inner}/{name}" not in _OWN)
        for name in sorted(names):
            path = f"{inner}/{name}"
            if path in _OWN:
                continue
            try:
                node = _node(f"{target}{path[len(source) :]}", Path(path).lstat(), access)
            except FileNotFoundError:
                continue
            if node is not None:
                count += 1
                if count > _MOST:
                    raise ReconcilerError(f"{source}: more than {_MOST} devices")
                yield node
