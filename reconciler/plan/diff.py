"""The plan: the difference between what should be and what is, as one ordered list of steps.

The same list is printed by `plan`, performed by the executor and asserted by the tests. Lanes of different apps never
look at each other; only the port table and the garbage are the whole device's. Pure: same input, same plan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reconciler.plan import lane as lanes
from reconciler.plan import reserve
from reconciler.plan.basis import Basis, basis
from reconciler.plan.byhand import discard, rests
from reconciler.plan.garbage import Retention, explain, garbage, next_expiry
from reconciler.plan.lane import Lane, failure_gate
from reconciler.plan.networks import changing, publishable, shared
from reconciler.plan.ports import Claims, order
from reconciler.plan.steps import Blocked, CollectGarbage, ConfigureNetwork, Plan, RemoveNetwork, Step
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import App, Desired, lane_of
from reconciler.state.desired import Container as Wanted
from reconciler.state.generation import Generation
from reconciler.state.network import Network, owner_of
from reconciler.state.observed import Container, Now, Observed, Published

# The key in `Observed.failures` of steps that belong to no app.
DEVICE = ""

_NOTHING: Mapping[str, Sequence[Container]] = {}


def plan(
    desired: Desired,
    observed: Observed,
    now: Now,
    *,
    retention: Retention = Retention(),  # noqa: B008 - frozen
    generations: Sequence[Generation] = (),
    busy: frozenset[str] = frozenset(),
    known: Basis | None = None,
) -> Plan:
    """Return the steps that take `observed` to `desired`, in the order in which they must run.

    The lanes in `busy` are running: they get no steps, and keep their networks and ports. `wake_at` is the next
    boottime at which time alone changes this plan. `known` saves time where it is the basis of the same values.
    """
    desired = _with_records(desired, observed)
    ground = basis(desired, generations, retention, known)
    found: dict[str, dict[str, Sequence[Container]]] = {}
    for full_name, same in observed.containers.items():
        app, _, name = full_name.partition("/")
        found.setdefault(lane_of(app, name), {})[name] = same

    blocked: list[Blocked] = []
    untouched = set(busy)
    for name in desired.held:
        if name not in busy:
            untouched.add(name)
            blocked.append(Blocked(*_owner(name), desired.held[name]))
    removed: list[str] = []
    networks = {owner_of(key) for key in observed.network.known}
    for name in sorted(found.keys() | networks - {ADHOC, ""}):
        if name in desired.apps or name in untouched:
            continue
        if _owner(name)[0] == ADHOC:
            if observed.adhoc is None or _owner(name)[1] in observed.adhoc:
                untouched.add(name)  # its record was made since, or can't be read
            else:
                removed.append(name)
        elif desired.hold_all:
            untouched.add(name)
            blocked.append(Blocked(name, "", desired.hold_all))
        else:
            removed.append(name)

    claims = None
    taken: dict[str, str] = {}
    rows = _without_resting(ground, observed)
    if untouched or not _ports_are_right(ground, rows, observed, found):
        claims = Claims.start(observed.network.published, observed.listeners)
        taken = _claim(claims, rows, observed, found, untouched, busy)
    unkept = reserve.refused(desired, observed, found, untouched) if ground.reserves else {}
    by_app: dict[str, Lane] = {}
    for name, wanted in desired.apps.items():
        if name in untouched:
            continue
        own = found.get(name, _NOTHING)
        if not own and name in ground.waiting and name not in observed.failures and name not in networks:
            blocked += ground.waiting[name]
            continue
        by_app[name] = lanes.converge(wanted, own, desired, observed, taken, now, unkept)
        if claims is not None:
            _reclaim(claims, wanted, own, by_app[name])
    for name in removed:
        own = found.get(name, _NOTHING)
        by_app[name] = (
            _discarded(name, own, observed, now) if "/" in name else lanes.remove(name, own, observed, now)
        )
    if (
        ADHOC in observed.network.known
        and observed.adhoc is not None
        and not _adhoc_needs_network(desired, found, busy)
    ):
        by_app[ADHOC] = Lane([RemoveNetwork(ADHOC)])
    for key in _unshared(desired, observed, busy):
        by_app[key] = lanes.remove_network(key, observed, now)

    steps: list[Step] = []
    table = claims.table() if claims is not None else rows
    network = _network(table, desired, observed, found, untouched)
    if network is not None:
        _device_step(network, observed, now, steps, blocked)
    for name in sorted(name for name, own in by_app.items() if own.steps or own.blocked):
        steps += by_app[name].steps
        blocked += by_app[name].blocked
    explained = explain(
        observed.store, desired, observed.containers, generations, retention, now, ground.roots
    )
    if objects := garbage(explained):
        _device_step(CollectGarbage(objects), observed, now, steps, blocked)
    times = [item.until for item in blocked if item.until is not None]
    expiry = next_expiry(explained, now)
    if expiry is not None:
        times.append(expiry)
    blocked.sort(key=lambda item: (item.app, item.container, item.reason))
    return Plan(tuple(steps), tuple(blocked), min(times, default=None))


# --- ad-hoc containers -------------------------------------------------------------------------------------------


def _owner(lane: str) -> tuple[str, str]:
    """The app of a lane, and the container if it is an ad-hoc one's."""
    app, _, container = lane.partition("/")
    return app, container


def _with_records(desired: Desired, observed: Observed) -> Desired:
    """Leave out the ad-hoc containers whose record has gone since it was read: they are not wanted any more."""
    gone = [
        lane
        for lane, app in desired.apps.items()
        if app.only and observed.adhoc is not None and app.only not in observed.adhoc
    ]
    if not gone:
        return desired
    return replace(desired, apps={lane: app for lane, app in desired.apps.items() if lane not in gone})


def _discarded(lane: str, found: Mapping[str, Sequence[Container]], observed: Observed, now: Now) -> Lane:
    app, only = _owner(lane)
    gate = failure_gate(app, "", observed.failures.get(lane), now, only=only)
    if gate is not None:
        return Lane(blocked=[*gate.blocked])
    return Lane([*discard(found[only])])


def _adhoc_needs_network(desired: Desired, found: Iterable[str], busy: frozenset[str]) -> bool:
    """Whether the ad-hoc containers' network must stay: one is there or wanted, or a lane of theirs is running."""
    return any(_owner(lane)[0] == ADHOC for lanes in (desired.apps, found, busy) for lane in lanes)


def _device_step(
    step: ConfigureNetwork | CollectGarbage,
    observed: Observed,
    now: Now,
    steps: list[Step],
    blocked: list[Blocked],
) -> None:
    """Plan a step of the whole device, unless it has just failed."""
    failure = observed.failures.get(DEVICE)
    if failure is not None and failure.step == str(step):
        gate = failure_gate(DEVICE, failure.digest, failure, now)
        if gate is not None:
            blocked += gate.blocked
            return
    steps.append(step)


# --- network ------------------------------------------------------------------------------------------------------


def _without_resting(ground: Basis, observed: Observed) -> tuple[Published, ...]:
    """Return the wanted ports without those of containers that people keep stopped, and of ad-hoc ones that ended."""
    if not ground.by_hand:
        return ground.rows
    resting = {
        name
        for name, want in ground.by_hand.items()
        if rests(want, observed.containers.get(name, ()), observed.boot)
    }
    return tuple([row for row in ground.rows if f"{row.app}/{row.container}" not in resting])


def _ports_are_right(
    ground: Basis,
    rows: tuple[Published, ...],
    observed: Observed,
    found: Mapping[str, Mapping[str, Sequence[Container]]],
) -> bool:
    """Return whether every wanted port is published, no other is, and no container is of another version than wanted.

    Then all claims are granted, nothing has to be reclaimed, and the table is as it must be.
    """
    if not ground.undisputed or observed.network.published != rows:
        return False
    apps = ground.desired.apps
    for name, own in found.items():
        containers = apps[name].containers if name in apps else {}
        for same in own.values():
            for container in same:
                want = containers.get(container.name)
                if want is None or want.fingerprint != container.fingerprint:
                    return False
    return True


def _claim(
    claims: Claims,
    rows: Sequence[Published],
    observed: Observed,
    found: Mapping[str, Mapping[str, Sequence[Container]]],
    untouched: set[str],
    busy: frozenset[str],
) -> dict[str, str]:
    """Enter every port of `rows`, the wanted ones, into `claims`; return, by full name, why a container can't have one.

    Untouched apps come first, then what is published already, so that nobody's port is taken away by a newcomer.
    """
    for name in sorted(untouched):
        if name in busy and observed.network.published is not None:
            own = {row for row in observed.network.published if lane_of(row.app, row.container) == name}
        else:
            own = {
                Published(container.app, container.name, port)
                for same in found.get(name, _NOTHING).values()
                for container in same
                for port in container.settings.ports
            }
        for row in sorted(own, key=order):
            claims.keep(row)
    wanted = [row for row in rows if lane_of(row.app, row.container) not in untouched] if untouched else rows
    taken: dict[str, str] = {}
    for is_published in (True, False):
        for row in wanted:
            if (row in claims.published) is is_published and (reason := claims.claim(row)):
                taken.setdefault(f"{row.app}/{row.container}", reason)
    return taken


def _reclaim(claims: Claims, app: App, found: Mapping[str, Sequence[Container]], lane: Lane) -> None:
    """Let containers that a newer version does not replace at once keep the ports that they have.

    An update that has to download, or is held up, must not cut off the version that still runs. Its successor's
    ports take their place in the turn after it was replaced.
    """
    wanted = app.containers
    old = [
        container
        for same in found.values()
        for container in same
        if container.settings.ports
        and (container.name not in wanted or not _goes_on(wanted[container.name], container))
    ]
    if not old:
        return
    replaced = lane.replaced_at_once
    for container in old:
        if container.id not in replaced:
            for port in container.settings.ports:
                claims.reclaim(Published(app.name, container.name, port))


def _goes_on(want: Wanted, have: Container) -> bool:
    """Return whether what is there is what is wanted: by its id, where that is kept, or else by its fingerprint."""
    return want.id == have.id if want.id else want.fingerprint == have.fingerprint


def _network(
    table: tuple[Published, ...],
    desired: Desired,
    observed: Observed,
    found: Mapping[str, Mapping[str, Sequence[Container]]],
    untouched: set[str],
) -> ConfigureNetwork | None:
    """Return the step that makes bridges and port table right, or None if they are."""
    # What is on its way out keeps its bridge as it is until its containers are gone; it is not repaired for that.
    owners = {_owner(lane)[0] for lane in found.keys() | untouched}
    used = {key for own in found.values() for same in own.values() for have in same for key in have.networks}
    networks = {key for key in observed.network.apps if owner_of(key) in owners or key in used}
    kept = {
        key
        for lane in found.keys() & untouched
        for same in found[lane].values()
        for have in same
        for key in have.networks
    }
    wanted = {key: observed.network.as_found(key) for key in networks | kept}
    common: dict[str, Network] = {}
    conflicts = dict(observed.network.conflicts)
    for lane, app in desired.apps.items():
        if lane in untouched or not app.networks or not (lane in found or _may_start(app, observed)):
            continue
        waiting = changing(app, found.get(lane, _NOTHING), observed)
        for key, network in app.networks.items():
            if not network.owner:
                common[key] = common.get(key) or shared(key, desired, observed, kept=key in kept)
            elif key not in conflicts and key not in waiting:
                wanted[key] = network
            elif key in waiting and key in observed.network.known:
                wanted[key] = observed.network.as_found(key)
    wanted |= common
    there = observed.network.published
    table = publishable(table, wanted)
    if (
        all(_is_right(network, observed) for network in wanted.values())
        and observed.network.balanced
        and (there == table if there is not None else not (wanted or table))
    ):
        return None
    return ConfigureNetwork(tuple([wanted[key] for key in sorted(wanted)]), table)


def _is_right(network: Network, observed: Observed) -> bool:
    return network.key in observed.network.apps and observed.network.as_found(network.key) == network


def _unshared(desired: Desired, observed: Observed, busy: frozenset[str]) -> list[str]:
    """Return the keys of networks that apps shared and nobody needs. A running lane may be about to join one."""
    shared = {key for key in observed.network.known if not owner_of(key)}
    if not shared or busy or desired.hold_all or observed.adhoc is None:
        return []
    needed = {key for app in desired.apps.values() for key in app.networks}
    needed |= {key for same in observed.containers.values() for have in same for key in have.networks}
    return sorted(shared - needed)


def _may_start(app: App, observed: Observed) -> bool:
    """Whether an app of which nothing is there gets something started: while it waits for an image, what ran before."""
    return not app.unresolved or any(
        container.full_name in observed.previous for container in app.containers.values()
    )
