"""What people mean by a container's name: `APP/CONTAINER`, the plain name of an ad-hoc one, or the start of an id.

The one place where names are resolved, from the disk alone, for every verb with and without an agent. Reads only.
"""

from reconciler.engine import byhand
from reconciler.engine.byhand import DamagedRecordError
from reconciler.engine.layout import Layout
from reconciler.engine.record import Record, records
from reconciler.errors import NotFoundError, UsageError
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import called

_SHORTEST = 2  # digits of an id


def named(layout: Layout, name: str) -> tuple[str, str]:
    """The app and the container that `name` means, whether or not the container exists yet; or NotFoundError."""
    adhoc = byhand.adhoc_names(layout) or frozenset()
    plain = name.removeprefix(f"{ADHOC}/")
    if plain in adhoc:
        return ADHOC, plain
    found = list(records(layout))
    for record in found:
        if name in (record.full_name, called(record.app, record.name)):
            return record.app, record.name
    if len(name) >= _SHORTEST:
        ids = {record.id: (record.app, record.name) for record in found}
        ids |= {identity: (ADHOC, other) for other, identity in _ids(layout, adhoc).items()}
        meant = {ids[identity] for identity in ids if identity.startswith(name)}
        if len(meant) == 1:
            return meant.pop()
        if meant:
            raise UsageError(
                f"container {name}: ambiguous, {len(meant)} ids start with it", hint="use more digits"
            )
    inside = sorted({record.full_name for record in found if name in (record.app, record.name)})
    hint = f"did you mean {' or '.join(inside)}?" if inside and "/" not in name else "run: reconciler ps -a"
    raise NotFoundError(f"container {name}: not found", hint=hint)


def find(layout: Layout, name: str) -> Record:
    """The newest container that `name` means, or NotFoundError."""
    app, container = named(layout, name)
    same = [record for record in records(layout) if (record.app, record.name) == (app, container)]
    if not same:
        raise NotFoundError(f"container {name}: it has not been made yet", hint="run: reconciler status")
    return max(same, key=lambda record: record.created)


def _ids(layout: Layout, names: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = byhand.parse_adhoc(layout.adhoc(name)).id
        except (DamagedRecordError, OSError):
            continue
    return found
