"""A host with an instance's networks and containers that answer on ports, for the network tests."""

from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

from reconciler.engine.layout import Layout
from reconciler.engine.network.networks import Networks
from reconciler.engine.network.ports import PortMapping
from tests.kernel.netns import Namespace, World

ANY = "0.0.0.0"
INSTANCE = "0123456789abcdef"
SERVED = (("tcp", 80), ("udp", 80), ("tcp", 81), ("udp", 81))


class Apps(World):
    """A world with an instance's networks, and containers that serve ports 80 and 81 of both protocols."""

    def __init__(self, stack: ExitStack, root: Path) -> None:
        super().__init__(stack)
        self.layout = Layout(root / "state", root / "run")
        self.networks = self.agent(INSTANCE, self.layout)
        self.containers: dict[str, Namespace] = {}

    def agent(self, instance: str, layout: Layout) -> Networks:
        """The networks of an instance, as a newly started agent has them."""
        layout.network.mkdir(parents=True, exist_ok=True)
        networks = Networks(layout, instance)
        self._stack.callback(networks.close)
        return networks

    def restart_agent(self) -> Networks:
        self.networks = self.agent(INSTANCE, self.layout)
        return self.networks

    def start(self, app: str, name: str, answer: str = "", *, ipv6: bool = False) -> Namespace:
        """Start a container whose servers answer with its name; with `ipv6` in a network that has that, by both."""
        self.networks.ensure(app)
        self.networks.lease(app, name, ipv6=ipv6)
        namespace = self.namespace()
        self.networks.attach(app, name, namespace.fd)
        self.serve(namespace, answer or f"{app}/{name}", *SERVED, address="::" if ipv6 else ANY)
        self.containers[f"{app}/{name}"] = namespace
        return namespace

    def publish(self, *ports: tuple[str, str, str, int, int, str]) -> None:
        self.networks.publish([self.mapping(*port) for port in ports])

    def mapping(
        self, app: str, name: str, host_ip: str, published: int, target: int, protocol: str
    ) -> PortMapping:
        where = ip_address(host_ip)
        address = self.networks.lease(app, name)
        address6 = self.networks.address6(app, name)
        to = address if where.version == 4 or address6 is None else address6
        return PortMapping(app, name, where, published, target, protocol, to)

    def address(self, app: str, name: str) -> str:
        return str(self.networks.lease(app, name))

    def address6(self, app: str, name: str) -> str:
        return str(self.networks.address6(app, name))

    def gateway6(self, app: str) -> str:
        return str(self.networks.ensure(app).gateway6)

    def gateway(self, app: str) -> str:
        return str(self.networks.ensure(app).gateway)


def forwarding_entry(world: Apps, mac: str) -> list[str]:
    return [line for line in world.host.run("bridge", "fdb", "show").splitlines() if line.startswith(mac)]


def mac_of(world: Apps, name: str) -> str:
    line = world.containers[f"web/{name}"].run("ip", "-o", "link", "show", "eth0")
    words = line.split()
    return words[words.index("link/ether") + 1]
