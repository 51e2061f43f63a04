"""An OCI bundle: the config.json (runtime-spec 1.0.2) from which our shim, or any runtime, makes a container.

Pure: values in, one dictionary out, the same byte for byte for the same input (golden files hold it). It reads no disk
and asks no kernel; what it must know of them is an argument. What the specification has no field for goes into
annotations with the prefix `dev.reconciler.`, which come from here only: an image's labels never become annotations
(CVE-2026-53488 is what happens otherwise).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, assert_never

from reconciler.engine import idrange
from reconciler.engine.devices import DEFAULT, Node, Rule
from reconciler.engine.joining import Joined
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError
from reconciler.linux.capability import NAMES
from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.state.desired import (
    BindMount,
    ConfigMount,
    Container,
    Identity,
    Limits,
    Mount,
    TmpfsMount,
    VolumeMount,
)

OCI_VERSION: Final = "1.0.2"
PREFIX: Final = "dev.reconciler."

# The ten of the spec reference: Docker's fourteen without NET_RAW, MKNOD, AUDIT_WRITE and SETFCAP.
CAPABILITIES: Final = DEFAULT_CAPABILITIES

NAMESPACES: Final = ("pid", "network", "mount", "uts", "ipc", "cgroup")

# What tells about the host or its hardware. The thermal_throttle directories (one per CPU) and powercap are side
# channels (CVE-2020-8694); the former have a `*` in their path, which masked paths can't have: /sys is read-only, and
# reading them needs no privilege on the host either.
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

_NOFILE: Final = ("nofile", 65536, 1048576)
_CPU_PERIOD: Final = 100_000  # microseconds, the kernel's own default
_RESERVED: Final = ("/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup")
_PRIVATE: Final = ("rprivate",)
# A named volume holds data, never devices or a way to gain privileges: nodev and nosuid (as podman does for binds too).
_DATA: Final = ("nodev", "nosuid")


def render(
    desired: Container,
    *,
    id: str,
    layout: Layout,
    layers: Sequence[Path],
    upper: Path,
    work: Path,
    cgroup: Mapping[str, object],
    cgroups_path: str,
    nofile_hard: int,
    held: Collection[str] = NAMES,
    nodes: Sequence[Node] = (),
    rules: Sequence[Rule] | None = DEFAULT,
    joined: Joined | None = None,
    seccomp: Mapping[str, Any] | None,
    ids: int = 0,
) -> dict[str, Any]:
    """Return the config.json of `desired` as plain JSON values, or raise ReconcilerError for a mount that can't be.

    `layers` are the unpacked layers, topmost first; `upper` and `work` the directories of the writable layer. `cgroup`
    is where the shim puts the container, {"v2": directory or None, "v1": [directories]}; `cgroups_path` the same for
    other runtimes. `nofile_hard` is the agent's own hard RLIMIT_NOFILE (-1 for infinity): without CAP_SYS_RESOURCE no
    child can have more, so the default limit, which nobody asked for by name, is clamped to it. `held` are the agent's
    own capabilities, which ALL means; `nodes` and `rules` are those of engine.devices, `seccomp` is what
    engine.seccomp.filter gives, None for no filter. `joined` is the container whose
    network it is in: the host name and the files in /etc are that one's as well.
    `ids` is the first of its range of ids, 0 where it has the device's.
    """
    identity = desired.identity
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(desired, nofile_hard, held),
        "root": {"path": str(layout.rootfs(id)), "readonly": identity.read_only},
        "mounts": _kernel_mounts(identity) + _own_mounts(desired, id, layout, joined.id if joined else id),
        "linux": {
            "namespaces": [
                {"type": kind, **({"path": joined.path} if joined and kind == "network" else {})}
                for kind in NAMESPACES
                if kind != "network" or identity.network_mode != "host"
            ],
            "resources": {**_resources(desired.settings.limits), "devices": _device_rules(rules)},
            "cgroupsPath": cgroups_path,
            "rootfsPropagation": "private",
            "maskedPaths": [] if identity.privileged else list(MASKED_PATHS),
            "readonlyPaths": [] if identity.privileged else list(READONLY_PATHS),
        },
        "annotations": _annotations(desired, id, layout, layers, upper, work, cgroup),
    }
    if seccomp is not None:
        config["linux"]["seccomp"] = seccomp
    if nodes:
        config["linux"]["devices"] = [node.document() for node in nodes]
    # As with Docker since 20.10: ping works, without NET_RAW, which could forge anything (icmp(7))
    sysctls = {"net.ipv4.ping_group_range": "0 2147483647"} if identity.network_mode == "bridge" else {}
    sysctls |= {_sysctl(name): value for name, value in identity.sysctls}
    if sysctls:
        config["linux"]["sysctl"] = sysctls
    if ids:
        _give_ids(config, identity, ids)
    if hostname := joined.hostname if joined else identity.hostname:
        config["hostname"] = hostname
    return config


def _give_ids(config: dict[str, Any], identity: Identity, first: int) -> None:
    """Add the user namespace: every bind shows the ids that are on disk as those of the range."""
    mapping = [{"containerID": 0, "hostID": first, "size": idrange.COUNT}]
    linux = config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = linux["gidMappings"] = mapping
    for mount in config["mounts"]:
        if mount["type"] == "bind":
            mount["uidMappings"] = mount["gidMappings"] = mapping
    # CAP_NET_BIND_SERVICE counts over a network of its user namespace only, which this one is not (ip(7))
    if identity.network_mode in ("bridge", "none"):
        linux["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0", **linux.get("sysctl", {})}


def config_files(desired: Container) -> dict[str, ConfigMount]:
    """Return the files that the config mounts show, by name, each with a mount whose ids and mode are the file's.

    A config that is shown twice with different ids or modes is two files: they belong to the inode, not to the mount.
    """
    files: dict[str, ConfigMount] = {}
    for mount in desired.identity.mounts:
        if isinstance(mount, ConfigMount):
            files.setdefault(_config_file(desired, mount), mount)
    return files


def _config_file(desired: Container, mount: ConfigMount) -> str:
    # The name of the config, which the spec's grammar keeps free of slashes and dots
    ways: list[tuple[int, int, int]] = []
    for other in desired.identity.mounts:
        if isinstance(other, ConfigMount) and other.config == mount.config:
            way = (other.uid, other.gid, other.mode)
            if way not in ways:
                ways.append(way)
    number = ways.index((mount.uid, mount.gid, mount.mode))
    return f"{mount.config}.{number}" if number else mount.config


# --- process -------------------------------------------------------------------------------------------------------


def _process(desired: Container, nofile_hard: int, held: Collection[str]) -> dict[str, Any]:
    identity = desired.identity
    names = capabilities(identity, held)
    return {
        "terminal": identity.tty,
        # A placeholder: the raw USER is in the annotation, because its names are those of the container's own passwd,
        # which only the shim can open safely.
        "user": _user(identity),
        "args": list(identity.arguments),
        "env": list(identity.environment),
        "cwd": identity.working_dir,
        # Inheritable and ambient are empty: with inheritable ones, any file with inheritable file capabilities hands
        # them to whoever runs it (CVE-2022-24769).
        "capabilities": {
            "bounding": names,
            "effective": names,
            "permitted": names,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": identity.no_new_privileges,
        "rlimits": _rlimits(identity, nofile_hard),
        "oomScoreAdj": identity.oom_score_adj,
    }


def capabilities(identity: Identity, held: Collection[str]) -> list[str]:
    """The capabilities that its root gets: what it names, and of the usual ones and ALL what the agent itself has."""
    names = set(CAPABILITIES) & set(held)
    if identity.privileged or "ALL" in identity.cap_add:
        names = set(held)
    if "ALL" in identity.cap_drop:
        names = set()
    return sorted((names | set(identity.cap_add)) - set(identity.cap_drop) - {"ALL"})


def _device_rules(rules: Sequence[Rule] | None) -> list[dict[str, Any]]:
    if rules is None:
        return [{"allow": True, "access": "rwm"}]
    return [{"allow": False, "access": "rwm"}, *(rule.document() for rule in rules)]


def _user(identity: Identity) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": 0, "gid": 0}
    if groups := [int(group) for group in identity.groups if group.isdigit()]:
        user["additionalGids"] = groups
    return user


def _rlimits(identity: Identity, nofile_hard: int) -> list[dict[str, Any]]:
    """The limits that the spec names as they are; that of open files, where it does not, as far as we may give it."""
    limits = list(identity.ulimits)
    if all(name != "nofile" for name, _, _ in limits):
        name, soft, hard = _NOFILE
        most = hard if nofile_hard < 0 else min(hard, nofile_hard)
        limits.append((name, min(soft, most), most))
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": soft % 2**64, "hard": hard % 2**64}
        for name, soft, hard in sorted(limits)
    ]


def _sysctl(name: str) -> str:
    """The name for other runtimes too, which turn every dot into a slash: one with a slash goes by its path."""
    return name.translate(str.maketrans("./", "/.")) if "/" in name else name


def _resources(limits: Limits) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if limits.cpus is not None:
        resources["cpu"] = {"quota": limits.cpus * _CPU_PERIOD // 1000, "period": _CPU_PERIOD}
    if limits.memory is not None:
        # The specification's `swap` is memory and swap together (config-linux.md, "Memory"), ours is swap alone.
        resources["memory"] = {"limit": limits.memory, "swap": limits.memory + limits.swap}
    if limits.reserve_memory:
        resources.setdefault("memory", {})["reservation"] = limits.reserve_memory
    if limits.cpuset:
        resources.setdefault("cpu", {})["cpus"] = limits.cpuset
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    return resources


# --- mounts --------------------------------------------------------------------------------------------------------


def _kernel_mounts(identity: Identity) -> list[dict[str, Any]]:
    """What Linux programs expect of a container; a mount of the spec's own replaces /dev/shm or /dev/mqueue."""
    access = "rw" if identity.privileged else "ro"
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        # gid 5 is tty in every distribution; 0620 keeps `write` and `mesg` as they are everywhere.
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount(
            "/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={identity.shm_size}"
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        # Read-only: on v1 a writable release_agent runs programs on the host (CVE-2022-0492).
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", access),
    ]
    replaced = {mount.target for mount in identity.mounts} - set(_RESERVED)
    return [mount for mount in mounts if mount["destination"] not in replaced]


def _own_mounts(desired: Container, id: str, layout: Layout, etc: str) -> list[dict[str, Any]]:
    """The spec's mounts and the files that we write for /etc, parents before what is mounted inside them.

    `etc` is the id of the container whose files these are: its own, or that of the one whose network it joined.

    Where the spec mounts something on /etc/hosts, /etc/resolv.conf or /etc/hostname itself, the spec wins.
    """
    found: dict[str, dict[str, Any]] = {}
    for target, source in (
        ("/etc/hosts", layout.hosts(etc)),
        ("/etc/resolv.conf", layout.resolv_conf(etc)),
        ("/etc/hostname", layout.hostname(etc)),
    ):
        # Writable, as everywhere: programs (and Docker's documentation) edit them; they are this container's own.
        found[target] = _mount(target, "bind", str(source), "bind", *_PRIVATE, *_DATA, "noexec")
    own: set[str] = set()
    for mount in desired.identity.mounts:
        target = mount.target
        if target in _RESERVED or target.startswith("/proc/"):
            raise ReconcilerError(
                f"{desired.full_name}: mount on {target}: it holds the container's own kernel files",
                hint="choose another target in the spec",
            )
        if target in own:
            raise ReconcilerError(f"{desired.full_name}: two mounts on {target}")
        own.add(target)
        found[target] = _own_mount(desired, mount, id, layout)
    return [found[target] for target in sorted(found, key=lambda target: (target.count("/"), target))]


def _own_mount(desired: Container, mount: Mount, id: str, layout: Layout) -> dict[str, Any]:
    match mount:
        case VolumeMount():
            source = layout.volume_data(desired.app, mount.volume) / mount.subpath
            access = "ro" if mount.read_only else "rw"
            return _mount(mount.target, "bind", str(source), "bind", *_PRIVATE, *_DATA, access)
        case BindMount():
            _check_source(desired, mount.source, layout)
            access = "ro" if mount.read_only else "rw"
            safe = () if desired.identity.privileged else _DATA
            return _mount(mount.target, "bind", mount.source, "rbind", mount.propagation, *safe, access)
        case TmpfsMount():
            return _mount(
                mount.target, "tmpfs", "tmpfs", *_DATA[::-1], f"mode={mount.mode:04o}", f"size={mount.size}"
            )
        case ConfigMount():
            source = layout.configs(id) / _config_file(desired, mount)
            return _mount(mount.target, "bind", str(source), "bind", *_PRIVATE, *_DATA, "ro")
        case _:
            assert_never(mount)


def _check_source(desired: Container, source: str, layout: Layout) -> None:
    """Refuse what would hand over the device itself, whatever the device's settings allow: its control sockets are in
    the run directory, every other app's data in the state directory, and the host's root behind /proc/1/root.
    """
    for own, what in (
        (str(layout.state), "the agent's own files are there"),
        (str(layout.run), "the agent's own sockets are there"),
        ("/proc", "the whole device is behind it"),
    ):
        if _inside(source, own) or _inside(own, source):
            raise ReconcilerError(
                f"{desired.full_name}: bind of {source}: {what}", hint="mount a directory that holds less"
            )


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


# --- annotations ---------------------------------------------------------------------------------------------------


def _annotations(
    desired: Container,
    id: str,
    layout: Layout,
    layers: Sequence[Path],
    upper: Path,
    work: Path,
    cgroup: Mapping[str, object],
) -> dict[str, str]:
    identity = desired.identity
    rotation = desired.settings.rotation
    volumes = [
        {
            "destination": mount.target,
            "root": str(layout.volume(desired.app, mount.volume)),
            **({"subpath": mount.subpath} if mount.subpath else {}),
            **({"nocopy": True} if mount.nocopy else {}),
        }
        for mount in sorted(identity.mounts, key=lambda mount: (mount.target.count("/"), mount.target))
        if isinstance(mount, VolumeMount)
    ]
    values: dict[str, str] = {
        "name": desired.full_name,
        "events": str(layout.events),
        "layers": _json([str(layer) for layer in layers]),
        "upper": str(upper),
        "work": str(work),
        "log": _json(
            {
                "directory": str(layout.log(id)),
                "driver": identity.log_driver,
                "max_size": rotation.max_size,
                "max_files": rotation.max_files,
                "compress": rotation.compress,
            }
        ),
        "volumes": _json(volumes),
        "user": identity.user,
        "cgroup": _json(dict(cgroup)),
    }
    if identity.init:
        values["init"] = "true"
    if identity.seccomp.startswith("sha256:"):
        values["seccomp"] = identity.seccomp
    if identity.stdin:
        values["stdin"] = identity.stdin
    if not desired.networked:
        values["network-mode"] = identity.network_mode
    if identity.extra_hosts:
        values["extra-hosts"] = _json([list(pair) for pair in identity.extra_hosts])
    if identity.groups:
        values["groups"] = _json(list(identity.groups))
    if identity.ulimits:
        values["rlimits-requested"] = _json([f"RLIMIT_{name.upper()}" for name, _, _ in identity.ulimits])
    return {PREFIX + key: value for key, value in sorted(values.items())}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
