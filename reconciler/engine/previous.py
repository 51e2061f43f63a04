"""What stays of a container that was removed: its log and its records, until the next of its name is removed.

`logs --previous` and the back-off look here.
"""

from pathlib import Path

from reconciler.engine import record
from reconciler.engine.durable import replace_bytes
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.failpoint import failpoint


def forget(layout: Layout, store: Store, found: record.Record) -> None:
    """Take away what was kept of the run before; succeeds where nothing was."""
    store.discard(layout.previous(found.app, found.name), durable=False)


def keep(layout: Layout, store: Store, found: record.Record) -> None:
    """Move the log and the records to where `logs --previous` and the back-off look for them.

    The identity is there first, so that a second try knows what the first one moved, and goes from here last: until
    then the container exists, and is removed again by whoever finds it.
    """
    kept = layout.previous(found.app, found.name)
    copy = kept / "identity.json"
    if not _is_of(copy, found.id):
        store.discard(kept, durable=False)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept.mkdir(mode=0o700)
        failpoint("previous.made")
        replace_bytes(copy, layout.identity(found.id).read_bytes(), durable=False)
    for source in (layout.log(found.id), layout.settled_exit(found.id)):
        _move(source, kept / source.name)
    failpoint("previous.moved")
    if not (kept / "exit.json").exists():
        try:
            data = layout.exit_record(found.id).read_bytes()
        except FileNotFoundError:
            data = b""
        if data:
            replace_bytes(kept / "exit.json", data, durable=False)
    if layout.stopping(found.id).exists():
        (kept / "stopped").touch(mode=0o600)
    layout.identity(found.id).unlink(missing_ok=True)


def _is_of(path: Path, container_id: str) -> bool:
    try:
        return record.parse(path.read_bytes(), str(path)).id == container_id
    except (OSError, record.CorruptRecordError):
        return False


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        pass
