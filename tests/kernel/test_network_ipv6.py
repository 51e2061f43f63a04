"""Networks with IPv6: what IPv4 has, they have. Real links, sockets and settings, in namespaces of their own."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.engine.network.names import table_name
from reconciler.state.network import Network
from tests.kernel.apps import ANY, INSTANCE, Apps, mac_of
from tests.kernel.netns import Namespace, ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]

ANY6 = "::"
BOTH = ("tcp", "udp")
PORTS = tuple(("web", "server", host_ip, 8080, 80, protocol) for host_ip in (ANY, ANY6) for protocol in BOTH)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    """Two apps with IPv6 and one without; of the first, web/server has port 8080 of both protocols and kinds."""
    with ExitStack() as stack:
        world = Apps(stack, tmp_path)
        world.give_ipv6()
        world.networks.ensure_all([Network("web", ipv6=True), Network("other", ipv6=True), Network("old")])
        for app, name in (("web", "server"), ("web", "sibling"), ("other", "client"), ("old", "plain")):
            world.start(app, name, ipv6=app != "old")
        world.publish(*PORTS)
        yield world


def inside(namespace: Namespace, name: str) -> str:
    return namespace.run("cat", f"/proc/sys/net/ipv6/conf/{name}").strip()


def addresses(namespace: Namespace, link: str) -> list[tuple[str, list[str]]]:
    """(address/length, flags of one that is not settled) of a link, but for those of the link itself."""
    shown = json.loads(namespace.run("ip", "-6", "-j", "address", "show", "dev", link))
    return [
        (
            f"{one['local']}/{one['prefixlen']}",
            [flag for flag in ("tentative", "dadfailed", "dynamic") if flag in one],
        )
        for item in shown
        for one in item["addr_info"]
        if one["scope"] == "global"
    ]


class TestAContainer:
    def test_has_a_lasting_address_of_the_devices_own_at_once(self, world: Apps) -> None:
        server = world.containers["web/server"]
        address = world.address6("web", "server")
        assert address.startswith("fd")
        assert addresses(server, "eth0") == [(f"{address}/64", [])]
        # It ends with that of IPv4, so that either tells the other
        assert world.networks.address6("web", "server") is not None
        assert int(world.networks.address6("web", "server") or 0) & 0xFFFFFFFF == int(
            world.networks.lease("web", "server")
        )
        route = server.run("ip", "-6", "route", "show", "default")
        assert route.startswith(f"default via {world.gateway6('web')} dev eth0")
        assert "inet6 ::1/128" in server.run("ip", "-6", "address", "show", "dev", "lo")
        assert [inside(server, f"eth0/{name}") for name in ("accept_ra", "accept_dad")] == ["0", "0"]
        assert str(world.restart_agent().address6("web", "server")) == address

    def test_in_a_network_without_it_has_none(self, world: Apps) -> None:
        assert addresses(world.containers["old/plain"], "eth0") == []
        assert world.networks.address6("old", "plain") is None
        bridge = world.networks.ensure("old").bridge
        assert "inet6" not in world.host.run("ip", "address", "show", "dev", bridge)

    @pytest.mark.parametrize("protocol", BOTH)
    def test_reaches_its_siblings_and_the_outside_and_nobody_else(self, world: Apps, protocol: str) -> None:
        sibling, client = world.containers["web/sibling"], world.containers["other/client"]
        server = world.address6("web", "server")
        assert ask(sibling, server, 80, protocol) == f"web/server {world.address6('web', 'sibling')}"
        assert silent(client, server, 80, protocol)
        world.serve(world.outside, "outside", (protocol, 9000), address="::")
        # It is seen to come from the device (NAT66), and so needs no route back
        assert ask(client, world.OUTSIDE6, 9000, protocol) == f"outside {world.HOST6}"
        subnet = str(world.networks.ensure("web").subnet6)
        world.outside.run("ip", "-6", "route", "add", subnet, "via", world.HOST6)
        assert silent(world.outside, server, 80, protocol)
        assert silent(world.outside, server, 8080, protocol)

    def test_cannot_speak_with_an_address_that_is_not_of_its_subnet(self, world: Apps) -> None:
        outside = world.serve(world.outside, "outside", ("udp", 9000), address="::")
        thief = world.containers["web/sibling"]
        thief.run("ip", "address", "add", "2001:db8:9::9/128", "dev", "eth0", "nodad")
        gateway = world.gateway6("web")
        thief.run("ip", "-6", "route", "replace", "default", "via", gateway, "src", "2001:db8:9::9")
        assert silent(thief, world.OUTSIDE6, 9000, "udp")
        assert outside.asked == 0
        own = world.address6("web", "sibling")
        thief.run("ip", "-6", "route", "replace", "default", "via", gateway, "src", own)
        assert ask(thief, world.OUTSIDE6, 9000, "udp") == f"outside {world.HOST6}"

    def test_cannot_take_over_its_siblings_frames(self, world: Apps) -> None:
        thief, mac = world.containers["web/sibling"], mac_of(world, "server")
        thief.run("ip", "link", "set", "eth0", "address", mac)
        thief.run("ip", "-6", "neigh", "flush", "all")
        assert silent(thief, world.gateway6("web"), 9), "the bridge would learn from what it sends"
        assert ask(world.outside, world.HOST6, 8080) == f"web/server {world.OUTSIDE6}"

    def test_cannot_give_the_host_a_route_or_an_address(self, world: Apps) -> None:
        before = world.host.run("ip", "-6", "route"), world.host.run("ip", "-6", "address")
        bridge = world.networks.ensure("web").bridge
        advertise(world.containers["web/sibling"], "eth0", "2001:db8:bad::")
        assert [inside(world.host, f"{bridge}/{name}") for name in ("accept_ra", "accept_redirects")] == [
            "0",
            "0",
        ]
        assert (world.host.run("ip", "-6", "route"), world.host.run("ip", "-6", "address")) == before
        assert addresses(world.containers["web/server"], "eth0") == [
            (f"{world.address6('web', 'server')}/64", [])
        ]

    def test_hears_how_large_a_packet_may_be(self, world: Apps) -> None:
        world.host.run(
            "ip", "-6", "route", "replace", "2001:db8:8::/64", "via", world.OUTSIDE6, "mtu", "1300"
        )
        client, far = world.containers["other/client"], "2001:db8:8::1"
        assert " mtu 1400 " in client.run("ip", "link", "show", "eth0")
        with client.socket(socket.SOCK_DGRAM, far) as sock:
            sock.connect((far, 9))
            sock.send(bytes(1340))
        until(lambda: "mtu 1300" in client.run("ip", "-6", "route", "get", far))


def refuses(namespace: Namespace, address: str, port: int, protocol: str) -> bool:
    """Whether the answer is that nobody listens there, and not silence."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    where = namespace.do(lambda: socket.getaddrinfo(address, port, type=kind)[0][4])
    with namespace.socket(kind, address) as sock:
        sock.settimeout(3)
        try:
            sock.connect(where)
            sock.send(b"?")
            sock.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def advertise(namespace: Namespace, link: str, prefix: str) -> None:
    """Send one router advertisement that offers a prefix and a way out, as root with NET_RAW could."""
    program = f"""
import socket, struct
prefix = socket.inet_pton(socket.AF_INET6, {prefix!r})
body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
body += struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 86400, 14400, 0) + prefix
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    sock.sendto(body, ("ff02::1", 0, 0, socket.if_nametoindex({link!r})))
"""
    namespace.run("python3", "-c", program)


@pytest.mark.parametrize("protocol", BOTH)
class TestAPublishedPort:
    def test_answers_by_both_as_it_does_by_ipv4(self, world: Apps, protocol: str) -> None:
        gateway, gateway6 = world.gateway("web"), world.gateway6("web")
        for address, seen in ((world.HOST, world.OUTSIDE), (world.HOST6, world.OUTSIDE6)):
            assert ask(world.outside, address, 8080, protocol) == f"web/server {seen}"
        # From the device, at each of its own addresses
        for address in (world.HOST6, gateway6):
            answer = ask(world.host, address, 8080, protocol)
            assert answer is not None
            assert answer.startswith("web/server ")
        assert ask(world.host, "127.0.0.1", 8080, protocol) == f"web/server {gateway}"
        # From a sibling, the container itself, and another app
        for name in ("sibling", "server"):
            assert (
                ask(world.containers[f"web/{name}"], world.HOST6, 8080, protocol) == f"web/server {gateway6}"
            )
        client = world.containers["other/client"]
        assert ask(client, world.HOST6, 8080, protocol) == f"web/server {world.address6('other', 'client')}"
        assert silent(world.outside, world.HOST6, 80, protocol)
        # At ::1, and at the address of a link, the host itself refuses, at once
        shown = ("ip", "-6", "-j", "address", "show", "dev", world.UPLINK)
        until(lambda: "tentative" not in world.host.run(*shown))
        link = json.loads(world.host.run(*shown))[0]["addr_info"]
        own = next(one["local"] for one in link if one["scope"] == "link")
        for namespace, address in (
            (world.host, "::1"),
            (world.host, f"{own}%{world.UPLINK}"),
            (world.outside, f"{own}%eth0"),
        ):
            assert refuses(namespace, address, 8080, protocol)

    def test_with_a_host_ip_answers_on_that_address_only(self, world: Apps, protocol: str) -> None:
        world.host.run("ip", "address", "add", "2001:db8::7/64", "dev", world.UPLINK, "nodad")
        world.publish(("web", "server", "2001:db8::7", 8080, 80, protocol))
        assert ask(world.outside, "2001:db8::7", 8080, protocol) == f"web/server {world.OUTSIDE6}"
        assert silent(world.outside, world.HOST6, 8080, protocol)
        assert silent(world.outside, world.HOST, 8080, protocol)

    def test_is_gone_with_the_flows_through_it(self, world: Apps, protocol: str) -> None:
        assert ask(world.outside, world.HOST6, 8080, protocol) is not None
        world.publish(("other", "client", ANY6, 8080, 80, protocol))
        assert ask(world.outside, world.HOST6, 8080, protocol) == f"other/client {world.OUTSIDE6}"
        world.publish()
        assert silent(world.outside, world.HOST6, 8080, protocol)


def test_replicas_share_a_port_by_both(world: Apps) -> None:
    world.host.run("ip", "address", "add", "2001:db8::7/64", "dev", world.UPLINK, "nodad")
    names = {"server": "page", "sibling": "page.2"}
    for host_ips in ((ANY, ANY6), (world.HOST, "2001:db8::7")):
        ports = [
            replace(world.mapping("web", name, host_ip, 8080, 80, "tcp"), balance=True, container=replica)
            for name, replica in names.items()
            for host_ip in host_ips
        ]
        world.networks.publish(ports)
        assert world.networks.observe().ports == tuple(sorted(ports))
        for address, seen in ((world.HOST, world.OUTSIDE), ("2001:db8::7", world.OUTSIDE6)):
            answers = {ask(world.outside, address, 8080) for _ in range(4)}
            assert answers == {f"web/{name} {seen}" for name in names}


def test_nothing_leaves_or_enters_an_internal_network_but_by_the_device(world: Apps) -> None:
    world.serve(world.outside, "outside", ("tcp", 80), address="::")
    client, server = world.containers["other/client"], world.address6("other", "client")
    other = world.start("other", "second", ipv6=True)
    assert ask(client, world.OUTSIDE6, 80) == f"outside {world.HOST6}"
    world.networks.ensure_all([Network("other", internal=True, ipv6=True)])
    world.outside.run(
        "ip", "-6", "route", "add", str(world.networks.ensure("other").subnet6), "via", world.HOST6
    )
    assert silent(client, world.OUTSIDE6, 80)
    assert silent(client, world.HOST6, 8080)
    assert silent(world.outside, server, 80)
    assert ask(other, server, 80) == f"other/client {world.address6('other', 'second')}"
    assert ask(world.host, server, 80) == f"other/client {world.gateway6('other')}"
    assert world.networks.observe().ruleset_intact


@pytest.mark.parametrize("shown", [0, 1])
def test_bridged_frames_pass_whether_br_netfilter_shows_them_to_the_table_or_not(
    world: Apps, shown: int
) -> None:
    if not Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists():
        pytest.skip("this kernel lacks br_netfilter")
    world.host.run("sysctl", "-q", f"net.bridge.bridge-nf-call-ip6tables={shown}")
    sibling, server = world.containers["web/sibling"], world.containers["web/server"]
    world.host.run("ip", "-6", "neigh", "flush", "all")
    sibling.run("ip", "-6", "neigh", "flush", "all")
    assert (
        ask(sibling, world.address6("web", "server"), 80) == f"web/server {world.address6('web', 'sibling')}"
    )
    for client in (sibling, server):
        assert ask(client, world.HOST6, 8080) == f"web/server {world.gateway6('web')}"
    assert ask(server, world.HOST6, 8080, "udp") == f"web/server {world.gateway6('web')}"


class TestWhatSomebodyElseBroke:
    def test_is_seen_and_repaired(self, world: Apps) -> None:
        bridge, gateway = world.networks.ensure("web").bridge, world.gateway6("web")
        for command, fault in (
            (("ip", "-6", "address", "flush", "dev", bridge, "scope", "global"), f"no address {gateway}"),
            (("sysctl", "-q", f"net.ipv6.conf.{bridge}.accept_ra=2"), "believes router advertisements"),
            (("sysctl", "-q", f"net.ipv6.conf.{bridge}.disable_ipv6=1"), f"no address {gateway}"),
            (("sysctl", "-q", "net.ipv6.conf.all.forwarding=0"), "net.ipv6.conf.all.forwarding is off"),
        ):
            assert world.networks.observe().apps["web"].healthy, command
            world.host.run(*command)
            faults = "; ".join(world.networks.observe().apps["web"].faults)
            assert fault in faults
            world.networks.ensure("web")
            assert ask(world.outside, world.HOST6, 8080) == f"web/server {world.OUTSIDE6}", command
        old = world.networks.ensure("old").bridge
        world.host.run("sysctl", "-q", f"net.ipv6.conf.{old}.disable_ipv6=0")
        assert world.networks.observe().apps["old"].faults == ("bridge has IPv6 on",)
        world.networks.ensure("old")
        assert world.networks.observe().apps["old"].healthy

    @pytest.mark.parametrize(
        "command", ["delete table ip6 TABLE", "flush chain ip6 TABLE inward", "delete table ip TABLE"]
    )
    def test_of_the_table_is_seen_and_replaced(self, world: Apps, command: str) -> None:
        assert world.networks.observe().ruleset_intact
        world.host.run("nft", command.replace("TABLE", table_name(INSTANCE)))
        assert not world.restart_agent().observe().ruleset_intact
        assert world.networks.publish([world.mapping(*port) for port in PORTS])
        assert not world.networks.publish([world.mapping(*port) for port in PORTS])
        assert world.networks.observe().ruleset_intact
        assert ask(world.outside, world.HOST6, 8080) == f"web/server {world.OUTSIDE6}"
        assert ask(world.outside, world.HOST, 8080) == f"web/server {world.OUTSIDE}"

    def test_of_the_leases_is_found_again_in_the_kernel(self, world: Apps) -> None:
        before = {app: dict(seen.addresses6) for app, seen in world.networks.observe().apps.items()}
        subnets = {app: seen.subnet6 for app, seen in world.networks.observe().apps.items()}
        world.layout.leases.unlink()
        seen = world.restart_agent().observe().apps
        assert {app: dict(one.addresses6) for app, one in seen.items()} == before
        assert {app: one.subnet6 for app, one in seen.items()} == subnets
        world.networks.ensure_all([Network("web", ipv6=True), Network("other", ipv6=True)])
        assert world.networks.observe().apps["web"].healthy


class TestTheHost:
    def test_keeps_what_its_routers_told_it_and_goes_on_listening(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            world = Apps(stack, tmp_path)
            listen(world)
            before = settings(world)
            assert "via fe80:" in world.host.run("ip", "-6", "route", "show", "default")
            world.networks.ensure_all([Network("web", ipv6=True)])
            assert inside(world.host, "all/forwarding") == "1"
            assert "via fe80:" in world.host.run("ip", "-6", "route", "show", "default")
            assert [inside(world.host, f"{world.UPLINK}/{name}") for name in ("accept_ra", "forwarding")] == [
                "1",
                "0",
            ]
            # It still hears them, and what it hears takes containers outside
            advertise(world.outside, "eth0", "2001:db8:2::")
            until(lambda: "2001:db8:2:" in world.host.run("ip", "-6", "address", "show", "dev", world.UPLINK))
            client = world.start("web", "client", ipv6=True)
            world.serve(world.outside, "outside", ("tcp", 9000), address="::")
            world.outside.run("ip", "address", "add", "2001:db8:2::99/64", "dev", "eth0", "nodad")
            wait = world.host.run
            until(lambda: "tentative" not in wait("ip", "-6", "address", "show", "dev", world.UPLINK))
            answer = ask(client, "2001:db8:2::99", 9000)
            assert answer is not None
            assert answer.startswith("outside 2001:db8:2:")
            # As a crash in the moment of the change would leave it
            world.host.run("sysctl", "-q", f"net.ipv6.conf.{world.UPLINK}.accept_ra=2")
            world.networks.clean()
            assert settings(world) == before
            assert "via fe80:" in world.host.run("ip", "-6", "route", "show", "default")

    def test_is_as_it_was_found_after_a_clean_up(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            world = Apps(stack, tmp_path)
            world.give_ipv6()
            world.host.run("sysctl", "-q", f"net.ipv6.conf.{world.UPLINK}.forwarding=1")
            before = everything(world)
            world.networks.ensure_all([Network("web", ipv6=True)])
            world.start("web", "server", ipv6=True)
            world.publish(("web", "server", ANY6, 8080, 80, "udp"))
            assert ask(world.outside, world.HOST6, 8080, "udp") is not None
            assert everything(world) != before
            world.networks.clean()
            assert everything(world) == before

    def test_without_ipv6_networks_has_neither_table_nor_forwarding(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            world = Apps(stack, tmp_path)
            world.networks.ensure_all([Network("web")])
            assert inside(world.host, "all/forwarding") == "0"
            assert "ip6" not in world.host.run("nft", "list", "tables")
            # With one they come, without it the table goes again
            world.networks.ensure_all([Network("six", ipv6=True)])
            assert "ip6" in world.host.run("nft", "list", "tables")
            world.networks.remove("six")
            assert "ip6" not in world.host.run("nft", "list", "tables")
            assert world.networks.observe().ruleset_intact

    def test_that_has_it_switched_off_refuses_those_networks_alone(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            world = Apps(stack, tmp_path)
            world.host.run("sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=1")
            wanted = [Network("six", ipv6=True), Network("four/back", "10.20.0.0/24")]
            reason = "this device has IPv6 switched off: net.ipv6.conf.all.disable_ipv6 is 1"
            assert world.networks.conflicts(wanted) == (("six", reason),)
            world.host.run("sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=0")
            world.host.run("ip", "link", "add", "wire", "type", "bridge")
            world.host.run("ip", "address", "add", "2001:db8:5::1/48", "dev", "wire", "nodad")
            world.host.run("ip", "link", "set", "wire", "up")
            taken = Network("six", ipv6=True, subnet6="2001:db8:5:7::/64")
            assert world.networks.conflicts([taken]) == (
                ("six", "its subnet 2001:db8:5:7::/64 overlaps the host's route 2001:db8:5::/48"),
            )


def test_a_network_that_apps_share_gets_ipv6_and_loses_it_in_place(world: Apps) -> None:
    world.networks.ensure_all([Network("/lan")])
    attached = Namespace.make()
    try:
        world.networks.lease("web", "server", "/lan")
        world.networks.attach("web", "server", attached.fd, ["/lan"])
        bridge = world.networks.ensure("/lan").bridge
        assert addresses(world.host, bridge) == []
        world.networks.ensure_all([Network("/lan", ipv6=True)])
        network = world.networks.ensure("/lan")
        assert addresses(world.host, bridge) == [(f"{network.gateway6}/64", [])]
        assert addresses(attached, "eth0") == []
        world.networks.ensure_all([Network("/lan")])
        assert addresses(world.host, bridge) == []
        assert world.networks.observe().apps["/lan"].healthy
        assert world.networks.observe().apps["/lan"].attached == {"web/server"}
    finally:
        attached.close()


def everything(world: Apps) -> tuple[str, str, str, str]:
    run = world.host.run
    links = run("ip", "-o", "link") + run("ip", "address") + run("ip", "route") + run("ip", "-6", "route")
    return links, run("nft", "list", "ruleset"), settings(world), run("ip", "-6", "neigh", "show", "proxy")


def settings(world: Apps) -> str:
    return world.host.run(
        "sh", "-c", "sysctl -a 2>/dev/null | grep -E '^net[.](ipv4[.](ip_|conf)|ipv6[.]conf)'"
    )


def listen(world: Apps) -> None:
    """Have the host learn its address and its way out from a router, its neighbour."""
    world.outside.run("sysctl", "-q", "net.ipv6.conf.all.forwarding=1")
    world.host.run("sysctl", "-q", f"net.ipv6.conf.{world.UPLINK}.accept_ra=1")
    until(lambda: "tentative" not in world.outside.run("ip", "-6", "address", "show", "dev", "eth0"))

    def learned() -> bool:
        advertise(world.outside, "eth0", "2001:db8:1::")
        return "via fe80:" in world.host.run("ip", "-6", "route", "show", "default")

    until(learned)


def until(condition: object, patience: int = 50) -> None:
    assert callable(condition)
    for _ in range(patience):
        if condition():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("it did not come true")
