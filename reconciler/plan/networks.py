"""The networks of apps: which of them have to be made, changed or taken away, and when that may happen. Pure.

One that is declared otherwise than it is can't change under containers that were made for it. It stays as it is until
those are taken down, changes then, in the lane of its app, and its containers come up in the new one.
"""

from collections.abc import Mapping, Set

from reconciler.plan.needs import Found
from reconciler.plan.steps import RemoveContainer
from reconciler.plan.work import Work
from reconciler.state.desired import App
from reconciler.state.desired import Container as Wanted
from reconciler.state.network import Network, owner_of
from reconciler.state.observed import Container, Created, Observed, Running


def owned(app: str, observed: Observed) -> set[str]:
    """Return the keys of the app's networks of which anything is there."""
    return {key for key in observed.network.known if owner_of(key) == app}


def leaving(app: App, observed: Observed, *, ends: bool) -> list[str]:
    """Return the networks that the app has and does not need, sorted; with `ends` all of it goes."""
    known = owned(app.name, observed)
    return sorted(known | {app.name} if ends else known - app.networks.keys())


def changing(app: App, found: Found, observed: Observed) -> dict[str, Network]:
    """Return the networks, by key, that have to change and can't, for now, since containers of an older spec are in.

    Where one is in it that is as it should be, the network is too: nobody remembers how it was declared.
    """
    result: dict[str, Network] = {}
    conflicts = dict(observed.network.conflicts)
    for key, network in app.networks.items():
        if (
            key not in observed.network.known
            or key in conflicts
            or network.same(observed.network.as_found(key))
        ):
            continue
        right = [_is_wanted(app, have) for have in _inside(key, found)]
        if right and not any(right):
            result[key] = network
    return result


def moving(app: App, networks: Mapping[str, Network], found: Found) -> set[str]:
    """Return the names of containers that are in one of these networks, or are to be."""
    wanted = {name for name, want in app.containers.items() if networks.keys() & {*want.networks}}
    return wanted | {have.name for key in networks for have in _inside(key, found)}


def _inside(key: str, found: Found) -> list[Container]:
    return [
        have
        for same in found.values()
        for have in same
        if key in have.networks and isinstance(have.phase, Running | Created)
    ]


def _is_wanted(app: App, have: Container) -> bool:
    want = app.containers.get(have.name)
    return want is not None and want.fingerprint == have.fingerprint


def is_left(key: str, found: Found, removed: Set[str]) -> bool:
    """Return whether nothing runs in the network once the containers with the ids in `removed` are gone."""
    return all(have.id in removed for have in _inside(key, found))


def is_empty(key: str, found: Found, removed: Set[str]) -> bool:
    """Return whether nobody has an address in the network once the containers with the ids in `removed` are gone."""
    return all(have.id in removed for same in found.values() for have in same if key in have.networks)


def stuck(
    app: App, networks: Mapping[str, Network], allowed: Mapping[str, Work], found: Found
) -> dict[str, str]:
    """Return, by name, why containers that may be made now, but for that, can't be: somebody is still in a network of
    theirs that has to change.
    """
    if not networks:
        return {}
    removed = {
        step.id for todo in allowed.values() for step in todo.down if isinstance(step, RemoveContainer)
    }
    removed |= {have.id for name, same in found.items() if name not in app.containers for have in same}
    result: dict[str, str] = {}
    for key in networks:
        staying = sorted(have.full_name for have in _inside(key, found) if have.id not in removed)
        if staying:
            reason = f"network {key} is to change, and {staying[0]} is still in it"
            result |= {name: reason for name in allowed if key in app.containers[name].networks}
    return result


def conflict(want: Wanted, observed: Observed) -> str:
    """Return why a network that the container needs can't be had, or an empty string."""
    reasons = dict(observed.network.conflicts)
    return next((f"network {key}: {reasons[key]}" for key in want.networks if key in reasons), "")
