"""Which limits this host can keep, and by what means: the part of `doctor` that is about them."""

import os
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine import volumelimit
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


def quotas(state: Path) -> Check:
    """Whether a volume can have a `size_limit`; only who wants one needs it."""
    missing, remedy = volumelimit.lacking(state)
    if missing:
        return Check("quota", None, f"no size_limit of a volume can be enforced: {missing}", remedy)
    return Check("quota", True, f"project quotas are enforced at {state}")
