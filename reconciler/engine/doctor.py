"""What this host offers and what it lacks, each found by trying it, with the remedy. It leaves nothing behind.

Trials that need a namespace run in a thread of their own, which takes everything away when it ends (unshare(2) works on
the calling thread); the host's own mounts, links and tables are never touched. A check that fails is a value: `doctor`
prints it, `agent` refuses to start for a missing one.
"""

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from reconciler.engine import bundle, clock, enforcing, idmapping, scrubbed
from reconciler.engine.enforcing import Check, version
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout, existing
from reconciler.engine.network import ipv6, ruleset
from reconciler.engine.network.diagnose import explain
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import forward_blockers
from reconciler.engine.network.leases import decode
from reconciler.engine.network.ports import PortTable
from reconciler.engine.seccomp.default import ARCHITECTURES
from reconciler.engine.snapshot import Uppers, file_system_type
from reconciler.errors import ReconcilerError
from reconciler.linux import bpf, capability, mount, namespace, netlink, rtnetlink
from reconciler.linux.seccomp import load

FLOOR: Final = (5, 15)
_BUILT: Final = 1_767_225_600  # 2026-01-01: no clock that is right shows less
_NEEDED: Final = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_ADMIN",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_CHROOT",
)
_ELSEWHERE: Final = "run it on the host, or in a container with --privileged"
_NAMESPACES: Final = (
    namespace.CLONE_NEWNS
    | namespace.CLONE_NEWPID
    | namespace.CLONE_NEWNET
    | namespace.CLONE_NEWUTS
    | namespace.CLONE_NEWIPC
    | namespace.CLONE_NEWCGROUP
)


def checks(layout: Layout, *, quick: bool = False) -> tuple[Check, ...]:
    """Everything, or with `quick` only what an agent can't do without. Takes well under a second."""
    found = [_kernel(), _root()]
    if found[-1].ok:
        found += [_capabilities(), _namespaces(), _overlay(layout), *_cgroups(), _network(), _forwarding()]
        found.append(_seccomp())
    if quick:
        return tuple(found)
    if found[1].ok:
        needed = _has_ipv6(layout)
        found += [*_foreign_firewalls(needed), _ipv6(needed=needed)]
    return (
        *found,
        _git(),
        _room(layout),
        _store(layout),
        enforcing.quotas(existing(layout.volumes), on_tmpfs=Uppers(layout).on_tmpfs),
        _ids(layout),
        _clock(),
        _inotify(),
        _descriptors(),
        _resources(),
    )


# --- required ----------------------------------------------------------------------------------------------------


def _kernel() -> Check:
    ok = version() >= FLOOR
    return Check("kernel", ok, f"Linux {os.uname().release}", "" if ok else "boot Linux 5.15 or newer")


def _root() -> Check:
    uid = os.geteuid()
    return Check(
        "root", uid == 0, f"running as uid {uid}", "" if uid == 0 else "run it as root, for example with sudo"
    )


def _capabilities() -> Check:
    effective = capability.capget()[0]
    missing = [name for name in _NEEDED if not effective >> capability.NUMBERS[f"CAP_{name}"] & 1]
    if missing:
        return Check("capabilities", False, f"missing: {', '.join(missing)}", _ELSEWHERE)
    without = [name for name in bundle.CAPABILITIES if not effective >> capability.NUMBERS[name] & 1]
    if without:
        names = ", ".join(name.removeprefix("CAP_") for name in sorted(without))
        return Check(
            "capabilities", None, f"containers run without {names}, which the agent lacks", _ELSEWHERE
        )
    return Check("capabilities", True, "all that are needed")


def _namespaces() -> Check:
    error = _tried(lambda: namespace.unshare(_NAMESPACES))
    return Check(
        "namespaces", not error, error or "pid, net, mount, uts, ipc, cgroup", _ELSEWHERE if error else ""
    )


def _overlay(layout: Layout) -> Check:
    """Try a mount whose writable part is where containers will have theirs: not every file system can be one."""
    state = existing(layout.state)
    kind = file_system_type(state, _mountinfo())
    if kind == "overlay":
        error = _tried(_mount_overlay_on_tmpfs)
        if error:
            return Check("overlay", False, error, _ELSEWHERE)
        detail = f"{state} is itself on overlay: writable layers go to {layout.run}, and are lost at a reboot"
        return Check("overlay", None, detail, "put --state on another file system")
    try:
        base = tempfile.mkdtemp(prefix=".doctor-", dir=state)
    except OSError as error:
        return Check(
            "overlay", False, f"{state}: {error.strerror}", "choose a --state directory that is writable"
        )
    try:
        failed = _tried(lambda: _mount_overlay(base))
    finally:
        shutil.rmtree(base)
    if failed and not _tried(_mount_overlay_on_tmpfs):
        detail = (
            f"{state} is on {kind or 'an unknown file system'}, which can't hold writable layers: {failed}"
        )
        return Check("overlay", False, detail, "put --state on ext4, xfs or btrfs")
    if failed:
        return Check("overlay", False, failed, _ELSEWHERE)
    return Check("overlay", True, f"works; {state} is on {kind or 'an unknown file system'}")


def _mount_overlay_on_tmpfs() -> None:
    namespace.unshare(namespace.CLONE_NEWNS)
    mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)
    base = "/tmp" if Path("/tmp").is_dir() else "/"
    mount.mount("doctor", base, "tmpfs")
    _mount_overlay(base)


def _mount_overlay(base: str) -> None:
    """Mount an overlay in `base`, in a namespace of this thread, and write through it."""
    namespace.unshare(namespace.CLONE_NEWNS)
    mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{base}/{name}")
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    mount.mount("doctor", f"{base}/merged", "overlay", 0, options)
    # xfs without ftype, and some network file systems, mount and then fail here (read-only, or EIO).
    os.mkdir(f"{base}/merged/trial")
    os.rmdir(f"{base}/merged/trial")


def _cgroups() -> list[Check]:
    try:
        found = Hierarchies.detect()
    except ReconcilerError as error:
        return [Check("cgroup", False, str(error), error.hint)]
    versions = {name: found.version(name) for name in ("cpu", "memory", "pids", "cpuset")}
    versions["io"] = found.version("io") or found.version("blkio")
    missing = [name for name, version in versions.items() if version == 0]
    where = ", ".join(f"{name} v{version}" for name, version in versions.items() if version)
    root = found.v2 if found.v2 is not None and not found.v1 else found.v1.get("pids", found.v2)
    trial = root / f"doctor-{os.getpid()}-{threading.get_ident()}" if root is not None else None
    if trial is not None:
        try:
            trial.mkdir()
            trial.rmdir()
        except OSError as error:
            return [Check("cgroup", False, f"{trial.parent}: {error.strerror}", _ELSEWHERE)]
    listing = [Check("cgroup", True, f"{found}: {where or 'no controller'}")]
    listing.append(_devices(found))
    if versions["memory"]:
        listing.append(enforcing.memory(found))
    if missing:
        remedy = f"boot with {' '.join(f'cgroup_enable={name}' for name in missing)}"
        listing.append(Check("limits", None, f"can't be enforced: {', '.join(missing)}", remedy))
    return listing


def _devices(found: Hierarchies) -> Check:
    """Load the program that guards devices on version 2; the lists of version 1 need no trial."""
    if "devices" in found.v1:
        return Check("devices", True, "guarded by the version 1 cgroup controller devices")
    try:
        os.close(bpf.load_device_program(bpf.device_program(())))
    except OSError as error:
        detail = f"can't be guarded: {error.strerror}; no container gets one"
        return Check("devices", None, detail, "boot a kernel with CONFIG_CGROUP_BPF")
    return Check("devices", True, "guarded by a program on cgroup version 2")


def _network() -> Check:
    """Make a bridge, a link and the whole port table, in a network namespace that ends with the trial."""
    error = _tried(_make_network)
    if error:
        remedy = "" if ";" in error else "modprobe -a bridge veth nf_tables nft_nat nft_masq nft_fib_ipv4"
        return Check("network", False, error, remedy or _ELSEWHERE)
    return Check("network", True, "bridge, veth and nftables work")


def _make_network() -> None:
    namespace.unshare(namespace.CLONE_NEWNET)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Socket(netlink.ROUTE) as sock:
            sock.request(rtnetlink.new_bridge("doctor", mtu=1500, mac=b"\x02\0\0\0\0\x01"))
            bridge = rtnetlink.read_link(sock.get(rtnetlink.get_link("doctor")))
            sock.request(
                rtnetlink.new_veth(
                    "doctor0",
                    bridge=bridge.index,
                    mtu=1500,
                    peer="doctor1",
                    peer_mac=b"\x02\0\0\0\0\x02",
                    peer_namespace=own,
                )
            )
    except OSError as error:
        raise explain(error, "a bridge with a link") from error
    finally:
        os.close(own)
    subnets = {"doctor": IPv4Network("198.51.100.0/24")}
    firewall = Firewall("0" * 16)
    try:
        firewall.replace({ruleset.IP: ruleset.render("0" * 16, subnets, PortTable([]))})
    finally:
        firewall.close()


def _forwarding() -> Check:
    """Forwarding is turned on with the first network; that needs a /proc/sys that can be written."""
    path = Path("/proc/sys/net/ipv4/ip_forward")
    if _number(path) == 1:
        return Check("ip_forward", True, "on")
    if os.access(path, os.W_OK):
        return Check("ip_forward", True, "off; it is turned on with the first network")
    return Check(
        "ip_forward", False, f"off, and {path} can't be written", "set net.ipv4.ip_forward=1 from outside"
    )


# --- good to know -------------------------------------------------------------------------------------------------


def _ipv6(*, needed: bool) -> Check:
    """Networks with IPv6 need it switched on, and a table of its own; `needed` says that there are such networks."""
    fault, remedy = ipv6.lacking()
    if not fault:
        return Check("ipv6", True, "on, for the networks that have it")
    if needed:
        return Check("ipv6", None, f"{fault}; containers in networks with ipv6 wait", remedy)
    return Check("ipv6", True, f"{fault}; no network here has ipv6")


def _has_ipv6(layout: Layout) -> bool:
    """Whether a network of this state directory has IPv6."""
    try:
        leases = decode(layout.leases.read_bytes())
    except (OSError, ValueError):
        return False
    return any(lease.subnet6 is not None for lease in leases.values())


def _foreign_firewalls(has_ipv6: bool) -> list[Check]:
    try:
        blockers = forward_blockers(Firewall("0" * 16), ipv6=has_ipv6)
    except ReconcilerError as error:
        return [Check("forwarding", None, str(error), error.hint)]
    if not blockers:
        return [Check("forwarding", True, "nobody else's firewall drops forwarded traffic")]
    return [Check("forwarding", None, str(blocker), blocker.hint) for blocker in blockers]


def _ids(layout: Layout) -> Check:
    why, remedy = idmapping.lacking(layout)
    if why:
        return Check("ids", None, f"root in a container is root on this device: {why}", remedy)
    return Check("ids", True, "containers can have ids of their own (userns: auto)")


def _git() -> Check:
    path = shutil.which("git")
    return Check("git", True if path else None, path or "not found", "" if path else "apt-get install git")


def _seccomp() -> Check:
    """Whether the kernel can filter calls: without, no container starts but one that is not filtered."""
    if not load.available():
        return Check(
            "seccomp",
            False,
            "this kernel can't filter system calls",
            "boot one with CONFIG_SECCOMP_FILTER, or see `seccomp: unconfined`",
        )
    if os.uname().machine not in ARCHITECTURES:
        return Check(
            "seccomp", False, f"system calls of {os.uname().machine} are not known", "use amd64 or arm64"
        )
    return Check("seccomp", True, f"containers are filtered; the kernel can: {_actions()}")


def _actions() -> str:
    """What filters can answer; `/proc` may be another's, so a surprise is only told."""
    try:
        return Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        return f"unknown ({error})"


def _room(layout: Layout) -> Check:
    state = existing(layout.state)
    room = os.statvfs(state)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    detail = f"{free >> 20} MiB of {total >> 20} MiB free at {state}"
    low = free < 512 << 20
    return Check(
        "disk", None if low else True, detail, "make room, or use another --state directory" if low else ""
    )


def _store(layout: Layout) -> Check:
    """What the scrub has found; no fault of the host that containers can't run for."""
    known = scrubbed.read(layout)
    if known.wrong:
        (kind, name), what = min(known.wrong.items())
        more = f", and {len(known.wrong) - 1} more" if len(known.wrong) > 1 else ""
        return Check("store", None, f"{kind} {name[:19]} {what}{more}", "run: reconciler fsck --repair")
    when = "never read through yet"
    if known.finished:
        when = f"whole at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(known.finished))}"
    return Check("store", True, when)


def _clock() -> Check:
    now = time.time()
    detail = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if now < _BUILT:
        return Check("clock", None, detail, "set the clock: certificates look invalid")
    if clock.synchronized() is False:
        return Check(
            "clock",
            None,
            f"{detail}, and nobody keeps it right",
            "apt-get install systemd-timesyncd, or chrony with rtcsync",
        )
    return Check("clock", True, detail)


def _inotify() -> Check:
    watches = _number(Path("/proc/sys/fs/inotify/max_user_watches"))
    low = watches < 8192
    return Check(
        "inotify",
        None if low else True,
        f"{watches} watches",
        "raise fs.inotify.max_user_watches, or changes are found by polling" if low else "",
    )


def _descriptors() -> Check:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= 65536:
        return Check("descriptors", True, "the hard limit is high enough")
    return Check(
        "descriptors",
        None,
        f"the hard limit on open files is {hard}: containers get that instead of 65536:1048576",
        "raise LimitNOFILE of the service",
    )


def _resources() -> Check:
    if capability.capget()[0] >> capability.NUMBERS["CAP_SYS_RESOURCE"] & 1:
        return Check("resources", True, "CAP_SYS_RESOURCE is there")
    return Check("resources", None, "CAP_SYS_RESOURCE is missing: hard limits can't be raised", _ELSEWHERE)


# --- trying -----------------------------------------------------------------------------------------------------


def _tried(trial: Callable[[], None]) -> str:
    """Run `trial` in a thread of its own, whose namespaces end with it; return the error, or ""."""
    said = ["the trial broke off"]  # what a trial says that ends in another way than those below

    def run() -> None:
        try:
            trial()
            said[0] = ""
        except OSError as error:
            said[0] = str(error.strerror or error)
        except ReconcilerError as error:
            said[0] = f"{error}; {error.hint}" if error.hint else str(error)

    thread = threading.Thread(target=run, name="doctor")
    thread.start()
    thread.join()
    return said[0]


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
