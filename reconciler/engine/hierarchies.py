"""Which cgroup hierarchies this machine has, and where: version 2, version 1, or both at once (hybrid).

Found out from /proc/self/mountinfo each time; nothing is assumed about /sys/fs/cgroup. Reads only.
"""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.errors import UnsupportedError

# Controllers that this program knows; anything else in a v1 mount's options is a flag or a named hierarchy.
_V1_CONTROLLERS = frozenset(
    ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices", "hugetlb", "rdma", "misc")
)

# The last two: between open and read the cgroup was removed, or the process of a /proc/PID/cgroup ended.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH)


@dataclass(frozen=True)
class Hierarchies:
    """The mount point of the v2 hierarchy with the controllers it has there, and of each v1 controller.

    On a hybrid machine `v2` is there, often without a controller, and the controllers are in `v1`.
    """

    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()
    v1: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def detect(cls, mountinfo: Path = Path("/proc/self/mountinfo")) -> "Hierarchies":
        """Find the hierarchies; raise UnsupportedError where there are none at all."""
        v2: Path | None = None
        v1: dict[str, Path] = {}
        for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            left, _, right = line.partition(" - ")
            kind, _, rest = right.partition(" ")
            if kind not in ("cgroup", "cgroup2"):
                continue
            point = Path(_unescape(left.split(" ")[4]))
            if kind == "cgroup2":
                # The first mount wins: a bind of it elsewhere (a container's) shows a part only
                v2 = v2 or point
                continue
            for option in rest.rpartition(" ")[2].split(","):
                if option in _V1_CONTROLLERS:
                    v1.setdefault(option, point)
        if v2 is None and not v1:
            raise UnsupportedError(
                "cgroups: no hierarchy is mounted, so no container can be held to its limits",
                hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            )
        controllers = frozenset(read(v2 / "cgroup.controllers").split()) if v2 is not None else frozenset()
        return cls(v2=v2, v2_controllers=controllers, v1=v1)

    def version(self, controller: str) -> int:
        """Say which hierarchy has `controller`: 2, 1, or 0 for none."""
        if controller in self.v2_controllers:
            return 2
        return 1 if controller in self.v1 else 0

    def __str__(self) -> str:
        if not self.v1:
            return "v2"
        return "hybrid" if self.v2 is not None else "v1"


@dataclass(frozen=True)
class Cgroup:
    """The directories of one container: `v2` where that hierarchy is mounted, `v1` by controller.

    `path` is the part below the hierarchy's root, as config.json's linux.cgroupsPath wants it.
    """

    path: str
    v2: Path | None
    v1: dict[str, Path]
    controllers: frozenset[str] = frozenset()

    def annotation(self) -> dict[str, object]:
        """Give what the shim needs to know: {"v2": directory or None, "v1": [directories]}."""
        return {
            "v2": str(self.v2) if self.v2 is not None else None,
            "v1": [str(directory) for directory in self.v1_directories()],
        }

    def v1_directories(self) -> list[Path]:
        """Give each v1 directory once: controllers that are mounted together share theirs."""
        return sorted(set(self.v1.values()))

    def directories(self) -> list[Path]:
        """Give every directory, the v2 one first."""
        return ([self.v2] if self.v2 is not None else []) + self.v1_directories()

    def file(self, controller: str, v2: str, v1: str) -> Path | None:
        """Give the control file of `controller` where that is in force, None where no hierarchy has it."""
        if self.v2 is not None and controller in self.controllers:
            return self.v2 / v2
        return self.v1[controller] / v1 if controller in self.v1 else None


def read(file: Path) -> str:
    """Read a control file; an empty text where it is not there, or its cgroup or its process went meanwhile."""
    try:
        return file.read_text()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise


def read_value(file: str) -> bytes:
    """Read a control file that holds one short value, as `read` does; every turn does it for every container."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 256)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return b""
        raise


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
