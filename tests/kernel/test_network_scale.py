"""Many of everything, with the real kernel: a thousand ports of one app, two hundred containers on twenty networks."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconciler.engine.network.names import table_name
from reconciler.errors import ReconcilerError
from reconciler.linux import netlink, nftables
from reconciler.state.network import Network
from tests.kernel.apps import ANY, INSTANCE, Apps
from tests.kernel.netns import ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]
FIRST = 10_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    with ExitStack() as stack:
        yield Apps(stack, tmp_path)


def generation() -> int:
    """How many transactions the kernel's rule set has seen."""
    with netlink.Socket(netlink.NETFILTER) as sock:
        return nftables.generation(sock)


def test_a_thousand_ports_of_one_app_are_one_transaction_and_then_nothing(
    world: Apps, patience: float
) -> None:
    world.start("web", "server")
    ports = [
        ("web", "server", ANY, FIRST + number, 80 + number % 2, "udp" if number % 10 > 7 else "tcp")
        for number in range(1000)
    ]
    mappings = [world.mapping(*port) for port in ports]
    world.networks.observe()
    before = generation()
    assert world.networks.publish(mappings)
    assert generation() - before == 2, "the table, and its seal"
    for number in (0, 1, 500, 998, 999):
        answer = ask(world.outside, world.HOST, FIRST + number, ports[number][5])
        assert answer == f"web/server {world.OUTSIDE}"
    assert silent(world.outside, world.HOST, FIRST + 1000)

    seen = world.networks.observe()
    assert seen.ruleset_intact
    assert len(seen.ports or ()) == 1000
    began = time.perf_counter()
    for _ in range(10):
        assert world.networks.observe() is seen
    assert (time.perf_counter() - began) / 10 < 0.02 * patience
    assert not world.networks.publish(mappings)
    assert world.restart_agent().observe().ports == seen.ports
    assert world.networks.publish(mappings[:1])
    assert silent(world.outside, world.HOST, FIRST + 999, "udp")


def test_two_hundred_containers_on_twenty_networks_come_and_go_without_a_trace(world: Apps) -> None:
    links = world.host.run("ip", "-o", "link", "show")
    members = {f"app-{app}": [f"c-{number}" for number in range(10)] for app in range(20)}
    pairs = [(app, name) for app, names in members.items() for name in names]
    world.networks.ensure_all(map(Network, members), [(app, app, name) for app, name in pairs])
    namespaces = {}
    for app, name in pairs:
        namespaces[app, name] = world.namespace()
        world.networks.attach(app, name, namespaces[app, name].fd)
    world.serve(namespaces["app-19", "c-9"], "last", ("tcp", 80))
    world.publish(("app-19", "c-9", ANY, 8080, 80, "tcp"))
    seen = world.networks.observe()
    assert {app: set(found.attached) for app, found in seen.apps.items()} == {
        app: set(names) for app, names in members.items()
    }
    assert all(found.healthy for found in seen.apps.values())
    assert len({found.subnet for found in seen.apps.values()}) == 20
    assert len({world.address(app, name) for app, name in pairs}) == 200
    last = world.address("app-19", "c-9")
    assert ask(world.outside, world.HOST, 8080) == f"last {world.OUTSIDE}"
    assert str(ask(namespaces["app-19", "c-0"], last, 80)).startswith("last ")
    assert silent(namespaces["app-0", "c-0"], last, 80), (
        "apps do not reach each other, however many there are"
    )
    for app in members:
        world.networks.remove(app)
    assert world.host.run("ip", "-o", "link", "show") == links
    assert table_name(INSTANCE) not in world.host.run("nft", "list", "tables")
    assert world.networks.observe().apps == {}


def test_addresses_run_out_with_a_sentence_and_what_has_one_keeps_it(world: Apps) -> None:
    names = [f"c-{number}" for number in range(253)]
    leased = world.networks.lease_all("web", names)
    assert len(set(leased.values())) == 253
    with pytest.raises(ReconcilerError, match="all 253 addresses of") as caught:
        world.networks.lease("web", "one-more")
    assert caught.value.hint
    assert world.networks.members("web") == leased
    world.networks.release("web", "c-7")
    assert world.networks.lease("web", "one-more") == leased["c-7"]
