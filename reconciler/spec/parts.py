"""The smaller models of an app: ports, mounts, limits, restart policy, logging, dependencies.

Each has one long form, which is what the rest of the program sees; short forms are turned into it before validation.
Pure.
"""

import ipaddress
import re
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from reconciler.spec.fault import Fault, not_yet
from reconciler.spec.fields import AlsoAccepts, Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.network import PortSpan, port_span
from reconciler.spec.quantity import format_duration
from reconciler.spec.values import (
    AbsolutePath,
    Bytes,
    ConfigName,
    DirectoryMode,
    Duration,
    FileMode,
    HostIp,
    Name,
    OptionalName,
    PositiveDuration,
    Target,
    Whole,
    describe,
    keys_of,
    quoted,
    size,
    text,
)
from reconciler.spec.yaml12 import WrittenInt

_LEAST_LOG: Final = 4 << 10
_LEAST_TMPFS: Final = 4 << 10


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _port(value: object) -> object:
    """Turn `[host_ip:]published:target[/protocol]` into the long form."""
    if isinstance(value, WrittenInt):
        raise Fault(
            f"must say which port of the device is published, not only {value}",
            hint=f'write "{value}:{value}"',
        )
    if not isinstance(value, str):
        return value
    rest, slash, protocol = value.partition("/")
    parts = rest.split(":")
    if bracketed := re.fullmatch(r"(\[[^\[\]]*\]):(.*)", rest, re.DOTALL):
        parts = [bracketed[1], *bracketed[2].split(":")]
    elif len(parts) > 3 and _is_ipv6(":".join(parts[:-2])):
        hint = f'write "[{":".join(parts[:-2])}]:{parts[-2]}:{parts[-1]}{slash}{protocol}"'
        raise Fault(f"must have its IPv6 address in brackets, not {quote(value)}", hint=hint)
    if len(parts) == 1:
        raise Fault(
            f"must say which port of the device is published, not only {quote(value)}",
            hint=f'write "{rest}:{value}"' if rest.isdigit() else "",
        )
    if len(parts) > 3:
        raise Fault(f"must be [host_ip:]published:target[/protocol], not {quote(value)}")
    for part in parts[-2:]:
        numbers = part.split("-")
        if not all(re.fullmatch(r"[1-9]\d{0,4}", number, re.ASCII) for number in numbers) or len(numbers) > 2:
            raise Fault(
                f"must be [host_ip:]published:target[/protocol] with ports from 1 to 65535, not {quote(value)}"
            )
    published, target = (port_span(part) for part in parts[-2:])
    if published.count != target.count:
        raise Fault(f"{quote(value)}: {published} and {target} are not as long as each other", subject=False)
    found: dict[str, object] = {"published": published, "target": target}
    if len(parts) == 3:
        found["host_ip"] = parts[0]
    if slash:
        found["protocol"] = protocol
    return found


class Port(Part):
    """A port of the device that leads to one inside the container; or a range, port by port."""

    name: Annotated[OptionalName, Doc("A name for the people who read the spec.", "name", "http")] = None
    host_ip: Annotated[
        HostIp,
        Doc(
            "The device's address that listens.",
            "IP address",
            "127.0.0.1",
            "the device's `defaults.host_ip`; where that is all of IPv4, and a network of the container has IPv6, all "
            "of that, too",
        ),
    ] = "0.0.0.0"
    published: Annotated[PortSpan, Doc("The port of the device, or a range.", "1-65535, or A-B", "8080")]
    target: Annotated[
        PortSpan, Doc("The port inside, or a range of the same length.", "1-65535, or A-B", "80")
    ]
    protocol: Annotated[Literal["tcp", "udp"], Doc("The transport protocol.", "tcp, udp", "udp")] = "tcp"
    balance: Annotated[
        bool,
        Doc(
            "Share the port between all replicas: each new connection goes to the next one that listens there.",
            "boolean",
            "true",
        ),
    ] = False

    @model_validator(mode="after")
    def _as_long(self) -> Self:
        if self.published.count != self.target.count:
            raise Fault(f"{self.published} and {self.target} are not as long as each other", subject=False)
        return self


_WORDS: Final = ("rprivate", "rslave", "rshared")


def _mount(value: object) -> object:
    """Turn `SOURCE:TARGET[:OPTION,...]` into the long form."""
    if not isinstance(value, str):
        return value
    source, colon, rest = value.partition(":")
    if not colon:
        hint = f"declare a volume and write NAME:{value}" if value.startswith("/") else ""
        raise Fault(f"must be SOURCE:/path[:ro], not {quote(value)}", hint=hint)
    where, _, options = rest.partition(":")
    kind = "bind" if source.startswith(("/", ".", "~")) else "volume"
    found: dict[str, object] = {"type": kind, "source": source, "target": where, "read_only": False}
    for option in options.split(",") if options else ():
        if option in ("z", "Z"):
            raise not_yet("relabelling for SELinux (':z')")
        if option in ("ro", "rw"):
            found["read_only"] = option == "ro"
        elif option in _WORDS and kind == "bind":
            found["propagation"] = option
        elif option == "nocopy" and kind == "volume":
            found["nocopy"] = True
        else:
            raise Fault(f"must be SOURCE:/path[:ro], not {quote(value)}")
    if rest.endswith(":"):
        raise Fault(f"must be SOURCE:/path[:ro], not {quote(value)}")
    return found


def _subpath(value: object) -> str:
    found = text(value)
    if not found or not found.isprintable() or any(part in ("", ".", "..") for part in found.split("/")):
        raise Fault(
            f"must be a path inside the volume, without '..', '.' and a leading '/', not {quote(found)}",
            hint=f"write {found.strip('/')}" if found.startswith("/") and found.strip("/") else "",
        )
    return found


class VolumeMount(Part):
    """A named volume of the app, mounted at `target`."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "source", "target"]})

    type: Annotated[
        Literal["volume"], Doc("A volume that the app declares.", "volume", "volume", "required")
    ] = "volume"
    source: Annotated[Name, Doc("The name of the volume.", "name", "db-data")]
    target: Annotated[Target, Doc("Where it is mounted inside.", "path", "/var/lib/db")]
    read_only: Annotated[bool, Doc("Refuse writes through this mount.", "boolean", "true")] = False
    subpath: Annotated[
        str | None,
        PlainValidator(_subpath),
        WithJsonSchema({"type": "string", "pattern": "^[^/]"}),
        Doc(
            "Mount this directory of the volume; it is made where it is missing, and no link is followed to it.",
            "path inside",
            "uploads/2026",
            "the whole volume",
        ),
    ] = None
    nocopy: Annotated[
        bool, Doc("Don't fill a new volume with what the image has there.", "boolean", "true")
    ] = False


class BindMount(Part):
    """A directory or file of the device, mounted at `target`."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "source", "target"]})

    type: Annotated[Literal["bind"], Doc("A path of the device.", "bind", "bind", "required")] = "bind"
    source: Annotated[
        AbsolutePath,
        Doc("The path on the device; it must be inside the device's `allowed_binds`.", "path", "/srv/photos"),
    ]
    target: Annotated[Target, Doc("Where it is mounted inside.", "path", "/photos")]
    read_only: Annotated[bool, Doc("Refuse writes through this mount.", "boolean", "true")] = False
    create_host_path: Annotated[
        bool, Doc("Make a directory of the device there where nothing is.", "boolean", "true")
    ] = False
    propagation: Annotated[
        Literal["rprivate", "rslave", "rshared"],
        Doc(
            "Which later mounts pass: none (`rprivate`), those of the device (`rslave`), of both (`rshared`).",
            "rprivate, rslave, rshared",
            "rslave",
        ),
    ] = "rprivate"


class TmpfsMount(Part):
    """A file system in memory, empty at each start."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "target"]})

    type: Annotated[Literal["tmpfs"], Doc("A file system in memory.", "tmpfs", "tmpfs", "required")] = "tmpfs"
    target: Annotated[Target, Doc("Where it is mounted inside.", "path", "/tmp")]
    size: Annotated[Bytes, Doc("The most it may hold.", "bytes", "32Mi", "64Mi")] = 64 << 20
    mode: Annotated[
        DirectoryMode,
        Doc("Permission bits of its root, a string of octal digits.", "string", '"0755"', '"1777"'),
    ] = 0o1777

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if self.size < _LEAST_TMPFS:
            raise Fault(f"must be at least 4Ki, not {self.size}", path=("size",))
        return self


Mount = VolumeMount | BindMount | TmpfsMount


def _tmpfs(value: object) -> object:
    """Turn `PATH[:size=SIZE]` into a mount."""
    where, colon, option = text(value).partition(":")
    found: dict[str, object] = {"type": "tmpfs", "target": where}
    if colon:
        key, _, amount = option.partition("=")
        if key != "size":
            raise Fault(
                f"must be PATH or PATH:size=SIZE, not {quote(str(value))}",
                hint="other options are those of the long form under 'volumes'",
            )
        size(amount)
        found["size"] = amount
    return found


def _config(value: object) -> object:
    """Turn a name into the long form, and default the target to `/NAME`."""
    if isinstance(value, str):
        value = {"source": value}
    if isinstance(value, dict) and "target" not in value and isinstance(value.get("source"), str):
        return {**value, "target": f"/{value['source']}"}
    return value


class ConfigMount(Part):
    """A config of the app as a file inside the container."""

    model_config = ConfigDict(json_schema_extra={"required": ["source"]})

    source: Annotated[ConfigName, Doc("The name of the config.", "name", "app_conf")]
    target: Annotated[Target, Doc("The file inside.", "path", "/etc/app.toml", "`/` and the name")]
    uid: Annotated[Whole, Field(ge=0, le=2**31 - 1), Doc("The owner.", "integer", "1000")] = 0
    gid: Annotated[Whole, Field(ge=0, le=2**31 - 1), Doc("The group.", "integer", "1000")] = 0
    mode: Annotated[
        FileMode, Doc("Permission bits, a string of octal digits.", "string", '"0440"', '"0444"')
    ] = 0o444


def _restart(value: object) -> object:
    """Turn `no`, `always` or `on-failure[:N]` into the long form."""
    if isinstance(value, str):
        policy, colon, attempts = value.partition(":")
        if policy == "on-failure" and colon:
            if re.fullmatch(r"\d{1,6}", attempts, re.ASCII) is None:
                raise Fault(f"must be on-failure:N with a whole number, not {quote(value)}")
            return {"policy": policy, "max_attempts": int(attempts)}
        return {"policy": value, "max_attempts": 0}
    if not isinstance(value, dict):
        hint = 'write "no" or always' if isinstance(value, bool) else quoted(value)
        raise Fault(f"must be no, on-failure[:N], always or a map, not {describe(value)}", hint=hint)
    return value


class Restart(Part):
    """When a container that ended is started again. Times are in seconds."""

    policy: Annotated[
        Literal["no", "on-failure", "always"], Doc("When.", "no, on-failure, always", "on-failure", "", False)
    ] = "always"
    max_attempts: Annotated[
        Whole,
        Field(ge=0, le=999_999),
        Doc("Restarts in a row before giving up; 0: without end.", "integer", "5", "", False),
    ] = 0
    delay: Annotated[
        Duration, Doc("The wait before the first restart.", "duration", "500ms", "1s", False)
    ] = 1.0
    max_delay: Annotated[Duration, Doc("The longest wait.", "duration", "1m", "5m", False)] = 300.0
    factor: Annotated[
        float,
        Field(ge=1, le=100),
        Doc("Each wait is so much longer than the last.", "number", "1.5", "2", False),
    ] = 2.0
    jitter: Annotated[
        float, Field(ge=0, le=1), Doc("Part of the wait that is random.", "0 to 1", "0", "0.1", False)
    ] = 0.1
    reset_after: Annotated[
        PositiveDuration,
        Doc("A run of this length counts as a success and starts over.", "duration", "1m", "10m", False),
    ] = 600.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.delay > self.max_delay:
            delay, longest = format_duration(self.delay), format_duration(self.max_delay)
            if "delay" in self.model_fields_set:
                raise Fault(f"must be at most max_delay ({longest}), not {delay}", path=("delay",))
            raise Fault(f"must be at least delay ({delay}), not {longest}", path=("max_delay",))
        return self


class Logging(Part):
    """Where standard output and standard error go."""

    driver: Annotated[
        Literal["file", "journald", "none"],
        Doc(
            "`file` keeps them, rotated, for `reconciler logs`; `journald` sends each line to the device's journal "
            "(`journalctl CONTAINER_NAME=APP/CONTAINER`); `none` throws them away.",
            "file, journald, none",
            "none",
            "",
            True,
        ),
    ] = "file"
    max_size: Annotated[
        Bytes, Doc("A file is rotated at this size; at least 4Ki.", "bytes", "1Mi", "10Mi", False)
    ] = 10 << 20
    max_files: Annotated[
        Whole, Field(ge=1, le=100), Doc("Files kept, with the current one.", "integer", "5", "", False)
    ] = 3
    compress: Annotated[bool, Doc("Compress rotated files.", "boolean", "false", "", False)] = True

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if self.max_size < _LEAST_LOG:
            raise Fault(f"must be at least 4Ki, not {self.max_size}", path=("max_size",))
        return self


class Dependency(Part):
    """What another container must have reached before this one starts."""

    condition: Annotated[Literal["started"], Doc("What it must have reached.", "started", "started")] = (
        "started"
    )
    required: Annotated[Literal[True], Doc("It must exist.", "true", "true")] = True
    restart: Annotated[Literal[False], Doc("Restart this one when that one restarts.", "false", "false")] = (
        False
    )


_NAMED: Final = re.compile(
    r"(?:[a-z0-9](?:[-a-z0-9]{0,38}[a-z0-9])?/)?[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII
)


def dependency_name(value: object) -> str:
    """Return `CONTAINER` or `APP/CONTAINER`, or raise Fault."""
    found = text(value)
    if _NAMED.fullmatch(found) is None:
        raise Fault(f"must be CONTAINER or APP/CONTAINER, not {quote(found)}")
    return found


def _depends_on(value: object) -> object:
    """Turn a list of names into the map of the long form."""
    if not isinstance(value, tuple | list):
        return value
    return keys_of(value, dependency_name)


DependencyName = Annotated[str, PlainValidator(dependency_name), WithJsonSchema({"type": "string"})]

Ports = tuple[
    Annotated[
        Port,
        BeforeValidator(_port),
        AlsoAccepts(r"^([0-9.]+:)?\d+(-\d+)?:\d+(-\d+)?(/(tcp|udp))?$", "[host_ip:]published:target"),
    ],
    ...,
]
Mounts = tuple[
    Annotated[
        Annotated[Mount, Field(discriminator="type")],
        BeforeValidator(_mount),
        AlsoAccepts("^[^:]+:/[^:]*(:[a-z,]+)?$", "SOURCE:/path[:ro]"),
    ],
    ...,
]
Tmpfs = tuple[
    Annotated[
        TmpfsMount,
        BeforeValidator(_tmpfs),
        WithJsonSchema({"type": "string", "title": "/path[:size=SIZE]", "pattern": "^/[^:]+(:size=.+)?$"}),
    ],
    ...,
]
ConfigMounts = tuple[Annotated[ConfigMount, BeforeValidator(_config), AlsoAccepts("", "name")], ...]
RestartPolicy = Annotated[
    Restart,
    BeforeValidator(_restart),
    AlsoAccepts("^(no|always|on-failure(:[0-9]+)?)$", "no, always, on-failure[:N]"),
]
DependsOn = Annotated[
    dict[DependencyName, Dependency], BeforeValidator(_depends_on), AlsoAccepts("", "list of names", "array")
]
