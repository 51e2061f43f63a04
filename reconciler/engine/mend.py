"""Records of containers that can't be read any more, put right (R9): what runs must not be forgotten, because the next
turn would make it a second time.

What was written stands in a copy in the run directory, on a tmpfs: another medium than the disk that lost it. Without a
copy nobody knows whose the container is, and it goes; its successor is made as for any that was lost. The damaged file
is kept beside, for somebody to look at. Nothing else is touched.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from reconciler.engine import record
from reconciler.engine.durable import replace_bytes
from reconciler.engine.layout import Layout
from reconciler.engine.process import alive, read_shim
from reconciler.failpoint import failpoint


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done: `app` is "" where nobody knows whose the container was."""

    app: str
    text: str


def everything(layout: Layout) -> tuple[str, ...]:
    """The ids of all containers that have a directory."""
    try:
        return tuple(sorted(os.listdir(layout.containers)))
    except FileNotFoundError:
        return ()


def mend(
    layout: Layout, container_ids: Iterable[str], now: float, remove: Callable[[str], None]
) -> tuple[Mended, ...]:
    """Mend the records of these containers; `remove` takes away one that runs and that nobody can name.

    Containers in the making, and what is left of others, have no record and are passed over. Raises OSError where the
    disk refuses, and what `remove` raises; whatever was not mended is found again.
    """
    found = (_mend(layout, container_id, now, remove) for container_id in container_ids)
    return tuple(mended for mended in found if mended is not None)


def _mend(layout: Layout, container_id: str, now: float, remove: Callable[[str], None]) -> Mended | None:
    path = layout.identity(container_id)
    missing, why = False, ""
    try:
        known: record.Record | None = record.read_checked(layout, container_id)
    except FileNotFoundError:
        known, missing, why = None, True, "was deleted"
    except NotADirectoryError:
        return None  # no container at all: something else lies where its directory would be
    except (IsADirectoryError, record.CorruptRecordError) as error:
        known, why = None, "is a directory" if isinstance(error, IsADirectoryError) else "was damaged"
    if known is not None:
        return None  # it was being written just now
    shim = read_shim(layout.shim_record(container_id))
    runs = shim is not None and alive(shim.shim)
    if missing and not runs:
        return None  # in the making, or on its way out
    copy = _copy(layout, container_id)
    if copy is None:
        if not runs:
            return None  # a leftover, and no harm: the sweep takes it
        remove(container_id)
        return Mended("", f"container {container_id[:12]}: its record {why}, and no copy is left: removed")
    aside = path.with_name(f"{path.name}.corrupt-{int(now)}")
    kept = ""
    if not missing:
        os.rename(path, aside)
        failpoint("mend.aside")
        kept = f", the damaged file kept as {aside}"
    replace_bytes(path, copy[1], durable=False)
    failpoint("mend.restored")
    return Mended(copy[0].app, f"{copy[0].full_name}: its record {why}; restored from its copy{kept}")


def _copy(layout: Layout, container_id: str) -> tuple[record.Record, bytes] | None:
    path = layout.identity_copy(container_id)
    try:
        data = path.read_bytes()
        found = record.parse(data, str(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, record.CorruptRecordError):
        pass
    else:
        return (found, data) if found.id == container_id else None
    try:  # the copy is what was damaged: then the record itself is right, if it is one
        data = layout.identity(container_id).read_bytes()
        return record.parse(data, container_id), data
    except (OSError, record.CorruptRecordError):
        return None
