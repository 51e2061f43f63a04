"""`Container`: everything that a spec says about one container. The largest part of an app (`spec.model`). Pure."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from reconciler.spec.attachment import Places, only_default
from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.fields import Doc, Part, docs
from reconciler.spec.kernel import Capabilities, Devices, Sysctls
from reconciler.spec.network import Domains, ExtraHosts, NetworkMode, ResolverOptions, Servers
from reconciler.spec.parts import (
    ConfigMounts,
    DependsOn,
    Logging,
    Mounts,
    Ports,
    Restart,
    RestartPolicy,
    Tmpfs,
)
from reconciler.spec.process import Arguments, EnvFrom, Environment, Groups, StopSignal, Ulimits, User
from reconciler.spec.resources import Cpuset, Limits, Reserve
from reconciler.spec.seccomp import DEFAULT, Seccomp
from reconciler.spec.values import (
    Annotations,
    Duration,
    Hostname,
    ImageReference,
    Labels,
    OptionalPath,
    ShmSize,
    Whole,
)

EXTENSIONS: Final[dict[str, Any]] = {"patternProperties": {"^x-": True}}


class Container(Part):
    """One container of an app."""

    model_config = ConfigDict(json_schema_extra={**EXTENSIONS})

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
    group_add: Annotated[
        Groups,
        Doc(
            "Further groups of the user: ids, or names from the image's group.",
            "list",
            "[44, video]",
            "`[]`",
            True,
        ),
    ] = ()
    environment: Annotated[
        Environment,
        Doc(
            "Variables, added to those of the image and of `env_from`. Numbers are kept as they are written (`0755` "
            "stays `0755`); true, false and null must be quoted. A value may be `{config: NAME}`, the content of a "
            "config without its last line break, or `{device: labels.KEY}`, a label of the device.",
            "map, or list of K=V",
            "{TZ: UTC}",
            "`{}`",
            True,
        ),
    ] = Field(default_factory=dict)
    env_from: Annotated[
        EnvFrom,
        Doc(
            "Variables from configs with lines of `K=V`; a later one goes before an earlier one.",
            "list of {config: NAME}",
            "[{config: app_env}]",
            "`[]`",
            True,
        ),
    ] = ()
    configs: Annotated[
        ConfigMounts,
        Doc("Configs that appear as files. Short form: the name.", "list", "[app_conf]", "`[]`", True),
    ] = ()
    ports: Annotated[
        Ports,
        Doc(
            'Published ports. Short form: `"[host_ip:]published:target[/protocol]"`, with an IPv6 address in brackets.',
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
    reserve: Annotated[
        Reserve,
        Doc(
            "What is kept for it when others want it too. All of a device together may not reserve more than it has.",
            "map",
            "{memory: 32Mi, cpus: 0.25}",
        ),
    ] = Reserve()
    cpuset: Annotated[Cpuset, Doc("The CPUs that it may run on.", "string", '"0-2,4"', "all", False)] = None
    ulimits: Annotated[
        Ulimits,
        Doc(
            "Limits of each process (getrlimit(2)), soft and hard; `-1` is no limit. One that the agent itself may not "
            "give is an error; only the default of `nofile` is then lowered instead.",
            "map to a number or {soft, hard}",
            "{nofile: 4096, core: 0}",
            "`{nofile: {soft: 65536, hard: 1048576}}`",
            True,
        ),
    ] = Field(default_factory=dict)
    oom_score_adj: Annotated[
        Whole,
        Field(ge=-1000, le=1000),
        Doc(
            "How soon the kernel takes it when the device's memory runs out: 1000 first, -1000 never.",
            "-1000 to 1000",
            "500",
            "",
            True,
        ),
    ] = 0
    shm_size: Annotated[ShmSize, Doc("The size of /dev/shm.", "bytes", "256Mi", "64Mi", True)] = 64 << 20
    sysctls: Annotated[
        Sysctls,
        Doc(
            "Settings of the kernel that belong to its own namespaces: `net.*`, `kernel.shm*`, `kernel.msg*`, "
            "`kernel.sem`, `fs.mqueue.*`.",
            "map",
            "{net.core.somaxconn: 1024}",
            "`{}`",
            True,
        ),
    ] = Field(default_factory=dict)
    cap_add: Annotated[
        Capabilities,
        Doc(
            "Further capabilities of its root, or ALL; each must be in the device's `allowed_caps`. A user other than "
            "root gets none of them.",
            "list",
            "[NET_ADMIN]",
            "`[]`",
            True,
        ),
    ] = ()
    cap_drop: Annotated[
        Capabilities,
        Doc(
            "Capabilities that its root has not, or ALL. By default it has "
            f"{', '.join(name[4:] for name in DEFAULT_CAPABILITIES)}.",
            "list",
            "[ALL]",
            "`[]`",
            True,
        ),
    ] = ()
    privileged: Annotated[
        bool,
        Doc(
            "All capabilities and devices, nothing masked, /sys writable: its root is the device's root. The device "
            "must `allow_privileged`.",
            "boolean",
            "true",
            "",
            True,
        ),
    ] = False
    no_new_privileges: Annotated[
        bool,
        Doc("Set-uid programs and file capabilities give nothing.", "boolean", "false", "", True),
    ] = True
    seccomp: Annotated[
        Seccomp,
        Doc(
            "Which system calls it may make: `default` refuses what programs in containers do not need, `unconfined` "
            "nothing, `{profile: FILE}` what a JSON file of the repository says, in Docker's form (`{content: TEXT}`: "
            "the text itself). All but `default` the device must allow: `allowed_seccomp`. A privileged container is "
            "not filtered.",
            "default, unconfined or map",
            "{profile: conf/seccomp.json}",
            "",
            True,
        ),
    ] = DEFAULT
    userns: Annotated[
        Literal["host", "auto"] | None,
        Doc(
            "`auto` gives it 65,536 ids of its own: its root is nobody on the device, and has power over its own files "
            "and processes alone. Files keep the ids that they have on disk. Left out it is `auto`, unless the "
            "container has host paths, devices, `network_mode: host`, `privileged`, a capability that counts over the "
            "device, or an id of 65536 or more, or the device can't (`doctor`) or shall not (`defaults.userns`).",
            "host, auto",
            "host",
            "see there",
            True,
        ),
    ] = None
    devices: Annotated[
        Devices,
        Doc(
            "Devices that it may use. Short form: `/dev/x[:/dev/y[:rwm]]`. While one is absent the container waits "
            "for it.",
            "list",
            "[/dev/ttyUSB0]",
            "`[]`",
            True,
        ),
    ] = ()
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
    network_mode: Annotated[
        NetworkMode,
        Doc(
            "`bridge`: its `networks`. `host`: the device's own network, with no ports to publish. `none`: "
            "nothing but loopback. `container:NAME`: the network of another container of the app, with its addresses, "
            "ports, names and loopback; it starts after that one, and anew whenever that one does.",
            "bridge, host, none, container:NAME",
            "none",
            "bridge",
            True,
        ),
    ] = "bridge"
    networks: Annotated[
        Places,
        Doc(
            "The networks that it is in: its interfaces are eth0 and so on in this order, and what it sends outside, "
            "and what its published ports receive, goes by the first that is not internal. Short form: a list. A "
            "change of `aliases` alone restarts nothing.",
            "list, or map to {aliases, ipv4_address, ipv6_address}",
            "[default, back]",
            "`[default]`",
            True,
        ),
    ] = Field(default_factory=only_default)
    dns: Annotated[
        Servers,
        Doc(
            "The servers that are asked for names of the outside, three at most.",
            "list or address",
            "[192.0.2.53]",
            "the device's",
            True,
        ),
    ] = ()
    dns_search: Annotated[
        Domains,
        Doc(
            "The domains in which short names are looked up; `.` for none.",
            "list or domain",
            "[lab.example]",
            "the device's",
            True,
        ),
    ] = ()
    dns_opt: Annotated[
        ResolverOptions,
        Doc("Options of resolv.conf(5).", "list or option", '["ndots:2"]', "the device's", True),
    ] = ()
    extra_hosts: Annotated[
        ExtraHosts,
        Doc(
            "Further lines of its /etc/hosts; `host-gateway` stands for the device's address in the app's network.",
            "map, or list of NAME:ADDRESS",
            "{printer: 192.0.2.7}",
            "`{}`",
            True,
        ),
    ] = ()
    replicas: Annotated[
        Whole,
        Field(ge=0, le=64),
        Doc(
            "How many of it run: APP/CONTAINER, APP/CONTAINER.2 and so on, each with an address of its own, which the "
            "name CONTAINER stands for together. They share the named volumes; a change of what restarts is made to "
            "one after another. More than one can't publish ports.",
            "0-64",
            "3",
            "",
            False,
        ),
    ] = 1
    depends_on: Annotated[
        DependsOn,
        Doc(
            "Containers that must have started before, with all their replicas. Short form: a list.",
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
    annotations: Annotated[
        Annotations,
        Doc(
            "Notes for people and tools, which `ps -o json` and `inspect` show; values of at most 4096 characters.",
            "map",
            '{docs: "https://example.org/web"}',
            "`{}`",
            False,
        ),
    ] = Field(default_factory=dict)
    logging: Annotated[
        Logging, Doc("Where its output goes.", "map", "{max_size: 1Mi}", "the device's `defaults.logging`")
    ] = Logging()


_NESTED: Final[dict[str, type[Part]]] = {
    "limits": Limits,
    "reserve": Reserve,
    "restart": Restart,
    "logging": Logging,
}


def restart_fields() -> dict[str, bool]:
    """Return every container field, nested ones dotted, with whether changing it restarts the container.

    `volumes` and `configs` count as one field each: any change inside restarts; so does `networks`, by its addresses.
    """
    found: dict[str, bool] = {}
    for name, doc in docs(Container):
        if nested := _NESTED.get(name):
            for inner, inner_doc in docs(nested):
                found[f"{name}.{inner}"] = bool(inner_doc.restart)
        else:
            found[name] = bool(doc.restart)
    return found
