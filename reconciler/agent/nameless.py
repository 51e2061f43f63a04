"""Volumes that nobody named: made with the ad-hoc container that mounts them, and gone with it where that is asked.

`run --rm` and `rm -v` note in the volume that it goes with the container; the engine does it when it removes that one.
No plan removes a volume, and one without such a note stays until somebody prunes.
"""

from reconciler.agent.parts import Parts
from reconciler.engine import volumes
from reconciler.engine.record import records
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.commandline import anonymous_name
from reconciler.state.desired import Container, VolumeMount


def _of(want: Container) -> list[str]:
    return [
        mount.volume
        for mount in want.identity.mounts
        if isinstance(mount, VolumeMount) and mount.volume == anonymous_name(want.id, mount.target)
    ]


def make(parts: Parts, want: Container) -> None:
    """Make those that `want` is to mount, before anything else of it."""
    going = want.id if want.wish is not None and want.wish.auto_remove else ""
    with parts.store.claims:
        for name in _of(want):
            volumes.create(parts.layout, ADHOC, name, anonymous=True, goes_with=going)


def take_back(parts: Parts, want: Container) -> None:
    """Take them away again where the container was not made."""
    names = _of(want)
    if not names:
        return
    with parts.store.claims:
        if all(found.id != want.id for found in records(parts.layout)):
            for name in names:
                if parts.layout.volume(ADHOC, name).exists():
                    volumes.remove(parts.layout, ADHOC, name, users=())


def let_go(parts: Parts, container_id: str) -> None:
    """Note that the anonymous volumes of a container go with it."""
    for found in records(parts.layout):
        if found.id == container_id and found.app == ADHOC:
            for name in found.volumes:
                if volumes.read(parts.layout, ADHOC, name).anonymous:
                    volumes.go_with(parts.layout, ADHOC, name, container_id)
