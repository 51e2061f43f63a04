"""How much a container may write to its own file system: its writable layer, which no volume is part of.

Where the file system of the state directory has project quotas the kernel keeps the limit: a program that goes beyond
it gets an error. Elsewhere the agent measures the layer now and then (agent.overfull), and ends a container that has
reached its limit. The mark that says so makes the end of it one that has a reason; the next start is by its restart
policy, for one that a spec declares with an empty layer. One that keeps its files is refused until it fits.
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.engine import projectquota, volumes
from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.engine.process import end, open_pidfd, read_shim, stop_signal
from reconciler.engine.projectquota import GRAIN, Holder, Project, read_project
from reconciler.engine.snapshot import Uppers
from reconciler.errors import BlockedError
from reconciler.state.desired import Container, called

_LARGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Use:
    """What a container has written, in bytes: `counted` by the kernel, which keeps the limit, or else measured."""

    used: int
    counted: bool


def prepare(layout: Layout, uppers: Uppers, container_id: str, desired: Container) -> None:
    """Set the limit of a layer before the first instruction; BlockedError where it holds as much as that already.

    An empty layer has its project before anything is made in it. One that is kept from a run before may hold more than
    a limit that the kernel keeps: it can grow no further.
    """
    label, limit = desired.full_name, desired.settings.limits.rootfs
    if limit is None or counts(layout, uppers):
        apply(layout, uppers, container_id, label, limit)
        return
    used = volumes.tree_size(uppers.paths(container_id)[0])
    if used >= limit:
        raise BlockedError(
            f"container {called(desired.app, desired.name)}: {text(limit, used)}",
            hint="give it more: reconciler update --storage-opt size=SIZE NAME; or take out what you need and rm it",
        )


def apply(layout: Layout, uppers: Uppers, container_id: str, label: str, limit: int | None) -> None:
    """Have the layer hold at most `limit` bytes from now on, None for all the room there is; running or not.

    Where nothing counts what is in it, nothing is done: the next measurement goes by the new limit.
    """
    if not counts(layout, uppers):
        return
    holder = _holder(layout, container_id, label)
    if (
        limit is not None
        and not holder.record.exists()
        and not any(map(os.listdir, _paths(layout, container_id)))
    ):
        projectquota.begin(holder, limit)
    else:
        projectquota.apply(holder, limit)


def in_force(
    layout: Layout, uppers: Uppers, container_id: str, wanted: int | None, project: Project | None
) -> int | None:
    """The limit that holds, for comparing with what is wanted: what differs by what the kernel rounds is as wanted.

    One that is measured holds as long as somebody measures, and is as wanted too. `project` is what its record says.
    """
    if project is None:
        return None if wanted is not None and counts(layout, uppers) else wanted
    found = projectquota.in_force(_holder(layout, container_id, ""), project)
    if found is None:
        return None if counts(layout, uppers) else wanted
    limit = found[0] or None
    return wanted if limit is not None and wanted is not None and 0 <= limit - wanted < GRAIN else limit


def use(layout: Layout, uppers: Uppers, container_id: str) -> Use:
    """What is in the layer: by the kernel's count, else by walking it, which is not for every turn."""
    project = read_project(str(layout.quota(container_id)))
    found = projectquota.in_force(_holder(layout, container_id, ""), project)
    if found is not None and found[0]:
        return Use(found[1], counted=True)
    return Use(volumes.tree_size(uppers.paths(container_id)[0]), counted=False)


def release(layout: Layout, container_id: str) -> None:
    """Lift the limit of a layer that is about to go."""
    projectquota.release(_holder(layout, container_id, ""))


def counts(layout: Layout, uppers: Uppers) -> bool:
    """Whether the kernel can keep such limits here."""
    return not uppers.on_tmpfs and all(projectquota.states(layout.containers))


def _paths(layout: Layout, container_id: str) -> tuple[Path, Path]:
    return layout.upper(container_id), layout.work(container_id)


def _holder(layout: Layout, container_id: str, label: str) -> Holder:
    # The work directory first: overlayfs moves what it has made there into the upper, and what goes the other way it
    # removes. For a moment the one has the project and the other does not, and then a move may fail (EXDEV).
    return Holder(
        layout=layout,
        label=f"container {label}: limits.rootfs",
        record=layout.quota(container_id),
        root=layout.container(container_id),
        names=("work", "upper"),
        whole=False,
        blank={"version": 1},
    )


# --- where nobody counts ----------------------------------------------------------------------------------------------


def text(limit: int, used: int) -> str:
    """Why it was ended, or does not start."""
    return f"rootfs limit of {_size(limit)} exceeded: {_size(used)}"


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


def finish(layout: Layout, container_id: str, signal_name: str, grace: float, why: str) -> bool:
    """End a container that has reached its limit, with its grace; return whether it ran.

    The mark comes first, so that whoever finds it ended finds out why. TimedOutError where it does not end.
    """
    shim = read_shim(layout.shim_record(container_id))
    if shim is None or shim.started_boot is None:
        return False
    init = open_pidfd(shim.init)
    if init is None:
        return False
    try:
        replace_json(layout.overfull(container_id), {"reason": why}, durable=False)
        signal.pidfd_send_signal(init, stop_signal(signal_name))
    except (FileNotFoundError, ProcessLookupError):
        os.close(init)
        return False
    end(init, grace)  # with the first process of its PID namespace the kernel ends them all
    return True


def reason(path: Path | str) -> str | None:
    """What the mark at `path` says; None without one, and where it can't be read."""
    try:
        with open(path, "rb") as file:
            return str(json.loads(file.read(_LARGEST))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def explained(layout: Layout, container_id: str) -> bytes:
    """Its exit record with the reason that its mark gives; as it is without one. OSError where there is none."""
    record = layout.exit_record(container_id).read_bytes()
    why = reason(layout.overfull(container_id))
    try:
        value = json.loads(record)
        return record if why is None else json.dumps({**value, "reason": why}).encode() + b"\n"
    except (ValueError, TypeError):
        return record


def check(layout: Layout, uppers: Uppers, container_id: str, limit: int) -> str:
    """Why the container has to end, "" where it does not: measures its layer, unless the kernel keeps the limit."""
    if counts(layout, uppers) and read_project(str(layout.quota(container_id))) is not None:
        return ""
    used = volumes.tree_size(uppers.paths(container_id)[0])
    return text(limit, used) if used >= limit else ""
