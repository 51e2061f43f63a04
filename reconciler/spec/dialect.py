"""What to say about a key that a spec may not hold: built later, known from another dialect, or misspelt.

The tables name models of `spec.model` and `spec.device` by class name. A field of the format that this release does not
build is listed in NOT_YET, so that it is refused by name and never ignored; when it is built, it moves to the model.
Pure.
"""

from collections.abc import Iterable
from typing import Final

NOT_YET: Final[dict[str, frozenset[str]]] = {
    "App": frozenset({"where", "jobs", "secrets", "update"}),
    "Container": frozenset(
        {
            "apparmor", "drift", "healthcheck", "secrets", "selinux", "update",
        }
    ),
    "DeviceFile": frozenset(
        {
            "sources", "windows", "locks", "network", "notify",
        }
    ),
    "DeviceDefaults": frozenset({"update"}),
    "Metrics": frozenset({"textfile", "labels_allow"}),
}  # fmt: skip

_NO_MERGING: Final = "there is no merging of files: each app is one whole file; YAML anchors work within it"

# Keys of Compose and Kubernetes. One word is our key; anything longer is the sentence to say.
TRANSLATIONS: Final[dict[str, dict[str, str]]] = {
    "App": {
        "services": "containers",
        "pods": "containers",
        "version": "write 'apiVersion: reconciler/v1'",
        "metadata": "write 'name: ...' at the top level; there is no 'metadata' and no 'spec'",
        "spec": "write its fields at the top level; there is no 'metadata' and no 'spec'",
        "include": _NO_MERGING,
        "extends": _NO_MERGING,
        "profiles": _NO_MERGING,
        "cronjobs": "jobs",
        "nodeSelector": "where",
        "namespace": "there are no namespaces: the name of an app is unique in the repository",
        "content": "write the text of a config as 'configs: {NAME: {content: ...}}'",
    },
    "Container": {
        "livenessProbe": "healthcheck",
        "readinessProbe": "healthcheck",
        "startupProbe": "healthcheck",
        "args": "`command` is the image's CMD here; use `entrypoint` + `command`",
        "imagePullPolicy": "not needed: images are pinned by digest",
        "pull_policy": "not needed: images are pinned by digest",
        "platform": "not needed: a digest of an index has every platform, and the device takes its own",
        "container_name": "containers are named APP/CONTAINER (replicas APP/CONTAINER.2)",
        "name": "the key under 'containers' is the name",
        "mem_limit": "limits.memory",
        "memory": "limits.memory",
        "memswap_limit": "write 'limits.swap', which counts swap alone, not the sum of both",
        "mem_reservation": "reserve.memory",
        "cpus": "limits.cpus",
        "cpu_shares": "reserve.cpus",
        "cpuset_cpus": "cpuset",
        "io": "limits.io",
        "io_weight": "limits.io_weight",
        "pids_limit": "limits.pids",
        "blkio_config": "limits.io",
        "storage_opt": "limits.rootfs",
        "deploy": "write 'limits.memory', 'limits.cpus', 'replicas' and 'update' instead",
        "resources": "write 'limits.memory' and 'limits.cpus' instead",
        "scale": "replicas",
        "env": "environment",
        "env_file": "env_from",
        "envFrom": "env_from",
        "volumeMounts": "volumes",
        "mounts": "volumes",
        "supplementalGroups": "group_add",
        "groups": "group_add",
        "oom-score-adj": "oom_score_adj",
        "oom_kill_disable": "write 'oom_score_adj: -1000'; the limit of its own memory always counts",
        "shm": "shm_size",
        "ipc": "each container has an IPC namespace of its own; its /dev/shm is as large as 'shm_size' says",
        "rlimits": "ulimits",
        "sysctl": "sysctls",
        "workdir": "working_dir",
        "cap-add": "cap_add",
        "cap-drop": "cap_drop",
        "capabilities": "write 'cap_add' and 'cap_drop' instead",
        "allowPrivilegeEscalation": "write 'no_new_privileges: false' to allow it",
        "device": "devices",
        "device_cgroup_rules": "write the device itself under 'devices', with what may be done: /dev/x:/dev/x:rw",
        "gpus": "write the devices of the driver under 'devices', for example /dev/dri",
        "securityContext": "write 'user', 'read_only', 'cap_drop' and 'privileged' instead",
        "security_opt": "write 'seccomp', 'apparmor' or 'no_new_privileges' instead",
        "terminationGracePeriodSeconds": "stop_grace_period",
        "stop_timeout": "stop_grace_period",
        "restartPolicy": "restart",
        "restart_policy": "restart",
        "log_driver": "logging.driver",
        "log_opt": "logging",
        "health": "healthcheck",
        "net": "network_mode",
        "links": "not needed: the containers of an app reach each other by name",
        "expose": "it has no effect: the containers of an app reach each other on every port",
        "build": "images are built elsewhere; pin the result by digest under 'image'",
        "tty": "what a spec declares has no terminal; use 'reconciler exec -it', or 'run -it'",
        "stdin_open": "standard input is empty; use 'reconciler exec -i'",
        "extends": _NO_MERGING,
        "profiles": _NO_MERGING,
        "schedule": "only a job has one, under 'jobs', which is not supported yet",
        "volumes_from": "declare the volume at the top level and mount it in both containers",
        "userns_mode": "userns",
        "hostUsers": "write 'userns: auto' for ids of its own",
        "hostNetwork": "network_mode",
    },
    "Limits": {
        "mem": "limits.memory",
        "cpu": "limits.cpus",
        "memswap": "write 'swap', which counts swap alone, not the sum of both",
        "cpuset": "write 'cpuset' beside 'limits'",
        "device_read_bps": "write 'io: {read_bps: ..., device: ...}'",
        "device_write_bps": "write 'io: {write_bps: ..., device: ...}'",
        "blkio_weight": "io_weight",
    },
    "IoLimits": {
        "rbps": "read_bps",
        "wbps": "write_bps",
        "riops": "read_iops",
        "wiops": "write_iops",
        "weight": "write 'io_weight' beside 'io'",
        "path": "device",
    },
    "Reserve": {"cpu": "cpus", "mem": "memory"},
    "Port": {
        "containerPort": "target",
        "hostPort": "published",
        "hostIP": "host_ip",
        "mode": "not needed: a port is always published on the device itself",
    },
    "Volume": {
        "driver": "volumes are directories of the device; there are no drivers",
        "driver_opts": "volumes are directories of the device; there are no drivers",
        "name": "the key under 'volumes' is the name",
    },
    "Network": {
        "driver": "networks are bridges of the device; there are no drivers",
        "driver_opts": "networks are bridges of the device; there are no drivers",
        "ipam": "write 'subnet' and 'gateway' themselves",
        "name": "the key under 'networks' is the name",
        "attachable": "not needed: `reconciler run --network NAME IMAGE` joins an external one",
        "enable_ipv6": "ipv6",
    },
    "Place": {
        "alias": "aliases",
        "ip": "ipv4_address",
        "ip6": "ipv6_address",
        "priority": "not needed: the interfaces are in the order of the networks",
        "mac_address": "not needed: it follows from the address",
    },
    "Config": {
        "name": "the key under 'configs' is the name",
        "external": "write 'file' or 'content': there is no store of configs outside the repository",
        "environment": "there is no interpolation of the host's environment; write 'file' or 'content'",
    },
    "VolumeMount": {
        "bind": "not needed",
        "volume": "write 'subpath' or 'nocopy' beside 'type'",
        "create_host_path": "only a bind has one: 'type: bind'",
        "propagation": "only a bind has one: 'type: bind'",
        "subPath": "subpath",
        "readOnly": "read_only",
    },
    "BindMount": {
        "bind": "write 'create_host_path' or 'propagation' beside 'type'",
        "subpath": "write the whole path as 'source'",
        "nocopy": "not needed: only a volume is filled from the image",
        "readOnly": "read_only",
    },
    "TmpfsMount": {"tmpfs": "write 'size' and 'mode' beside 'type'"},
    "Logging": {
        "options": "write 'max_size', 'max_files' and 'compress' beside 'driver'",
        "max-size": "max_size",
        "max-file": "max_files",
        "max_file": "max_files",
    },
    "Restart": {
        "condition": "policy",
        "window": "reset_after",
        "attempts": "max_attempts",
    },
    "TrustRule": {
        "identities": "keyless signatures can't be checked without Fulcio's roots and Rekor's log, which a device off "
        "the net does not have; sign with a key, and write it under 'keys'",
        "key": "keys",
        "publicKeys": "keys",
        "public_keys": "keys",
        "pattern": "match",
        "glob": "match",
        "images": "match",
        "policy": "mode",
    },
    "DeviceFile": {
        "apps": "apps are files of their own in the spec directory",
        "containers": "this is the device's own file; apps are files of their own in the spec directory",
        "insecure_registries": "registries.insecure",
        "insecure-registries": "registries.insecure",
        "data-root": "use the option --state",
    },
}

# Values of other dialects: (model, field) -> what was written -> what to say.
VALUES: Final[dict[tuple[str, str], dict[str, str]]] = {
    ("Restart", "policy"): {
        "unless-stopped": "use `always`; to keep it stopped by hand use `reconciler hold`",
        "Always": "use `always`",
        "OnFailure": "use `on-failure`",
        "Never": "use `no`",
        "never": "use `no`",
        "none": "use `no`",
        "any": "use `always`",
    },
    ("Dependency", "condition"): {
        "service_started": "use `started`",
        "service_healthy": "use `healthy`, which is not supported yet",
        "service_completed_successfully": "use `completed`, which is not supported yet",
    },
    ("Logging", "driver"): {
        "json-file": "use `file`; `logs -o jsonl` makes JSON",
        "local": "use `file`",
        "syslog": "use `file`, and forward it with the tool of your choice",
        "fluentd": "use `file`, and forward it with the tool of your choice",
    },
    ("BindMount", "propagation"): {
        "private": "use `rprivate`",
        "slave": "use `rslave`",
        "shared": "use `rshared`",
        "HostToContainer": "use `rslave`",
        "Bidirectional": "use `rshared`",
        "None": "use `rprivate`",
    },
    ("Port", "protocol"): {"TCP": "use `tcp`", "UDP": "use `udp`", "sctp": "only tcp and udp are published"},
    ("App", "apiVersion"): {
        "v1": "this looks like a Kubernetes manifest; see docs/spec.md for the fields of an app",
        "apps/v1": "this looks like a Kubernetes manifest; see docs/spec.md for the fields of an app",
    },
    ("App", "kind"): {
        "Device": "a device's own file is /etc/reconciler/device.yaml, never a file of the repository",
    },
    ("DeviceFile", "kind"): {"App": "an app is a file of the spec directory, not the device's own file"},
}  # fmt: skip


def translate(model: str, key: str) -> str | None:
    """Return the sentence for a key of another dialect, or None."""
    found = TRANSLATIONS.get(model, {}).get(key)
    if found is None:
        return None
    if " " in found:
        return found
    first = found.partition(".")[0]
    own = NOT_YET.get(model, frozenset())
    later = first in own
    return f"write '{found}'{', which is not supported yet' if later else ''}"


def suggest(key: str, known: Iterable[str]) -> str | None:
    """Return the known word that `key` most likely means: the same letters, else at most two edits away."""
    words = sorted(known)
    folded = _fold(key)
    for word in words:
        if _fold(word) == folded:
            return word
    allowed = 1 if len(key) <= 4 else 2
    best = min(((distance(key, word, allowed), word) for word in words), default=(allowed + 1, ""))
    return best[1] if best[0] <= allowed else None


def _fold(word: str) -> str:
    return word.replace("_", "").replace("-", "").casefold()


def distance(left: str, right: str, limit: int) -> int:
    """Return the edit distance (insert, delete, replace, swap neighbours), or `limit` + 1 where it is larger."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)
