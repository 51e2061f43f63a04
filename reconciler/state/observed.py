"""What is there: the kernel's and the disk's facts, read afresh in every turn and never remembered.

Values only; `engine.observe` makes them. A phase is a type of its own, so that the checker proves that every place has
thought about each, and `Lost` ("we do not know how it ended") is one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import Limits, Port, Settings, replicated
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.process import ExitRecord


@dataclass(frozen=True, slots=True)
class Now:
    """The time, as an argument: `boottime` for every interval, `wall` for what people and files are told."""

    boottime: float
    wall: float


@dataclass(frozen=True, slots=True)
class Created:
    """Everything is set up, the program has not been started."""


@dataclass(frozen=True, slots=True)
class Running:
    """The program runs as host process `pid`, since `since` (boottime seconds; wall seconds in `since_wall`)."""

    pid: int
    since: float
    since_wall: float


@dataclass(frozen=True, slots=True)
class Exited:
    """The program ended and its record is there."""

    record: ExitRecord


@dataclass(frozen=True, slots=True)
class Lost:
    """Neither a living shim nor a record: a reboot, a killed shim, a deleted directory. `reason` says which.

    `alive` says that something of it still runs.
    """

    reason: str
    alive: bool = False


Phase = Created | Running | Exited | Lost


@dataclass(frozen=True, slots=True)
class Container:
    """A container as found. `attempt` counts starts in a row since the last success, `restarts` all since its creation.

    `limits` is what the kernel enforces now, None where nothing runs; `attached`: its links are there, on the bridges
    of `networks`, keys, or it is in the very namespace that the container has which it `joins` (by full name, an ad-hoc
    one by `adhoc/ID`); True where nothing runs, or it has none. `settled` says that the exit record is already kept
    across a reboot.
    `intact` is False where its directory lost a part that a running container needs for repair (config, log, upper).
    `stopped` says that it ended because a plan stopped it: its restart policy has no say in that end.
    `listens` is False where it shares a port with its siblings and was started a moment ago, but does not listen yet.
    `turn` is the wish that it was made for (`Wish.turn`); `paused`: its cgroup is frozen; `watched`: somebody is still
    reading what an ad-hoc container wrote.
    """

    id: str
    app: str
    name: str
    fingerprint: str
    settings: Settings
    phase: Phase
    image: str
    layers: tuple[str, ...]
    limits: Limits | None = None
    attached: bool = True
    settled: bool = False
    intact: bool = True
    attempt: int = 0
    restarts: int = 0
    created: float = 0.0
    volumes: tuple[str, ...] = ()
    stopped: bool = False
    networks: tuple[str, ...] = ()
    turn: int = 0
    paused: bool = False
    watched: bool = False
    joins: str = ""
    listens: bool = True

    @property
    def networked(self) -> bool:
        """It is in a network."""
        return bool(self.networks)

    @property
    def full_name(self) -> str:
        return f"{self.app}/{self.name}"

    @property
    def joined_as(self) -> str:
        """What those that join its network call it in `joins`: an ad-hoc one may get another name, so by its id."""
        return f"{ADHOC}/{self.id}" if self.app == ADHOC else self.full_name


@dataclass(frozen=True, slots=True)
class Previous:
    """How the removed predecessor of a container ended: what back-off goes by while no container exists.

    `stopped` as in `Container`.
    """

    fingerprint: str
    record: ExitRecord | None
    attempt: int
    restarts: int
    stopped: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """One port of one container, as published or wanted."""

    app: str
    container: str
    port: Port

    def shares(self, other: "Published") -> bool:
        """Whether both are the same container's, or replicas of one container that share their ports."""
        if (self.app, self.container) == (other.app, other.container):
            return True
        return (
            self.port.balance
            and other.port.balance
            and self.port.host_ip == other.port.host_ip
            and (self.app, replicated(self.container)) == (other.app, replicated(other.container))
        )


@dataclass(frozen=True, slots=True)
class Networks:
    """The device's networks as found: `apps` are the keys of those whose bridge is there and right; and what the port
    table holds.

    `published` is None where the table is missing or not as we made it. `traces` are the networks of which anything at
    all is there, be it only the lease that an interrupted removal left. `declared` are those that are not plain ones,
    as they are; `conflicts` says of wanted ones why they can't be had, as (key, reason). `balanced` says that each port
    that replicas share leads to exactly those of them that serve it now.
    """

    apps: frozenset[str] = frozenset()
    published: tuple[Published, ...] | None = None
    traces: frozenset[str] = frozenset()
    declared: tuple[Network, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    balanced: bool = True

    @property
    def known(self) -> frozenset[str]:
        """The networks that there are to remove."""
        return self.apps | self.traces

    def as_found(self, key: str) -> Network:
        """Return the network as it is, or would be if nothing of it is there."""
        return next((network for network in self.declared if network.key == key), Network(key))


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket of somebody else's that holds a port: `process` reads `nginx (pid 612)`.

    One on `::` takes what comes by IPv4, too, unless it is `v6_only`.
    """

    protocol: str
    address: str
    port: int
    process: str
    v6_only: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A lane stopped at `step` with `error`, `count` times in a row, for the version `digest` of what was wanted.

    `code` is the exit code of a command line that ends with this error.
    """

    step: str
    error: str
    hint: str
    transient: bool
    count: int
    at: float
    digest: str
    code: int = 1


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Something in the store that garbage collection may take: `kind` is layer, blob, image or previous.

    `name` is a hex chain id, a digest or `app/container`; `last_used` is wall seconds.
    """

    kind: str
    name: str
    size: int
    last_used: float


@dataclass(frozen=True, slots=True)
class Store:
    """The store: unpacked layers (hex chain ids), all collectable objects, and the file system's room in bytes.

    `tagged` are the names that people gave to images, with what they mean.
    """

    layers: frozenset[str] = frozenset()
    objects: tuple[StoredObject, ...] = ()
    free: int = 0
    size: int = 0
    tagged: tuple[tuple[str, Image], ...] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the device has: thousandths of CPUs and bytes of memory, 0 where that is not known."""

    cpus: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Observed:
    """Everything found in one turn. `containers` is by full name, oldest first where there are several.

    `devices` are those of the wanted devices (paths of the host) that are there.
    `volume_limits` are the bytes that the kernel allows in volumes, by app/volume; others have all the room there is.
    `adhoc` holds the names of the ad-hoc containers that have a record, None where that can't be told. It is looked at
    after what is desired was read, so that a record that has gone meanwhile counts as gone.
    """

    boot: str
    containers: Mapping[str, tuple[Container, ...]] = field(default_factory=dict)
    previous: Mapping[str, Previous] = field(default_factory=dict)
    volumes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    network: Networks = Networks()
    listeners: tuple[Listener, ...] = ()
    store: Store = Store()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    capacity: Capacity = Capacity()
    adhoc: frozenset[str] | None = frozenset()
    volume_limits: Mapping[str, int] = field(default_factory=dict)
