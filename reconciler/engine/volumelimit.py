"""How much a volume may hold: a project quota of the file system of the state directory, counted by the kernel.

A volume with a limit has a project of its own, kept in its record. The volume's directory has the project before
anything is made in it, and hands it on; what was there before is marked by a walk. A project is leased only where
nothing on the file system carries it, by the kernel's own count, so that what still lies in the trash keeps its number
to itself. The limit itself is kept by the kernel alone: there is no second copy that could disagree.
"""

import errno
import hashlib
import json
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.engine.snapshot import file_system_type
from reconciler.errors import ReconcilerError, UnsupportedError
from reconciler.linux import quota

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FIRST: Final = 1 << 30  # numbers that people give out by hand are small; 32 bits, and -1 is reserved
_TRIES: Final = 64
_leasing: Final = threading.Lock()  # one process changes a state directory, in several threads


@dataclass(frozen=True, slots=True)
class Project:
    """The project of a volume: `marked` once all that was in the volume carries it."""

    id: int
    marked: bool


def parse_project(record: object) -> Project | None:
    """The project that a volume's record names, or None."""
    found = record.get("project") if isinstance(record, dict) else None
    if not isinstance(found, dict) or type(found.get("id")) is not int or not 0 < found["id"] < 0xFFFFFFFF:
        return None
    return Project(found["id"], found.get("marked") is True)


def read_project(path: str) -> Project | None:
    """The project in the volume's record at `path`; None without one, and where the record can't be read."""
    return parse_project(_read(Path(path)))


def lacking(directory: Path) -> tuple[str, str]:
    """Why the file system of `directory` can't limit a volume, and the remedy; two empty strings where it can."""
    fd = os.open(directory, _DIRECTORY)
    try:
        counted, enforced = quota.state(fd)
    except OSError:
        counted = enforced = False
    finally:
        os.close(fd)
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


def require(layout: Layout, app: str, name: str) -> None:
    """Raise UnsupportedError where no limit can be enforced, before anything is made."""
    missing, remedy = lacking(layout.volumes if layout.volumes.is_dir() else layout.state)
    if missing:
        raise UnsupportedError(f"volume {app}/{name}: size_limit can't be enforced: {missing}", hint=remedy)


def begin(layout: Layout, app: str, name: str, limit: int) -> Project:
    """Give the new, empty directory of a volume its project and its limit, and return it for the record."""
    with _leasing:
        root = os.open(layout.volume(app, name), _DIRECTORY)
        try:
            project = _lease(layout, app, name, root, None)
            quota.set_project(root, project, inherit=True)
            _set(root, app, name, project, limit)
        finally:
            os.close(root)
    return Project(project, marked=True)


def apply(layout: Layout, app: str, name: str, limit: int | None) -> None:
    """Have a volume that is there hold at most `limit` bytes, None for all the room there is; running or not.

    What is in it already stays, also where that is more. Interrupted, it is done again from the start.
    """
    record = _read(layout.volume_record(app, name))
    known = parse_project(record)
    if limit is None and known is None:
        return
    require(layout, app, name)
    root = os.open(layout.volume(app, name), _DIRECTORY)
    try:
        with _leasing:
            project = _lease(layout, app, name, root, known)
            if known is None or known.id != project or not known.marked:
                _write(layout, app, name, record, Project(project, marked=False))
                known = None
            # The directory comes first and what it holds after it: what is made meanwhile gets the project from the
            # directory it is made in, and the kernel lets nothing move in that carries another (EXDEV, rename(2)).
            quota.set_project(root, project, inherit=True)
        if known is None or not _has(root, "data", project):
            _mark(root, "data", project)
            _write(layout, app, name, record, Project(project, marked=True))
        _set(root, app, name, project, limit or 0)
    finally:
        os.close(root)


def in_force(layout: Layout, app: str, name: str, project: Project | None) -> tuple[int, int] | None:
    """The limit (0 for none) and the use of the volume in bytes as the kernel has them; None where it has neither."""
    if project is None or not project.marked:
        return None
    try:
        root = os.open(layout.volume(app, name), _DIRECTORY)
    except OSError:
        return None
    try:
        if quota.get_project(root) != (project.id, True) or not _has(root, "data", project.id):
            return None
        if not all(quota.state(root)):
            return None
        limit, used, _ = quota.get_limit(root, project.id)
        return limit, used
    except OSError:
        return None
    finally:
        os.close(root)


def release(layout: Layout, app: str, name: str) -> None:
    """Lift the limit of a volume that is about to go; its project stays leased for as long as anything carries it."""
    project = read_project(str(layout.volume_record(app, name)))
    if project is None:
        return
    try:
        root = os.open(layout.volume(app, name), _DIRECTORY)
        try:
            quota.set_limit(root, project.id, 0)
        finally:
            os.close(root)
    except OSError:
        pass  # no quotas any more, and then no limit


# --- leases ---------------------------------------------------------------------------------------------------------


def _lease(layout: Layout, app: str, name: str, root: int, known: Project | None) -> int:
    """The project that the volume has, or a free one; the caller holds the lock."""
    carried, _ = quota.get_project(root)
    others = {
        leased.id
        for record in layout.volumes.glob("*/*/volume.json")
        if record != layout.volume_record(app, name) and (leased := read_project(str(record))) is not None
    }
    if known is not None and known.id not in others and (carried == known.id or _is_free(root, known.id)):
        return known.id
    if carried >= _FIRST and carried not in others and known is None and _is_alone(root, carried):
        return carried  # an interrupted start
    seed = hashlib.sha256(f"{layout.state}\0{app}/{name}".encode()).digest()
    first = int.from_bytes(seed[:4], "big")
    taken = others | _named()
    for step in range(_TRIES):
        project = _FIRST + (first + step) % (_FIRST - 1)
        if project not in taken and _is_free(root, project):
            return project
    raise ReconcilerError(
        f"volume {app}/{name}: size_limit: no free project number was found", transient=True
    )


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


def _set(root: int, app: str, name: str, project: int, limit: int) -> None:
    quota.set_limit(root, project, limit)
    there = quota.get_limit(root, project)[0]
    if not limit <= there < limit + (64 << 10):
        raise ReconcilerError(
            f"volume {app}/{name}: size_limit: asked for {limit} bytes, the kernel has {there}",
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


def _write(layout: Layout, app: str, name: str, record: object, project: Project) -> None:
    kept = record if isinstance(record, dict) else {"version": 1, "app": app, "name": name, "created": 0.0}
    replace_json(
        layout.volume_record(app, name), {**kept, "project": {"id": project.id, "marked": project.marked}}
    )
