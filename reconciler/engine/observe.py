"""What is there: reads the disk and the kernel, changes nothing, and is safe at any time, also beside a
running agent.

`status` and `plan` use it as well as the loop. Files that can't be read are facts too: a container with a
broken record is `Lost`, never an exception. What a file was parsed to is kept for as long as the file is the same
one, because a turn in which nothing happened must cost next to nothing.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from reconciler.engine import byhand, cgroup, devices, serving, volumelimit, volumes
from reconciler.engine.hierarchies import Hierarchies, read
from reconciler.engine.layout import Layout
from reconciler.engine.network import listeners
from reconciler.engine.network.names import full_name, member
from reconciler.engine.network.networks import Networks
from reconciler.engine.network.observed import NetworkObserved
from reconciler.engine.network.ports import Address
from reconciler.engine.process import ProcessId, boot_id, read_exit
from reconciler.engine.sight import ParsedFile, Sight, exists, read_record
from reconciler.engine.snapshot import Uppers
from reconciler.engine.store import Store
from reconciler.shim.record import boottime
from reconciler.state import observed as state
from reconciler.state.desired import Port
from reconciler.state.network import Network


class Observer:
    """Looks at one state directory; keep one for as long as its caches are useful."""

    def __init__(self, layout: Layout, instance: str, store: Store, networks: Networks) -> None:
        self._layout = layout
        self._parent = f"reconciler-{instance}"
        self._store = store
        self._networks = networks
        self._capacity = capacity()
        self._place: cgroup.Place | None = None
        self._sights: dict[str, Sight] = {}
        self._uppers = Uppers(layout)
        self._projects: dict[str, ParsedFile[volumelimit.Project]] = {}
        self._previous: dict[str, ParsedFile[state.Previous]] = {}
        self._network: tuple[NetworkObserved, state.Networks, frozenset[tuple[str, str]]] | None = None
        # Containers whose record could not be read in the last look: in the making, left over, or damaged
        self.unreadable: tuple[str, ...] = ()

    @property
    def shims(self) -> frozenset[ProcessId]:
        """The shims that the last look found alive."""
        return frozenset(sight.shim for sight in self._sights.values() if sight.shim is not None)

    def observe(
        self,
        *,
        failures: Mapping[str, state.Failure],
        ports: Sequence[state.Published] = (),
        wanted_devices: Iterable[str] = (),
        networks: Sequence[Network] = (),
    ) -> state.Observed:
        """Everything found now. `failures` is what the caller remembers, `ports` what it wants to be published.

        Sockets of the host are looked at only for ports that are not published yet, its routes only for those of
        `networks`, which are wanted with a subnet of their own, that are not there yet.
        """
        network, attached = self._networks_now()
        if conflicts := self._networks.conflicts(networks):
            network = replace(network, conflicts=conflicts)
        published = frozenset(network.published or ())
        there = volumes.names(self._layout)
        containers = self._containers(attached)
        return state.Observed(
            boot=boot_id(),
            containers=containers,
            previous=self._all_previous(),
            volumes=there,
            network=self._balanced(network, containers),
            listeners=self._listeners(item.port for item in ports if item not in published),
            store=self._store.observe(),
            failures=dict(failures),
            devices=devices.present(wanted_devices),
            capacity=self._capacity,
            adhoc=byhand.adhoc_names(self._layout),
            volume_limits=self._volume_limits(there),
        )

    def _volume_limits(self, there: Mapping[str, frozenset[str]]) -> dict[str, int]:
        """The limits that the kernel keeps, by app/volume; a record is read again only when it has changed."""
        projects: dict[str, ParsedFile[volumelimit.Project]] = {}
        found: dict[str, int] = {}
        for app, names in there.items():
            for name in names:
                full_name = f"{app}/{name}"
                file = self._projects.get(full_name)
                if file is None:
                    file = ParsedFile(self._layout.volume_record(app, name), volumelimit.read_project)
                projects[full_name] = file
                counted = volumelimit.in_force(self._layout, app, name, file.read())
                if counted is not None and counted[0]:
                    found[full_name] = counted[0]
        self._projects = projects
        return found

    def _networks_now(self) -> tuple[state.Networks, frozenset[tuple[str, str]]]:
        """The networks, and the links that are right, as (network, full name)."""
        network = self._networks.observe()
        known = self._network
        if known is not None and known[0] is network:
            return known[1], known[2]
        published = None
        if network.ports is not None and network.ruleset_intact:
            published = tuple(sorted(_published(network)))
        found = state.Networks(
            apps=frozenset(app for app, seen in network.apps.items() if seen.healthy),
            published=published,
            traces=frozenset(network.apps),
            declared=tuple(
                sorted(seen.declared for seen in network.apps.values() if seen.declared is not None)
            ),
        )
        attached = frozenset(
            (key, full_name(key, name)) for key, seen in network.apps.items() for name in seen.attached
        )
        self._network = network, found, attached
        return found, attached

    def _balanced(
        self, network: state.Networks, containers: Mapping[str, Sequence[state.Container]]
    ) -> state.Networks:
        """The same network, and whether its shared ports lead to those that serve them."""
        seen = (
            self._networks.observe().ports if any(p.port.balance for p in network.published or ()) else None
        )
        if not seen:
            return network
        ids = {
            (container.app, container.name): [
                same.id for same in containers[container.full_name] if not same.paused
            ]
            for found in containers.values()
            for container in found
        }
        serves = serving.look(self._layout, ids)
        right = all(port.serving == serves(port) for port in seen if port.balance)
        return network if right else replace(network, balanced=False)

    def _listeners(self, wanted: Iterable[Port]) -> tuple[state.Listener, ...]:
        ports = list(wanted)
        return listeners_on(ports, self._networks.ports_of_others()) if ports else ()

    # --- containers --------------------------------------------------------------------------------------------

    def _containers(self, attached: frozenset[tuple[str, str]]) -> dict[str, tuple[state.Container, ...]]:
        place = cgroup.place(Hierarchies.detect(), self._parent)
        if place != self._place:
            self._place = place
        found: dict[str, list[state.Container]] = {}
        sights: dict[str, Sight] = {}
        unreadable: list[str] = []
        joining, now = False, boottime()
        for container_id in _names(self._layout.containers):
            sight = self._sights.get(container_id) or Sight(self._layout, container_id, self._uppers)
            container = sight.look(self._place or place, attached)
            if container is None:
                unreadable.append(container_id)
                # `mend` finds out what it is; the sweep clears a leftover away. An error says nothing about the
                # container, and what can't be seen must not be made a second time.
                continue
            sights[container_id] = sight
            joining = joining or bool(container.joins)
            if serving.is_awaited(self._layout, container, now):
                container = replace(container, listens=False)
            found.setdefault(container.full_name, []).append(container)
        self._sights = sights
        self.unreadable = tuple(unreadable)
        if joining:
            found = _in_place(found, sights)
        return {
            name: tuple(sorted(same, key=lambda container: (container.created, container.id)))
            for name, same in sorted(found.items())
        }

    # --- predecessors --------------------------------------------------------------------------------------------

    def _all_previous(self) -> dict[str, state.Previous]:
        found: dict[str, state.Previous] = {}
        files: dict[str, ParsedFile[state.Previous]] = {}
        root = self._layout.previous_root
        for app in _names(root):
            for name in _names(root / app):
                full_name = f"{app}/{name}"
                file = self._previous.get(full_name)
                if file is None:
                    file = ParsedFile(self._layout.previous(app, name) / "identity.json", _parse_previous)
                files[full_name] = file
                previous = file.read()
                if previous is not None:
                    found[full_name] = previous
        self._previous = files
        return found


def _in_place(
    found: Mapping[str, Sequence[state.Container]], sights: Mapping[str, Sight]
) -> dict[str, list[state.Container]]:
    """The same containers; those that joined the network of one which is not in that namespace are not attached."""
    homes: dict[str, set[int | None]] = {}  # the namespaces of those that run and are joined
    joined = {have.joins for same in found.values() for have in same}
    for same in found.values():
        for have in same:
            if have.joined_as in joined and isinstance(have.phase, state.Running):
                homes.setdefault(have.joined_as, set()).add(sights[have.id].namespace)

    def place(have: state.Container) -> state.Container:
        if not have.joins or not isinstance(have.phase, state.Running | state.Created):
            return have
        own = sights[have.id].namespace
        if own is None or own in homes.get(have.joins, ()):
            return have  # where its process has just ended, its shim is about to say so
        return replace(have, attached=False)

    return {name: [place(have) for have in same] for name, same in found.items()}


def _published(network: NetworkObserved) -> Iterable[state.Published]:
    """The ports that reach the address that their container has; others have to be written again."""
    holders: dict[Address, tuple[str, str]] = {
        address: (key, name)
        for key, seen in network.apps.items()
        for addresses in (seen.addresses, seen.addresses6)
        for name, address in addresses.items()
    }
    for p in network.ports or ():
        key, name = holders.get(p.address, ("", ""))
        if key and name == member(key, p.app, p.container):
            inner = "" if key == p.app else key
            port = Port(str(p.host_ip), p.published, p.target, p.protocol, p.balance, inner)
            yield state.Published(p.app, p.container, port)


def capacity() -> state.Capacity:
    """What this device has; its memory is what the kernel gives out, less than what is built in."""
    for line in read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return state.Capacity(1000 * (os.cpu_count() or 1), int(line.split()[1]) << 10)
    return state.Capacity()


def _parse_previous(path: str) -> state.Previous | None:
    identity = read_record(path)
    if identity is None:
        return None
    directory = Path(path).parent
    return state.Previous(
        identity.fingerprint,
        read_exit(directory / "exit.json"),
        identity.attempt,
        identity.restarts,
        stopped=exists(str(directory / "stopped")),
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

    Those that take nothing of a kind that is wanted are left out.
    """
    ports: dict[tuple[str, int], set[int]] = {}
    for port in wanted:
        kinds = ports.setdefault((port.protocol, port.published), set())
        kinds.add(6 if ":" in port.host_ip else 4)
    if not ports:
        return ()
    there = (*listeners.listeners(), *others)
    mine = [found for found in there if (found.protocol, found.port) in ports]
    result = []
    for found in listeners.identify(mine):
        address: IPv4Address | IPv6Address = found.address
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        both = address.version == 6 and address.is_unspecified and not found.v6_only
        if not both and address.version not in ports[found.protocol, found.port]:
            continue
        holder = found.process if found.pid is None and found.process else found.holder
        result.append(state.Listener(found.protocol, str(address), found.port, holder, found.v6_only))
    return tuple(result)
