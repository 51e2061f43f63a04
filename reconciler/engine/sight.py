"""One container as it is looked at turn after turn: its files, its shim and its limits, each read again every time.

What a file said, and the values made of it, are kept for as long as the file shows the same inode, size and time of
change; whether a shim lives and what its cgroup enforces is asked of the kernel. Reads only.
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from reconciler.engine import cgroup, joining, record, rootfslimit
from reconciler.engine.cgroup import Place
from reconciler.engine.cgroup_limits import LimitFiles
from reconciler.engine.layout import Layout
from reconciler.engine.process import ExitRecord, ProcessId, ShimRecord, alive, read_exit, read_shim
from reconciler.engine.projectquota import read_project
from reconciler.engine.snapshot import Uppers
from reconciler.spec.adhoc import ADHOC
from reconciler.state import observed as state
from reconciler.state.desired import Limits

_T = TypeVar("_T")


class ParsedFile(Generic[_T]):
    """What a file was parsed to, for as long as the file is the same one."""

    __slots__ = ("_key", "_parse", "_path", "_value")

    def __init__(self, path: Path, parse: Callable[[str], _T | None]) -> None:
        self._path = str(path)
        self._parse = parse
        self._key: tuple[int, int, int] | None = None
        self._value: _T | None = None

    def read(self) -> _T | None:
        """What the file says now; None where it is missing or damaged, OSError where that can't be told."""
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._key = self._value = None
            return None
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        if key != self._key:
            value = self._parse(self._path)
            self._key, self._value = key, value
        return self._value


def read_record(path: str) -> record.Record | None:
    """The identity that the file holds; None where it is missing or damaged, OSError where that can't be told."""
    try:
        with open(path, "rb") as file:
            return record.parse(file.read(), path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, record.CorruptRecordError):
        return None


def read_checked_record(layout: Layout, container_id: str) -> record.Record | None:
    """The same of a container that is there, None also where it is not what was written."""
    try:
        return record.read_checked(layout, container_id)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, record.CorruptRecordError):
        return None


def exists(path: str) -> bool:
    """Whether there is such a file; OSError where that can't be told: a guess would end what runs."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class Life:
    """What a container does, by the records of its shim."""

    __slots__ = ("_ended", "_exited", "_overfull", "_running", "_settled", "_shim", "init", "shim")

    def __init__(self, layout: Layout, container_id: str) -> None:
        self.shim: ProcessId | None = None
        self.init: ProcessId | None = None
        self._settled = ParsedFile(layout.settled_exit(container_id), read_exit)
        self._exited = ParsedFile(layout.exit_record(container_id), read_exit)
        self._shim = ParsedFile(layout.shim_record(container_id), read_shim)
        self._overfull = ParsedFile(layout.overfull(container_id), rootfslimit.reason)
        self._running: tuple[ShimRecord, state.Running] | None = None
        self._ended: tuple[ExitRecord, state.Exited] | None = None

    def phase(self) -> tuple[state.Phase, bool]:
        """The phase, and whether the exit record is kept across a reboot.

        `shim` is set where one was found alive, and `init`, which may have ended by then.
        """
        self.shim = self.init = None
        settled = self._settled.read()
        exited = self._exited.read() or settled
        if exited is not None:
            return self._exit(exited), settled is not None
        shim = self._shim.read()
        if shim is None:
            return state.Lost(
                "it has no shim: the device was restarted, or its run directory was removed"
            ), False
        if not alive(shim.shim):
            # The record may have been renamed into place between the two looks.
            exited = self._exited.read()
            if exited is not None:
                return self._exit(exited), False
            return state.Lost("its shim ended without a record"), False
        self.shim, self.init = shim.shim, shim.init
        if shim.started_boot is None:
            return state.Created(), False
        if self._running is None or self._running[0] is not shim:
            running = state.Running(shim.init.pid, shim.started_boot, shim.started_wall or 0.0)
            self._running = shim, running
        return self._running[1], False

    def _exit(self, ended: ExitRecord) -> state.Exited:
        """Its end, with the reason where the agent had one; one that was kept across a reboot has it in itself."""
        if self._ended is None or self._ended[0] is not ended:
            why = ended.reason or self._overfull.read() or ""
            self._ended = ended, state.Exited(replace(ended, reason=why) if why else ended)
        return self._ended[1]


def phase_of(layout: Layout, container_id: str) -> state.Phase:
    """What one container does now."""
    return Life(layout, container_id).phase()[0]


class Sight:
    """The container with this id, as often as somebody looks. For one thread at a time."""

    __slots__ = (
        "_container",
        "_identity",
        "_layout",
        "_life",
        "_limits",
        "_parts",
        "_place",
        "_quota",
        "_seen",
        "_stopping",
        "_uppers",
        "id",
    )

    def __init__(self, layout: Layout, container_id: str, uppers: Uppers) -> None:
        self.id = container_id
        self._layout = layout
        self._uppers = uppers
        self._quota = ParsedFile(layout.quota(container_id), read_project)
        self._identity = ParsedFile(
            layout.identity(container_id), lambda _: read_checked_record(layout, container_id)
        )
        self._life = Life(layout, container_id)
        self._parts = tuple(
            str(path)
            for path in (layout.config(container_id), layout.log(container_id), layout.hosts(container_id))
        )
        self._stopping = str(layout.stopping(container_id))
        self._place: Place | None = None
        self._limits: LimitFiles | None = None
        self._seen: tuple[object, ...] = ()
        self._container: state.Container | None = None

    @property
    def shim(self) -> ProcessId | None:
        """Its shim, where the last look found it alive."""
        return self._life.shim

    @property
    def namespace(self) -> int | None:
        """The inode of its network namespace as the kernel has it, None where its first process has ended."""
        init = self._life.init
        return joining.inode(init) if init is not None else None

    def look(self, place: Place, attached: frozenset[tuple[str, str]]) -> state.Container | None:
        """The container as it is now, None where it has no record that can be read. Unchanged, it is the same object.

        `place` is where its cgroup would be, `attached` are the links that are right, as (network, full name).
        """
        self._life.shim = self._life.init = None
        found = self._identity.read()
        if found is None:
            return None
        phase, settled = self._life.phase()
        limits: Limits | None = None
        intact, linked, stopped, paused = True, True, False, False
        if isinstance(phase, state.Running | state.Created):
            limits, intact = self._enforced(place, found.settings.limits)
            # One that joined another container's network has that one's /etc/hosts
            intact = intact and all(map(exists, self._parts[:-1] if found.joins else self._parts))
        if isinstance(phase, state.Running):
            linked = all((key, found.full_name) in attached for key in found.networks)
            paused = cgroup.frozen(place.group(self.id))
        elif isinstance(phase, state.Exited):
            stopped = exists(self._stopping)
        elif isinstance(phase, state.Lost) and cgroup.populated(place.group(self.id)):
            phase = replace(phase, alive=True)
        watched = found.app == ADHOC and _watched(self._parts[1])
        seen = (found, phase, limits, linked, settled, stopped, intact, paused, watched)
        if self._container is None or seen != self._seen:
            self._seen = seen
            self._container = state.Container(
                id=found.id,
                app=found.app,
                name=found.name,
                fingerprint=found.fingerprint,
                settings=found.settings,
                phase=phase,
                image=found.image,
                layers=found.layers,
                limits=limits,
                attached=linked,
                settled=settled,
                stopped=stopped,
                intact=intact,
                attempt=found.attempt,
                restarts=found.restarts,
                created=found.created,
                volumes=found.volumes,
                networks=found.networks,
                turn=found.turn,
                paused=paused,
                watched=watched,
                joins=found.joins,
            )
        return self._container

    def _enforced(self, place: Place, wanted: Limits) -> tuple[Limits | None, bool]:
        """The limits in force, and whether the cgroup is there."""
        if self._limits is None or self._place is not place:
            self._place, self._limits = place, LimitFiles(place.group(self.id), self._layout.state)
        if not self._limits.there():
            return None, False
        found, project = self._limits.read(wanted), self._quota.read()
        if wanted.rootfs is not None or project is not None:
            limit = rootfslimit.in_force(self._layout, self._uppers, self.id, wanted.rootfs, project)
            found = replace(found, rootfs=limit)
        return found, True


def _watched(log: str) -> bool:
    """Whether somebody who reads the log to its end (`run` in the foreground) still holds it."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
