"""What this machine can run: for each marker a probe that tries the thing itself, with other people's programs.

A probe returns "" when the tests may run, else the reason why not. It never looks at a version or a configuration: it
unshares, mounts and makes cgroups, in a child that takes everything away with it. It must not use the code under test,
which could then hide its own faults as skips. A reason that begins with KERNEL_LACKS is a fact about the kernel and
remains a skip everywhere; any other is a fault of the set-up, and fails where `--require-kernel` or CI=true is set.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

KERNEL_LACKS: Final = "this kernel lacks "

# What the programs print where the kernel has no such thing, as opposed to forbidding it.
_ABSENT: Final = (
    "Invalid argument",
    "Function not implemented",
    "unknown filesystem type",
    "No such device",
    "not supported",
)

_UNSHARE: Final = ("unshare", "--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
_OVERLAY: Final = """
set -e
mount -t tmpfs probe /tmp
mkdir /tmp/lower /tmp/upper /tmp/work /tmp/merged
mount -t overlay probe -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/merged
mount -t proc probe /proc
"""
_NETWORK: Final = """
set -e
ip link add probe type bridge
ip link add probe0 type veth peer name probe1
ip link set probe0 master probe
nft 'add table inet probe; add chain inet probe nat { type nat hook prerouting priority -100; }'
nft 'add map inet probe ports { type inet_service : ipv4_addr . inet_service; }'
nft 'add rule inet probe nat dnat ip to tcp dport map @ports'
"""


_LIMIT = 200 if os.environ.get("IN_VM") else 20  # seconds; the emulated machine is ten times slower


def _attempt(*command: str) -> str:
    """Run `command`; return "" when it succeeds, else what it says, as a reason."""
    if shutil.which(command[0]) is None:
        return f"the program {command[0]} is not installed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no end within {_LIMIT} s"
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split()) or f"{command[0]}: status {done.returncode}"
    if any(word in said for word in _ABSENT):
        return f"{KERNEL_LACKS}what this needs: {said}"
    return said


@functools.cache
def kernel() -> str:
    """Try root's privileges, every namespace, tmpfs, overlay and a fresh /proc."""
    if os.geteuid() != 0:
        return f"not root (uid {os.geteuid()})"
    return _attempt(*_UNSHARE, "sh", "-c", _OVERLAY)


def _cgroup_parent(controller: str) -> Path | None:
    """Return the directory below which groups with `controller` are made: version 2 if it has it, else version 1."""
    root = Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    if controllers.exists() and controller in controllers.read_text().split():
        return root
    return root / controller if (root / controller / "cgroup.procs").exists() else None


@functools.cache
def cgroup() -> str:
    """Try to make a cgroup and to limit memory and the number of processes in it."""
    if reason := kernel():
        return reason
    for controller, settings in (
        ("pids", ("pids.max",)),
        ("memory", ("memory.max", "memory.limit_in_bytes")),
    ):
        parent = _cgroup_parent(controller)
        if parent is None:
            return f"no cgroup hierarchy with {controller} is mounted"
        group = parent / f"probe-{os.getpid()}"
        try:
            group.mkdir()
            try:
                setting = next(name for name in settings if (group / name).exists())
                (group / setting).write_text(str(1 << 20))
            finally:
                group.rmdir()
        except (OSError, StopIteration) as error:
            return f"cgroup {group}: {error or 'no limit can be set'}"
    return ""


@functools.cache
def network() -> str:
    """Try bridges, veth pairs and a NAT table in a network namespace of its own."""
    return kernel() or _attempt("unshare", "--net", "sh", "-c", _NETWORK)


_QUOTA: Final = """
set -e
mount -t tmpfs probe /tmp
truncate -s 16M /tmp/image
mkfs.ext4 -q -O quota,project -E quotatype=prjquota /tmp/image
mkdir /tmp/mounted
mount -o loop,prjquota /tmp/image /tmp/mounted 2>/tmp/said ||
  { echo "ext4 with project quotas is not supported: $(cat /tmp/said)" >&2; exit 1; }
umount /tmp/mounted
"""


@functools.cache
def quota() -> str:
    """Try to mount an ext4 that enforces project quotas (CONFIG_QUOTA, CONFIG_QFMT_V2)."""
    if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return "not installed: mkfs.ext4"
    return kernel() or _attempt(*_UNSHARE, "sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin\n{_QUOTA}")


@functools.cache
def machine() -> str:
    """Say which program for the virtual machine is missing; booting it is the test itself."""
    needed = ("qemu-system-x86_64", "mmdebstrap", "mksquashfs", "mke2fs", "cpio", "depmod")
    missing = [
        name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    if os.geteuid() != 0:
        return f"not root (uid {os.geteuid()}): the guest's root file system cannot be made"
    return f"not installed: {', '.join(missing)}" if missing else ""


PROBES: Final[Mapping[str, Callable[[], str]]] = {
    "kernel": kernel,
    "cgroup": cgroup,
    "network": network,
    "e2e": network,
    "quota": quota,
    "vm": machine,
}
