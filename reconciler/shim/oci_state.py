"""What the OCI runtime command line keeps of a container: a directory below --root, and the kernel's word for the rest.

    ROOT/                 0700
      ID/                 made by mkdir, which decides between two creates; flock on it guards every change
        state.json        replaced by rename: who init is, where its cgroups are, what `state` tells
        config.json       the bundle's, as it was when the container was created (runtime.md, Lifecycle 2)
        start             FIFO: a byte in it lets the program run; its absence means that somebody has asked for that
        said              FIFO: what init says when its program can't be executed; its end when it runs

Whether a container runs is asked of the kernel: init is known by pid, start time and boot id.
"""

import fcntl
import json
import os
import re

from reconciler.errors import ReconcilerError
from reconciler.shim import record
from reconciler.shim.oci_options import SPEC_VERSION

STATE = "state.json"
CONFIG = "config.json"
START = "start"
SAID = "said"
_ID = re.compile(r"[\w+.-]+", re.ASCII)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OciError(ReconcilerError):
    """The runtime can't do what it was asked; the texts are those that callers of runc look for."""


class NotThereError(OciError):
    """There is no such container."""

    def __init__(self, name: str) -> None:
        super().__init__(f'container "{name}" does not exist')


class Container:
    """One container's directory, open. `values` is state.json; see `fresh` for what is in it."""

    __slots__ = ("directory", "id", "path", "values")

    def __init__(self, path: str, name: str, directory: int, values: dict[str, object]) -> None:
        self.path = path
        self.id = name
        self.directory = directory
        self.values = values

    def save(self) -> None:
        """Replace state.json."""
        record.replace(self.directory, STATE, json.dumps(self.values, sort_keys=True))

    @property
    def pid(self) -> int:
        """Init's pid; 0 as long as there was none."""
        value = self.values.get("pid")
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def alive(self) -> bool:
        """Say whether init is still there, and no zombie: its parent may take its time."""
        if not self.pid or self.values.get("boot") != record.boot_id():
            return False
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(fields[19]) == self.values.get("started") and fields[0] not in (b"Z", b"X")

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def status(self) -> str:
        """Give creating, created, running or stopped; whether it is paused is the cgroup's matter."""
        if not self.alive():
            return "creating" if not self.pid and self._locked() else "stopped"
        if self.values.get("created") is None:
            return "creating"
        return "created" if self.has(START) else "running"

    def _locked(self) -> bool:
        """Say whether somebody else holds the lock: then a create is at work."""
        other = os.open(".", _DIRECTORY, dir_fd=self.directory)
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(other)
        return False

    def config(self) -> dict[str, object]:
        """The config.json that the container was created from."""
        value = json.loads(_read(self.directory, CONFIG))
        return value if isinstance(value, dict) else {}

    def state(self, status: str) -> dict[str, object]:
        """What hooks and `state` are told (runtime.md, State)."""
        told = {
            "ociVersion": self.values.get("ociVersion", SPEC_VERSION),
            "id": self.id,
            "status": status,
            "pid": 0 if status == "stopped" else self.pid,
            "bundle": self.text("bundle"),
        }
        annotations = self.values.get("annotations")
        if annotations:
            told["annotations"] = annotations
        return told

    def remove(self) -> None:
        """Take the directory away; whoever waits for its lock finds that it is gone."""
        for name in os.listdir(self.directory):
            os.unlink(name, dir_fd=self.directory)
        os.rmdir(self.path)


def check_id(name: str) -> str:
    """Give `name` back where it is a container's id, by runc's grammar; raise OciError."""
    if name in (".", "..") or len(name) > 1024 or not _ID.fullmatch(name):
        raise OciError(f"invalid id format: {name!r}: expected letters, digits and _+.-")
    return name


def make(root: str, name: str) -> Container:
    """Make the container's directory and lock it; raise OciError where there is one."""
    check_id(name)
    os.makedirs(root, mode=0o700, exist_ok=True)
    path = f"{root}/{name}"
    try:
        os.mkdir(path, 0o711)
    except FileExistsError:
        raise OciError(f'container with given ID already exists: "{name}"') from None
    directory = os.open(path, _DIRECTORY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    return Container(path, name, directory, {})


def find(root: str, name: str, *, lock: bool = False) -> Container:
    """Open the container, with `lock` once nobody else changes it; raise NotThereError."""
    check_id(name)
    path = f"{root}/{name}"
    try:
        directory = os.open(path, _DIRECTORY)
        if lock:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if not os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(directory)):
                raise FileNotFoundError
        return Container(path, name, directory, _values(directory))
    except (FileNotFoundError, NotADirectoryError):
        raise NotThereError(name) from None


def names(root: str) -> list[str]:
    """List the ids below `root`, sorted."""
    try:
        return sorted(name for name in os.listdir(root) if _ID.fullmatch(name))
    except FileNotFoundError:
        return []


def _values(directory: int) -> dict[str, object]:
    """Read state.json; nothing where a create has died before it, or the power went."""
    try:
        value = json.loads(_read(directory, STATE))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        return file.read()
