"""Rules that need more than one field: within an app (`check_app`), and between apps (`check_apps`).

They run on models, so also on what is left of a file with errors. A rule says what is wrong and where; whether an app
may be used is decided by `spec.load`. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.spec.marks import ERROR, WARNING
from reconciler.spec.model import App, BindMount, Container, Port, VolumeMount
from reconciler.spec.places import Path
from reconciler.spec.reference import Digest


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found at `path` of the file of `app`; the app's own file if that is empty."""

    path: Path
    message: str
    severity: str = ERROR
    hint: str = ""
    at_key: bool = False
    app: str = ""


def check_app(
    app: App,
    *,
    allowed_binds: Sequence[str],
    declared: Mapping[str, frozenset[str]],
    partial: bool = False,
    memory_said: frozenset[str] = frozenset(),
) -> list[Finding]:
    """Return what is wrong within one app.

    `declared` holds the names that the file declares under volumes, configs and containers, broken declarations
    included, so that one mistake is reported once. The app is `partial` where something was taken out of it: then
    nothing is said about what seems to be missing. `memory_said` names containers that do say a limit, if a bad one.
    """
    found: list[Finding] = []
    for name, container in app.containers.items():
        at = ("containers", name)
        found += _references(container, at, declared)
        found += _targets(container, at)
        found += _binds(container, at, allowed_binds)
        if container.limits.memory is None and name not in memory_said:
            found.append(
                Finding(
                    at,
                    f"containers.{name} has no limits.memory: a leak in it can take the whole device down",
                    WARNING,
                    at_key=True,
                )
            )
    if not partial:
        found += _unused(app)
    return found


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
    for other in container.depends_on:
        if "/" not in other and other not in declared["containers"]:
            yield Finding(
                (*at, "depends_on", other), f"depends_on: there is no container '{other}' in this app"
            )


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


def _binds(container: Container, at: Path, allowed: Sequence[str]) -> Iterable[Finding]:
    for index, mount in enumerate(container.volumes):
        if isinstance(mount, BindMount) and not inside(mount.source, allowed):
            yield Finding(
                (*at, "volumes", index),
                f"the device does not allow {mount.source} to be mounted",
                hint=f"add it to allowed_binds in device.yaml: allowed_binds: [{mount.source}]",
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


def check_apps(
    apps: Sequence[Known], *, claimed: Mapping[str, frozenset[str] | None], complete: bool
) -> list[Finding]:
    """Return what is wrong between apps. `Finding.app` is the path of the file that it is about.

    `claimed` maps the names of all apps, broken ones included, to their containers, or to None where those can't be
    told. `complete` is False when some file could not be read at all, so that an unknown name may be in there.
    """
    return [*_ports(apps), *_dependencies(apps, claimed, complete), *_cycles(apps), *_tags(apps)]


@dataclass(frozen=True, slots=True)
class _Published:
    known: Known
    container: str
    index: int
    port: Port

    @property
    def full_name(self) -> str:
        return f"{self.known.name}/{self.container}"


def _overlap(left: Port, right: Port) -> bool:
    return left.host_ip == right.host_ip or "0.0.0.0" in (left.host_ip, right.host_ip)


def _ports(apps: Sequence[Known]) -> Iterable[Finding]:
    taken: dict[tuple[int, str], list[_Published]] = defaultdict(list)
    for known in apps:
        for name, container in known.app.containers.items():
            for index, port in enumerate(container.ports):
                taken[port.published, port.protocol].append(_Published(known, name, index, port))
    for (published, protocol), places in taken.items():
        if len(places) < 2:
            continue
        for one in places:
            others = sorted(
                {
                    two.full_name
                    for two in places
                    if two is not one
                    and _overlap(one.port, two.port)
                    and (one.known.partial or not two.known.partial or one.known is two.known)
                }
            )
            if others:
                mine = f"port {published}/{protocol} of {one.full_name}"
                twice = (
                    "twice by this container" if others == [one.full_name] else f"by {', '.join(others)} too"
                )
                path = ("containers", one.container, "ports", one.index)
                yield Finding(path, f"{mine} is published {twice}", app=one.known.path)


def _dependencies(
    apps: Sequence[Known], claimed: Mapping[str, frozenset[str] | None], complete: bool
) -> Iterable[Finding]:
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


def _cycles(apps: Sequence[Known]) -> Iterable[Finding]:
    edges: dict[str, list[str]] = {}
    origin: dict[str, Known] = {}
    for known in apps:
        for name, container in known.app.containers.items():
            if container.depends_on:
                full = f"{known.name}/{name}"
                origin[full] = known
                edges[full] = sorted(o if "/" in o else f"{known.name}/{o}" for o in container.depends_on)
    for cycle in _circles(edges):
        shown = " -> ".join([*cycle, cycle[0]])
        partial = any(origin[full].partial for full in cycle)
        told: set[str] = set()
        for index, full in enumerate(cycle):
            known, after = origin[full], cycle[(index + 1) % len(cycle)]
            if known.path in told or (partial and not known.partial):
                continue
            told.add(known.path)
            name = full[len(known.name) + 1 :]
            wanted = known.app.containers[name].depends_on
            key = after if after in wanted else after.rpartition("/")[2]
            path = ("containers", name, "depends_on", key)
            yield Finding(path, f"depends_on goes round in a circle: {shown}", app=known.path)


def _circles(edges: Mapping[str, list[str]]) -> Iterable[list[str]]:
    """Yield cycles, each starting at its smallest name, until every node that is on one has been told of.

    Iterative: a chain of dependencies may be longer than Python's stack is deep.
    """
    done: set[str] = set()
    for start in sorted(edges):
        if start in done:
            continue
        trail: list[str] = []
        position: dict[str, int] = {}
        stack = [(start, iter(edges[start]))]
        position[start] = 0
        trail.append(start)
        while stack:
            node, rest = stack[-1]
            after = next((other for other in rest if other in edges and other not in done), None)
            if after is None:
                stack.pop()
                done.add(node)
                trail.pop()
                del position[node]
            elif after in position:
                cycle = trail[position[after] :]
                smallest = cycle.index(min(cycle))
                yield cycle[smallest:] + cycle[:smallest]
            else:
                position[after] = len(trail)
                trail.append(after)
                stack.append((after, iter(edges[after])))


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
        for digest, places in digests.items():
            others = sorted(p[2] for other, found in digests.items() if other != digest for p in found)
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            for path, where, _ in places:
                message = f"{registry}/{repository}:{tag} is pinned to another digest in {shown}"
                yield Finding(where, message, WARNING, app=path)
