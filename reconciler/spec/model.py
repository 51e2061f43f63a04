"""`App`: what one spec file says, validated and normalised. The models are the truth about the format.

A field spelled out with its default, left out, or written in its short form gives equal models. The JSON Schema and the
field reference in docs/ are generated from here (`spec.schema`). What is not a field yet is in `spec.dialect.NOT_YET`.
Pure: rules that need more than one field are in `spec.rules`.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from reconciler.spec.attachment import Network, Networks, Place
from reconciler.spec.container import EXTENSIONS, Container, restart_fields
from reconciler.spec.fault import Fault
from reconciler.spec.fields import AlsoAccepts, Doc, Part
from reconciler.spec.kernel import DeviceUse
from reconciler.spec.parts import (
    BindMount,
    ConfigMount,
    Dependency,
    Logging,
    Mount,
    Port,
    Restart,
    TmpfsMount,
    VolumeMount,
)
from reconciler.spec.resources import IoLimits, Limits, Reserve
from reconciler.spec.values import (
    AppName,
    ConfigName,
    Labels,
    Name,
    OptionalBytes,
    OptionalRepositoryPath,
    OptionalText,
)

__all__ = [
    "API_VERSION",
    "App",
    "BindMount",
    "Config",
    "ConfigMount",
    "Container",
    "Dependency",
    "DeviceUse",
    "IoLimits",
    "Limits",
    "Logging",
    "Mount",
    "Network",
    "Place",
    "Port",
    "Reserve",
    "Restart",
    "TmpfsMount",
    "Volume",
    "VolumeMount",
    "restart_fields",
]

API_VERSION = "reconciler/v1"
_SMALLEST = 64 << 10  # the directories and the record of an empty volume are counted too


class Volume(Part):
    """A volume of the app: a directory of the device that survives every container."""

    retain: Annotated[
        bool,
        Doc(
            "Keep the data when the app is removed. It is never deleted by a plan either way.",
            "boolean",
            "false",
        ),
    ] = True
    external: Annotated[
        bool,
        Doc(
            "It must be there already: it is never made, and containers wait until it is.", "boolean", "true"
        ),
    ] = False
    size_limit: Annotated[
        OptionalBytes,
        Doc(
            "What it may hold at most, in steps of 4Ki, kept by the kernel: the file system of the state directory "
            "needs project quotas (ext4 or xfs; `reconciler doctor` says how), and without them the app waits. A "
            "change is made in place; below what is in use, nothing more is written until there is room. A program "
            "with CAP_SYS_RESOURCE is not held to it.",
            "bytes",
            "1Gi",
            "no limit",
        ),
    ] = None
    labels: Annotated[Labels, Doc("Labels for people and tools.", "map", "{tier: data}", "`{}`")] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _limit_is_its_makers(self) -> Self:
        if self.size_limit is None:
            return self
        if self.external:
            raise Fault(
                "is for the app that makes the volume to say, not with 'external'", path=("size_limit",)
            )
        if self.size_limit < _SMALLEST:
            raise Fault("must be at least 64Ki", path=("size_limit",))
        return self


class Config(Part):
    """A file that containers get to see, from the repository or written here. Exactly one of the two."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["file"]}, {"required": ["content"]}]}
    )

    file: Annotated[
        OptionalRepositoryPath,
        Doc("A file, by its path from the root of the repository; at most 1Mi.", "path", "conf/app.toml"),
    ] = None
    content: Annotated[OptionalText, Doc("The content itself.", "string", '"port = 80\\n"')] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.file is None) == (self.content is None):
            raise Fault("must have exactly one of 'file' and 'content'")
        return self


def _declaration(value: object) -> object:
    """Let `volumes: {data: }` declare a volume with nothing more to say, as in Compose."""
    return {} if value is None else value


class App(Part):
    """One spec file."""

    model_config = ConfigDict(
        json_schema_extra={**EXTENSIONS, "required": ["apiVersion", "kind", "name", "containers"]}
    )

    api_version: Annotated[
        Literal["reconciler/v1"],
        Field(alias="apiVersion"),
        Doc("The version of the format.", API_VERSION, API_VERSION),
    ]
    kind: Annotated[Literal["App"], Doc("What the file describes.", "App", "App")]
    name: Annotated[
        AppName, Doc("The name of the app, unique in the repository; at most 40 characters.", "name", "web")
    ]
    containers: Annotated[
        dict[Name, Container], Doc("The containers by name; at least one.", "map", "{web: {...}}", "required")
    ] = Field(default_factory=dict)
    volumes: Annotated[
        dict[
            Name,
            Annotated[Volume, BeforeValidator(_declaration), AlsoAccepts("", "nothing more to say", "null")],
        ],
        Doc("The named volumes that containers mount.", "map", "{db-data: {}}", "`{}`"),
    ] = Field(default_factory=dict)
    networks: Annotated[
        Networks,
        Doc(
            "The networks that containers are in beside `default`, which every app has; what is said of `default` here "
            "holds for it too.",
            "map",
            "{back: {internal: true}}",
            "`{}`",
        ),
    ] = Field(default_factory=dict)
    configs: Annotated[
        dict[ConfigName, Config],
        Doc("The files that containers get to see.", "map", "{app_conf: {file: conf/app.toml}}", "`{}`"),
    ] = Field(default_factory=dict)
    allow_empty: Annotated[
        bool,
        Doc(
            "The app may go at any time: the device's `shrink_guard` does not count it when its file is removed.",
            "boolean",
            "true",
        ),
    ] = False
    labels: Annotated[
        Labels,
        Doc(
            "Labels that each container has too, unless it sets the same key itself.",
            "map",
            "{team: kiosks}",
            "`{}`",
            False,
        ),
    ] = Field(default_factory=dict)
