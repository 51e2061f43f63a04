"""What each step does to the device, as a pure model: for property tests, and for an engine in memory.

It is as strict as the real engine, and stricter where the engine copes: a step whose precondition does not hold (a
start beside a running namesake, a removal of something that runs, an image that is not complete) raises
ImpossibleStepError, which is how a wrong plan is found.
"""

import hashlib
from collections.abc import Callable, Set
from dataclasses import replace
from typing import assert_never

from reconciler.errors import ReconcilerError
from reconciler.plan.joined import owner
from reconciler.plan.networks import around
from reconciler.plan.steps import (
    ChangeNetwork,
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    ForgetContainer,
    LimitVolume,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import VolumeMount
from reconciler.state.network import Network
from reconciler.state.observed import (
    Container,
    Created,
    Exited,
    Lost,
    Networks,
    Now,
    Observed,
    Previous,
    Running,
    Store,
    StoredObject,
)
from reconciler.state.process import ExitRecord

_SIGNALS = {"SIGTERM": 15, "SIGKILL": 9, "SIGINT": 2, "SIGQUIT": 3, "SIGHUP": 1}


class ImpossibleStepError(ReconcilerError):
    """A step came at a moment at which it must not."""


def simulate(step: Step, world: Observed, now: Now) -> Observed:
    """Return the world after `step`, or raise ImpossibleStepError. Every step is idempotent."""
    match step:
        case ConfigureNetwork():
            for network in step.networks:
                world = _network(network, world)
            network_found = replace(world.network, published=step.published, balanced=True)
            return replace(world, network=network_found)
        case PullImage():
            return replace(world, store=_pull(step, world.store, now))
        case CreateVolume():
            volumes = {**world.volumes}
            there = step.volume in volumes.get(step.app, frozenset())
            volumes[step.app] = volumes.get(step.app, frozenset()) | {step.volume}
            world = replace(world, volumes=volumes)
            return world if there else _limit(world, step.app, step.volume, step.size_limit)
        case LimitVolume():
            have = world.volumes.get(step.app, frozenset())
            _require(step.volume in have, step, "it does not exist")
            return _limit(world, step.app, step.volume, step.size_limit)
        case StopContainer():
            world = _abandon(step, world)
            return _change(
                world, step.app, step.container, step.id, lambda c: _stop(step, c, world.boot, now)
            )
        case RemoveContainer():
            return _remove(step, world, now)
        case CreateContainer():
            return _create(step, world, now)
        case StartContainer():
            return _start(step, world, now)
        case UpdateContainer():
            return _change(world, step.app, step.container, step.id, lambda c: _update(step, c, world))
        case RecordExit():
            return _change(world, step.app, step.container, step.id, lambda c: replace(c, settled=True))
        case ForgetContainer():
            return replace(world, adhoc=(world.adhoc or frozenset()) - {step.container})
        case ChangeNetwork():
            keys = around(step.network, world)
            inside = [
                have.full_name
                for same in world.containers.values()
                for have in same
                if not keys.isdisjoint(have.networks) and isinstance(have.phase, Running | Created)
            ]
            _require(not inside, step, f"{', '.join(inside)} still there")
            return _network(step.network, replace(world, network=_without(keys, world.network)))
        case RemoveNetwork():
            return _remove_network(step, world)
        case CollectGarbage():
            return _collect(step, world)
        case _:
            assert_never(step)


def _require(holds: bool, step: Step, why: str) -> None:
    if not holds:
        raise ImpossibleStepError(f"{step}: {why}")


def _change(
    world: Observed, app: str, name: str, container_id: str, change: Callable[[Container], Container]
) -> Observed:
    """Replace the container of that id; nothing happens if it is gone."""
    full_name = f"{app}/{name}"
    same = tuple(change(c) if c.id == container_id else c for c in world.containers.get(full_name, ()))
    return _with(world, full_name, same)


def _limit(world: Observed, app: str, volume: str, size: int | None) -> Observed:
    limits = {name: limit for name, limit in world.volume_limits.items() if name != f"{app}/{volume}"}
    if size is not None:
        limits[f"{app}/{volume}"] = size
    return replace(world, volume_limits=limits)


def _with(world: Observed, full_name: str, same: tuple[Container, ...]) -> Observed:
    containers = {name: found for name, found in world.containers.items() if name != full_name}
    if same:
        containers[full_name] = same
    return replace(world, containers=dict(sorted(containers.items())))


# --- images -------------------------------------------------------------------------------------------------------


def _pull(step: PullImage, store: Store, now: Now) -> Store:
    objects = {(item.kind, item.name): item for item in store.objects}
    image = step.image
    found = [StoredObject("blob", str(digest), 1000, now.wall) for digest in (image.manifest, image.config)]
    found.append(StoredObject("image", str(image.manifest), 1000, now.wall))
    found += (StoredObject("layer", layer.chain_id.hex, layer.size, now.wall) for layer in image.layers)
    for item in found:
        objects[item.kind, item.name] = item
    layers = store.layers | {layer.chain_id.hex for layer in image.layers}
    return replace(store, layers=layers, objects=tuple(objects[key] for key in sorted(objects)))


def _touch(store: Store, layers: tuple[str, ...], now: Now) -> Store:
    """A layer was in use until its last container went: its age counts from there."""
    return replace(
        store,
        objects=tuple(
            replace(item, last_used=now.wall) if item.kind == "layer" and item.name in layers else item
            for item in store.objects
        ),
    )


def _collect(step: CollectGarbage, world: Observed) -> Observed:
    taken = {(item.kind, item.name) for item in step.objects}
    used = {layer for same in world.containers.values() for c in same for layer in c.layers}
    for kind, name in taken:
        _require(kind != "layer" or name not in used, step, f"layer {name[:12]} is in use")
    store = replace(
        world.store,
        objects=tuple(item for item in world.store.objects if (item.kind, item.name) not in taken),
        layers=world.store.layers - {name for kind, name in taken if kind == "layer"},
    )
    previous = {name: p for name, p in world.previous.items() if ("previous", name) not in taken}
    return replace(world, store=store, previous=previous)


# --- containers ---------------------------------------------------------------------------------------------------


def _stop(step: StopContainer, have: Container, boot: str, now: Now) -> Container:
    match have.phase:
        case Exited():
            return have
        case Lost():  # it has no shim that would leave a record; what was alive of it is killed
            return replace(have, phase=replace(have.phase, alive=False))
        case Created():
            started, started_wall, number = None, None, 9
        case Running():
            started, started_wall = have.phase.since, have.phase.since_wall
            number = _SIGNALS.get(step.signal, 15)
        case _:
            assert_never(have.phase)
    record = ExitRecord(None, number, False, started, started_wall, now.boottime, now.wall, boot)
    return replace(have, phase=Exited(record), limits=None, attached=True, stopped=True, paused=False)


def _abandon(step: StopContainer, world: Observed) -> Observed:
    """The world in which nobody is in the network namespace of a container that runs and is now stopped."""
    gone = next(
        (c for c in world.containers.get(f"{step.app}/{step.container}", ()) if c.id == step.id), None
    )
    if gone is None or not isinstance(gone.phase, Running):
        return world
    meant = f"{gone.app}/{gone.id if gone.app == ADHOC else gone.name}"
    containers = {
        name: tuple(
            replace(c, attached=False) if c.joins == meant and isinstance(c.phase, Running | Created) else c
            for c in same
        )
        for name, same in world.containers.items()
    }
    return replace(world, containers=containers)


def _remove(step: RemoveContainer, world: Observed, now: Now) -> Observed:
    full_name = f"{step.app}/{step.container}"
    same = world.containers.get(full_name, ())
    gone = next((container for container in same if container.id == step.id), None)
    if gone is None:
        return world
    _require(not isinstance(gone.phase, Running), step, "it runs")
    previous = {**world.previous}
    if step.keep_previous:
        record = gone.phase.record if isinstance(gone.phase, Exited) else None
        previous[full_name] = Previous(gone.fingerprint, record, gone.attempt, gone.restarts, gone.stopped)
    else:
        previous.pop(full_name, None)
    world = _with(world, full_name, tuple(container for container in same if container is not gone))
    return replace(world, previous=previous, store=_touch(world.store, gone.layers, now))


def _create(step: CreateContainer, world: Observed, now: Now) -> Observed:
    want = step.desired
    layers = tuple(layer.chain_id.hex for layer in want.image.layers)
    _require(world.store.layers.issuperset(layers), step, "its image is not complete")
    volumes = tuple(m.volume for m in want.identity.mounts if isinstance(m, VolumeMount))
    have = world.volumes.get(want.app, frozenset())
    _require(have.issuperset(volumes), step, "a volume is missing")
    needed = {device.source for device in want.identity.devices if not device.optional}
    _require(world.devices.issuperset(needed), step, "a device is absent")
    for place in want.places:
        there = world.network.as_found(place.network.key)
        known = place.network.key in world.network.known
        _require(not known or place.network.same(there), step, f"its network is {there}")
    if want.joins:
        running = [c for c in owner(want.joins, world) if isinstance(c.phase, Running)]
        _require(bool(running), step, f"{want.joins}, whose network it joins, does not run")
    same = world.containers.get(want.full_name, ())
    if want.id:  # it keeps its place, its files and its log
        for own in (container for container in same if container.id == want.id):
            _require(not isinstance(own.phase, Running), step, "it runs")
        same = tuple(container for container in same if container.id != want.id)
    # Never the id of a predecessor, and yet no randomness: ids are made of everything that happened before.
    past = repr((want.full_name, want.fingerprint, step.attempt, step.restarts, now, [c.id for c in same]))
    container = Container(
        id=want.id or hashlib.sha256(past.encode()).hexdigest(),
        app=want.app,
        name=want.name,
        fingerprint=want.fingerprint,
        settings=want.settings,
        phase=Created(),
        image=want.identity.image,
        layers=layers,
        limits=want.settings.limits,
        attempt=step.attempt,
        restarts=step.restarts,
        created=now.wall,
        volumes=volumes,
        networks=want.networks,
        turn=want.wish.turn if want.wish is not None else 0,
        joins=want.joins,
    )
    return _with(world, want.full_name, (*same, container))


def _start(step: StartContainer, world: Observed, now: Now) -> Observed:
    full_name = f"{step.app}/{step.container}"
    same = world.containers.get(full_name, ())
    _require(bool(same), step, "it does not exist")
    *others, newest = same
    if isinstance(newest.phase, Running):
        return world
    _require(isinstance(newest.phase, Created), step, f"it is {type(newest.phase).__name__}")
    _require(not any(isinstance(c.phase, Running) for c in others), step, "one of its name runs")
    _require(world.network.apps.issuperset(newest.networks), step, "its network is missing")
    _require(newest.attached, step, "it is not in the network of the container that it joins")
    pid = 1000 + int(newest.id[:6], 16)
    running = replace(newest, phase=Running(pid, now.boottime, now.wall), attached=True)
    return _with(world, full_name, (*others, running))


def _update(step: UpdateContainer, have: Container, world: Observed) -> Container:
    if step.reattach:
        _require(world.network.apps.issuperset(have.networks), step, "its network is missing")
    running = isinstance(have.phase, Running | Created)
    return replace(
        have,
        settings=step.settings,
        limits=step.settings.limits if running else None,
        attached=have.attached or step.reattach,
    )


def _network(network: Network, world: Observed) -> Observed:
    """The world in which the network is this one."""
    found = world.network
    others = [one for one in found.declared if one.key != network.key]
    declared = others if network == Network(network.key) else [*others, network]
    changed = replace(found, apps=found.apps | {network.key}, declared=tuple(sorted(declared)))
    return replace(world, network=changed)


def _remove_network(step: RemoveNetwork, world: Observed) -> Observed:
    left = [
        name for name, same in world.containers.items() if any(step.network in have.networks for have in same)
    ]
    _require(not left, step, f"{', '.join(left)} still there")
    return replace(world, network=_without({step.network}, world.network))


def _without(gone: Set[str], found: Networks) -> Networks:
    declared = tuple(network for network in found.declared if network.key not in gone)
    return replace(found, apps=found.apps - gone, traces=found.traces - gone, declared=declared)
