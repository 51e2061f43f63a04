"""Named volumes: directories that outlive every container, app and generation. No plan removes one.
Only an anonymous one may go with its container (`rm -v`, `run --rm`), because somebody said so.

A volume is made empty with a `pending` mark; the first container that mounts it copies the image's content in and takes
the mark away (Docker's copy-up). Removal is for people only (`reconciler volume rm`).
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine import trash, volumelimit
from reconciler.engine.durable import replace_json, sync_directory
from reconciler.engine.layout import Layout
from reconciler.errors import BlockedError, NotFoundError, UsageError
from reconciler.failpoint import failpoint
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from reconciler.spec.adhoc import ADHOC

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# A directory was removed, or replaced, or is too deep for a path.
_AT_WORK: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume on disk; `created` is wall seconds. `anonymous`: nobody chose its name, so that a prune may take it."""

    app: str
    name: str
    created: float
    labels: tuple[tuple[str, str], ...] = ()
    anonymous: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.app}/{self.name}"


def split(text: str) -> tuple[str, str]:
    """The app and the name that a person means: NAME alone is a volume of no app, where ad-hoc containers look."""
    app, slash, name = text.rpartition("/")
    app = app if slash else ADHOC
    for part in (app, name):
        if _NAME.fullmatch(part) is None:
            raise UsageError(
                f"volume {text!r}: {part!r} is not a name: lower case letters, digits and -, at most 63",
                hint="write APP/VOLUME, or VOLUME for one that belongs to no app",
            )
    return app, name


def create(
    layout: Layout,
    app: str,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    anonymous: bool = False,
    goes_with: str = "",
    size_limit: int | None = None,
) -> None:
    """Make the volume, durably, or do nothing if it is there; with `size_limit` bytes at most in it.

    `goes_with` is the id of a container whose removal takes it away; "" for none, as ever but for anonymous ones.

    Only the record makes it complete: without one (a crash in between) the call starts over and keeps what is there.
    UnsupportedError, and nothing is made, where the file system can't limit it.
    """
    if layout.volume_record(app, name).exists():
        return
    if size_limit is not None:
        volumelimit.require(layout, app, name)
    root = layout.volume(app, name)
    fresh = not layout.volume_data(app, name).exists()
    layout.volumes.mkdir(mode=0o700, exist_ok=True)
    root.parent.mkdir(mode=0o700, exist_ok=True)
    root.mkdir(mode=0o700, exist_ok=True)
    project = volumelimit.begin(layout, app, name, size_limit) if fresh and size_limit is not None else None
    if fresh:
        layout.volume_pending(app, name).touch(mode=0o600)
        failpoint("volume.pending")
        layout.volume_data(app, name).mkdir(mode=0o755, exist_ok=True)
    failpoint("volume.made")
    replace_json(
        layout.volume_record(app, name),
        {
            "version": 1,
            "app": app,
            "name": name,
            "created": time.time(),
            "labels": dict(labels or {}),
            "anonymous": anonymous,
            **({"goes_with": goes_with} if goes_with else {}),
            **({"project": {"id": project.id, "marked": project.marked}} if project is not None else {}),
        },
    )
    if size_limit is not None and project is None:
        volumelimit.apply(layout, app, name, size_limit)
    for directory in (root.parent, layout.volumes, layout.state):
        sync_directory(directory)
    failpoint("volume.recorded")


def volumes(layout: Layout) -> Iterator[Volume]:
    """Every volume of this state directory, by name."""
    for app in _names(layout.volumes):
        for name in _names(layout.volumes / app):
            yield read(layout, app, name)


def read(layout: Layout, app: str, name: str) -> Volume:
    """The volume as its record describes it. A torn or missing record does not make the data go away."""
    try:
        record = json.loads(layout.volume_record(app, name).read_bytes())
        labels = tuple(sorted((str(key), str(value)) for key, value in record.get("labels", {}).items()))
        return Volume(app, name, float(record["created"]), labels, record.get("anonymous", False) is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return Volume(app, name, 0.0)


def go_with(layout: Layout, app: str, name: str, container_id: str) -> None:
    """Note, durably, that the volume goes with a container; nothing where its record can't be read."""
    path = layout.volume_record(app, name)
    try:
        value = json.loads(path.read_bytes())
        value["goes_with"] = container_id
    except (OSError, ValueError, TypeError, RecursionError):
        return
    replace_json(path, value)
    failpoint("volume.parting")


def goes_with(layout: Layout, app: str, name: str) -> str:
    """The id of the container that the volume goes with, "" for none, and where that can't be told."""
    try:
        value = json.loads(layout.volume_record(app, name).read_bytes())
        return str(value["goes_with"]) if value.get("anonymous") is True else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def names(layout: Layout) -> dict[str, frozenset[str]]:
    """The volumes by app whose record is complete: what a plan needs to know, without reading the records."""
    return {
        app: frozenset(
            name for name in _names(layout.volumes / app) if layout.volume_record(app, name).exists()
        )
        for app in _names(layout.volumes)
    }


def size(layout: Layout, app: str, name: str) -> int:
    """Bytes on disk, by the kernel's count where the volume has a limit, else by walking it: not for every turn."""
    counted = limit_and_use(layout, app, name)
    return counted[1] if counted is not None else tree_size(layout.volume_data(app, name))


def limit_and_use(layout: Layout, app: str, name: str) -> tuple[int, int] | None:
    """The limit (0 for none) and the use in bytes, where the kernel counts it."""
    project = volumelimit.read_project(str(layout.volume_record(app, name)))
    return volumelimit.in_force(layout, app, name, project)


def size_limit(layout: Layout, app: str, name: str) -> int | None:
    """The limit that is in force, or None."""
    counted = limit_and_use(layout, app, name)
    return counted[0] or None if counted is not None else None


def tree_size(path: Path) -> int:
    """Bytes that a directory and all below it take on disk, 0 where it is gone; it may change meanwhile. A file with
    several names in it counts once.

    A container writes in there: no link is followed, also not one that takes a directory's place while this looks, and
    what lies deeper than a path can name (PATH_MAX) is not counted.
    """
    try:
        root = os.open(path, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    total = 0
    linked: set[tuple[int, int]] = set()
    pending = ["."]
    try:
        while pending:
            where = pending.pop()
            try:
                total += _directory_size(root, where, pending, linked)
            except OSError as error:
                if error.errno not in _AT_WORK:
                    raise
    finally:
        os.close(root)
    return total


def _directory_size(root: int, where: str, pending: list[str], linked: set[tuple[int, int]]) -> int:
    directory = openat2(root, where, _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    total = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_nlink == 1 or (key := (status.st_dev, status.st_ino)) not in linked:
                    total += status.st_blocks * 512
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        linked.add(key)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{where}/{entry.name}")
    finally:
        os.close(directory)
    return total


def remove(layout: Layout, app: str, name: str, *, users: tuple[str, ...]) -> None:
    """Throw the volume and its data into the trash. Refused while `users` (containers that mount it) exist.

    The names come from people: only what a listing shows is a volume, never a path that leads elsewhere.
    """
    root = layout.volume(app, name)
    if app not in _names(layout.volumes) or name not in _names(layout.volumes / app):
        raise NotFoundError(f"volume {app}/{name}: not found", hint="run: reconciler volume ls")
    if users:
        raise BlockedError(
            f"volume {app}/{name}: in use by {', '.join(users)}",
            hint="remove the container from the spec first",
        )
    volumelimit.release(layout, app, name)
    layout.trash.mkdir(mode=0o700, exist_ok=True)
    trash.discard(root, layout.trash)
    try:
        root.parent.rmdir()
    except OSError:
        pass  # the app has other volumes


def _names(path: os.PathLike[str]) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
