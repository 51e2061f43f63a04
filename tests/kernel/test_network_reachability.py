"""Who reaches whom: published ports from everywhere, isolation between apps, the way out. Real links and sockets."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconciler.state.network import Network
from tests.kernel.apps import ANY, Apps, forwarding_entry, mac_of
from tests.kernel.netns import ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    with ExitStack() as stack:
        yield Apps(stack, tmp_path)


@pytest.fixture
def served(world: Apps) -> Apps:
    """Two apps: web with server and sibling, other with client; 8080 of both protocols goes to web/server:80."""
    for app, name in (("web", "server"), ("web", "sibling"), ("other", "client")):
        world.start(app, name)
    world.publish(
        ("web", "server", ANY, 8080, 80, "tcp"),
        ("web", "server", ANY, 8080, 80, "udp"),
        ("web", "server", ANY, 8081, 81, "tcp"),
    )
    return world


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
class TestAPublishedPort:
    def test_answers_another_host_and_sees_its_address(self, served: Apps, protocol: str) -> None:
        assert ask(served.outside, served.HOST, 8080, protocol) == f"web/server {served.OUTSIDE}"

    def test_answers_the_host_on_its_own_address(self, served: Apps, protocol: str) -> None:
        assert ask(served.host, served.HOST, 8080, protocol) == f"web/server {served.HOST}"

    def test_answers_the_host_on_127_0_0_1(self, served: Apps, protocol: str) -> None:
        assert ask(served.host, "127.0.0.1", 8080, protocol) == f"web/server {served.gateway('web')}"

    def test_answers_the_host_on_the_bridge_address(self, served: Apps, protocol: str) -> None:
        assert (
            ask(served.host, served.gateway("web"), 8080, protocol) == f"web/server {served.gateway('web')}"
        )

    def test_answers_a_sibling_through_the_host(self, served: Apps, protocol: str) -> None:
        sibling = served.containers["web/sibling"]
        assert ask(sibling, served.HOST, 8080, protocol) == f"web/server {served.gateway('web')}"

    def test_answers_the_container_itself_through_the_host(self, served: Apps, protocol: str) -> None:
        server = served.containers["web/server"]
        assert ask(server, served.HOST, 8080, protocol) == f"web/server {served.gateway('web')}"

    def test_answers_another_app_through_the_host(self, served: Apps, protocol: str) -> None:
        client = served.containers["other/client"]
        assert ask(client, served.HOST, 8080, protocol) == f"web/server {served.address('other', 'client')}"

    def test_is_the_only_way_into_another_app(self, served: Apps, protocol: str) -> None:
        assert silent(served.containers["other/client"], served.address("web", "server"), 80, protocol)

    def test_leaves_siblings_a_direct_way(self, served: Apps, protocol: str) -> None:
        sibling = served.containers["web/sibling"]
        assert (
            ask(sibling, served.address("web", "server"), 80, protocol)
            == f"web/server {served.address('web', 'sibling')}"
        )

    def test_opens_no_other_port(self, served: Apps, protocol: str) -> None:
        assert silent(served.outside, served.HOST, 80, protocol)
        assert silent(served.outside, served.HOST, 8082, protocol)

    def test_keeps_a_neighbour_with_a_route_out(self, served: Apps, protocol: str) -> None:
        subnet = str(served.networks.ensure("web").subnet)
        served.outside.run("ip", "route", "add", subnet, "via", served.HOST)
        assert silent(served.outside, served.address("web", "server"), 80, protocol)

    def test_works_with_strict_reverse_path_filtering(self, served: Apps, protocol: str) -> None:
        served.host.run("sysctl", "-q", "net.ipv4.conf.all.rp_filter=1")
        assert ask(served.outside, served.HOST, 8080, protocol) == f"web/server {served.OUTSIDE}"
        assert ask(served.host, "127.0.0.1", 8080, protocol) == f"web/server {served.gateway('web')}"
        sibling = served.containers["web/sibling"]
        assert ask(sibling, served.HOST, 8080, protocol) == f"web/server {served.gateway('web')}"

    def test_with_a_host_ip_answers_on_that_address_only(self, served: Apps, protocol: str) -> None:
        served.host.run("ip", "address", "add", "192.0.2.7/24", "dev", served.UPLINK)
        served.publish(("web", "server", "192.0.2.7", 8080, 80, protocol))
        assert ask(served.outside, "192.0.2.7", 8080, protocol) == f"web/server {served.OUTSIDE}"
        assert silent(served.outside, served.HOST, 8080, protocol)
        assert silent(served.host, "127.0.0.1", 8080, protocol)

    def test_on_127_0_0_1_answers_the_host_alone(self, served: Apps, protocol: str) -> None:
        served.publish(("web", "server", "127.0.0.1", 8080, 80, protocol))
        assert ask(served.host, "127.0.0.1", 8080, protocol) == f"web/server {served.gateway('web')}"
        assert silent(served.outside, served.HOST, 8080, protocol)
        assert silent(served.containers["web/sibling"], served.HOST, 8080, protocol)
        # A neighbour can send to 127.0.0.1 of ours if it routes that address to us (moby 45610).
        served.outside.run("sysctl", "-q", "net.ipv4.conf.all.route_localnet=1")
        served.outside.run("ip", "route", "add", "127.0.0.1/32", "via", served.HOST)
        assert silent(served.outside, "127.0.0.1", 8080, protocol)


def test_one_container_can_publish_several_ports(served: Apps) -> None:
    assert ask(served.outside, served.HOST, 8080) == f"web/server {served.OUTSIDE}"
    assert ask(served.outside, served.HOST, 8081) == f"web/server {served.OUTSIDE}"


def test_two_host_ips_can_map_one_port_to_two_containers(served: Apps) -> None:
    served.host.run("ip", "address", "add", "192.0.2.7/24", "dev", served.UPLINK)
    served.publish(
        ("web", "server", "192.0.2.7", 80, 80, "tcp"), ("other", "client", served.HOST, 80, 81, "tcp")
    )
    assert ask(served.outside, "192.0.2.7", 80) == f"web/server {served.OUTSIDE}"
    assert ask(served.outside, served.HOST, 80) == f"other/client {served.OUTSIDE}"


class TestAContainer:
    def test_reaches_the_outside_behind_the_hosts_address(self, served: Apps) -> None:
        served.serve(served.outside, "outside", ("tcp", 9000), ("udp", 9000))
        client = served.containers["other/client"]
        assert ask(client, served.OUTSIDE, 9000, "tcp") == f"outside {served.HOST}"
        assert ask(client, served.OUTSIDE, 9000, "udp") == f"outside {served.HOST}"

    def test_cannot_reach_the_hosts_loopback_by_routing_it_to_the_gateway(self, served: Apps) -> None:
        served.serve(served.host, "secret", ("tcp", 9100), ("udp", 9100), address="127.0.0.1")
        assert ask(served.host, "127.0.0.1", 9100) is not None
        inside = served.containers["web/sibling"]  # like one with NET_ADMIN
        inside.run("sysctl", "-q", "net.ipv4.conf.all.route_localnet=1")
        inside.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
        inside.run("ip", "route", "add", "127.0.0.1/32", "via", served.gateway("web"))
        sent = inside.run("ip", "-s", "link", "show", "dev", "eth0")
        for protocol in ("tcp", "udp"):
            assert silent(inside, "127.0.0.1", 9100, protocol)
            assert silent(inside, "127.0.0.1", 8080, protocol), (
                "a published port on 127.0.0.1 is the host's too"
            )
        assert sent != inside.run("ip", "-s", "link", "show", "dev", "eth0"), "nothing was even tried"

    def test_cannot_reach_what_listens_on_loopback_through_the_gateway(self, served: Apps) -> None:
        served.serve(served.host, "metrics", ("tcp", 9100), address="127.0.0.1")
        inside = served.containers["web/sibling"]
        assert silent(inside, served.gateway("web"), 9100)
        assert silent(inside, served.HOST, 9100)

    def test_cannot_speak_with_an_address_that_is_not_of_its_subnet(self, served: Apps) -> None:
        server = served.serve(served.outside, "outside", ("udp", 9000))
        inside = served.containers["web/sibling"]
        inside.run("ip", "address", "add", "198.51.100.9/32", "dev", "eth0")
        inside.run("ip", "route", "replace", "default", "via", served.gateway("web"), "src", "198.51.100.9")
        assert silent(inside, served.OUTSIDE, 9000, "udp")
        assert server.asked == 0
        inside.run(
            "ip", "route", "replace", "default", "via", served.gateway("web"),
            "src", served.address("web", "sibling"),
        )  # fmt: skip
        assert ask(inside, served.OUTSIDE, 9000, "udp") == f"outside {served.HOST}"
        assert server.asked == 1

    def test_cannot_take_over_its_siblings_frames(self, served: Apps) -> None:
        thief, mac = served.containers["web/sibling"], mac_of(served, "server")
        before = forwarding_entry(served, mac)
        thief.run("ip", "link", "set", "eth0", "address", mac)
        thief.run("ip", "neigh", "flush", "all")
        assert silent(thief, served.gateway("web"), 9), "the bridge would learn from what it sends"
        assert forwarding_entry(served, mac) == before
        assert ask(served.outside, served.HOST, 8080) == f"web/server {served.OUTSIDE}"

    def test_has_the_mtu_of_the_uplink(self, served: Apps) -> None:
        assert " mtu 1400 " in served.containers["web/server"].run("ip", "link", "show", "eth0")

    def test_does_not_give_the_host_an_ipv6_address_on_its_bridge(self, served: Apps) -> None:
        bridge = served.networks.ensure("web").bridge
        assert "inet6" not in served.host.run("ip", "address", "show", "dev", bridge)


def test_nothing_leaves_or_enters_an_internal_network_but_by_the_device(served: Apps) -> None:
    served.serve(served.outside, "outside", ("tcp", 80))
    client, other = served.containers["other/client"], served.start("other", "second")
    assert ask(client, served.OUTSIDE, 80) == f"outside {served.HOST}"
    subnet = str(served.networks.ensure("other").subnet)
    served.outside.run("ip", "route", "add", subnet, "via", served.HOST)
    served.networks.ensure_all([Network("other", internal=True)])
    # Their default route is still there: it is the device that lets nothing through, answers neither
    assert silent(client, served.OUTSIDE, 80)
    assert silent(client, served.HOST, 8080)
    assert silent(served.outside, served.address("other", "client"), 80)
    assert (
        ask(other, served.address("other", "client"), 80)
        == f"other/client {served.address('other', 'second')}"
    )
    assert (
        ask(served.host, served.address("other", "client"), 80) == f"other/client {served.gateway('other')}"
    )
    assert served.networks.observe().ruleset_intact
    served.networks.ensure_all([Network("other")])
    assert ask(client, served.OUTSIDE, 80) == f"outside {served.HOST}"


@pytest.mark.parametrize("shown", [0, 1])
def test_bridged_frames_pass_whether_br_netfilter_shows_them_to_the_table_or_not(
    served: Apps, shown: int
) -> None:
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("this kernel lacks br_netfilter")
    served.host.run("sysctl", "-q", f"net.bridge.bridge-nf-call-iptables={shown}")
    sibling = served.containers["web/sibling"]
    assert (
        ask(sibling, served.address("web", "server"), 80) == f"web/server {served.address('web', 'sibling')}"
    )
    assert ask(sibling, served.HOST, 8080) == f"web/server {served.gateway('web')}"
    server = served.containers["web/server"]
    assert ask(server, served.HOST, 8080) == f"web/server {served.gateway('web')}"
    assert ask(server, served.HOST, 8080, "udp") == f"web/server {served.gateway('web')}"
    assert ask(served.outside, served.HOST, 8080) == f"web/server {served.OUTSIDE}"
