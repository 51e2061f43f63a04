"""Another name for an ad-hoc container that may run: its records, its lease and its link, and what its siblings read.

Its id, its files, its process and its address stay. What is being done is noted first, in a file that the next loop
finds after a crash, because between the two names a plan would see one container too many. Nobody may plan meanwhile.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace

from reconciler.engine import record
from reconciler.engine.byhand import ByHand
from reconciler.engine.container import Containers
from reconciler.engine.durable import replace_json, sync_directory
from reconciler.engine.layout import Layout
from reconciler.engine.network.networks import Networks
from reconciler.engine.process import alive, read_shim
from reconciler.errors import ReconcilerError
from reconciler.failpoint import failpoint
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import lane_of

_DAMAGED = (ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Place:
    """What a renaming works on."""

    layout: Layout
    byhand: ByHand
    networks: Networks
    containers: Containers


def rename(place: Place, old: str, new: str) -> None:
    """Call the ad-hoc container `old` by the name `new`, which is free; NotFoundError where it is gone."""
    finish(place)  # the note has room for one
    place.byhand.read(old)
    replace_json(place.layout.renaming, {"version": 1, "old": old, "new": new})
    failpoint("rename.noted")
    _carry_on(place, old, new)


def lanes(layout: Layout) -> frozenset[str]:
    """The lanes of the two names of a renaming that is not finished: no plan may touch them."""
    with suppress(*_DAMAGED, OSError):
        return frozenset(lane_of(ADHOC, name) for name in _noted(layout) or ())
    return frozenset()


def _noted(layout: Layout) -> tuple[str, str] | None:
    try:
        value = json.loads(layout.renaming.read_bytes())
        return str(value["old"]), str(value["new"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def finish(place: Place) -> None:
    """Finish what a crash, or an error, interrupted; nothing where nothing was."""
    path = place.layout.renaming
    try:
        noted = _noted(place.layout)
    except _DAMAGED as error:
        path.rename(
            path.with_name(f"{path.name}.damaged")
        )  # kept for people; the two names tell what was meant
        raise ReconcilerError(
            f"{path}: not the note of a renaming", hint="run: reconciler ps -a; a name may be there twice"
        ) from error
    if noted is not None:
        _carry_on(place, *noted)


def _carry_on(place: Place, old: str, new: str) -> None:
    layout, networks = place.layout, place.networks
    identity = place.byhand.rename(old, new)
    failpoint("rename.recorded")
    found = None
    if identity:
        found = next((one for one in record.records(layout) if one.id == identity), None)
    if found is not None:
        found = replace(found, name=new)
        layout.run_container(found.id).mkdir(mode=0o700, exist_ok=True)  # a reboot took it away
        record.write(layout, found, durable=True)
        failpoint("rename.called")
    networks.rename(ADHOC, old, new)
    if found is not None and found.networks:
        shim = read_shim(layout.shim_record(found.id))
        if shim is not None and shim.started_boot is not None and alive(shim.init):
            place.containers.attach(found)
    place.containers.tell((ADHOC,) if found is None else found.networks)
    failpoint("rename.told")
    layout.renaming.unlink(missing_ok=True)
    sync_directory(layout.adhoc_root)
