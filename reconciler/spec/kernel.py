"""What a container asks of the kernel beyond its resources: sysctls, capabilities, devices.

Pure, as `spec.values` is.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, PlainValidator, WithJsonSchema

from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.fault import Fault, Faults
from reconciler.spec.fields import AlsoAccepts, Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.values import TEXTS, describe, each, path, text, written

_SYSCTL: Final = re.compile(r"[a-z0-9_][-a-zA-Z0-9_]*(?:[./][-a-zA-Z0-9_]+)+", re.ASCII)
# Those of the IPC namespace (ipc_namespaces(7)) and all of the network namespace's; the rest is the whole device's.
_IPC: Final = frozenset(
    {
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shm_rmid_forced", "kernel.shmall",
        "kernel.shmmax", "kernel.shmmni",
    }
)  # fmt: skip
_LONGEST: Final = 4096

CAPABILITIES: Final = frozenset(
    {
        *DEFAULT_CAPABILITIES, "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
        "CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_LEASE",
        "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BROADCAST",
        "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE",
        "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG",
        "CAP_SYSLOG", "CAP_WAKE_ALARM",
    }
)  # fmt: skip
# With one of these, root inside has ways to the whole device.
DANGEROUS: Final = frozenset(
    {
        "ALL",
        "CAP_BPF",
        "CAP_DAC_READ_SEARCH",
        "CAP_SYS_ADMIN",
        "CAP_SYS_MODULE",
        "CAP_SYS_PTRACE",
        "CAP_SYS_RAWIO",
    }
)
# What every container has of its own in /dev.
_TAKEN: Final = frozenset(
    f"/dev/{name}"
    for name in (
        "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    )
)  # fmt: skip


def sysctls(value: object) -> dict[str, str]:
    """Return kernel settings by their dotted name; only those of a namespace of the container's own."""
    if not isinstance(value, dict):
        raise Fault(f"must be a map, not {describe(value)}")
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for key, item in value.items():
        try:
            name = _sysctl(str(key))
            if name in found:
                raise Fault(f"the sysctl {quote(name)} is set a second time", subject=False, at_key=True)
            shown = written(item)
            if len(shown) > _LONGEST or not shown.isprintable():
                raise Fault("must be one line")
            found[name] = shown
        except Fault as fault:
            fault.path = (key,)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return found


def _sysctl(key: str) -> str:
    """Return the name with dots between its parts, as sysctl(8) does; a dot inside a part is then a slash."""
    if _SYSCTL.fullmatch(key) is None:
        raise Fault(
            f"{quote(key)} is no name of a sysctl",
            subject=False,
            at_key=True,
            hint="for example net.core.somaxconn",
        )
    first = next(character for character in key if character in "./")
    name = key if first == "." else key.translate(str.maketrans("./", "/."))
    if name.startswith("net.") and name.split(".")[3:4] == ["eth0"]:
        raise Fault(
            f"{quote(key)}: there is no eth0 yet when sysctls are set",
            subject=False,
            at_key=True,
            hint=f"write {'.'.join([*name.split('.')[:3], 'default', *name.split('.')[4:]])}",
        )
    if not name.startswith(("net.", "fs.mqueue.")) and name not in _IPC:
        raise Fault(
            f"the sysctl {quote(key)} belongs to the whole device, not to a container",
            subject=False,
            at_key=True,
            hint="allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*; set others in /etc/sysctl.d",
        )
    return name


Sysctls = Annotated[dict[str, str], PlainValidator(sysctls), WithJsonSchema(TEXTS)]


def capability(value: object) -> str:
    """Return the full name of a capability, or ALL."""
    found = text(value)
    name = found.upper().replace("-", "_")
    if name == "ALL":
        return name
    full = name if name.startswith("CAP_") else f"CAP_{name}"
    if full not in CAPABILITIES:
        raise Fault(
            f"must be a capability or ALL, not {quote(found)}",
            hint="see capabilities(7); for example NET_ADMIN",
        )
    return full


def capabilities(value: object) -> tuple[str, ...]:
    """Return the full names of capabilities, each once, sorted."""
    if not isinstance(value, tuple | list):
        raise Fault(f"must be a list, not {describe(value)}", hint="write [ALL]" if value == "ALL" else "")
    return tuple(sorted(set(each(value, capability))))


def device_path(value: object) -> str:
    """Return a path in /dev."""
    found = path(value)
    if not found.startswith("/dev/"):
        raise Fault(f"must be a path in /dev, not {quote(found)}")
    return found


def device_target(value: object) -> str:
    """Return a path in /dev that is not one of the container's own."""
    found = device_path(value)
    if any(found == taken or found.startswith(f"{taken}/") for taken in _TAKEN):
        raise Fault(f"must not be one of the container's own devices: {quote(found)}")
    return found


def device_permissions(value: object) -> str:
    """Return what may be done with a device: r, w and m, in this order."""
    found = text(value)
    if not found or set(found) - set("rwm") or len(set(found)) < len(found):
        raise Fault(
            f"must be of r (read), w (write) and m (mknod), not {quote(found)}", hint="for example rw"
        )
    return "".join(letter for letter in "rwm" if letter in found)


def _device(value: object) -> object:
    """Turn `/dev/x[:/dev/y[:rwm]]` into the long form."""
    if not isinstance(value, str):
        return value
    parts = value.split(":")
    if len(parts) > 3 or not all(parts):
        raise Fault(f"must be /dev/x[:/dev/y[:rwm]], not {quote(value)}")
    found: dict[str, object] = {"source": parts[0]}
    if len(parts) > 1:
        found["target"] = parts[1]
    if len(parts) > 2:
        found["permissions"] = parts[2]
    return found


class DeviceUse(Part):
    """A device that the container may use."""

    model_config = ConfigDict(json_schema_extra={"required": ["source"]})

    source: Annotated[
        str,
        PlainValidator(device_path),
        WithJsonSchema({"type": "string", "pattern": "^/dev/."}),
        Doc(
            "The device, or a directory with all devices in it; it must be in the device's `allowed_devices`.",
            "path",
            "/dev/ttyUSB0",
        ),
    ]
    target: Annotated[
        str | None,
        PlainValidator(device_target),
        WithJsonSchema({"type": "string", "pattern": "^/dev/."}),
        Doc("Where it is inside.", "path", "/dev/modem", "`source`"),
    ] = None
    permissions: Annotated[
        str,
        PlainValidator(device_permissions),
        WithJsonSchema({"type": "string", "pattern": "^[rwm]{1,3}$"}),
        Doc("Read (`r`), write (`w`), and make nodes of it (`m`).", "string", "rw"),
    ] = "rwm"
    optional: Annotated[
        bool,
        Doc(
            "Start without it where it is absent; it is inside from the next start on. Otherwise the container waits "
            "for it.",
            "boolean",
            "true",
        ),
    ] = False


def device_allowed(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches the path or a directory that it is in; shell patterns match within a name."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.rstrip("/").split("/")
        if len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


Capability = Annotated[str, PlainValidator(capability), WithJsonSchema({"type": "string"})]
Capabilities = Annotated[
    tuple[str, ...],
    PlainValidator(capabilities),
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z_-]+$"}}),
]
Devices = tuple[
    Annotated[
        DeviceUse,
        BeforeValidator(_device),
        AlsoAccepts("^/dev/[^:]+(:/dev/[^:]+(:[rwm]{1,3})?)?$", "/dev/x[:/dev/y[:rwm]]"),
    ],
    ...,
]
DevicePattern = Annotated[
    str, PlainValidator(device_path), WithJsonSchema({"type": "string", "pattern": "^/dev/."})
]
