"""The steps: everything that may be done to the device, each a value whose `str` is the log line and the dry-run line.

One ordered list of these is the plan; the executor performs each through one public verb of the engine, which is
idempotent. A step names its `app` and the `lane` it runs in (`state.desired.lane_of`); global steps have none.
"""

from dataclasses import dataclass, field

from reconciler.state.desired import Container, Settings, lane_of
from reconciler.state.image import Image
from reconciler.state.network import Network, owner_of
from reconciler.state.observed import Published


@dataclass(frozen=True, slots=True)
class ConfigureNetwork:
    """Make the bridges of `networks` and replace the port table; global, before any lane."""

    networks: tuple[Network, ...]
    published: tuple[Published, ...]
    app: None = field(default=None, init=False)
    lane: None = field(default=None, init=False)

    def __str__(self) -> str:
        return f"configure network ({len(self.networks)} networks, {len(self.published)} ports)"


@dataclass(frozen=True, slots=True)
class PullImage:
    """Fetch, verify and unpack what is missing of `image`; one pull serves every app that asks for it.

    `only` is the ad-hoc container that it is for.
    """

    app: str
    reference: str
    image: Image
    only: str = ""

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.only)

    def __str__(self) -> str:
        return f"pull {self.reference}"


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make a named volume, for `size_limit` bytes at most; it stays when the app goes. `only` as in `PullImage`."""

    app: str
    volume: str
    only: str = ""
    size_limit: int | None = None

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.only)

    def __str__(self) -> str:
        limit = "" if self.size_limit is None else f" ({_limit(self.size_limit)})"
        return f"create volume {self.app}/{self.volume}{limit}"


@dataclass(frozen=True, slots=True)
class LimitVolume:
    """Change what a volume may hold, in place, or with None let it have all the room; nothing restarts."""

    app: str
    volume: str
    size_limit: int | None

    @property
    def lane(self) -> str:
        return self.app

    def __str__(self) -> str:
        limit = "no limit" if self.size_limit is None else _limit(self.size_limit)
        return f"limit volume {self.app}/{self.volume} ({limit})"


@dataclass(frozen=True, slots=True)
class StopContainer:
    """Send `signal`, wait up to `grace` seconds, then kill the cgroup. Succeeds if it is not running."""

    app: str
    container: str
    id: str
    signal: str
    grace: float

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"stop {self.app}/{self.container}"


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Remove what is left of a container that does not run; its log stays as `logs --previous` if `keep_previous`."""

    app: str
    container: str
    id: str
    keep_previous: bool = True

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"remove {self.app}/{self.container} ({self.id[:12]})"


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Make the container, up to but not including its first instruction; one that keeps its id, in its old place."""

    desired: Container
    attempt: int = 0
    restarts: int = 0

    @property
    def app(self) -> str:
        return self.desired.app

    @property
    def lane(self) -> str:
        return lane_of(self.desired.app, self.desired.name)

    def __str__(self) -> str:
        return f"create {self.desired.full_name} ({self.desired.fingerprint})"


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Attach the network and let the program start."""

    app: str
    container: str

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"start {self.app}/{self.container}"


@dataclass(frozen=True, slots=True)
class UpdateContainer:
    """Change limits, log rotation and recorded settings of a container in place; nothing restarts.

    `reattach` asks for its network link to be made again; `changes` names what differs, for the log line.
    """

    app: str
    container: str
    id: str
    settings: Settings
    changes: tuple[str, ...]
    reattach: bool = False

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"update {self.app}/{self.container} ({', '.join(self.changes)})"


@dataclass(frozen=True, slots=True)
class RecordExit:
    """Keep the exit record of a container that stays ended across a reboot."""

    app: str
    container: str
    id: str

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"record exit of {self.app}/{self.container}"


@dataclass(frozen=True, slots=True)
class ForgetContainer:
    """Let go of the record of an ad-hoc container that was to be removed after its end; nothing wants it any more."""

    app: str
    container: str

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.container)

    def __str__(self) -> str:
        return f"forget {self.app}/{self.container}"


@dataclass(frozen=True, slots=True)
class ChangeNetwork:
    """Make a network anew as it is declared now; no container is in it, and their addresses may be others then."""

    network: Network

    @property
    def app(self) -> str:
        return self.network.owner

    @property
    def lane(self) -> str:
        return self.network.owner

    def __str__(self) -> str:
        ipv6 = self.network.subnet6 or ("ipv6" if self.network.ipv6 else "")
        words = [self.network.subnet, ipv6, "internal" if self.network.internal else ""]
        said = ", ".join(word for word in words if word)
        return f"change network {self.network.key}{f' ({said})' if said else ''}"


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    """Remove a network's bridge and release its addresses; its containers are gone."""

    network: str

    @property
    def app(self) -> str:
        return owner_of(self.network)

    @property
    def lane(self) -> str:
        return owner_of(self.network) or self.network

    def __str__(self) -> str:
        return f"remove network {self.network}"


@dataclass(frozen=True, slots=True)
class Garbage:
    """One object to collect and why. `kind` and `name` as in `StoredObject`."""

    kind: str
    name: str
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Delete what nothing wants any more; global, last."""

    objects: tuple[Garbage, ...]
    app: None = field(default=None, init=False)
    lane: None = field(default=None, init=False)

    def __str__(self) -> str:
        total = sum(item.size for item in self.objects)
        return f"collect garbage ({len(self.objects)} objects, {total} bytes)"


Step = (
    ConfigureNetwork
    | PullImage
    | CreateVolume
    | LimitVolume
    | StopContainer
    | RemoveContainer
    | CreateContainer
    | StartContainer
    | UpdateContainer
    | RecordExit
    | ForgetContainer
    | ChangeNetwork
    | RemoveNetwork
    | CollectGarbage
)


def _limit(size: int) -> str:
    return f"at most {size >> 10} KiB"


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something that should change and does not now. `until` is a boottime at which that is decided anew, if known.

    `degraded`: it waits for the world outside, for as long as that takes; nothing that the agent does will bring it on.
    `hint` says what a person can do about it.
    """

    app: str
    container: str
    reason: str
    until: float | None = None
    degraded: bool = False
    hint: str = field(default="", compare=False)

    @property
    def lane(self) -> str:
        """The lane that it holds up, or stands in."""
        return lane_of(self.app, self.container)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one step: `error` is empty on success. `seconds` is how long it took.

    `unverified` says that content did not match its digest or size, which somebody should look into; `code` is the
    exit code of a command line that ends with this error.
    """

    step: Step
    error: str = ""
    hint: str = ""
    transient: bool = False
    seconds: float = 0.0
    unverified: bool = False
    code: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered steps, what is held up, and the boottime at which time alone changes this plan."""

    steps: tuple[Step, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    wake_at: float | None = None
