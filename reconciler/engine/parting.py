"""What goes with a container that is removed for good: the anonymous volumes of which somebody said so."""

from reconciler.engine import record, volumes
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.failpoint import failpoint


def drop_volumes(layout: Layout, store: Store, found: record.Record) -> None:
    """Take away the volumes that go with it, but for those that others mount; succeeds where they are gone."""
    going = [name for name in found.volumes if volumes.goes_with(layout, found.app, name) == found.id]
    if not going:
        return
    with store.claims:
        others = [one for one in record.records(layout) if one.app == found.app and one.id != found.id]
        for name in going:
            if not any(name in one.volumes for one in others):
                volumes.remove(layout, found.app, name, users=())
                failpoint("remove.emptied")
