"""Rules that need more than one field: within an app (`check_app`), and between apps (`check_apps`).

They run on models, so also on what is left of a file with errors. A rule says what is wrong and where; whether an app
may be used is decided by `spec.load`. Pure.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

from reconciler.spec.circles import knots, way_round
from reconciler.spec.environment import references
from reconciler.spec.finding import Finding
from reconciler.spec.joining import check_joining, joined
from reconciler.spec.marks import ERROR, WARNING
from reconciler.spec.model import App, BindMount, Container, VolumeMount
from reconciler.spec.networking import (
    ANY6,
    check_container,
    check_networks,
    has_ipv6,
    host_ips,
    subnets_between,
)
from reconciler.spec.places import Path
from reconciler.spec.privileges import privileges
from reconciler.spec.process import FromDevice
from reconciler.spec.reference import Digest
from reconciler.spec.terms import Terms
from reconciler.spec.userns import check_userns


def check_app(
    app: App,
    *,
    terms: Terms,
    declared: Mapping[str, frozenset[str]],
    partial: bool = False,
    memory_said: frozenset[str] = frozenset(),
) -> list[Finding]:
    """Return what is wrong within one app.

    `declared` holds the names that the file declares under volumes, configs, networks and containers, broken ones
    included, so that one mistake is reported once. The app is `partial` where something was taken out of it: then
    nothing is said about what seems to be missing. `memory_said` names containers that do say a limit, if a bad one.
    """
    found: list[Finding] = []
    for name, container in app.containers.items():
        at = ("containers", name)
        found += _references(container, at, declared)
        found += _replicas(container, at, app)
        found += _targets(container, at)
        found += _binds(container, at, terms)
        found += _labels(container, at, terms)
        found += check_container(container, at, app, declared)
        found += check_joining(container, at, app, terms, declared["containers"])
        found += privileges(container, at, terms)
        found += check_userns(container, at)
        found += _reserve(container, at)
        if container.limits.memory is None and name not in memory_said:
            found.append(
                Finding(
                    at,
                    f"containers.{name} has no limits.memory: a leak in it can take the whole device down",
                    WARNING,
                    at_key=True,
                )
            )
        found += _unlimited(app, container, at)
    found += check_networks(app, partial=partial)
    if not partial:
        found += _unused(app)
    return found


def _unlimited(app: App, container: Container, at: Path) -> Iterable[Finding]:
    """A quota of the VFS holds for nobody with CAP_SYS_RESOURCE (fs/quota/dquot.c, ignore_hardlimit)."""
    if not container.privileged and not {"ALL", "CAP_SYS_RESOURCE"} & {*container.cap_add}:
        return
    for mount in container.volumes:
        if not isinstance(mount, VolumeMount) or mount.source not in app.volumes:
            continue
        if app.volumes[mount.source].size_limit is not None:
            who = ".".join(map(str, at))
            message = f"{who} has CAP_SYS_RESOURCE: the size_limit of '{mount.source}' does not hold for it"
            yield Finding(at, message, WARNING, at_key=True)


def _references(container: Container, at: Path, declared: Mapping[str, frozenset[str]]) -> Iterable[Finding]:
    for index, mount in enumerate(container.volumes):
        if isinstance(mount, VolumeMount) and mount.source not in declared["volumes"]:
            yield Finding(
                (*at, "volumes", index),
                f"the volume '{mount.source}' is not declared",
                hint=f"add at the top level: volumes: {{{mount.source}: {{}}}}",
            )
    for index, config in enumerate(container.configs):
        if config.source not in declared["configs"]:
            yield Finding(
                (*at, "configs", index),
                f"the config '{config.source}' is not declared",
                hint=f"add at the top level: configs: {{{config.source}: {{file: ...}}}}",
            )
    for path, name in references(container):
        if name not in declared["configs"]:
            yield Finding(
                (*at, *path),
                f"the config '{name}' is not declared",
                hint=f"add at the top level: configs: {{{name}: {{file: ...}}}}",
            )
    for other in container.depends_on:
        if "/" not in other and other not in declared["containers"]:
            yield Finding(
                (*at, "depends_on", other), f"depends_on: there is no container '{other}' in this app"
            )


def _replicas(container: Container, at: Path, app: App) -> Iterable[Finding]:
    for name in container.depends_on:
        other = app.containers.get(name)
        if other is not None and other.replicas == 0 and container.replicas:
            yield Finding((*at, "depends_on", name), _no_replicas(name))
    if container.replicas > 1 and not all(port.balance for port in container.ports):
        message = f"{container.replicas} replicas can't have one port of the device each for itself"
        hint = (
            "let them share it: ports: [{published: ..., target: ..., balance: true}]; or write replicas: 1"
        )
        yield Finding((*at, "replicas"), message, hint=hint)


def _no_replicas(name: str) -> str:
    return f"depends_on: the container '{name}' has no replicas, so that this one would never start"


def _targets(container: Container, at: Path) -> Iterable[Finding]:
    first: dict[str, str] = {}
    places = [
        *(((*at, "volumes", i), f"volumes[{i}]", mount.target) for i, mount in enumerate(container.volumes)),
        *(((*at, "tmpfs", i), f"tmpfs[{i}]", mount.target) for i, mount in enumerate(container.tmpfs)),
        *(((*at, "configs", i), f"configs[{i}]", mount.target) for i, mount in enumerate(container.configs)),
    ]
    for path, name, target in places:
        if target in first:
            yield Finding(path, f"{name} is mounted at {target}, and so is {first[target]}")
        else:
            first[target] = name
    if "shm_size" in container.model_fields_set and "/dev/shm" in first:
        message = f"shm_size has no effect: {first['/dev/shm']} is mounted at /dev/shm"
        yield Finding((*at, "shm_size"), message, WARNING, at_key=True)


def _reserve(container: Container, at: Path) -> Iterable[Finding]:
    for name in ("memory", "cpus"):
        kept, limit = getattr(container.reserve, name), getattr(container.limits, name)
        if kept is not None and limit is not None and kept > limit:
            message = f"reserve.{name} is more than limits.{name}: it could never be used"
            yield Finding((*at, "reserve", name), message)


def _labels(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    for name, value in container.environment.items():
        if isinstance(value, FromDevice) and value.label not in terms.labels:
            yield Finding(
                (*at, "environment", name),
                f"the device has no label '{value.label}'",
                hint=f"add it in {terms.file}: labels: {{{value.label}: ...}}",
            )


def _binds(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    for index, mount in enumerate(container.volumes):
        if not isinstance(mount, BindMount):
            continue
        if mount.source == "/" or inside(mount.source, ("/proc",)):
            yield Finding(
                (*at, "volumes", index),
                f"{mount.source} can't be mounted: the whole device is behind it",
                hint="mount a directory that holds less",
            )
        elif not inside(mount.source, terms.binds):
            yield Finding(
                (*at, "volumes", index),
                f"the device does not allow {mount.source} to be mounted",
                hint=f"add it in {terms.file}: allowed_binds: [{mount.source}]",
            )


def inside(path: str, allowed: Iterable[str]) -> bool:
    """Return whether a normalised path is one of `allowed` or below one, component by component."""
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in allowed)


def _unused(app: App) -> Iterable[Finding]:
    containers = app.containers.values()
    mounted = {m.source for c in containers for m in c.volumes if isinstance(m, VolumeMount)}
    for name in app.volumes:
        if name not in mounted:
            yield Finding(("volumes", name), f"the volume '{name}' is not used", WARNING, at_key=True)
    used = {m.source for c in containers for m in c.configs}
    used |= {name for c in containers for _, name in references(c)}
    for name in app.configs:
        if name not in used:
            yield Finding(("configs", name), f"the config '{name}' is not used", WARNING, at_key=True)


@dataclass(frozen=True, slots=True)
class Known:
    """An app as the rules between apps see it. `name` is what the file says, valid or not, or its path.

    Where its own file has errors it is `partial`: what it does to others is told in its file only, because others must
    not suffer from a file that is not going to be used.
    """

    name: str
    app: App
    path: str
    partial: bool = False


_ANY: Final = "0.0.0.0"
_BOTH: Final = "a port without an address is one of IPv4 and of IPv6 here; of IPv4 alone: 0.0.0.0:PORT:PORT"
_NAMED: Final = 3  # others that a message names
_WAYS: Final = 20  # files that are told a way round of their own


def check_apps(
    apps: Sequence[Known], *, claimed: Mapping[str, frozenset[str] | None], complete: bool
) -> list[Finding]:
    """Return what is wrong between apps. `Finding.app` is the path of the file that it is about.

    `claimed` maps the names of all apps, broken ones included, to their containers, or to None where those can't be
    told. `complete` is False when some file could not be read at all, so that an unknown name may be in there.
    """
    subnets = subnets_between([(known.name, known.path, known.app, known.partial) for known in apps])
    return [*_ports(apps), *_dependencies(apps, claimed, complete), *_cycles(apps), *_tags(apps), *subnets]


def _ports(apps: Sequence[Known]) -> Iterable[Finding]:
    taken: dict[tuple[int, str, str], list[_Published]] = defaultdict(list)
    for known in apps:
        for name, container in known.app.containers.items():
            ipv6 = bool(container.ports) and has_ipv6(known.app, container)
            for index, port in enumerate(container.ports):
                addresses = host_ips(port, ipv6=ipv6)
                for host_ip in addresses:
                    place = _Published(known, name, index, host_ip, len(addresses) > 1)
                    anywhere = ANY6 if ":" in host_ip else _ANY
                    for published in range(port.published.first, port.published.last + 1):
                        taken[published, port.protocol, anywhere].append(place)
    said: set[tuple[str, str, int]] = set()
    for (published, protocol, anywhere), places in taken.items():
        if len(places) < 2:
            continue
        rivals = _Rivals(places, anywhere)
        for one in places:
            others, more = rivals.of(one)
            if not others:
                continue
            mine = f"port {published}/{protocol} of {one.full_name}"
            shown = ", ".join(others) + (f" and {more} more" if more else "")
            twice = "twice by this container" if others == [one.full_name] else f"by {shown} too"
            path = ("containers", one.container, "ports", one.index)
            about = one.full_name, f"{mine} {twice}", one.index
            if about not in said:  # by IPv4 and by IPv6
                both = anywhere == ANY6 and any(place.everywhere for place in places)
                yield Finding(
                    path, f"{mine} is published {twice}", hint=_BOTH if both else "", app=one.known.path
                )
            said.add(about)


@dataclass(frozen=True, slots=True)
class _Published:
    known: Known
    container: str
    index: int
    host_ip: str
    everywhere: bool  # by IPv4 and IPv6, as no address was said

    @property
    def full_name(self) -> str:
        return f"{self.known.name}/{self.container}"


class _Rivals:
    """Who else publishes a port. Counted once for all, because every container of a device may want the same one.

    Apps whose file is whole don't get to hear of those whose file is not, or they would suffer from it.
    """

    def __init__(self, places: Sequence[_Published], anywhere: str) -> None:
        self._any = anywhere
        self._at: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        self._all: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for place in places:
            for partial in (True, False):
                if partial or not place.known.partial:
                    self._at[place.host_ip, partial][place.full_name] += 1
                    self._all[partial][place.full_name] += 1
        self._known: dict[tuple[str, bool], tuple[int, list[str]]] = {}

    def _union(self, host_ip: str, partial: bool) -> tuple[int, list[str]]:
        """Return how many names publish on addresses that overlap with this one, and the first of them."""
        key = (host_ip, partial)
        if key not in self._known:
            here, anywhere = self._at[key], self._at[self._any, partial]
            if host_ip == self._any:
                here, anywhere = self._all[partial], Counter()
            count = len(anywhere) + sum(name not in anywhere for name in here)
            first = nsmallest(_NAMED + 1, {*nsmallest(_NAMED + 1, here), *nsmallest(_NAMED + 1, anywhere)})
            self._known[key] = count, first
        return self._known[key]

    def of(self, one: _Published) -> tuple[list[str], int]:
        """Return the first rivals by name, and how many more there are."""
        partial = one.known.partial
        count, first = self._union(one.host_ip, partial)
        own = self._all[partial] if one.host_ip == self._any else self._at[one.host_ip, partial]
        times = own[one.full_name]
        if one.host_ip != self._any:
            times += self._at[self._any, partial][one.full_name]
        alone = times == 1
        others = [name for name in first if not (alone and name == one.full_name)][:_NAMED]
        return others, count - alone - len(others)


def _dependencies(
    apps: Sequence[Known], claimed: Mapping[str, frozenset[str] | None], complete: bool
) -> Iterable[Finding]:
    none = {
        f"{known.name}/{name}"
        for known in apps
        for name, container in known.app.containers.items()
        if not (known.partial or container.replicas)
    }
    for known in apps:
        for name, container in known.app.containers.items():
            for other in container.depends_on:
                app, slash, inner = other.partition("/")
                if not slash:
                    continue
                path = ("containers", name, "depends_on", other)
                if app not in claimed:
                    severity = ERROR if complete else WARNING
                    yield Finding(path, f"depends_on: there is no app '{app}'", severity, app=known.path)
                elif (containers := claimed[app]) is not None and inner not in containers:
                    message = f"depends_on: there is no container '{inner}' in the app '{app}'"
                    yield Finding(path, message, app=known.path)
                elif other in none and container.replicas:
                    yield Finding(path, _no_replicas(other), app=known.path)


def _cycles(apps: Sequence[Known]) -> Iterable[Finding]:
    edges: dict[str, list[str]] = {}
    owner: dict[str, tuple[Known, str]] = {}
    for known in apps:
        for name, container in known.app.containers.items():
            if awaited := _awaited(container, name):
                full = f"{known.name}/{name}"
                owner[full] = known, name
                edges[full] = [o if "/" in o else f"{known.name}/{o}" for o in awaited]
    for knot in knots(edges):
        partial = any(owner[full][0].partial for full in knot)
        firsts: dict[str, str] = {}  # file -> the first of its containers in this knot
        for full in sorted(knot):
            if owner[full][0].partial or not partial:
                firsts.setdefault(owner[full][0].path, full)
        way: list[str] = []
        for count, (path, full) in enumerate(firsts.items()):
            way = way_round(full, knot, edges) if count < _WAYS else way
            known, name = owner[full]
            inside_it = {way[1 % len(way)]} if way[0] == full else knot
            waiting = known.app.containers[name]
            wanted = [
                o for o in _awaited(waiting, name) if (o if "/" in o else f"{known.name}/{o}") in inside_it
            ]
            field = ("depends_on", wanted[0]) if wanted[0] in waiting.depends_on else ("network_mode",)
            message = f"{field[0]} goes round in a circle: {_shown(way)}"
            yield Finding(("containers", name, *field), message, app=path)


def _awaited(container: Container, name: str) -> list[str]:
    """The containers that must have started before `name`, as the spec names them; of its own network more is said."""
    other = joined(container)
    return [*container.depends_on, *([other] if other not in ("", name, *container.depends_on) else [])]


def _shown(way: Sequence[str]) -> str:
    names = [*way, way[0]]
    if len(names) > 10:
        names = [*names[:6], f"({len(names) - 8} more)", *names[-2:]]
    return " -> ".join(names)


def _tags(apps: Sequence[Known]) -> Iterable[Finding]:
    seen: dict[tuple[str, str, str], dict[Digest, list[tuple[str, Path, str]]]] = {}
    for known in apps:
        for name, container in known.app.containers.items():
            image = container.image
            if image.tag is None or image.digest is None:
                continue
            digests = seen.setdefault((image.registry, image.repository, image.tag), {})
            place = (known.path, ("containers", name, "image"), f"{known.name}/{name}")
            digests.setdefault(image.digest, []).append(place)
    for (registry, repository, tag), digests in seen.items():
        if len(digests) < 2:
            continue
        total = sum(map(len, digests.values()))
        first = {digest: digests[digest][:_NAMED] for digest in sorted(digests)[: _NAMED + 1]}
        for digest, places in digests.items():
            others = [p[2] for other, found in first.items() if other != digest for p in found]
            more = total - len(places) - min(len(others), _NAMED)
            shown = ", ".join(others[:_NAMED]) + (f" and {more} more" if more else "")
            for path, where, _ in places:
                message = f"{registry}/{repository}:{tag} is pinned to another digest in {shown}"
                yield Finding(where, message, WARNING, app=path)
