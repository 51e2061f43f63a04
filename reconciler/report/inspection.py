"""What `inspect` prints of a container: Docker's names wherever the meaning is the same.

Pure: the records on disk and the kernel's facts in, plain JSON values out. Keys are never renamed within v1; what
Docker has no name for stands under `Reconciler`. The content of configs is not in it, and of secrets not even where it
lies.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, assert_never

from reconciler.engine.bundle import CAPABILITIES, PREFIX
from reconciler.engine.record import Record
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.modes import JOINS
from reconciler.state.image import Image
from reconciler.state.observed import Created, Exited, Lost, Phase, Running

NEVER: Final = "0001-01-01T00:00:00Z"  # as Docker writes a time that has not come
_KERNEL: Final = ("proc", "sysfs", "cgroup", "devpts", "mqueue")
_OWN_FILES: Final = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")


@dataclass(frozen=True, slots=True)
class Found:
    """A container as it was found: its record, its config.json ({} where that is lost), and its phase.

    `frozen`: its cgroup is. `networks` are its places in networks, by key; `image` is None where it is
    not known any more. `status` is its row of the status document, {} where that could not be had. `memory_peak` is in
    bytes, None where nothing runs, or nothing counts it. `rootfs` are limit and use of its writable layer, and who
    keeps the limit, {} without one. `trust` is what is known of its image's signature, {} where none is asked for.
    """

    record: Record
    config: Mapping[str, Any]
    phase: Phase
    log: str
    frozen: bool = False
    networks: Mapping[str, "Place"] = field(default_factory=dict)
    image: Image | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    memory_peak: int | None = None
    rootfs: Mapping[str, Any] = field(default_factory=dict)
    trust: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """A container's place in a network, as leased."""

    address: str
    subnet: str
    gateway: str
    aliases: tuple[str, ...] = ()
    address6: str = ""
    subnet6: str = ""
    gateway6: str = ""


def rfc3339(wall: float | None, precision: str = "microseconds") -> str:
    """RFC 3339 in UTC; Docker's zero time for None and for what no calendar has."""
    try:
        text = datetime.fromtimestamp(wall, UTC).isoformat(timespec=precision) if wall else ""
        return text.replace("+00:00", "Z") or NEVER
    except (OverflowError, ValueError, OSError):
        return NEVER


# --- containers ----------------------------------------------------------------------------------------------------


def container(found: Found) -> dict[str, Any]:
    """One container."""
    record, settings = found.record, found.record.settings
    process = _mapping(found.config.get("process"))
    arguments = [str(word) for word in process.get("args", ())]
    mounts = list(_mounts(found))
    return {
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Path": arguments[0] if arguments else "",
        "Args": arguments[1:],
        "State": _state(found),
        "Image": record.image,
        "Name": record.full_name,
        "RestartCount": record.restarts,
        "LogPath": found.log,
        "Platform": "linux",
        "HostConfig": _host_config(found, mounts),
        "Mounts": mounts,
        "Config": _config(found, arguments),
        "NetworkSettings": _network(found),
        "Reconciler": {
            "App": record.app,
            "Container": record.name,
            "Fingerprint": record.fingerprint,
            "Manifest": record.manifest,
            "Reference": record.reference,
            "Attempt": record.attempt,
            "DependsOn": list(settings.depends_on),
            "MemoryPeak": found.phase.record.peak if isinstance(found.phase, Exited) else found.memory_peak,
            "Rootfs": dict(found.rootfs) if found.rootfs else None,
            "Signature": signature(found.trust) if found.trust else None,
            "State": found.status.get("state", ""),
            "UpToDate": found.status.get("up_to_date"),
            "Reason": found.status.get("reason", ""),
            "NextStartSeconds": found.status.get("next_start_seconds"),
        },
    }


def signature(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of an image's signature, by the rule that asks for one."""
    return {
        "Signed": verdict["signed"],
        "Rule": verdict["rule"],
        "Mode": verdict["mode"],
        "Key": verdict["key"],
        "Fingerprint": verdict["fingerprint"],
        "Form": verdict["form"],
        "Source": verdict["source"],
        "Verified": rfc3339(verdict["verified"]),
        "Problem": verdict["problem"],
    }


def _state(found: Found) -> dict[str, Any]:
    phase = found.phase
    state: dict[str, Any] = {
        "Status": "",
        "Running": False,
        "Paused": False,
        "Restarting": found.status.get("state") == "backoff",
        "OOMKilled": False,
        "Dead": False,
        "Pid": 0,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": NEVER,
        "FinishedAt": NEVER,
    }
    match phase:
        case Created():
            state |= {"Status": "created"}
        case Running():
            state |= {
                "Status": "paused" if found.frozen else "running",
                "Running": True,
                "Paused": found.frozen,
                "Pid": phase.pid,
                "StartedAt": rfc3339(phase.since_wall),
            }
        case Exited(ended):
            state |= {
                "Status": "restarting" if state["Restarting"] else "exited",
                "OOMKilled": ended.oom,
                "Error": ended.reason,
                "ExitCode": ended.code if ended.code is not None else 128 + (ended.signal or 0),
                "StartedAt": rfc3339(ended.started_wall),
                "FinishedAt": rfc3339(ended.finished_wall),
            }
        case Lost():
            state |= {"Status": "dead", "Dead": True, "Error": phase.reason}
        case _:
            assert_never(phase)
    health = found.status.get("health", "none")
    return state if health in ("none", "", None) else {**state, "Health": _health(found.status)}


def _health(status: Mapping[str, Any]) -> dict[str, Any]:
    probe = _mapping(status.get("probe"))
    return {
        "Status": status["health"],
        "FailingStreak": probe.get("failures", 0),
        "Log": [{"Output": probe["output"]}] if probe.get("output") else [],
    }


def _host_config(found: Found, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    settings, config = found.record.settings, found.config
    limits, rotation = settings.limits, settings.rotation
    process, linux = _mapping(config.get("process")), _mapping(config.get("linux"))
    bounding = _mapping(process.get("capabilities")).get("bounding", CAPABILITIES)
    memory = limits.memory or 0
    return {
        "Memory": memory,
        "MemorySwap": memory + limits.swap if memory else 0,
        "NanoCpus": limits.cpus * 1_000_000 if limits.cpus is not None else 0,
        "PidsLimit": limits.pids,
        "CpusetCpus": limits.cpuset,
        "MemoryReservation": limits.reserve_memory,
        "PortBindings": _bindings(found),
        "RestartPolicy": {
            "Name": settings.restart.policy,
            "MaximumRetryCount": settings.restart.max_attempts,
        },
        "Binds": [
            f"{mount['Name'] if mount['Type'] == 'volume' else mount['Source']}:{mount['Destination']}"
            + ("" if mount["RW"] else ":ro")
            for mount in mounts
            if mount["Type"] in ("volume", "bind")
        ],
        "Tmpfs": {mount["Destination"]: mount["Mode"] for mount in mounts if mount["Type"] == "tmpfs"},
        "Privileged": linux.get("maskedPaths") == [],
        "ReadonlyRootfs": bool(_mapping(config.get("root")).get("readonly", False)),
        "Init": _annotation(config, "init") == "true",
        "NetworkMode": found.record.networks[0]
        if found.record.networks
        else _annotation(config, "network-mode").replace(f"{JOINS}{ADHOC}/", JOINS),
        "Dns": [],
        "CapAdd": sorted(set(bounding) - set(CAPABILITIES)),
        "CapDrop": sorted(set(CAPABILITIES) - set(bounding)),
        "UsernsMode": "auto" if linux.get("uidMappings") else "host",
        "SecurityOpt": _security(config),
        "OomScoreAdj": process.get("oomScoreAdj", 0),
        "GroupAdd": json.loads(_annotation(config, "groups") or "[]"),
        "Devices": list(_devices(linux)),
        "ShmSize": _shm_size(config),
        "StorageOpt": {"size": str(limits.rootfs)} if limits.rootfs is not None else {},
        "Annotations": dict(settings.annotations),
        "Sysctls": dict(_mapping(linux.get("sysctl"))),
        "Ulimits": [
            {
                "Name": str(limit.get("type", "")).removeprefix("RLIMIT_").lower(),
                "Soft": _unlimited(limit.get("soft")),
                "Hard": _unlimited(limit.get("hard")),
            }
            for limit in process.get("rlimits", ())
        ],
        "LogConfig": {
            "Type": json.loads(_annotation(config, "log") or "{}").get("driver", "file"),
            "Config": {
                "max-size": str(rotation.max_size),
                "max-file": str(rotation.max_files),
                "compress": str(rotation.compress).lower(),
            },
        },
    }


def _shm_size(config: Mapping[str, Any]) -> int:
    """The size of the /dev/shm that is ours, 0 where the spec mounts something of its own there."""
    for mount in config.get("mounts", ()):
        if mount["destination"] == "/dev/shm" and mount["source"] == "shm":
            sizes = [option[5:] for option in mount.get("options", ()) if option.startswith("size=")]
            return int(sizes[-1]) if sizes else 0
    return 0


def _security(config: Mapping[str, Any]) -> list[str]:
    """As Docker has it: what differs from its own default; a profile by its digest, not with all its text."""
    found = ["no-new-privileges"] if _mapping(config.get("process")).get("noNewPrivileges") else []
    if "seccomp" not in _mapping(config.get("linux")):
        found.append("seccomp=unconfined")
    elif profile := _annotation(config, "seccomp"):
        found.append(f"seccomp={profile}")
    return found


def _devices(linux: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    """The device nodes that the container has beside those that all have, with what its cgroup lets it do to them."""
    rules = _mapping(linux.get("resources")).get("devices", ())
    for node in linux.get("devices", ()):
        same = ("type", "major", "minor")
        access = next(
            (rule.get("access") for rule in rules if all(rule.get(key) == node.get(key) for key in same)),
            "rwm",
        )
        yield {"PathInContainer": str(node.get("path", "")), "CgroupPermissions": str(access)}


def _unlimited(value: Any) -> Any:
    """A limit as Docker writes it: RLIM_INFINITY is -1."""
    return -1 if isinstance(value, int) and value >= 1 << 63 else value


def _mounts(found: Found) -> Iterable[dict[str, Any]]:
    """The spec's mounts: those that every container has (kernel file systems, /etc/hosts ...) are left out."""
    run = _run_directory(found.config)
    volumes = _volumes(found.config)
    for mount in found.config.get("mounts", ()):
        kind, source, target = str(mount["type"]), str(mount["source"]), str(mount["destination"])
        options = [str(option) for option in mount.get("options", ())]
        own = bool(run) and source.startswith(run) and target in _OWN_FILES
        if kind in _KERNEL or own or target == "/dev" or (target == "/dev/shm" and source == "shm"):
            continue
        volume = volumes.get(target, "")
        what = "tmpfs" if kind == "tmpfs" else "volume" if volume else "bind"
        if f"/containers/{found.record.id}/configs/" in source:
            what = "config"
        elif run and source.startswith(run) and not own:
            what, source = "secret", ""
        yield {
            "Type": what,
            **({"Name": volume} if volume else {}),
            "Source": "" if what == "tmpfs" else source,
            "Destination": target,
            "Mode": ",".join(option for option in options if option not in ("bind", "rbind", "rprivate")),
            "RW": "ro" not in options,
            "Propagation": next((option for option in options if option.lstrip("r") in _PROPAGATION), ""),
        }


def _volumes(config: Mapping[str, Any]) -> dict[str, str]:
    """The names of the named volumes by where they are mounted."""
    found = json.loads(_annotation(config, "volumes") or "[]")
    return {str(one["destination"]): "/".join(str(one["root"]).split("/")[-2:]) for one in found}


_PROPAGATION: Final = ("private", "slave", "shared")


def _run_directory(config: Mapping[str, Any]) -> str:
    """The container's directory in the run directory, by where its /etc/hostname lies; "" where a spec brings that."""
    for mount in config.get("mounts", ()):
        if mount["destination"] == "/etc/hostname" and str(mount["source"]).endswith("/hostname"):
            return str(mount["source"]).removesuffix("hostname")
    return ""


def _config(found: Found, arguments: Sequence[str]) -> dict[str, Any]:
    process, image = _mapping(found.config.get("process")), found.image
    entrypoint = list(image.entrypoint or ()) if image is not None else []
    if not entrypoint or arguments[: len(entrypoint)] != entrypoint:
        entrypoint = []
    exposed: dict[str, Any] = {str(port): {} for port in (image.exposed_ports if image is not None else ())}
    return {
        "Hostname": str(found.config.get("hostname", "")),
        "User": _annotation(found.config, "user"),
        "Env": [str(variable) for variable in process.get("env", ())],
        "Cmd": list(arguments[len(entrypoint) :]),
        "Entrypoint": entrypoint or None,
        "Image": found.record.reference,
        "WorkingDir": str(process.get("cwd", "")),
        "Labels": {**dict(image.labels if image is not None else ()), **dict(found.record.settings.labels)},
        "ExposedPorts": {**exposed, **{f"{p.target}/{p.protocol}": {} for p in found.record.settings.ports}},
        "StopSignal": found.record.settings.stop_signal,
        "StopTimeout": found.record.settings.stop_grace,
        "Tty": bool(process.get("terminal", False)),
        "OpenStdin": bool(_annotation(found.config, "stdin")),
        "StdinOnce": _annotation(found.config, "stdin") == "once",
    }


def _bindings(found: Found) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in found.record.settings.ports:
        bindings.setdefault(f"{port.target}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": str(port.published)}
        )
    return bindings


def _network(found: Found) -> dict[str, Any]:
    """What Docker's NetworkSettings has. An address is a lease: it stays while the container does not run."""
    running = isinstance(found.phase, Running)
    exposed = {str(port): None for port in (found.image.exposed_ports if found.image is not None else ())}
    networks = {key: _place(found.networks[key]) for key in found.record.networks if key in found.networks}
    # As Docker does, what is said outside of `Networks` is of the first
    first = next(iter(networks.values()), _place(Place("", "", "")))
    return {
        "IPAddress": found.record.address,
        "IPPrefixLen": first["IPPrefixLen"],
        "GlobalIPv6Address": first["GlobalIPv6Address"],
        "GlobalIPv6PrefixLen": first["GlobalIPv6PrefixLen"],
        "IPv6Gateway": first["IPv6Gateway"],
        "Ports": {**exposed, **(_bindings(found) if running else {})},
        "Networks": networks,
    }


def _place(place: Place) -> dict[str, Any]:
    length, length6 = (subnet.partition("/")[2] for subnet in (place.subnet, place.subnet6))
    return {
        "IPAddress": place.address,
        "IPPrefixLen": int(length) if length.isdigit() else 0,
        "Subnet": place.subnet,
        "Gateway": place.gateway,
        "GlobalIPv6Address": place.address6,
        "GlobalIPv6PrefixLen": int(length6) if place.address6 and length6.isdigit() else 0,
        "IPv6Gateway": place.gateway6 if place.address6 else "",
        "Aliases": list(place.aliases),
    }


# --- small parts ---------------------------------------------------------------------------------------------------


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _annotation(config: Mapping[str, Any], key: str) -> str:
    return str(_mapping(config.get("annotations")).get(PREFIX + key, ""))
