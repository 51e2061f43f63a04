"""The lane of one app: its steps in the order in which they must run, given what each container needs.

First what brings back what was there, because that needs nothing that is not on the device; then everything that has to
be fetched; only then anything is stopped for a change, in reverse dependency order; then the rest comes up,
dependencies first. A lane knows nothing of other lanes. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconciler.plan import joined, networks
from reconciler.plan.basis import TRY_NOW, unresolved
from reconciler.plan.byhand import wished
from reconciler.plan.needs import Found, absent_devices, is_up, lacking_volumes, was_started, within
from reconciler.plan.order import start_order
from reconciler.plan.restart import countdown, failure_delay, ordinal
from reconciler.plan.steps import (
    Blocked,
    ChangeNetwork,
    CreateVolume,
    LimitVolume,
    PullImage,
    RemoveContainer,
    RemoveNetwork,
    Step,
)
from reconciler.plan.work import Work, take_down, work
from reconciler.state.desired import App, Desired, VolumeMount, replicated
from reconciler.state.image import Image
from reconciler.state.observed import Container, Failure, Now, Observed

_NOBODY: Final[Mapping[str, str]] = {}
_LOOK_AGAIN: Final = 1.0  # seconds: nothing wakes the loop when a program listens
_ROOM: Final = 1 << 20  # bytes for the records, configs and first lines of the log of a container or two


@dataclass(slots=True)
class Lane:
    """What one app gets done in this turn, and what of it has to wait."""

    steps: list[Step] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)

    @property
    def replaced_at_once(self) -> frozenset[str]:
        """The ids of containers that go without waiting for a download first."""
        if any(isinstance(step, PullImage) for step in self.steps):
            return frozenset()
        return frozenset(step.id for step in self.steps if isinstance(step, RemoveContainer))


@dataclass(frozen=True, slots=True)
class Gate:
    """Why an app may not change now.

    A repair may pass: an app whose update fails, or waits for an image, keeps running as it did before. Only a repair
    that contains `failed_step` has to wait, because that is what is not to be tried again yet.
    """

    blocked: tuple[Blocked, ...] = ()
    failed_step: str = ""

    def lets_through(self, todo: Work) -> bool:
        if not self.failed_step:
            return True
        return all(str(step) != self.failed_step for step in todo.down + todo.up)


def failure_gate(app: str, digest: str, failure: Failure | None, now: Now, *, only: str = "") -> Gate | None:
    """Return the gate that the last failure of the app puts up; None without one, for a newer spec, or in time.

    `only` is the container of an ad-hoc app.
    """
    if failure is None or failure.digest != digest or failure.at > now.boottime:
        return None
    until = failure.at + failure_delay(failure.count, app)
    if until <= now.boottime:
        return None
    tried = "" if failure.count == 1 else f"{ordinal(failure.count)} failure, "
    reason = f"{failure.step}: {failure.error}; {tried}next try in {countdown(until, now.boottime)}"
    return Gate((Blocked(app, only, reason, until, hint=failure.hint or TRY_NOW),), failure.step)


def _gate(app: App, failure: Failure | None, now: Now) -> Gate | None:
    failed = failure_gate(app.name, app.version, failure, now, only=app.only)
    if not app.unresolved:
        return failed
    waiting = unresolved(app)
    if failed is None:
        return Gate(waiting)
    return Gate(waiting + failed.blocked, failed.failed_step)


def _full(observed: Observed) -> str:
    """Why nothing may be replaced now, or an empty string: what can't be written may have no predecessor stopped."""
    store = observed.store
    if store.size <= 0 or store.free >= _ROOM:
        return ""
    return f"disk full: less than {_ROOM >> 20} MiB is free for the state directory; make room, or run: reconciler gc"


def converge(
    app: App,
    found: Found,
    desired: Desired,
    observed: Observed,
    taken: Mapping[str, str],
    now: Now,
    unkept: Mapping[str, str] = _NOBODY,
) -> Lane:
    """Return the lane of an app that should run.

    `found` are its containers by name; `taken` says of full names why they can't have their ports now, `unkept` why not
    what they reserve.
    """
    lane = Lane()
    works = _works(app, found, observed, now)
    pulls, missing = _pulls(app, observed.store.layers)
    there = observed.volumes.get(app.name, frozenset())
    volumes = [name for name in sorted(app.volumes) if name not in there and name not in app.external]
    if app.only and not any(todo.creates for todo in works.values()):
        pulls, volumes = [], []  # it rests, or runs: what it once needed is asked for when it is needed again
    limits = _limits(app, observed)
    gone = [name for name in found if name not in app.containers]
    leaving = [] if app.only else networks.leaving(app, observed, ends=not app.containers and bool(gone))
    changing = networks.changing(app, found, observed)
    gate = _gate(app, observed.failures.get(app.lane), now)
    if not (works or pulls or volumes or limits or gone or leaving or app.unresolved):
        lane.blocked += _ports_taken(app, taken)
        return lane

    order = _order(app, found, gone)
    stuck: Mapping[str, str] = {}
    while True:
        allowed, blocked = _allowed(app, works, order, found, desired, observed, taken, unkept, stuck)
        more = networks.stuck(app, changing, allowed, found, observed)
        if more.keys() <= stuck.keys():
            break
        stuck = {**more, **stuck}
    lane.blocked += blocked
    moving = networks.moving(app, changing, found, observed)
    first, later = _repairs_first(app, allowed, order, missing, set(volumes), found, moving)
    if gate is not None:
        passed = _let_through(gate, app, allowed, first, found)
        held_up = len(passed) < len(first) or later or pulls or volumes or limits or gone or leaving
        if held_up or app.unresolved:
            lane.blocked += gate.blocked
        first, later, pulls, volumes, limits, gone, leaving = passed, [], [], [], [], [], []
        changing = {}
    later = _one_by_one(app, later, allowed, found, now, lane)
    if (later or pulls or volumes) and (full := _full(observed)):
        lane.blocked.append(Blocked(app.name, app.only, full))
        later, pulls, volumes, changing = [], [], [], {}

    for name in first:
        lane.steps += joined.once(lane.steps, allowed[name].down + allowed[name].up)
    lane.steps += (PullImage(app.name, reference, image, app.only) for reference, image in pulls)
    lane.steps += (
        CreateVolume(app.name, volume, app.only, app.volume_limits.get(volume)) for volume in volumes
    )
    lane.steps += limits
    replaced = set(later)
    # Replicas are replaced one after another: while one is away, those after it still run.
    following = {name for name in replaced - moving if replicated(name) != name}
    ended = set(gone)
    for name in reversed(order):
        if name in ended:
            for container in found[name]:
                lane.steps += take_down(container, keep_previous=False)
        elif name in replaced - following:
            lane.steps += joined.once(lane.steps, allowed[name].down)
    removed = {step.id for step in lane.steps if isinstance(step, RemoveContainer)}
    lane.steps += (
        ChangeNetwork(network)
        for network in changing.values()
        if networks.is_left(networks.around(network, observed), found, removed)
    )
    for name in order:
        if name in following:
            lane.steps += joined.once(lane.steps, allowed[name].down)
        if name in replaced:
            lane.steps += allowed[name].up
    removed = {step.id for step in lane.steps if isinstance(step, RemoveContainer)}
    lane.steps += (RemoveNetwork(key) for key in leaving if networks.is_empty(key, found, removed))
    return lane


def remove(app: str, found: Found, observed: Observed, now: Now) -> Lane:
    """Return the lane of an app that should not run any more: everything of it but its volumes goes."""
    lane = Lane()
    gate = failure_gate(app, "", observed.failures.get(app), now)
    if gate is not None:
        lane.blocked += gate.blocked
        return lane
    depends_on = {name: within(app, _recorded(found[name])) for name in found}
    for name in reversed(start_order(depends_on)):
        for container in found[name]:
            lane.steps += take_down(container, keep_previous=False)
    lane.steps += (RemoveNetwork(key) for key in sorted(networks.owned(app, observed) | {app}))
    return lane


def remove_network(network: str, observed: Observed, now: Now) -> Lane:
    """Return the lane of a network that apps share and none needs any more."""
    gate = failure_gate("", "", observed.failures.get(network), now)
    return Lane([RemoveNetwork(network)]) if gate is None else Lane(blocked=[*gate.blocked])


# --- what there is to do --------------------------------------------------------------------------------------------


def _works(app: App, found: Found, observed: Observed, now: Now) -> dict[str, Work]:
    works: dict[str, Work] = {}
    for name, want in app.containers.items():
        previous = observed.previous.get(want.full_name) if name not in found else None
        have = found.get(name, ())
        if want.wish is None:
            todo = work(want, have, previous, now, observed.boot)
        else:
            todo = wished(want, want.wish, have, previous, now, observed.boot)
        if todo is not None:
            works[name] = todo
    return works


def _limits(app: App, observed: Observed) -> list[LimitVolume]:
    """The volumes that are there with another limit than they should have; nobody else's."""
    if app.only:
        return []
    there = observed.volumes.get(app.name, frozenset())
    limits = (
        (name, app.volume_limits.get(name)) for name in sorted(there.intersection(app.volumes) - app.external)
    )
    return [
        LimitVolume(app.name, name, limit)
        for name, limit in limits
        if observed.volume_limits.get(f"{app.name}/{name}") != limit
    ]


def _pulls(app: App, layers: frozenset[str]) -> tuple[list[tuple[str, Image]], set[int]]:
    """The images that are not complete on local disk, each once, by reference; and the ids of all such values."""
    missing: dict[int, tuple[str, Image]] = {}
    complete: set[int] = set()
    for container in app.containers.values():
        image = container.image
        if id(image) in complete:
            continue
        if all(layer.chain_id.hex in layers for layer in image.layers):
            complete.add(id(image))
            continue
        known = missing.get(id(image))
        if known is None or container.reference < known[0]:
            missing[id(image)] = (container.reference, image)
    distinct: dict[str, tuple[str, Image]] = {}
    for reference, image in sorted(missing.values(), key=lambda pull: pull[0]):
        distinct.setdefault(str(image.manifest), (reference, image))
    return list(distinct.values()), set(missing)


def _recorded(found: Sequence[Container]) -> tuple[str, ...]:
    return found[-1].settings.depends_on if found else ()


def _order(app: App, found: Found, gone: Iterable[str]) -> tuple[str, ...]:
    depends_on = {name: within(app.name, want.settings.depends_on) for name, want in app.containers.items()}
    depends_on |= {name: within(app.name, _recorded(found[name])) for name in gone}
    return start_order(depends_on)


# --- what of it may happen now --------------------------------------------------------------------------------------


def _allowed(
    app: App,
    works: Mapping[str, Work],
    order: Sequence[str],
    found: Found,
    desired: Desired,
    observed: Observed,
    taken: Mapping[str, str],
    unkept: Mapping[str, str],
    stuck: Mapping[str, str],
) -> tuple[dict[str, Work], list[Blocked]]:
    """Return the work that has its ports, its networks and its dependencies; and the rest, and who waits for time."""
    allowed: dict[str, Work] = {}
    blocked: list[Blocked] = []
    for position, name in enumerate(order):
        want = app.containers.get(name)
        if want is None:
            continue
        todo = works.get(name, Work())
        if want.joins:
            todo = joined.follow(want, todo, found.get(name, ()), allowed, app, found)
        if want.full_name in taken:
            blocked.append(_port_taken(app, name, taken[want.full_name]))
        if todo.wait is not None:
            blocked.append(todo.wait)
        if todo.up and want.full_name in unkept:
            blocked.append(Blocked(app.name, name, unkept[want.full_name]))
            continue
        if todo.creates and name in stuck:
            blocked.append(Blocked(app.name, name, stuck[name]))
            continue
        if awaited := joined.waits(want, todo, allowed, app, observed):
            blocked.append(awaited)
            continue
        if todo.starts:
            if want.full_name in taken:
                continue
            if conflict := networks.conflict(want, observed):
                hint = networks.remedy(conflict, app)
                blocked.append(Blocked(app.name, name, conflict, degraded=True, hint=hint))
                continue
            if lacking := lacking_volumes(want, app, observed):
                blocked.append(Blocked(app.name, name, lacking, degraded=True))
                continue
            if absent := absent_devices(want, observed):
                blocked.append(Blocked(app.name, name, f"waiting for {', '.join(absent)}", degraded=True))
                continue
            earlier = set(order[:position])
            waits_for = [
                dependency
                for dependency in want.settings.depends_on
                if not is_up(dependency, app, allowed, earlier, found, desired, observed, want.full_name)
            ]
            if waits_for:
                hint = f"run: reconciler status {waits_for[0].partition('/')[0]}"
                blocked.append(Blocked(app.name, name, f"waits for {', '.join(waits_for)}", hint=hint))
                continue
        if todo.down or todo.up:
            allowed[name] = todo
    return joined.leave(allowed, app, found, observed), blocked


def _repairs_first(
    app: App,
    allowed: Mapping[str, Work],
    order: Sequence[str],
    missing: set[int],
    missing_volumes: set[str],
    found: Found,
    moving: set[str],
) -> tuple[list[str], list[str]]:
    """Split the work into repairs that need nothing but what is here, and the rest; both in dependency order."""
    first: list[str] = []
    later: list[str] = []
    for name in order:
        if name not in allowed:
            continue
        want = app.containers[name]
        waits = any(
            dependency in later and not was_started(found.get(dependency, ()))
            for dependency in within(app.name, want.settings.depends_on)
        )
        needs = id(want.image) in missing or any(
            isinstance(mount, VolumeMount) and mount.volume in missing_volumes
            for mount in want.identity.mounts
        )
        todo = allowed[name]
        held_up = (todo.starts and (waits or name in moving)) or (todo.creates and needs)
        held_up = held_up or todo.follows in later
        (first if todo.repair and not held_up else later).append(name)
    return first, later


def _one_by_one(
    app: App, later: list[str], allowed: Mapping[str, Work], found: Found, now: Now, lane: Lane
) -> list[str]:
    """Return the same without replicas whose sibling was replaced a moment ago and does not listen yet: the lane that
    waited for it was interrupted. It is looked at again and again, for as long as that one may take.
    """
    silent = {have.name: have.full_name for same in found.values() for have in same if not have.listens}
    awaited = {replicated(name): full_name for name, full_name in silent.items() if name not in later}
    if not awaited:
        return later
    held = {name for name in later if replicated(name) in awaited and name in found and name not in silent}
    held |= {name for name in later if allowed[name].follows in held}
    for name in sorted(held):
        sibling = awaited.get(replicated(name), "")
        if sibling:
            reason, hint = f"waits for {sibling} to listen", f"run: reconciler logs {sibling}"
            lane.blocked.append(Blocked(app.name, name, reason, now.boottime + _LOOK_AGAIN, hint=hint))
    return [name for name in later if name not in held]


def _let_through(
    gate: Gate, app: App, allowed: Mapping[str, Work], repairs: Sequence[str], found: Found
) -> list[str]:
    """Return the repairs that pass the gate, without those that depend on one that does not."""
    passed: list[str] = []
    for name in repairs:
        waits = allowed[name].starts and any(
            dependency in repairs and dependency not in passed and not was_started(found.get(dependency, ()))
            for dependency in within(app.name, app.containers[name].settings.depends_on)
        )
        waits = waits or (allowed[name].follows in repairs and allowed[name].follows not in passed)
        if not waits and gate.lets_through(allowed[name]):
            passed.append(name)
    return passed


def _port_taken(app: App, container: str, reason: str) -> Blocked:
    return Blocked(app.name, container, reason, hint=f"free it, or publish another one in {app.path}")


def _ports_taken(app: App, taken: Mapping[str, str]) -> list[Blocked]:
    if not taken:
        return []
    return [
        _port_taken(app, want.name, taken[want.full_name])
        for want in app.containers.values()
        if want.full_name in taken
    ]
