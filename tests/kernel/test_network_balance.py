"""A port that replicas share: who gets which connection, from everywhere, and what becomes of flows. Real sockets."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from reconciler.engine.network.ports import PortMapping
from tests.kernel.apps import ANY, Apps
from tests.kernel.netns import Namespace, ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]
REPLICAS = ("server", "server.2", "server.3")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    """Three replicas that share 8080 of both protocols, a sibling, and a port of its own beside them."""
    with ExitStack() as stack:
        world = Apps(stack, tmp_path)
        for name in (*REPLICAS, "sibling"):
            world.start("web", name)
        world.start("other", "client")
        share(world)
        yield world


def share(world: Apps, *away: str, host_ip: str = ANY, target: int = 80) -> None:
    """Publish the shared ports; the replicas that are `away` do not serve them."""
    ports = [
        replace(
            world.mapping("web", name, host_ip, 8080, target, protocol),
            balance=True,
            serving=name not in away,
        )
        for name in REPLICAS
        for protocol in ("tcp", "udp")
    ]
    world.networks.publish([*ports, world.mapping("web", "sibling", ANY, 8081, 80, "tcp")])


def answers(source: Namespace, to: str, protocol: str, count: int = 6) -> Counter[str]:
    said = [ask(source, to, 8080, protocol) for _ in range(count)]
    return Counter(str(answer).partition(" ")[0] for answer in said)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_connections_go_round_from_everywhere(world: Apps, protocol: str) -> None:
    even = Counter({f"web/{name}": 2 for name in REPLICAS})
    places = (
        (world.outside, world.HOST),
        (world.host, world.HOST),
        (world.host, "127.0.0.1"),
        (world.containers["web/sibling"], world.HOST),
        (world.containers["web/server.2"], world.HOST),
        (world.containers["other/client"], world.HOST),
    )
    for source, to in places:
        assert answers(source, to, protocol) == even, to
    assert ask(world.outside, world.HOST, 8081) == f"web/sibling {world.OUTSIDE}"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_only_those_that_serve_get_any_and_without_them_the_host_refuses(world: Apps, protocol: str) -> None:
    share(world, "server.2")
    assert answers(world.outside, world.HOST, protocol) == {"web/server": 3, "web/server.3": 3}
    share(world, "server.2", "server")
    assert answers(world.outside, world.HOST, protocol, 2) == {"web/server.3": 2}
    share(world, *REPLICAS)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with world.outside.socket(kind) as sock:
        sock.settimeout(5)

        def speak() -> None:
            sock.connect((world.HOST, 8080))
            sock.send(b"?")
            sock.recv(100)

        with pytest.raises(ConnectionRefusedError):
            speak()
    # Whose they are is known all the same, and a table that is read back is the same table.
    assert {port.container for port in world.networks.observe().ports or () if port.balance} == set(REPLICAS)
    assert world.networks.observe().ruleset_intact


def test_with_a_host_ip_it_answers_on_that_address_only(world: Apps) -> None:
    world.host.run("ip", "address", "add", "192.0.2.7/24", "dev", world.UPLINK)
    share(world, host_ip="192.0.2.7")
    assert answers(world.outside, "192.0.2.7", "tcp", 3) == {f"web/{name}": 1 for name in REPLICAS}
    assert silent(world.outside, world.HOST, 8080)
    share(world, host_ip="127.0.0.1")
    assert answers(world.host, "127.0.0.1", "udp", 3) == {f"web/{name}": 1 for name in REPLICAS}
    assert silent(world.outside, world.HOST, 8080, "udp")


def test_replicas_may_have_different_targets_while_a_change_is_under_way(world: Apps) -> None:
    def port(name: str, target: int) -> PortMapping:
        return replace(world.mapping("web", name, ANY, 8080, target, "tcp"), balance=True)

    world.networks.publish([port("server", 80), port("server.2", 81)])
    assert answers(world.outside, world.HOST, "tcp", 4) == {"web/server": 2, "web/server.2": 2}


class TestUdpFlows:
    """A client that goes on sending from one port stays with its replica for as long as that serves."""

    def exchange(self, world: Apps) -> str:
        with world.outside.socket(socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.bind((world.OUTSIDE, 40000))
            sock.connect((world.HOST, 8080))
            sock.send(b"?")
            return sock.recv(100).decode().partition(" ")[0].removeprefix("web/")

    def test_stay_while_others_come_and_go_and_move_on_when_theirs_leaves(self, world: Apps) -> None:
        first = self.exchange(world)
        others = [name for name in REPLICAS if name != first]
        share(world, others[0])
        assert self.exchange(world) == first
        share(world)
        assert self.exchange(world) == first, "another one that joins takes nobody's flow"
        share(world, first)
        second = self.exchange(world)
        assert second in others
        share(world)
        assert self.exchange(world) == second


def test_a_table_that_somebody_changed_is_read_and_put_right(world: Apps) -> None:
    before = world.networks.observe()
    name = next(
        line.split()[2]
        for line in world.host.run("nft", "list", "tables").splitlines()
        if "reconciler" in line
    )
    for change in (
        ["flush", "chain", "ip", name, "shared_tcp_8080"],
        ["delete", "element", "ip", name, "any_shared", "{ udp . 8080 }"],
        ["flush", "set", "ip", name, "serving"],
        ["flush", "map", "ip", name, "shared_port"],
        ["flush", "table", "ip", name],
        ["delete", "table", "ip", name],
    ):
        world.host.run("nft", *change)
        assert world.networks.observe() != before, change
        share(world)
        assert world.networks.observe() == before, change
        assert answers(world.outside, world.HOST, "tcp", 3) == {f"web/{name}": 1 for name in REPLICAS}


def test_an_agent_that_starts_takes_over_who_serves(world: Apps) -> None:
    share(world, "server.2")
    before = world.networks.observe()
    networks = world.restart_agent()
    networks.ensure("third")
    assert networks.observe().ports == before.ports
    assert answers(world.outside, world.HOST, "tcp", 2) == {"web/server": 1, "web/server.3": 1}
    assert IPv4Address(world.address("web", "server.2")) in {port.address for port in before.ports or ()}
