"""The cgroup scope that systemd delegates to this program's containers, where systemd is the init and cgroups are v2.

In the service's own cgroup containers can't live: on Debian 12 a service with Delegate=yes, KillMode=process and child
cgroups fails to restart with 219/CGROUP. A scope of its own survives restart, stop and daemon-reload of the service.
A holder process, in a leaf of the scope, keeps it alive while no container runs; at shutdown systemd stops it with all
that is inside.
"""

import subprocess
import time
from pathlib import Path
from typing import Final

from reconciler.engine.hierarchies import Hierarchies, read
from reconciler.errors import ReconcilerError, TimedOutError

_HOLDER: Final = 'mkdir -p "$1/holder" && echo $$ >"$1/holder/cgroup.procs" && exec sleep infinity'
_PATIENCE: Final = 10.0


def needed(hierarchies: Hierarchies, booted: Path = Path("/run/systemd/system")) -> bool:
    """Say whether containers belong into a scope: systemd runs (sd_booted(3)) and v2 has the controllers."""
    return booted.is_dir() and hierarchies.v2 is not None and "memory" in hierarchies.v2_controllers


def ensure_scope(name: str, hierarchies: Hierarchies) -> Path:
    """Make the delegated scope `name`.scope unless it is there, and return its cgroup directory.

    Call it before the first container after every boot, where `needed`; engine.cgroup finds the directory by its name.
    """
    if hierarchies.v2 is None:
        raise ReconcilerError(f"scope {name}: no cgroup version 2 hierarchy is mounted")
    directory = hierarchies.v2 / "system.slice" / f"{name}.scope"
    if _held(directory):
        return directory
    command = [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={name}.scope",
        "--slice=system.slice",
    ]
    command += ["--property=Delegate=yes", "--description=reconciler: containers", "--"]
    command += ["/bin/sh", "-c", _HOLDER, "holder", str(directory)]
    try:
        # systemd-run becomes the holder: it registers itself in the scope, then executes the command
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ReconcilerError(f"systemd-run: {error.strerror}", hint="apt-get install systemd") from error
    deadline = time.monotonic() + _PATIENCE
    while not _held(directory):
        if process.poll() is not None:
            said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            if _held(directory):
                break  # somebody else has made it at the same time
            raise ReconcilerError(f"scope {name}: systemd-run: {said or f'status {process.returncode}'}")
        if time.monotonic() > deadline:
            process.kill()
            raise TimedOutError(f"scope {name}: systemd has not made it within {_PATIENCE:.0f} s")
        time.sleep(0.01)
    if process.stderr:
        process.stderr.close()
    return directory


def _held(directory: Path) -> bool:
    return bool(read(directory / "holder" / "cgroup.procs").split())


def join(name: str, hierarchies: Hierarchies, pid: int) -> None:
    """Move a process beside the holder, if there is a scope: it then survives whatever becomes of the service."""
    if hierarchies.v2 is None:
        return
    holder = hierarchies.v2 / "system.slice" / f"{name}.scope" / "holder"
    if holder.is_dir():
        (holder / "cgroup.procs").write_text(str(pid))


def drop_scope(name: str, hierarchies: Hierarchies) -> None:
    """End the holder and whatever else is in the scope, so that systemd lets it go; succeed where there is none."""
    if hierarchies.v2 is None:
        return
    kill = hierarchies.v2 / "system.slice" / f"{name}.scope" / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
