"""The engine of this device:

the executor's verbs, delegated to the parts that do them. No logic of its own.
"""

from collections.abc import Sequence
from ipaddress import ip_address

from reconciler.engine import record, volumelimit, volumes
from reconciler.engine.byhand import ByHand
from reconciler.engine.container import Containers
from reconciler.engine.layout import Layout
from reconciler.engine.network.networks import Networks
from reconciler.engine.network.ports import PortMapping
from reconciler.engine.progress import Pulls
from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.failpoint import failpoint
from reconciler.spec.reference import Digest, Reference
from reconciler.state.desired import Container, Settings
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.observed import Published


class LocalEngine:
    """Satisfies `execute.engine.Engine`. `pulls` shows every pull while it runs."""

    def __init__(
        self,
        layout: Layout,
        *,
        containers: Containers,
        networks: Networks,
        store: Store,
        images: Images,
        pulls: Pulls,
        byhand: ByHand | None = None,
    ) -> None:
        self._layout = layout
        self._containers = containers
        self._networks = networks
        self._store = store
        self._images = images
        self._pulls = pulls
        self._byhand = byhand or ByHand(layout)

    def configure_network(self, networks: Sequence[Network], published: Sequence[Published]) -> None:
        leased: dict[int, list[tuple[str, str, str]]] = {4: [], 6: []}
        for item in published:
            place = item.port.network or item.app, item.app, item.container
            leased[ip_address(item.port.host_ip).version].append(place)
        self._networks.ensure_all(networks, leased[4], leased[6])
        mappings = (self._mapping(item) for item in published)
        self._networks.publish([mapping for mapping in mappings if mapping is not None])
        failpoint("network.published")

    def _mapping(self, item: Published) -> PortMapping | None:
        """The port as the table has it, None for one of IPv6 whose container has no such address as yet."""
        port = item.port
        host_ip = ip_address(port.host_ip)
        address = self._networks.lease(item.app, item.container, port.network, ipv6=host_ip.version == 6)
        address6 = self._networks.address6(item.app, item.container, port.network)
        if host_ip.version == 6 and address6 is None:
            return None
        return PortMapping(
            app=item.app,
            container=item.container,
            host_ip=host_ip,
            published=port.published,
            target=port.target,
            protocol=port.protocol,
            address=address if host_ip.version == 4 or address6 is None else address6,
            balance=port.balance,
            network=port.network,
        )

    def pull(self, reference: str, image: Image) -> None:
        with self._pulls.pulling(reference, self._images.missing(image)):
            self._images.pull(image, Reference.parse(reference), self._pulls)

    def create_volume(self, app: str, volume: str, size_limit: int | None = None) -> None:
        volumes.create(self._layout, app, volume, size_limit=size_limit)

    def limit_volume(self, app: str, volume: str, size_limit: int | None) -> None:
        volumelimit.apply(self._layout, app, volume, size_limit)

    def begin_stop(self, container_id: str, signal: str) -> int | None:
        return self._containers.begin_stop(container_id, signal)

    def finish_stop(self, container_id: str) -> None:
        self._containers.finish_stop(container_id)

    def remove_container(self, container_id: str, *, keep_previous: bool) -> None:
        self._containers.remove(container_id, keep_previous=keep_previous)

    def create_container(self, desired: Container, *, attempt: int, restarts: int) -> None:
        self._containers.create(desired, attempt=attempt, restarts=restarts)

    def start_container(self, app: str, container: str) -> None:
        self._containers.start(app, container)

    def update_container(self, container_id: str, settings: Settings, *, reattach: bool) -> None:
        self._containers.update(container_id, settings, reattach=reattach)

    def record_exit(self, container_id: str) -> None:
        self._containers.record_exit(container_id)

    def forget_container(self, name: str) -> None:
        self._byhand.forget(name)

    def change_network(self, network: Network) -> None:
        self._networks.change(network)
        failpoint("network.changed")

    def remove_network(self, network: str) -> None:
        self._networks.remove(network)
        failpoint("network.removed")

    def collect(self, kind: str, name: str) -> bool:
        with self._store.exclusive(), self._store.claims:
            used = {layer for found in record.records(self._layout) for layer in found.layers}
            if kind == "layer" and name in used:
                return False
            self.discard(kind, name)
        return True

    def discard(self, kind: str, name: str) -> None:
        """Take one object out of the store. The caller holds its locks, and has just seen that nothing wants it."""
        match kind:
            case "layer":
                self._store.remove_layer(Digest("sha256", name))
            case "blob":
                self._store.remove_blob(Digest.parse(name))
            case "image":
                self._store.forget(Digest.parse(name))
            case "previous":
                app, _, container = name.partition("/")
                self._store.discard(self._layout.previous(app, container))
            case _:
                raise ValueError(f"unknown kind of garbage {kind!r}")
