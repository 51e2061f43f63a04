"""The values that a scrape is made of: what the agent gathers, and `report.metrics` turns into series. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.engine.usage import Usage
from reconciler.report.tally import Counters


@dataclass(frozen=True, slots=True)
class Traffic:
    """A container's network counters as it sees them (received is what came in)."""

    received_bytes: int = 0
    received_packets: int = 0
    received_errors: int = 0
    received_dropped: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0
    sent_errors: int = 0
    sent_dropped: int = 0
    interface: str = "eth0"


@dataclass(frozen=True, slots=True)
class Process:
    """The agent's own cost: seconds of CPU, bytes, descriptors, start as wall seconds."""

    cpu_seconds: float
    resident: int
    virtual: int
    descriptors: int
    max_descriptors: int
    started: float


@dataclass(frozen=True, slots=True)
class StoreSizes:
    """The store's content in bytes by kind (blobs, layers, upper, logs, volumes, partial), measured now and then.

    `images` and `blobs` count objects by state: used, pinned, unused.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    free: int = 0
    total: int = 0
    images: Mapping[str, int] = field(default_factory=dict)
    blobs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Care:
    """How the store is: objects by kind that are wrong, when the last pass of the scrub ended (0: none has), the bytes
    that it read, repairs by result, and layers by result (whole, wrong) that were read because a boot broke off.
    """

    corrupt: Mapping[str, int] = field(default_factory=dict)
    finished: float = 0.0
    read: int = 0
    repairs: Mapping[str, int] = field(default_factory=dict)
    doubted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Everything that a scrape may tell. `status` is the document of `report.status`.

    Mappings by container are by full name. `generations` maps current, desired and last_good to numbers, `log_bytes`
    (container, stream) to bytes, `volumes` (app, volume) to (bytes, orphaned), `volume_limits` to bytes.
    `download_bytes` is what is still to be fetched, `spec_errors` counts errors in the specs as they are now.
    `registries` are those that images are wanted from; `requests` is by (registry, code), `pulled` by (registry,
    source, kind), `peer_bytes` what other devices were given. None: not known, and then the series is left out.
    """

    version: str
    python: str
    kernel: str
    architecture: str
    device: str
    source: str
    status: Mapping[str, Any]
    counters: Counters
    branch: str = ""
    device_labels: Mapping[str, str] = field(default_factory=dict)
    spec_errors: int = 0
    download_bytes: int = 0
    generations: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    upper_bytes: Mapping[str, int] = field(default_factory=dict)
    log_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    volumes: Mapping[tuple[str, str], tuple[int, bool]] = field(default_factory=dict)
    volume_limits: Mapping[tuple[str, str], int] = field(default_factory=dict)
    store: StoreSizes | None = None
    care: Care = Care()
    registries: frozenset[str] = frozenset()
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pulled: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    peer_bytes: int | None = None
    clock_synchronized: bool | None = None
    process: Process | None = None
