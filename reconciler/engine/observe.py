"""What is there: reads the disk and the kernel, changes nothing, and is safe at any time, also beside a
running agent.

`status` and `plan` use it as well as the loop. Files that can't be read are facts too: a container with a
broken record is `Lost`, never an exception. Parsed files are cached by (inode, mtime, size), because a turn
in which nothing happened must cost next to nothing.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Generic, TypeVar

from reconciler.engine import cgroup, cgroup_limits, devices, record, volumes
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.network import listeners
from reconciler.engine.network.networks import Networks
from reconciler.engine.process import ShimRecord, alive, boot_id, read_exit, read_shim
from reconciler.engine.store import Store
from reconciler.state import observed as state
from reconciler.state.desired import Limits, Port
from reconciler.state.process import ExitRecord

_T = TypeVar("_T")


class FileCache(Generic[_T]):
    """Remembers what a file was parsed to, for as long as the file is the same one."""

    def __init__(self) -> None:
        self._entries: dict[Path, tuple[tuple[int, int, int], _T]] = {}

    def get(self, path: Path, parse: Callable[[Path], _T]) -> _T:
        """Return parse(path), from memory if the file has not changed. Raises OSError if there is no file."""
        status = os.stat(path)
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        entry = self._entries.get(path)
        if entry is not None and entry[0] == key:
            return entry[1]
        value = parse(path)
        self._entries[path] = (key, value)
        return value

    def keep(self, paths: set[Path]) -> None:
        """Forget every file but these."""
        for path in self._entries.keys() - paths:
            del self._entries[path]


class Phases:
    """Tells what containers do, by the records of their shims; files that have not changed are not read again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._shims: FileCache[ShimRecord | None] = FileCache()
        self._exits: FileCache[ExitRecord | None] = FileCache()

    def phase(self, container_id: str) -> tuple[state.Phase, bool]:
        """The phase, and whether the exit record is kept across a reboot."""
        layout = self._layout
        settled = _read(self._exits, layout.settled_exit(container_id), read_exit)
        exited = _read(self._exits, layout.exit_record(container_id), read_exit) or settled
        if exited is not None:
            return state.Exited(exited), settled is not None
        shim = _read(self._shims, layout.shim_record(container_id), read_shim)
        if shim is None:
            return state.Lost(
                "it has no shim: the device was restarted, or its run directory was removed"
            ), False
        if not alive(shim.shim):
            # The record may have been renamed into place between the two looks.
            exited = _read(self._exits, layout.exit_record(container_id), read_exit)
            if exited is not None:
                return state.Exited(exited), False
            return state.Lost("its shim ended without a record"), False
        if shim.started_boot is None:
            return state.Created(), False
        return state.Running(shim.init.pid, shim.started_boot, shim.started_wall or 0.0), False


def phase_of(layout: Layout, container_id: str) -> state.Phase:
    """What one container does now."""
    return Phases(layout).phase(container_id)[0]


class Observer:
    """Looks at one state directory; keep one for as long as its caches are useful."""

    def __init__(self, layout: Layout, instance: str, store: Store, networks: Networks) -> None:
        self._layout = layout
        self._parent = f"reconciler-{instance}"
        self._store = store
        self._networks = networks
        self._records: FileCache[record.Record] = FileCache()
        self._phases = Phases(layout)
        self._previous: FileCache[state.Previous | None] = FileCache()

    def observe(
        self,
        *,
        failures: Mapping[str, state.Failure],
        ports: Sequence[state.Published] = (),
        wanted_devices: Iterable[str] = (),
    ) -> state.Observed:
        """Everything found now. `failures` is what the caller remembers, `ports` what it wants to be published.

        Sockets of the host are looked at only for ports that are not published yet.
        """
        network = self._networks.observe()
        published = None
        if network.ports is not None and network.ruleset_intact:
            published = tuple(
                sorted(
                    state.Published(
                        p.app, p.container, Port(str(p.host_ip), p.published, p.target, p.protocol)
                    )
                    for p in network.ports
                )
            )
        there = frozenset(published or ())
        attached = frozenset(
            f"{app}/{container}" for app, found in network.apps.items() for container in found.attached
        )
        return state.Observed(
            boot=boot_id(),
            containers=self._containers(attached),
            previous=self._all_previous(),
            volumes=volumes.names(self._layout),
            network=state.Network(
                apps=frozenset(app for app, found in network.apps.items() if found.healthy),
                published=published,
                traces=frozenset(network.apps),
            ),
            listeners=self._listeners(item.port for item in ports if item not in there),
            store=self._store.observe(),
            failures=dict(failures),
            devices=devices.present(wanted_devices),
        )

    def _listeners(self, wanted: Iterable[Port]) -> tuple[state.Listener, ...]:
        ports = list(wanted)
        return listeners_on(ports, self._networks.ports_of_others()) if ports else ()

    # --- containers --------------------------------------------------------------------------------------------

    def _containers(self, attached: frozenset[str]) -> dict[str, tuple[state.Container, ...]]:
        hierarchies = Hierarchies.detect()
        found: dict[str, list[state.Container]] = {}
        seen: set[Path] = set()
        for container_id in _names(self._layout.containers):
            path = self._layout.identity(container_id)
            try:
                identity = self._records.get(path, lambda path: record.parse(path.read_bytes(), str(path)))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, record.CorruptRecordError):
                # A leftover: `Containers.sweep` clears it away. Any other error says nothing about the container, and
                # what can't be seen must not be made a second time.
                continue
            seen.add(path)
            container = self._container(identity, hierarchies, attached)
            found.setdefault(container.full_name, []).append(container)
        self._records.keep(seen)
        return {
            name: tuple(sorted(same, key=lambda container: (container.created, container.id)))
            for name, same in sorted(found.items())
        }

    def _container(
        self, found: record.Record, hierarchies: Hierarchies, attached: frozenset[str]
    ) -> state.Container:
        layout = self._layout
        phase, settled = self._phases.phase(found.id)
        limits: Limits | None = None
        intact, linked = True, True
        if isinstance(phase, state.Running | state.Created):
            group = cgroup.open_existing(hierarchies, self._parent, found.id)
            limits = cgroup_limits.read_limits(group, found.settings.limits) if group is not None else None
            intact = group is not None and all(
                path.exists()
                for path in (layout.config(found.id), layout.log(found.id), layout.hosts(found.id))
            )
        if isinstance(phase, state.Running):
            linked = found.full_name in attached
        return state.Container(
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
            stopped=isinstance(phase, state.Exited) and layout.stopping(found.id).exists(),
            intact=intact,
            attempt=found.attempt,
            restarts=found.restarts,
            created=found.created,
            volumes=found.volumes,
        )

    # --- predecessors --------------------------------------------------------------------------------------------

    def _all_previous(self) -> dict[str, state.Previous]:
        found: dict[str, state.Previous] = {}
        root = self._layout.previous_root
        for app in _names(root):
            for name in _names(root / app):
                path = self._layout.previous(app, name) / "identity.json"
                previous = _read(self._previous, path, _parse_previous)
                if previous is not None:
                    found[f"{app}/{name}"] = previous
        return found


def _read(cache: FileCache[_T | None], path: Path, parse: Callable[[Path], _T | None]) -> _T | None:
    try:
        return cache.get(path, parse)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse_previous(path: Path) -> state.Previous | None:
    try:
        identity = record.parse(path.read_bytes(), str(path))
    except record.CorruptRecordError:
        return None
    exited = read_exit(path.with_name("exit.json"))
    return state.Previous(
        identity.fingerprint,
        exited,
        identity.attempt,
        identity.restarts,
        stopped=path.with_name("stopped").exists(),
    )


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def listeners_on(
    wanted: Iterable[Port], others: Sequence[listeners.Listener] = ()
) -> tuple[state.Listener, ...]:
    """The sockets of this host, and of `others`, that hold one of the wanted ports, each with its holder's name.

    IPv4 only.
    """
    ports = {(port.protocol, port.published) for port in wanted}
    if not ports:
        return ()
    there = (*listeners.listeners(), *others)
    mine = [found for found in there if (found.protocol, found.port) in ports]
    result = []
    for found in listeners.identify(mine):
        address: IPv4Address | IPv6Address = found.address
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            elif found.v6_only or not address.is_unspecified:
                continue  # it leaves the IPv4 port free
        holder = found.process if found.pid is None and found.process else found.holder
        result.append(state.Listener(found.protocol, str(address), found.port, holder))
    return tuple(result)
