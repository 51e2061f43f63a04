"""`DeviceFile`: what the device's own file may say. It is never read from the repository.

A commit can't loosen what the device allows, nor move a device into another group, because all of that is here. Every
field has a default, so the file may be missing. `reconciler.config` turns it into the values that the program uses.
Pure.
"""

import ipaddress
import re
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from reconciler.spec.fault import Fault
from reconciler.spec.fields import Doc, Part
from reconciler.spec.kernel import Capability, DevicePattern
from reconciler.spec.marks import quote
from reconciler.spec.parts import Logging, RestartPolicy
from reconciler.spec.parts import Restart as RestartModel
from reconciler.spec.registries import Registries, Registry
from reconciler.spec.trust import TrustRule
from reconciler.spec.values import (
    AbsolutePath,
    Bytes,
    Duration,
    Ipv4HostIp,
    Labels,
    Percent,
    PositiveDuration,
    Whole,
    hostname,
    path,
    size,
    text,
)

_LISTEN: Final = re.compile(r"([0-9.]+|\[[0-9a-fA-F:]+\]):(0|[1-9][0-9]{0,4})", re.ASCII)


def _listen(value: object) -> str:
    found = text(value)
    match = _LISTEN.fullmatch(found)
    if found != "none" and (match is None or int(match[2]) > 65535 or not _is_address(match[1])):
        hint = f"write 0.0.0.0{found} for every address of the device" if re.fullmatch(r":\d+", found) else ""
        raise Fault(f"must be ADDRESS:PORT or none, not {quote(found)}", hint=hint)
    return found


def _is_address(found: str) -> bool:
    try:
        ipaddress.ip_address(found.strip("[]"))
    except ValueError:
        return False
    return True


def _bundle(value: object) -> str:
    """Return a path, perhaps with wildcards; not in its first part, since the whole root would be looked through."""
    found = path(value)
    if any(letter in found.split("/")[1] for letter in "*?["):
        raise Fault(f"must not begin with a wildcard: {quote(found)}", hint="for example /media/*/images")
    return found


_STRING: Final = WithJsonSchema({"type": "string"})
Listen = Annotated[str, PlainValidator(_listen), _STRING]
BundlePattern = Annotated[
    str, PlainValidator(_bundle), WithJsonSchema({"type": "string", "pattern": "^/[^*?[]"})
]
DeviceName = Annotated[str | None, PlainValidator(hostname), _STRING]


class DeviceDefaults(Part):
    """What a container gets where its spec says nothing."""

    host_ip: Annotated[
        Ipv4HostIp, Doc("The address that published ports listen on.", "IPv4 address", "127.0.0.1")
    ] = "0.0.0.0"
    logging: Annotated[Logging, Doc("As in a container.", "map", "{max_size: 1Mi}")] = Logging()
    restart: Annotated[RestartPolicy, Doc("As in a container.", "string or map", "{max_delay: 1m}")] = (
        RestartModel()
    )
    userns: Annotated[
        Literal["host", "auto"],
        Doc("As in a container; `auto` is for the containers that it goes with.", "host, auto", "host"),
    ] = "auto"


class Gc(Part):
    """When what is no longer used is removed from the store."""

    keep_generations: Annotated[
        Whole,
        Field(ge=0, le=1000),
        Doc("Applied generations whose images stay, for a way back.", "integer", "10"),
    ] = 3
    min_age: Annotated[Duration, Doc("Nothing younger than this is removed.", "duration", "24h", "1h")] = (
        3600.0
    )
    keep_blobs: Annotated[
        Literal["none", "used"],
        Doc(
            "Compressed layers that stay after unpacking: `none`, or those of images in use.",
            "none, used",
            "used",
        ),
    ] = "none"
    high: Annotated[
        Percent,
        Doc("Fill level of the file system at which garbage is removed early.", "percentage", "90%", "85%"),
    ] = 85
    low: Annotated[Percent, Doc("Fill level at which that stops.", "percentage", "80%", "75%")] = 75
    min_free: Annotated[Bytes, Doc("Free space that is kept in any case.", "bytes", "1Gi", "512Mi")] = (
        512 << 20
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise Fault(f"must not exceed gc.high ({self.high}%), not {self.low}%", path=("low",))
        return self


class ImageLimits(Part):
    """What an image may cost at most, wherever it comes from. What is here already is not measured again."""

    unpacked: Annotated[
        Bytes,
        Doc("All layers of an image together, unpacked; holes count as if written.", "bytes", "8Gi", "128Gi"),
    ] = 128 << 30
    entries: Annotated[
        Whole,
        Field(ge=1, le=100_000_000),
        Doc("Files, directories and links of all its layers together.", "integer", "1000000"),
    ] = 4_000_000
    ratio: Annotated[
        Whole,
        Field(ge=1, le=100_000),
        Doc(
            "How many times its packed size a layer may unpack to, once that is more than 1 GiB.",
            "integer",
            "100",
        ),
    ] = 300
    path: Annotated[
        Whole, Field(ge=1, le=4095), Doc("The longest path in a layer, in bytes.", "integer", "1024")
    ] = 4095
    nesting: Annotated[
        Whole,
        Field(ge=1, le=16),
        Doc("Documents from the pinned digest to a manifest: indexes, and itself.", "integer", "2"),
    ] = 3


class Disk(Part):
    """What is kept free on the file system of the state directory."""

    reserve: Annotated[
        Bytes,
        Doc(
            "What a pull leaves free: one that would need it is refused, or ended. The agent itself may write there.",
            "bytes",
            "64Mi",
            "8Mi",
        ),
    ] = 8 << 20


def _budget(value: object) -> int:
    return 0 if value == "off" else size(value)


Budget = Annotated[int, PlainValidator(_budget), _STRING]


class StoreCare(Part):
    """How the store is looked after."""

    scrub: Annotated[
        Budget,
        Doc(
            "Bytes a day that are read in the background, to find what a disk has damaged; `off` for none.",
            "bytes, off",
            "4Gi",
            "1Gi",
        ),
    ] = 1 << 30
    repair: Annotated[
        bool,
        Doc(
            "What is found damaged is put right at once, as `fsck --repair` does it: fetched again, or dropped.",
            "boolean",
            "false",
        ),
    ] = True


class ShrinkGuard(Part):
    """When a change that removes many apps at once is refused."""

    max_removed: Annotated[
        Percent, Doc("The part of all apps that one change may remove.", "percentage", "20%", "50%")
    ] = 50
    min_apps: Annotated[
        Whole,
        Field(ge=0, le=100_000),
        Doc("With fewer apps than this it trips for an emptied directory only.", "integer", "5"),
    ] = 3


class Metrics(Part):
    """Where metrics are served."""

    listen: Annotated[
        Listen,
        Doc(
            "Address and port; port 0 takes a free one, `none` turns it off.",
            "ADDRESS:PORT",
            "0.0.0.0:9470",
        ),
    ] = "127.0.0.1:9470"


class Peers(Part):
    """Other devices on the same network, which give each other what each of them would have to fetch."""

    ask: Annotated[
        tuple[Registry, ...],
        Doc(
            "Devices that are asked, in this order, before any mirror or registry: HOST:PORT of their `listen`. What "
            "they send counts by its digest alone. They are told no names and shown no credentials.",
            "list",
            '["192.168.1.8:5080", "kiosk-8.lan:5080"]',
            "`[]`: none",
        ),
    ] = ()
    listen: Annotated[
        Listen,
        Doc(
            "Where this device gives what it has kept to whoever asks by digest, read-only, over plain HTTP in the "
            "protocol of registries. Needs `gc.keep_blobs: used`.",
            "ADDRESS:PORT",
            "192.168.1.7:5080",
            "none",
        ),
    ] = "none"
    share: Annotated[
        Literal["public", "all"],
        Doc(
            "What it gives: what a registry gave without asking who is there, or all, also what came from bundles or "
            "by credentials.",
            "public, all",
            "all",
        ),
    ] = "public"


class DeviceFile(Part):
    """The device's own file."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {"^x-": True}})

    api_version: Annotated[
        Literal["reconciler/v1"],
        Field(alias="apiVersion"),
        Doc("The version of the format; may be left out.", "reconciler/v1", "reconciler/v1"),
    ] = "reconciler/v1"
    kind: Annotated[
        Literal["Device"], Doc("What the file describes; may be left out.", "Device", "Device")
    ] = "Device"
    name: Annotated[DeviceName, Doc("The device's name.", "host name", "kiosk-7", "the host's name")] = None
    labels: Annotated[
        Labels, Doc("Labels by which apps will choose devices.", "map", "{site: lab}", "`{}`")
    ] = Field(default_factory=dict)
    registries: Annotated[
        Registries, Doc("How registries are reached.", "map", '{insecure: ["registry.lan:5000"]}')
    ] = Registries()
    trust: Annotated[
        tuple[TrustRule, ...],
        Doc(
            "Whose signatures images need, by repository; the first rule that matches an image counts, and where none "
            "does it needs none.",
            "list",
            "[{match: ghcr.io/acme, keys: [/etc/reconciler/ci.pub]}]",
            "`[]`: nobody's",
        ),
    ] = ()
    bundles: Annotated[
        tuple[BundlePattern, ...],
        Doc(
            "OCI layout directories that images are taken from before any registry is asked; they may come and go. "
            "`*`, `?` and `[0-9]` match within a name.",
            "list",
            '[/srv/images, "/media/*/images"]',
            "`[]`",
        ),
    ] = ()
    allowed_binds: Annotated[
        tuple[AbsolutePath, ...],
        Doc(
            "Paths of the device that containers may mount, with everything below.",
            "list",
            "[/srv]",
            "`[]`: none",
        ),
    ] = ()
    allowed_devices: Annotated[
        tuple[DevicePattern, ...],
        Doc(
            "Devices that containers may use: paths in /dev, with everything below; `*`, `?` and `[0-9]` match within "
            "a name.",
            "list",
            '["/dev/ttyUSB*", /dev/dri]',
            "`[]`: none",
        ),
    ] = ()
    allowed_caps: Annotated[
        tuple[Capability, ...],
        Doc(
            "Capabilities that containers may have beside the default ones, or ALL.",
            "list",
            "[NET_ADMIN]",
            "`[]`: none",
        ),
    ] = ()
    allow_privileged: Annotated[
        bool, Doc("Containers may be `privileged`: their root is the device's root.", "boolean", "true")
    ] = False
    allowed_seccomp: Annotated[
        tuple[Literal["profiles", "unconfined"], ...],
        Doc(
            "What containers may have in place of the default seccomp profile: `profiles` of the repository, which may "
            "allow anything, or none (`unconfined`).",
            "list",
            "[profiles]",
            "`[]`: none",
        ),
    ] = ()
    defaults: Annotated[
        DeviceDefaults,
        Doc("What a container gets where its spec says nothing.", "map", "{host_ip: 127.0.0.1}"),
    ] = DeviceDefaults()
    gc: Annotated[Gc, Doc("When what is no longer used is removed.", "map", "{min_age: 24h}")] = Gc()
    limits: Annotated[ImageLimits, Doc("What an image may cost at most.", "map", "{unpacked: 8Gi}")] = (
        ImageLimits()
    )
    peers: Annotated[
        Peers,
        Doc("Other devices to have images from, and to give them to.", "map", '{ask: ["192.168.1.8:5080"]}'),
    ] = Peers()
    disk: Annotated[Disk, Doc("What is kept free on the disk.", "map", "{reserve: 64Mi}")] = Disk()
    store: Annotated[StoreCare, Doc("How the store is looked after.", "map", "{scrub: 4Gi}")] = StoreCare()
    shrink_guard: Annotated[
        ShrinkGuard,
        Doc("When a change that removes many apps at once is refused.", "map", "{max_removed: 20%}"),
    ] = ShrinkGuard()
    metrics: Annotated[Metrics, Doc("Where metrics are served.", "map", '{listen: "0.0.0.0:9470"}')] = (
        Metrics()
    )
    interval: Annotated[
        PositiveDuration, Doc("The longest time between two looks at everything.", "duration", "10s", "30s")
    ] = 30.0

    @model_validator(mode="after")
    def _has_what_to_give(self) -> Self:
        if self.peers.listen != "none" and self.gc.keep_blobs == "none":
            raise Fault(
                "needs packed layers, and this device keeps none",
                path=("peers", "listen"),
                hint="add 'gc: {keep_blobs: used}'",
            )
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        seen: set[str] = set()
        for index, rule in enumerate(self.trust):
            if rule.match in seen:
                raise Fault(
                    f"{quote(rule.match)} has a rule above: the first one counts",
                    path=("trust", index, "match"),
                )
            seen.add(rule.match)
        return self
