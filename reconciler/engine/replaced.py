"""Layers that were replaced under somebody: a running container's overlay goes on using the directory that it was
mounted from, so that one is put aside, and goes when nothing that was started before that runs any more.

Which containers those are is read afresh each time, from their records and shims; nothing is remembered but the moment,
in the name: the layer, the boot of the kernel, and its clock in seconds.
"""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from reconciler.engine import trash
from reconciler.engine.durable import sync_directory
from reconciler.engine.layout import Layout
from reconciler.engine.process import boot_id
from reconciler.engine.record import Record, records
from reconciler.engine.sight import phase_of
from reconciler.state.observed import Exited, Running


def put_aside(layout: Layout, path: Path, chain: str) -> None:
    """Move the directory `path`, which was the layer of the hex chain id `chain`, to where `release` finds it.

    Succeeds if it is not there. What is no directory goes into the trash.
    """
    if not path.is_dir() or path.is_symlink():
        trash.discard(path, layout.trash)
        return
    layout.replaced.mkdir(mode=0o700, exist_ok=True)
    moment = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    name = f"{chain}.{_boot()}.{moment}.{secrets.token_hex(4)}"
    path.rename(layout.replaced / name)
    sync_directory(path.parent)
    sync_directory(layout.replaced)


def users(layout: Layout, chain: str, before: float | None = None) -> Iterator[Record]:
    """The containers that may have the layer mounted; with `before`, if since before that moment of the boot clock."""
    for record in records(layout):
        if chain not in record.layers:
            continue
        match phase_of(layout, record.id):
            case Exited():
                continue
            case Running(since=since) if before is not None and since > before + 1:
                continue  # mounted when the new one was in place: a second for the moment being a whole one
            case _:
                yield record


def release(layout: Layout) -> int:
    """Throw away what nothing uses any more; return how many directories still have to wait."""
    try:
        names = sorted(os.listdir(layout.replaced))
    except FileNotFoundError:
        return 0
    waiting = 0
    for name in names:
        chain, boot, moment, *_ = [*name.split("."), "", "", ""]
        if boot == _boot() and moment.isdecimal() and any(users(layout, chain, float(moment))):
            waiting += 1
        else:
            trash.discard(layout.replaced / name, layout.trash)
    return waiting


def _boot() -> str:
    return boot_id().replace("-", "")[:16]
