"""What must be there before a container starts: its dependencies, its external volumes, its devices. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from reconciler.plan.order import reaches
from reconciler.plan.work import Work
from reconciler.state.desired import App, Desired, VolumeMount, replicated
from reconciler.state.desired import Container as Wanted
from reconciler.state.observed import Container, Exited, Observed, Running

Found = Mapping[str, Sequence[Container]]


def within(app: str, full_names: Iterable[str]) -> list[str]:
    """The names of those containers that are of this app."""
    prefix = f"{app}/"
    return [name[len(prefix) :] for name in full_names if name.startswith(prefix)]


def lacking_volumes(want: Wanted, app: App, observed: Observed) -> str:
    """Why the container can't have its external volumes: they are made by hand, before it."""
    there = observed.volumes.get(app.name, frozenset())
    lacking = sorted(
        {
            f"{app.name}/{mount.volume}"
            for mount in want.identity.mounts
            if isinstance(mount, VolumeMount) and mount.volume in app.external - there
        }
    )
    return f"waiting for the external volume {', '.join(lacking)}" if lacking else ""


def absent_devices(want: Wanted, observed: Observed) -> tuple[str, ...]:
    """The devices that the container can't start without and that are not there: a state, not a failure."""
    return tuple(
        device.source
        for device in want.identity.devices
        if not device.optional and device.source not in observed.devices
    )


def is_up(
    dependency: str,
    app: App,
    allowed: Mapping[str, Work],
    earlier: set[str],
    found: Found,
    desired: Desired,
    observed: Observed,
    dependent: str,
) -> bool:
    """Return whether the dependency was started, is started earlier in this lane, or would wait for its dependent."""
    prefix, _, name = dependency.partition("/")
    if prefix == app.name:
        if name in allowed and allowed[name].starts:
            return True
        if name in app.containers and name not in earlier:
            return True  # a cycle, and this is the edge that `start_order` ignores
        return was_started(found.get(name, ()))
    if all(was_started(observed.containers.get(replica, ())) for replica in _replicas(dependency, desired)):
        return True

    def depends_on(full_name: str) -> Iterable[str]:
        owner, _, container = full_name.partition("/")
        other = desired.apps.get(owner)
        want = other.containers.get(container) if other is not None else None
        return want.settings.depends_on if want is not None else ()

    return reaches(dependency, dependent, depends_on)


def _replicas(full_name: str, desired: Desired) -> list[str]:
    """The full names of a container of another app and of its replicas."""
    owner, _, name = full_name.partition("/")
    app = desired.apps.get(owner)
    names = app.containers if app is not None else ()
    return [full_name, *(f"{owner}/{one}" for one in names if one != name and replicated(one) == name)]


def was_started(found: Sequence[Container]) -> bool:
    """`started` is kept by a program that has come to its end: a dependent does not wait for it to run again."""
    return any(isinstance(container.phase, Running | Exited) for container in found)
