"""Which limits this host can keep, and by what means: the part of `doctor` that is about them."""

import os
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine import projectquota
from reconciler.engine.hierarchies import Hierarchies


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `ok` is False for what containers can't do without, None for a warning."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def version() -> tuple[int, ...]:
    """The kernel's, its first two numbers."""
    numbers = os.uname().release.split("-", 1)[0].split(".")
    return tuple(int(part) for part in numbers[:2] if part.isdigit())


def memory(found: Hierarchies) -> Check:
    """Who sees to it that a container whose memory runs out ends whole, and whether the most that it had is known."""
    if found.version("memory") == 2:
        peak = "" if version() >= (5, 19) else "; the most that one had is not known before Linux 5.19"
        return Check("memory", True, f"a container that runs out of it ends whole, by the kernel{peak}")
    directory = found.v1["memory"]
    if (directory / "memory.oom_control").exists() and (directory / "cgroup.event_control").exists():
        return Check("memory", True, "a container that runs out of it ends whole, by its shim (version 1)")
    detail = "this kernel does not tell when it kills in version 1: one process of a container ends, the rest goes on"
    return Check("memory", None, detail, "boot with cgroup version 2: systemd.unified_cgroup_hierarchy=1")


def quotas(state: Path, *, on_tmpfs: bool) -> Check:
    """How `limits.rootfs` is kept here, and whether a volume can have a `size_limit`; only who wants one needs it."""
    missing, remedy = projectquota.lacking(state)
    if not missing and not on_tmpfs:
        return Check("quota", True, f"limits.rootfs and size_limit are kept by project quotas at {state}")
    polled = "limits.rootfs is measured every few seconds while the agent runs, not kept by the kernel"
    if not missing:  # layers of containers are in the run directory, on a tmpfs
        return Check("quota", None, polled, "put --state on ext4 or xfs with project quotas")
    return Check("quota", None, f"no size_limit of a volume can be enforced, and {polled}: {missing}", remedy)
