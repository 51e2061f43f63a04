"""Who the program runs as: USER as an image writes it, looked up in the container's own passwd and group.

libc's lookups would load libraries of the container into a privileged process (CVE-2019-14271), and the files are the
image's: they may be FIFOs, devices, links out or gigabytes (CVE-2024-9676). So they are opened without following
anything out of the root, must be regular, and are read up to 4 MiB.
"""

import errno
import os
import stat

from reconciler.linux import path
from reconciler.shim.program import Process
from reconciler.shim.rootfs import IN_ROOT
from reconciler.shim.step import Step, StepError

_LIMIT = 4 * 1024 * 1024
_LAST_ID = 0xFFFFFFFE


class User:
    """Ids for the kernel, and the home directory that passwd names (`/` where it has no entry)."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...], home: bytes) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve(root_fd: int, process: Process) -> User:
    """Find the user of `process` in the root at `root_fd`; raise StepError where there is none, or a file is unfit.

    A number is always an id, never looked up as a name (a passwd line `1000:x:0:0` gives nobody root). A name brings
    its groups of /etc/group (as Docker does), a number or an explicit group only the one group (CVE-2022-36109:
    nothing of the agent's own groups stays).
    """
    if process.user is None:
        home = b"/" if b"HOME" in process.environment else _home(root_fd, process.uid)
        return User(process.uid, process.gid, process.additional_gids, home)
    name, colon, group = process.user.partition(":")
    if ":" in group or not process.user.isprintable() or (colon and not group):
        raise StepError("user", process.user, 0, "expected a name or an id, and perhaps :group")
    entries = _entries(root_fd, "/etc/passwd")
    uid = _number(name) if name else 0
    entry = _by_name(entries, name.encode()) if uid is None else _by_id(entries, uid)
    if uid is None:
        if entry is None:
            raise StepError("user", name, 0, "not in the image's /etc/passwd")
        uid = _id_field(entry, 2, "/etc/passwd")
    gid = 0 if entry is None else _id_field(entry, 3, "/etc/passwd")
    groups: list[int] = []
    if group:
        gid = _group(root_fd, group)
    elif entry is not None and _number(name) is None and name:
        groups = _groups_of(root_fd, name.encode())
    for added in process.groups:
        number = _group(root_fd, added)
        if number not in groups:
            groups.append(number)
    home = entry[5] if entry is not None and len(entry) > 5 and entry[5].startswith(b"/") else b"/"
    return User(uid, gid, (gid, *(other for other in groups if other != gid)), home)


def outside(user: User, process: Process) -> int:
    """The device's own id of the user; raise StepError where the container's user namespace has no such id."""
    if process.ids is None:
        return user.uid
    first, count = process.ids
    for number in (user.uid, user.gid, *user.groups):
        if number >= count:
            text = f"not among the {count} ids of the container's user namespace"
            raise StepError("user", str(number), errno.EINVAL, text)
    return first + user.uid


def _home(root_fd: int, uid: int) -> bytes:
    entry = _by_id(_entries(root_fd, "/etc/passwd"), uid)
    return entry[5] if entry is not None and len(entry) > 5 and entry[5].startswith(b"/") else b"/"


def _group(root_fd: int, group: str) -> int:
    gid = _number(group)
    if gid is not None:
        return gid
    entry = _by_name(_entries(root_fd, "/etc/group"), group.encode())
    if entry is None:
        raise StepError("user", group, 0, "not in the image's /etc/group")
    return _id_field(entry, 2, "/etc/group")


def _groups_of(root_fd: int, name: bytes) -> list[int]:
    found: list[int] = []
    for entry in _entries(root_fd, "/etc/group"):
        if len(entry) > 3 and name in entry[3].split(b","):
            gid = _id_field(entry, 2, "/etc/group")
            if gid not in found:
                found.append(gid)
    return found


def _number(text: str) -> int | None:
    """Read an id; None where `text` is a name; raise StepError for a number that is no id."""
    if not (text.isascii() and text.isdigit()):
        return None
    value = int(text[:11])
    if len(text) > 10 or value > _LAST_ID:
        raise StepError("user", text, 0, f"expected an id of at most {_LAST_ID}")
    return value


def _id_field(entry: list[bytes], index: int, file: str) -> int:
    text = entry[index].decode("ascii", "replace") if len(entry) > index else ""
    value = _number(text)
    if value is None:
        raise StepError("user", file, 0, f"{entry[0].decode(errors='replace')}: {text!r} is not an id")
    return value


def _by_name(entries: list[list[bytes]], name: bytes) -> list[bytes] | None:
    return next((entry for entry in entries if entry[0] == name), None)


def _by_id(entries: list[list[bytes]], uid: int) -> list[bytes] | None:
    text = str(uid).encode()
    return next((entry for entry in entries if len(entry) > 3 and entry[2] == text), None)


def _entries(root_fd: int, name: str) -> list[list[bytes]]:
    """Read a colon-separated file of the root; a missing one is empty, an unfit one a StepError."""
    with Step("user", name):
        try:
            # O_NONBLOCK: opening a FIFO must not wait for its other end
            fd = path.openat2(root_fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = bytearray()
            while len(data) <= _LIMIT:
                chunk = os.read(fd, 65536)
                if not chunk:
                    break
                data += chunk
            else:
                raise OSError(errno.EFBIG, f"larger than {_LIMIT} bytes")
        finally:
            os.close(fd)
    return [line.split(b":") for line in bytes(data).split(b"\n") if b":" in line]
