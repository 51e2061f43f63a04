"""The networks of apps: which of them have to be made, changed or taken away, and when that may happen. Pure.

One that is declared otherwise than it is can't change under containers that were made for it. It stays as it is until
those are taken down, changes then, in the lane of its app, and its containers come up in the new one.
"""

from collections.abc import Mapping, Set

from reconciler.plan.needs import Found
from reconciler.plan.steps import RemoveContainer
from reconciler.plan.work import Work
from reconciler.state.desired import App, Desired
from reconciler.state.desired import Container as Wanted
from reconciler.state.network import Network, owner_of
from reconciler.state.observed import Container, Created, Observed, Published, Running


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
        there = key in observed.network.known
        if key in conflicts or (there and network.same(observed.network.as_found(key))):
            continue
        held = around(network, observed) - (frozenset() if there else {key})
        right = [_is_wanted(app, have) for have in _inside(held, found)]
        if right and not any(right):
            result[key] = network
    return result


def around(network: Network, observed: Observed) -> frozenset[str]:
    """Return the keys of the network itself and of those of its app that have its addresses as yet."""
    others = (
        other.key
        for other in observed.network.declared
        if other.owner == network.owner and other.overlaps(network)
    )
    return frozenset((network.key, *others))


def moving(app: App, networks: Mapping[str, Network], found: Found, observed: Observed) -> set[str]:
    """Return the names of containers that are in one of these networks, or are to be."""
    wanted = {name for name, want in app.containers.items() if networks.keys() & {*want.networks}}
    keys = frozenset(key for network in networks.values() for key in around(network, observed))
    return wanted | {have.name for have in _inside(keys, found)}


def _inside(keys: Set[str], found: Found) -> list[Container]:
    return [
        have
        for same in found.values()
        for have in same
        if not keys.isdisjoint(have.networks) and isinstance(have.phase, Running | Created)
    ]


def _is_wanted(app: App, have: Container) -> bool:
    want = app.containers.get(have.name)
    return want is not None and want.fingerprint == have.fingerprint


def is_left(keys: Set[str], found: Found, removed: Set[str]) -> bool:
    """Return whether nothing runs in these networks once the containers with the ids in `removed` are gone."""
    return all(have.id in removed for have in _inside(keys, found))


def is_empty(key: str, found: Found, removed: Set[str]) -> bool:
    """Return whether nobody has an address in the network once the containers with the ids in `removed` are gone."""
    return all(have.id in removed for same in found.values() for have in same if key in have.networks)


def stuck(
    app: App,
    networks: Mapping[str, Network],
    allowed: Mapping[str, Work],
    found: Found,
    observed: Observed,
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
    for key, network in networks.items():
        inside = _inside(around(network, observed), found)
        staying = sorted(have.full_name for have in inside if have.id not in removed)
        if staying:
            reason = f"network {key} is to change, and {staying[0]} is still in it"
            result |= {name: reason for name in allowed if key in app.containers[name].networks}
    return result


def conflict(want: Wanted, observed: Observed) -> str:
    """Return why a network that the container needs can't be had, or an empty string."""
    reasons = dict(observed.network.conflicts)
    needed = [place.network for place in want.places if place.network.key in reasons]
    # One that apps share has no subnet of its own to be had: what it may lack is IPv6
    lacking = (network.key for network in needed if network.owner or network.ipv6)
    return next((f"network {key}: {reasons[key]}" for key in lacking), "")


def remedy(conflict: str, app: App) -> str:
    """Return what to do about a conflict."""
    if " its subnet " in conflict:
        return f"remove that, or declare another subnet in {app.path}"
    return f"change that (reconciler doctor says how), or leave ipv6 out in {app.path}"


def shared(key: str, desired: Desired, observed: Observed, *, kept: bool) -> Network:
    """Return a network that apps share as it is to be: with IPv6 as long as one of them says so.

    With `kept` there are containers in it that are left as they are, and it loses nothing.
    """
    if key in dict(observed.network.conflicts):
        return Network(key)
    asked = (app.networks[key].ipv6 for app in desired.apps.values() if key in app.networks)
    return Network(key, ipv6=any(asked) or (kept and observed.network.as_found(key).ipv6))


def publishable(table: tuple[Published, ...], networks: Mapping[str, Network]) -> tuple[Published, ...]:
    """Return the ports without those of IPv6 whose network has none as yet: it is to change, or is not there."""
    if not any(":" in row.port.host_ip for row in table):
        return table
    return tuple(
        row
        for row in table
        if ":" not in row.port.host_ip
        or ((key := row.port.network or row.app) in networks and networks[key].ipv6)
    )
