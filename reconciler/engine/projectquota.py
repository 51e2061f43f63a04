"""How much directories may hold: a project quota of the file system of the state directory, counted by the kernel.

What has a limit, a volume or a container's writable layer, has a project of its own, kept in a record. Its directories
have the project before anything is made in them, and hand it on; what was there before is marked by a walk. A project
is leased only where nothing on the file system carries it, by the kernel's own count, so that what still lies in the
trash keeps its number to itself. The limit is kept by the kernel alone: there is no second copy that could disagree.
"""

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.engine.snapshot import file_system_type
from reconciler.errors import ReconcilerError
from reconciler.linux import quota

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FIRST: Final = 1 << 30  # numbers that people give out by hand are small; 32 bits, and -1 is reserved
_TRIES: Final = 64
GRAIN: Final = 64 << 10  # a file system may round a limit up to its blocks
_leasing: Final = threading.Lock()  # one process changes a state directory, in several threads


@dataclass(frozen=True, slots=True)
class Project:
    """A project in use: `marked` once all that was there before carries it."""

    id: int
    marked: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """What has a limit: the directories `names` in `root`, and `root` itself where it is of them (`whole`).

    `record` is the JSON file that keeps the project under that key, `blank` what else it holds where it can't be read;
    `label` is what messages call it, with the field of the spec.
    """

    layout: Layout
    label: str
    record: Path
    root: Path
    names: tuple[str, ...]
    whole: bool
    blank: Mapping[str, object]

    def open(self) -> int:
        return os.open(self.root, _DIRECTORY)

    @contextmanager
    def parts(self) -> Iterator[list[int]]:
        """Every directory that has to carry the project, open."""
        with ExitStack() as stack:
            root = self.open()
            stack.callback(os.close, root)
            found = [root] if self.whole else []
            for name in self.names:
                found.append(os.open(name, _DIRECTORY, dir_fd=root))
                stack.callback(os.close, found[-1])
            yield found


def parse_project(record: object) -> Project | None:
    """The project that a record names, or None."""
    found = record.get("project") if isinstance(record, dict) else None
    if not isinstance(found, dict) or type(found.get("id")) is not int or not 0 < found["id"] < 0xFFFFFFFF:
        return None
    return Project(found["id"], found.get("marked") is True)


def read_project(path: str) -> Project | None:
    """The project in the record at `path`; None without one, and where the record can't be read."""
    return parse_project(_read(Path(path)))


def states(directory: Path) -> tuple[bool, bool]:
    """Whether the file system of `directory` counts what projects use, and whether it enforces their limits."""
    fd = os.open(directory, _DIRECTORY)
    try:
        return quota.state(fd)
    except OSError:
        return False, False
    finally:
        os.close(fd)


def lacking(directory: Path) -> tuple[str, str]:
    """Why the file system of `directory` can't limit what is in it, and the remedy; two empty strings where it can."""
    counted, enforced = states(directory)
    if counted and enforced:
        return "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        kind = file_system_type(Path(os.path.realpath(directory)), file.read())
    where = f"the {kind or 'unknown'} file system of {directory}"
    match kind:
        case "ext4" if counted:
            return (
                f"{where} counts what projects use, and enforces no limit",
                "mount it with -o prjquota, or run: quotaon -P on its mount point",
            )
        case "ext4":
            return (
                f"{where} has no project quotas",
                "make it with mkfs.ext4 -O project,quota, or unmount it and run: tune2fs -O project,quota -Q prjquota "
                "DEVICE; then mount it with -o prjquota",
            )
        case "xfs":
            return f"{where} enforces no project quotas", "mount it with -o pquota (not by remount)"
        case _:
            return f"{where} has no project quotas", "put --state on ext4 or xfs with project quotas"


def begin(holder: Holder, limit: int) -> Project:
    """Give new, empty directories their project and their limit, and return it for the record."""
    with _leasing, holder.parts() as parts:
        project = _lease(holder, parts[0], None)
        if not holder.whole:  # the record is its own file, and says whose limit that is
            _write(holder, None, Project(project, marked=True))
        for part in parts:
            quota.set_project(part, project, inherit=True)
        _set(parts[0], holder, project, limit)
    return Project(project, marked=True)


def apply(holder: Holder, limit: int | None) -> None:
    """Have what is there hold at most `limit` bytes, None for all the room there is; in use or not.

    What is in it already stays, also where that is more. Interrupted, it is done again from the start.
    """
    record = _read(holder.record)
    known = parse_project(record)
    if limit is None and known is None:
        return
    root = holder.open()
    try:
        with _leasing, holder.parts() as parts:
            project = _lease(holder, parts[0], known)
            if known is None or known.id != project or not known.marked:
                _write(holder, record, Project(project, marked=False))
                known = None
            # The directories come first and what they hold after them: what is made meanwhile gets the project from
            # the directory it is made in, and the kernel lets nothing move in that carries another (EXDEV, rename(2)).
            for part in parts if not holder.whole else parts[:1]:
                quota.set_project(part, project, inherit=True)
        if known is None or not all(_has(root, name, project) for name in holder.names):
            for name in holder.names:
                _mark(root, name, project)
            _write(holder, record, Project(project, marked=True))
        _set(root, holder, project, limit or 0)
    finally:
        os.close(root)


def in_force(holder: Holder, project: Project | None) -> tuple[int, int] | None:
    """The limit (0 for none) and the use in bytes as the kernel has them; None where it has neither."""
    if project is None or not project.marked:
        return None
    try:
        with holder.parts() as parts:
            if any(quota.get_project(part) != (project.id, True) for part in parts):
                return None
            if not all(quota.state(parts[0])):
                return None
            limit, used, _ = quota.get_limit(parts[0], project.id)
            return limit, used
    except OSError:
        return None


def release(holder: Holder) -> None:
    """Lift the limit of what is about to go; its project stays leased for as long as anything carries it."""
    project = read_project(str(holder.record))
    if project is None:
        return
    try:
        root = holder.open()
        try:
            quota.set_limit(root, project.id, 0)
        finally:
            os.close(root)
    except OSError:
        pass  # no quotas any more, and then no limit


# --- leases ---------------------------------------------------------------------------------------------------------


def _lease(holder: Holder, part: int, known: Project | None) -> int:
    """The project that the holder has, or a free one; the caller holds the lock. `part` is one of its directories."""
    layout = holder.layout
    carried, _ = quota.get_project(part)
    records = chain(layout.volumes.glob("*/*/volume.json"), layout.containers.glob("*/quota.json"))
    others = {
        leased.id
        for record in records
        if record != holder.record and (leased := read_project(str(record))) is not None
    }
    if known is not None and known.id not in others and (carried == known.id or _is_free(part, known.id)):
        return known.id
    if (
        holder.whole
        and carried >= _FIRST
        and carried not in others
        and known is None
        and _is_alone(part, carried)
    ):
        return carried  # an interrupted start
    seed = hashlib.sha256(f"{layout.state}\0{holder.root.relative_to(layout.state)}".encode()).digest()
    first = int.from_bytes(seed[:4], "big")
    taken = others | _named()
    for step in range(_TRIES):
        project = _FIRST + (first + step) % (_FIRST - 1)
        if project not in taken and _is_free(part, project):
            return project
    raise ReconcilerError(f"{holder.label}: no free project number was found", transient=True)


def _is_free(root: int, project: int) -> bool:
    """Whether nothing carries the project and nobody has set a limit for it."""
    return quota.get_limit(root, project) == (0, 0, 0)


def _is_alone(root: int, project: int) -> bool:
    """Whether nothing but this directory, and what a start made in it, carries the project."""
    return quota.get_limit(root, project)[2] <= len(os.listdir(root)) + 1


def _named() -> set[int]:
    """The projects that the administrator of this device has given out (/etc/projects: `NUMBER:PATH`)."""
    try:
        text = Path("/etc/projects").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    heads = (line.partition(":")[0].strip() for line in text.splitlines())
    return {int(head) for head in heads if head.isdecimal()}


def _set(root: int, holder: Holder, project: int, limit: int) -> None:
    quota.set_limit(root, project, limit)
    there = quota.get_limit(root, project)[0]
    if not limit <= there < limit + GRAIN:
        raise ReconcilerError(
            f"{holder.label}: asked for {limit} bytes, the kernel has {there}",
            transient=True,
        )


# --- marking --------------------------------------------------------------------------------------------------------


def _has(root: int, name: str, project: int) -> bool:
    fd = os.open(name, _DIRECTORY, dir_fd=root)
    try:
        return quota.get_project(fd) == (project, True)
    finally:
        os.close(fd)


def _mark(root: int, name: str, project: int) -> None:
    """Give the directory and all below it the project, each directory before what is in it.

    Containers may be at work in there. Links, sockets, FIFOs and device nodes stay as they are, as with
    `xfs_quota -c 'project -s'`: they can't be opened, and take no room but their inode. A file is looked at without
    being opened first (O_PATH): to open a device node that has taken its place would be to use the device.
    """
    levels = [_enter(root, name, project)]
    try:
        while levels:
            directory, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            inner = names.pop()
            try:
                found = os.open(inner, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            except FileNotFoundError:
                continue
            try:
                info = os.fstat(found)
                if stat.S_ISDIR(info.st_mode):
                    levels.append(_enter(directory, inner, project))
                elif stat.S_ISREG(info.st_mode):
                    _mark_file(found, project)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise  # else it was removed, or replaced by something that has the project already
            finally:
                os.close(found)
    finally:
        for directory, _ in levels:
            os.close(directory)


def _enter(parent: int, name: str, project: int) -> tuple[int, list[str]]:
    """Mark a directory; return it open, with the names in it that are to be marked."""
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if quota.get_project(fd) != (project, True):
            quota.set_project(fd, project, inherit=True)
        return fd, os.listdir(fd)
    except BaseException:
        os.close(fd)
        raise


def _mark_file(place: int, project: int) -> None:
    fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if quota.get_project(fd)[0] != project:
            quota.set_project(fd, project, inherit=False)
    finally:
        os.close(fd)


# --- the record -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(holder: Holder, record: object, project: Project) -> None:
    kept = record if isinstance(record, dict) else holder.blank
    replace_json(holder.record, {**kept, "project": {"id": project.id, "marked": project.marked}})
