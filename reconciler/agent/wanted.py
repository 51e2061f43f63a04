"""What a desired state asks of every turn, whatever is found, and what a generation remembers of it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from reconciler.state.desired import App, Desired, lane_of
from reconciler.state.generation import AppliedApp
from reconciler.state.network import Network, owner_of
from reconciler.state.observed import Observed, Published


@dataclass(frozen=True, slots=True)
class Wanted:
    """The ports, devices and declared subnets of a desired state, and the version of what is wanted in each lane."""

    desired: Desired
    ports: list[Published]
    devices: frozenset[str]
    digests: dict[str, str]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, desired: Desired) -> "Wanted":
        digests = {lane: app.version for lane, app in desired.apps.items()}
        return cls(desired, wanted_ports(desired), wanted_devices(desired), digests, wanted_networks(desired))


def wanted_ports(desired: Desired) -> list[Published]:
    """Every port that a spec wants to be published."""
    return [
        Published(app.name, container.name, port)
        for app in desired.apps.values()
        for container in app.containers.values()
        for port in container.settings.ports
    ]


def wanted_devices(desired: Desired) -> frozenset[str]:
    """Every device that a container asks for, by its path."""
    return frozenset(
        device.source
        for app in desired.apps.values()
        for container in app.containers.values()
        for device in container.identity.devices
    )


def wanted_networks(desired: Desired) -> tuple[Network, ...]:
    """Every network whose subnet a spec declares, or that is to have IPv6: what this device may not have."""
    return tuple(
        network
        for app in desired.apps.values()
        for network in app.networks.values()
        if network.subnet or network.ipv6
    )


def applied(app: App) -> AppliedApp:
    """What a generation keeps of an app."""
    images = {container.reference: container.image for _, container in sorted(app.containers.items())}
    return AppliedApp(
        name=app.name,
        path=app.path,
        digest=app.digest,
        images=tuple((ref, str(image.manifest), str(image.config)) for ref, image in images.items()),
        layers=tuple(sorted({layer.chain_id.hex for image in images.values() for layer in image.layers})),
        blobs=tuple(
            sorted({str(d) for image in images.values() for d in (image.index, image.manifest, image.config)})
        ),
    )


def left_alone(only: Callable[[str], bool] | None, desired: Desired, observed: Observed) -> frozenset[str]:
    """The lanes that an agent which works on `only` some has to leave alone; None: it works on all."""
    if only is None:
        return frozenset()
    found = {lane_of(*name.split("/", 1)) for name in observed.containers}
    lanes = found | desired.apps.keys() | {owner_of(key) or key for key in observed.network.known}
    return frozenset(lane for lane in lanes if not only(lane))
