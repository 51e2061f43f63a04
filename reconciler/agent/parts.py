"""Composition: the engine's parts, built from a layout and the device's settings, in one place and in plain sight."""

from collections.abc import Callable
from dataclasses import dataclass

from reconciler.agent.images import open_images
from reconciler.config import Device
from reconciler.engine import cgroup, instance, renaming, scope, serving
from reconciler.engine.byhand import ByHand
from reconciler.engine.container import Containers
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.local import LocalEngine
from reconciler.engine.network.networks import Networks
from reconciler.engine.observe import Observer
from reconciler.engine.progress import Pulls
from reconciler.engine.pull import Images, Progress
from reconciler.engine.store import Store
from reconciler.engine.zygote import Zygote
from reconciler.plan.garbage import Retention


@dataclass(frozen=True)
class Parts:
    """What an agent, or a verb that changes something, works with. `close` lets connections and the zygote go."""

    layout: Layout
    device: Device
    instance: str
    store: Store
    images: Images
    networks: Networks
    zygote: Zygote
    containers: Containers
    engine: LocalEngine
    observer: Observer
    pulls: Pulls
    byhand: ByHand

    @property
    def cgroup_parent(self) -> str:
        """The name of the cgroup, or the scope, that all containers of this instance are in."""
        return f"reconciler-{self.instance}"

    @property
    def naming(self) -> renaming.Place:
        """What an ad-hoc container's other name has to reach."""
        return renaming.Place(self.layout, self.byhand, self.networks, self.containers)

    def prepare_host(self) -> None:
        """What the first container after a boot needs: where systemd manages cgroups, a scope of our own."""
        hierarchies = Hierarchies.detect()
        if scope.needed(hierarchies):
            scope.ensure_scope(self.cgroup_parent, hierarchies)

    @property
    def retention(self) -> Retention:
        """How long unwanted objects stay."""
        return retention(self.device)

    def close(self) -> None:
        self.images.close()
        self.zygote.close()
        self.networks.close()


def open_parts(layout: Layout, device: Device, progress: Callable[[Progress], None]) -> Parts:
    """Build the parts for a state directory, which is made if it is missing. Takes no lock and starts no process."""
    identity = instance.prepare(layout)
    store = Store(layout)
    store.prepare()
    images = open_images(layout, device, store)
    parent = f"reconciler-{identity}"
    networks = Networks(layout, identity, lambda: serving.look(layout, paused=paused(parent)))
    zygote = Zygote(layout, place=lambda pid: scope.join(parent, Hierarchies.detect(), pid))
    pulls = Pulls(progress)
    containers = Containers(layout, identity, store, networks, zygote, Hierarchies.detect)
    byhand = ByHand(layout)
    engine = LocalEngine(
        layout,
        containers=containers,
        networks=networks,
        store=store,
        images=images,
        pulls=pulls,
        byhand=byhand,
    )
    return Parts(
        layout=layout,
        device=device,
        instance=identity,
        store=store,
        images=images,
        networks=networks,
        zygote=zygote,
        containers=containers,
        engine=engine,
        observer=Observer(layout, identity, store, networks),
        pulls=pulls,
        byhand=byhand,
    )


def paused(parent: str) -> Callable[[str], bool]:
    """What says of a container, by its id, whether it is paused now."""
    place = cgroup.place(Hierarchies.detect(), parent)
    return lambda container_id: cgroup.frozen(place.group(container_id))


def retention(device: Device) -> Retention:
    """The device's gc settings as the planner takes them."""
    gc = device.gc
    return Retention(
        keep_generations=gc.keep_generations,
        min_age=gc.min_age,
        keep_blobs=gc.keep_blobs,
        high=gc.high,
        low=gc.low,
        min_free=gc.min_free,
    )
