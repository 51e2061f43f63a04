"""Take everything of an instance off the device: the counterpart of an agent's first turn, for people only.

Stops what runs with its own grace, removes containers, bridges, the port table, cgroups, restores sysctls,
and deletes the state and run directories, volumes included. Each part succeeds if it is gone, so a second
call finishes a first one.
"""

import os
import select
import shutil
import time
from collections.abc import Callable

from reconciler.agent.parts import Parts
from reconciler.engine import trash
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.record import Record, records
from reconciler.engine.scope import drop_scope


def remove_everything(parts: Parts, say: Callable[[str], None]) -> None:
    """Remove it all; `say` hears a line per part. The caller holds the state lock."""
    found = list(records(parts.layout))
    _stop(parts, found, say)
    # Removing writes (leases), which a full disk would not let it: what an agent alone would read goes first.
    layout = parts.layout
    for directory in (
        layout.generations,
        layout.lastgood_root,
        layout.adhoc_root,
        layout.wishes_root,
        layout.partial,
        layout.downloads,
    ):
        shutil.rmtree(directory, ignore_errors=True)
    for container in found:
        parts.containers.remove(container.id, keep_previous=False)
        say(f"removed {container.full_name}")
    parts.containers.sweep()
    parts.networks.clean()
    say("removed networks, port table and sysctls")
    parts.close()
    drop_scope(parts.cgroup_parent, Hierarchies.detect())
    for directory in (layout.run, layout.state):
        gone = trash.delete(directory)
        say(f"removed {directory}" if gone else f"emptied {directory}: a file system is mounted there")


def _stop(parts: Parts, found: list[Record], say: Callable[[str], None]) -> None:
    """Ask all to end at once, wait for each as long as its own grace period."""
    waiting: list[tuple[Record, int]] = []
    for container in found:
        pidfd = parts.containers.begin_stop(container.id, container.settings.stop_signal)
        if pidfd is not None:
            waiting.append((container, pidfd))
    began = time.monotonic()
    for container, pidfd in waiting:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        left = began + container.settings.stop_grace - time.monotonic()
        if not poll.poll(max(0.0, left) * 1000):
            say(f"{container.full_name}: did not end within {container.settings.stop_grace:g} s; killing it")
        os.close(pidfd)
