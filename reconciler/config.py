"""The device's settings as the program uses them: device.yaml to frozen dataclasses, every default in one place.

The defaults themselves are those of the model in `spec.device`, from which docs/settings.md is generated, so that there
is one place for them. Never read from the repository.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from reconciler.errors import InvalidSpecError
from reconciler.spec import device as file
from reconciler.spec import registries
from reconciler.spec.check import check
from reconciler.spec.defaults import Defaults
from reconciler.spec.device import DeviceFile
from reconciler.spec.marks import ERROR
from reconciler.spec.registries import Certificates
from reconciler.spec.terms import DEVICE_FILE, Terms
from reconciler.spec.yaml12 import EMPTY, compose

_GC = file.Gc()
_GUARD = file.ShrinkGuard()
_LIMITS = file.ImageLimits()


@dataclass(frozen=True, slots=True)
class Registries:
    """How registries are reached, each of them host[:port].

    `insecure` ones are spoken to over plain HTTP; `ca` has the certificates for each, or for all (`*`); `authfile`
    holds
    credentials, in Docker's form; `realms` are further hosts that may be sent the credentials of a registry; `mirrors`
    (HOST or HOST/PREFIX) are asked before it, in their order. Specs may have images from what is in `allow`, or from
    anywhere where that is empty.
    """

    insecure: tuple[str, ...] = ()
    ca: Mapping[str, Certificates] = field(default_factory=dict)
    authfile: str | None = None
    realms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustRule:
    """Whose signature images of the repositories that `match` names need: of one of `keys`, which are paths.

    `required` false: what nobody has signed is used all the same. `place` is where the rule stands, file:line:column.
    """

    match: str
    keys: tuple[str, ...]
    required: bool = True
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Gc:
    """When garbage goes: `min_age` in seconds, `high` and `low` in percent of the file system, `min_free` in bytes."""

    keep_generations: int = _GC.keep_generations
    min_age: float = _GC.min_age
    keep_blobs: bool = _GC.keep_blobs == "used"
    high: int = _GC.high
    low: int = _GC.low
    min_free: int = _GC.min_free


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost: bytes and entries of all its layers, a layer's ratio, bytes of a path, documents."""

    unpacked: int = _LIMITS.unpacked
    entries: int = _LIMITS.entries
    ratio: int = _LIMITS.ratio
    path: int = _LIMITS.path
    nesting: int = _LIMITS.nesting


@dataclass(frozen=True, slots=True)
class StoreCare:
    """`scrub` bytes a day are read to find damage, 0 for none; `repair`: what is found is put right at once."""

    scrub: int = file.StoreCare().scrub
    repair: bool = file.StoreCare().repair


@dataclass(frozen=True, slots=True)
class ShrinkGuard:
    """A change may remove `max_removed` percent of all apps; with fewer than `min_apps` apps it may remove any."""

    max_removed: int = _GUARD.max_removed
    min_apps: int = _GUARD.min_apps


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics are served: `listen` is ADDRESS:PORT, or empty where they are turned off."""

    listen: str = file.Metrics().listen

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to bind, or None."""
        return _address(self.listen)


@dataclass(frozen=True, slots=True)
class Peers:
    """Devices (host:port) to `ask` for images, and where this one answers such: ADDRESS:PORT, or empty for nowhere.

    `everything`: it gives what it has, not only what anybody can have from a registry.
    """

    ask: tuple[str, ...] = ()
    listen: str = ""
    everything: bool = False

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to bind, or None."""
        return _address(self.listen)


def _address(listen: str) -> tuple[str, int] | None:
    host, _, port = listen.rpartition(":")
    return (host.strip("[]"), int(port)) if listen else None


@dataclass(frozen=True, slots=True)
class Device:
    """Everything the device decides for itself. `interval` is in seconds, `file` is where all this comes from."""

    name: str = field(default_factory=lambda: os.uname().nodename)
    labels: Mapping[str, str] = field(default_factory=dict)
    registries: Registries = Registries()
    trust: tuple[TrustRule, ...] = ()
    bundles: tuple[str, ...] = ()
    allowed_binds: tuple[str, ...] = ()
    allowed_devices: tuple[str, ...] = ()
    allowed_caps: tuple[str, ...] = ()
    allow_privileged: bool = False
    allowed_seccomp: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    gc: Gc = Gc()
    limits: ImageLimits = ImageLimits()
    store: StoreCare = StoreCare()
    peers: Peers = Peers()
    reserve: int = file.Disk().reserve  # bytes that a pull leaves free
    shrink_guard: ShrinkGuard = ShrinkGuard()
    metrics: Metrics = Metrics()
    interval: float = DeviceFile().interval
    file: str = field(default=DEVICE_FILE, compare=False)

    @property
    def terms(self) -> Terms:
        """What it allows specs, for `spec.load`."""
        return Terms(
            binds=self.allowed_binds,
            devices=self.allowed_devices,
            caps=self.allowed_caps,
            privileged=self.allow_privileged,
            seccomp=self.allowed_seccomp,
            labels=self.labels,
            registries=self.registries.allow,
            file=self.file,
        )


def load_device(path: str, data: bytes | None) -> Device:
    """Return the settings in `data`, the content of `path`, or raise InvalidSpecError with every problem rendered.

    None is a missing file and means the defaults; so does a file of comments only.
    """
    if data is None:
        return Device(file=path)
    root, source, problems = compose(path, data)
    if root is None and [problem.message for problem in problems] == [EMPTY]:
        return Device(file=path)
    given: DeviceFile | None = None
    places: list[str] = []
    if root is not None:
        checked = check(DeviceFile, root, source, stand_ins={})
        given, problems = checked.model, [*problems, *checked.problems]
        rules = given.trust if given is not None else ()
        places = [str(checked.locator.problem(("trust", index), "").mark) for index in range(len(rules))]
    errors = sorted(problem for problem in problems if problem.severity == ERROR)
    if given is None or errors:
        raise InvalidSpecError("\n".join(str(problem) for problem in errors))
    return _device(path, given, places)


def _device(path: str, given: DeviceFile, places: list[str]) -> Device:
    gc, defaults = given.gc, given.defaults
    return Device(
        name=given.name or os.uname().nodename,
        labels=given.labels,
        registries=_registries(given.registries),
        trust=tuple(
            TrustRule(rule.match, rule.keys, rule.mode == "require", place)
            for rule, place in zip(given.trust, places, strict=True)
        ),
        bundles=given.bundles,
        allowed_binds=given.allowed_binds,
        allowed_devices=given.allowed_devices,
        allowed_caps=given.allowed_caps,
        allow_privileged=given.allow_privileged,
        allowed_seccomp=given.allowed_seccomp,
        defaults=Defaults(defaults.host_ip, defaults.logging, defaults.restart, defaults.userns),
        gc=Gc(gc.keep_generations, gc.min_age, gc.keep_blobs == "used", gc.high, gc.low, gc.min_free),
        limits=ImageLimits(*(getattr(given.limits, item.name) for item in fields(ImageLimits))),
        reserve=given.disk.reserve,
        store=StoreCare(given.store.scrub, given.store.repair),
        shrink_guard=ShrinkGuard(given.shrink_guard.max_removed, given.shrink_guard.min_apps),
        metrics=Metrics(_listen(given.metrics.listen)),
        peers=Peers(given.peers.ask, _listen(given.peers.listen), given.peers.share == "all"),
        interval=given.interval,
        file=path,
    )


def _listen(given: str) -> str:
    return "" if given == "none" else given


def _registries(given: registries.Registries) -> Registries:
    return Registries(given.insecure, given.ca, given.authfile, given.realms, given.mirrors, given.allow)
