"""What should run: the values that specs and resolved images come down to.

A container's desired value has two halves. `Identity` is everything that needs a new process to change; its hash is the
fingerprint. `Settings` is everything that can change under a running process; a difference there is an `update` step.
This module is pure, and knows neither YAML nor the disk.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from reconciler.spec.adhoc import ADHOC
from reconciler.spec.modes import joined_by
from reconciler.state.image import Image, Unresolved
from reconciler.state.network import Attachment, Network
from reconciler.state.wish import Wish


def lane_of(app: str, container: str) -> str:
    """Return the name of the lane that a container is worked on in: its app's, or its own if it is an ad-hoc one.

    Ad-hoc containers have nothing in common but a network: what one of them waits for holds up no other.
    """
    return f"{app}/{container}" if app == ADHOC and container else app


def called(app: str, container: str) -> str:
    """Return what people call a container: `app/container`, and an ad-hoc one by its plain name."""
    return container if app == ADHOC else f"{app}/{container}"


def replica_name(container: str, number: int) -> str:
    """Return the name of a replica, counted from 1: the first one has the container's own."""
    return container if number == 1 else f"{container}.{number}"


def replicated(name: str) -> str:
    """Return the name that a declared container has in its spec, of which it is one of the replicas."""
    return name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A named volume of the app, or the directory `subpath` of it, mounted at `target`.

    With `nocopy` a new volume is not filled with what the image has at `target`.
    """

    volume: str
    target: str
    read_only: bool = False
    subpath: str = ""
    nocopy: bool = False


@dataclass(frozen=True, slots=True)
class BindMount:
    """A host path, already checked against the device's allowed binds; `propagation` as in mount_namespaces(7)."""

    source: str
    target: str
    read_only: bool = False
    create_host_path: bool = False
    propagation: str = "rprivate"


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """A tmpfs of at most `size` bytes with the octal permission bits `mode`."""

    target: str
    size: int
    mode: int = 0o1777


@dataclass(frozen=True, slots=True)
class ConfigMount:
    """A config file: `digest` (hex sha256 of its content) stands in the identity for the content itself."""

    config: str
    target: str
    digest: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


Mount = VolumeMount | BindMount | TmpfsMount | ConfigMount


@dataclass(frozen=True, slots=True)
class Device:
    """A device node, or a directory of them, at `target`; `permissions` of r, w and m (mknod), in this order.

    Without an `optional` one the container starts all the same.
    """

    source: str
    target: str
    permissions: str = "rwm"
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a container this container: a change here needs a new process.

    `groups` are ids and names of further groups, `ulimits` (name, soft, hard; -1 for no limit) what differs from the
    default, `sysctls` are by dotted name, `cap_add` and `cap_drop` full names (CAP_CHOWN) or ALL; all sorted.
    `image` is the digest of the image's config document, never of an index or a tag. `arguments` is the whole
    argument vector, `environment` complete `K=V` strings sorted by key, `user` as in Docker's USER ("" is root);
    names are those of the image's own passwd. `userns` is host, or auto for ids of its own. `network_mode` is
    bridge, host, none, or `container:` and the full name of the one whose network it joins (`adhoc/ID`); `networks`
    the places in networks in the order of the interfaces, () for the app's own with nothing declared; `extra_hosts`
    are (name, address or host-gateway). `seccomp` is "" for the default profile, whatever a release has in it,
    unconfined, or sha256:HEX of its own. `tty` and `stdin` ("" for the null device, open, or once, which closes it
    when who attached first has left) are for people: no spec says them.
    """

    image: str
    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    init: bool = False
    read_only: bool = False
    log_driver: str = "file"
    groups: tuple[str, ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    oom_score_adj: int = 0
    shm_size: int = 64 << 20
    sysctls: tuple[tuple[str, str], ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = True
    seccomp: str = ""
    devices: tuple[Device, ...] = ()
    userns: str = "host"
    network_mode: str = "bridge"
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    networks: tuple[Attachment, ...] = ()
    tty: bool = False
    stdin: str = ""

    def fingerprint(self) -> str:
        """Identify the configuration by content: equal fingerprints need no restart.

        Defaults are left out, so that a field of a later release restarts nothing. Lone surrogates stay as they are.
        """
        value = _said(self)
        value["mounts"] = [
            {"type": type(mount).__name__, **_said(mount)} for mount in sorted(self.mounts, key=_target)
        ]
        if self.devices:
            value["devices"] = [_said(device) for device in sorted(self.devices, key=_target)]
        if self.networks:
            value["networks"] = [
                {**_said(place), "network": {"key": place.network.key, **_said(place.network)}}
                for place in self.networks
            ]
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _said(value: Identity | Mount | Device | Attachment | Network) -> dict[str, object]:
    """The fields that differ from their default."""
    found = {item.name: getattr(value, item.name) for item in fields(value)}
    return {name: found[name] for name in found if found[name] != value.__dataclass_fields__[name].default}


def _target(mount: Mount | Device) -> str:
    return mount.target


@dataclass(frozen=True, slots=True)
class Io:
    """Throttles of one disk, None for no limit: that which `device` is, is a part of or is on, "" for the state's."""

    device: str = ""
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits: `cpus` in thousandths of a CPU, `memory` and `swap` in bytes, None for no limit.

    `swap` is beside `memory`, not Docker's sum, and nothing without it. `cpuset` is as the kernel writes it (0-2,4), ""
    for every CPU. `reserve_*` are kept for it when others want them too; `rootfs` is what it may write beside volumes.
    """

    cpus: int | None = None
    memory: int | None = None
    swap: int = 0
    pids: int | None = 512
    io: Io | None = None
    io_weight: int | None = None
    cpuset: str = ""
    reserve_cpus: int = 0
    reserve_memory: int = 0
    rootfs: int | None = None
    hugepages: tuple[tuple[int, int], ...] = ()  # size of a page, and bytes


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a container that ended is started again; `policy` is no, on-failure or always; times in seconds.

    `max_attempts` 0 means without end. The n-th restart in a row waits `delay * factor**(n-1)`, at most `max_delay`,
    plus or minus `jitter` as a fraction; a run of `reset_after` seconds counts as a success and starts over.
    """

    policy: str = "always"
    max_attempts: int = 0
    delay: float = 1.0
    max_delay: float = 300.0
    factor: float = 2.0
    jitter: float = 0.1
    reset_after: float = 600.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """How a log is rotated: at `max_size` bytes, keeping `max_files` files in all, old ones gzipped if `compress`."""

    max_size: int = 10 * 1024 * 1024
    max_files: int = 3
    compress: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A published port: packets to `host_ip`:`published` reach `target` inside. `protocol` is tcp or udp.

    With `balance` all replicas of the container share it, those of them that serve it.
    `network` is the key of the network that they reach it in, "" for the app's own.
    """

    host_ip: str
    published: int
    target: int
    protocol: str = "tcp"
    balance: bool = False
    network: str = ""

    def __str__(self) -> str:
        host_ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{host_ip}:{self.published}->{self.target}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What can change under a running process: the kernel, the shim or the agent is told, nothing restarts.

    `depends_on` holds full names (`app/container`), sorted; `aliases` further names as (network, name), sorted.
    """

    limits: Limits = Limits()
    restart: RestartPolicy = RestartPolicy()
    stop_signal: str = "SIGTERM"
    stop_grace: float = 10.0
    ports: tuple[Port, ...] = ()
    depends_on: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    rotation: Rotation = Rotation()
    annotations: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Container:
    """One container that should run. `reference` is the image as the spec writes it, `mark` the file:line:col of it.

    `configs` maps a config's name to its content, `seccomp` is its own profile; equality looks at their digests only.
    `wish` is what people want of it by hand, None for most. `id` is set for an ad-hoc container only: it keeps its id,
    and with it its files and its log, however often it is started; any other is a new one each time.
    """

    app: str
    name: str
    identity: Identity
    settings: Settings
    image: Image
    reference: str
    mark: str = field(default="", compare=False)
    configs: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    wish: Wish | None = None
    id: str = ""
    seccomp: bytes = field(default=b"", compare=False, repr=False)

    @property
    def full_name(self) -> str:
        """`app/container`, the name by which people and other containers know it."""
        return f"{self.app}/{self.name}"

    @property
    def networked(self) -> bool:
        """It has an address in a network."""
        return self.identity.network_mode == "bridge"

    @property
    def joins(self) -> str:
        """The full name of the container whose network it is in, of an ad-hoc one `adhoc/ID`; "" for none."""
        return joined_by(self.identity.network_mode)

    @property
    def places(self) -> tuple[Attachment, ...]:
        """Its places in networks, in the order of its interfaces."""
        if not self.networked:
            return ()
        return self.identity.networks or (Attachment(Network(self.app)),)

    @property
    def networks(self) -> tuple[str, ...]:
        """The keys of its networks."""
        return tuple([place.network.key for place in self.places])

    @cached_property
    def fingerprint(self) -> str:
        """See `Identity.fingerprint`."""
        return self.identity.fingerprint()


@dataclass(frozen=True, slots=True)
class UnresolvedImage:
    """A container whose image is not known yet, so that its app has to wait."""

    container: str
    reference: str
    unresolved: Unresolved


@dataclass(frozen=True)
class App:
    """One app that should run, from the spec file `path` whose content has the hash `digest`.

    `containers` is by name. Where `unresolved` is not empty the app waits as it is: nothing of it is changed.
    `volumes` are the names of its declared volumes, `external` those of them that are never made,
    `volume_limits` the bytes that the others may hold, where that is limited; `network_labels` are by key. `stale` says
    why an older spec than the one in the source is used (the file is broken), or is empty. `only` is the name of the
    one container of an ad-hoc app. `replicas` says of each declared container how many of it should run, also where
    that is none, or where its image is not known.
    """

    name: str
    path: str
    digest: str
    containers: Mapping[str, Container]
    volumes: tuple[str, ...] = ()
    unresolved: tuple[UnresolvedImage, ...] = ()
    stale: str = ""
    external: frozenset[str] = frozenset()
    only: str = ""
    volume_limits: Mapping[str, int] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=dict)
    network_labels: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @property
    def lane(self) -> str:
        """The name of its lane, and its key in `Desired.apps`."""
        return lane_of(self.name, self.only)

    @cached_property
    def version(self) -> str:
        """Identify what is wanted of it now: its spec, and what people want beside. A newer one is tried at once."""
        wishes = [
            (name, want.wish) for name, want in sorted(self.containers.items()) if want.wish is not None
        ]
        if not wishes:
            return self.digest
        return f"{self.digest} {hashlib.sha256(repr(wishes).encode()).hexdigest()[:12]}"

    @cached_property
    def networks(self) -> Mapping[str, Network]:
        """The networks that its containers are in, by key, with the addresses that they ask for."""
        found: dict[str, Network] = {}
        fixed: dict[str, list[tuple[str, str]]] = {}
        fixed6: dict[str, list[tuple[str, str]]] = {}
        for name, container in sorted(self.containers.items()):
            for place in container.places:
                found.setdefault(place.network.key, place.network)
                if place.address:
                    fixed.setdefault(place.network.key, []).append((name, place.address))
                if place.address6:
                    fixed6.setdefault(place.network.key, []).append((name, place.address6))
        return {
            key: replace(
                found[key],
                fixed=tuple(fixed.get(key, ())),
                fixed6=tuple(fixed6.get(key, ())),
                labels=tuple(self.network_labels.get(key, ())),
            )
            for key in sorted(found)
        }


@dataclass(frozen=True)
class Desired:
    """Everything that should run on the device.

    `apps` is by lane: an app is its own, and each ad-hoc container is an app of one container, `adhoc/NAME`.
    `held` are apps that must be left exactly as they are, with the reason (a file that can't be read and no last good
    version, a shrink guard that tripped, a spec source that vanished): they are neither changed nor removed.
    `hold_all`, when not empty, holds every app that is not in `apps`, with that reason.
    """

    apps: Mapping[str, App]
    held: Mapping[str, str] = field(default_factory=dict)
    hold_all: str = ""

    @property
    def declared(self) -> dict[str, App]:
        """The apps that specs describe, by name."""
        return {name: app for name, app in self.apps.items() if not app.only}

    def app(self, name: str) -> App | None:
        """Return the app of that name, or None; for the ad-hoc containers, one app with all of them."""
        if name != ADHOC:
            return self.apps.get(name)
        parts = [app for app in self.apps.values() if app.only]
        if not parts:
            return None
        return App(
            name=ADHOC,
            path="",
            digest="",
            containers={name: want for app in parts for name, want in app.containers.items()},
            volumes=tuple(sorted({volume for app in parts for volume in app.volumes})),
            unresolved=tuple(item for app in parts for item in app.unresolved),
        )
