"""`App`: what one spec file says, validated and normalised. The models are the truth about the format.

A field spelled out with its default, left out, or written in its short form gives equal models. The JSON Schema and the
field reference in docs/ are generated from here (`spec.schema`). What is not a field yet is in `spec.dialect.NOT_YET`.
Pure: rules that need more than one field are in `spec.rules`.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from reconciler.spec.fault import Fault
from reconciler.spec.fields import AlsoAccepts, Doc, Part, docs
from reconciler.spec.parts import (
    BindMount,
    ConfigMount,
    ConfigMounts,
    Dependency,
    DependsOn,
    Limits,
    Logging,
    Mount,
    Mounts,
    Port,
    Ports,
    Restart,
    RestartPolicy,
    Tmpfs,
    TmpfsMount,
    VolumeMount,
)
from reconciler.spec.process import Arguments, Environment, StopSignal, User
from reconciler.spec.values import (
    AppName,
    ConfigName,
    Duration,
    Hostname,
    ImageReference,
    Labels,
    Name,
    OptionalPath,
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
    "Limits",
    "Logging",
    "Mount",
    "Port",
    "Restart",
    "TmpfsMount",
    "Volume",
    "VolumeMount",
    "restart_fields",
]

API_VERSION = "reconciler/v1"
_EXTENSIONS: Final[dict[str, Any]] = {"patternProperties": {"^x-": True}}


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
    labels: Annotated[Labels, Doc("Labels for people and tools.", "map", "{tier: data}", "`{}`")] = Field(
        default_factory=dict
    )


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


class Container(Part):
    """One container of an app."""

    model_config = ConfigDict(json_schema_extra={**_EXTENSIONS})

    image: Annotated[
        ImageReference,
        Doc(
            "The image, pinned by digest; the digest of an index or of a manifest. The registry's host is mandatory. "
            "`reconciler digest REF` prints the pinned form of a tag.",
            "host[:port]/repo[:tag]@digest",
            "ghcr.io/acme/web:1.5@sha256:1111111111111111111111111111111111111111111111111111111111111111",
            restart=True,
        ),
    ]
    entrypoint: Annotated[
        Arguments,
        Doc(
            "The program and its first arguments. A string is split at blanks and quotes, never given to a "
            "shell. Setting it clears the image's CMD.",
            "list or string",
            "[/bin/serve]",
            "the image's",
            True,
        ),
    ] = None
    command: Annotated[
        Arguments, Doc("Further arguments.", "list or string", '[--port, "8000"]', "the image's CMD", True)
    ] = None
    working_dir: Annotated[
        OptionalPath, Doc("The working directory.", "path", "/srv", "the image's", True)
    ] = None
    user: Annotated[
        User,
        Doc(
            "`uid[:gid]`, or names from the image's passwd and group.",
            "string or number",
            '"1000:1000"',
            "the image's",
            True,
        ),
    ] = None
    environment: Annotated[
        Environment,
        Doc(
            "Variables, added to those of the image. Numbers are kept as they are written (`0755` stays `0755`); "
            "true, false and null must be quoted.",
            "map, or list of K=V",
            "{TZ: UTC}",
            "`{}`",
            True,
        ),
    ] = Field(default_factory=dict)
    configs: Annotated[
        ConfigMounts,
        Doc("Configs that appear as files. Short form: the name.", "list", "[app_conf]", "`[]`", True),
    ] = ()
    ports: Annotated[
        Ports,
        Doc(
            'Published ports. Short form: `"[host_ip:]published:target[/protocol]"`.',
            "list",
            '["8080:80"]',
            "`[]`",
            False,
        ),
    ] = ()
    volumes: Annotated[
        Mounts,
        Doc(
            "Mounts: volumes, paths of the device, file systems in memory. Short form: `NAME:/path[:ro]` or "
            "`/device/path:/path[:ro]`.",
            "list",
            '["data:/var/lib/app"]',
            "`[]`",
            True,
        ),
    ] = ()
    tmpfs: Annotated[
        Tmpfs,
        Doc(
            "File systems in memory: `PATH[:size=SIZE]`, 64Mi by default.",
            "list",
            '["/tmp:size=32Mi"]',
            "`[]`",
            True,
        ),
    ] = ()
    limits: Annotated[
        Limits, Doc("What the container may use at most.", "map", "{memory: 64Mi, cpus: 0.5}")
    ] = Limits()
    restart: Annotated[
        RestartPolicy,
        Doc(
            "When it is started again after it ended. Short form: `no`, `on-failure[:N]`, `always`.",
            "string or map",
            "on-failure:5",
            "the device's `defaults.restart`, `always`",
            False,
        ),
    ] = Restart()
    stop_signal: Annotated[
        StopSignal,
        Doc("The signal that asks it to end.", "signal name", "SIGINT", "the image's, or SIGTERM", False),
    ] = None
    stop_grace_period: Annotated[
        Duration, Doc("How long it may take to end; then it is killed.", "duration", "30s", "10s", False)
    ] = 10.0
    init: Annotated[
        bool, Doc("Run a small init as PID 1, which reaps orphans.", "boolean", "true", "", True)
    ] = False
    read_only: Annotated[
        bool,
        Doc(
            "Make the root file system read-only. Declare /tmp and /run under `tmpfs` yourself.",
            "boolean",
            "true",
            "",
            True,
        ),
    ] = False
    hostname: Annotated[Hostname, Doc("Its host name.", "host name", "db", "APP-CONTAINER", True)] = None
    depends_on: Annotated[
        DependsOn,
        Doc(
            "Containers that must have started before. Short form: a list.",
            "list or map",
            "[db]",
            "`{}`",
            False,
        ),
    ] = Field(default_factory=dict)
    labels: Annotated[
        Labels,
        Doc(
            "Labels for people and tools; values of at most 63 characters.",
            "map",
            "{tier: web}",
            "`{}`",
            False,
        ),
    ] = Field(default_factory=dict)
    logging: Annotated[
        Logging, Doc("Where its output goes.", "map", "{max_size: 1Mi}", "the device's `defaults.logging`")
    ] = Logging()


def _declaration(value: object) -> object:
    """Let `volumes: {data: }` declare a volume with nothing more to say, as in Compose."""
    return {} if value is None else value


class App(Part):
    """One spec file."""

    model_config = ConfigDict(
        json_schema_extra={**_EXTENSIONS, "required": ["apiVersion", "kind", "name", "containers"]}
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
    configs: Annotated[
        dict[ConfigName, Config],
        Doc("The files that containers get to see.", "map", "{app_conf: {file: conf/app.toml}}", "`{}`"),
    ] = Field(default_factory=dict)


_NESTED: Final[dict[str, type[Part]]] = {"limits": Limits, "restart": Restart, "logging": Logging}


def restart_fields() -> dict[str, bool]:
    """Return every container field, nested ones dotted, with whether changing it restarts the container.

    `volumes` and `configs` count as one field each: any change inside restarts.
    """
    found: dict[str, bool] = {}
    for name, doc in docs(Container):
        if nested := _NESTED.get(name):
            for inner, inner_doc in docs(nested):
                found[f"{name}.{inner}"] = bool(inner_doc.restart)
        else:
            found[name] = bool(doc.restart)
    return found
