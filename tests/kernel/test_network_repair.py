"""What somebody else broke is seen by `observe` and repaired by the verbs; what is right is left alone (R22)."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconciler.engine.network.names import table_name
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError
from reconciler.linux import netlink, nftables
from tests.kernel.apps import ANY, INSTANCE, Apps, forwarding_entry, mac_of
from tests.kernel.netns import ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]

TABLE = f"ip {table_name(INSTANCE)}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    """One app with two containers, of which web/server has port 8080 of both protocols."""
    with ExitStack() as stack:
        world = Apps(stack, tmp_path)
        world.start("web", "server")
        world.start("web", "sibling")
        world.publish(*PORTS)
        yield world


PORTS = (("web", "server", ANY, 8080, 80, "tcp"), ("web", "server", ANY, 8080, 80, "udp"))


def generation() -> int:
    with netlink.Socket(netlink.NETFILTER) as sock:
        return nftables.generation(sock)


def links(world: Apps) -> str:
    return world.host.run("ip", "-o", "link") + world.host.run("ip", "-o", "-4", "address")


def settings(world: Apps) -> str:
    """Every IPv4 setting of the host but those of links that come and go, and counters."""
    lines = world.host.run("sh", "-c", "sysctl -a 2>/dev/null | grep -E '^net[.]ipv4[.](ip_|conf)'")
    return "\n".join(line for line in lines.splitlines() if ".rc-" not in line and ".rv" not in line)


def reaches(world: Apps) -> bool:
    return ask(world.outside, world.HOST, 8080) == f"web/server {world.OUTSIDE}"


class TestWhatIsRight:
    def test_is_seen_as_right(self, world: Apps) -> None:
        seen = world.networks.observe()
        app = seen.apps["web"]
        assert app.healthy, app.faults
        assert app.bridge_present
        assert app.attached == {"server", "sibling"}
        assert not app.detached
        assert app.addresses == world.networks.members("web")
        assert seen.ruleset_intact
        assert seen.ports == tuple(sorted(world.mapping(*port) for port in PORTS))
        assert str(world.networks.ensure("web").gateway) in {str(a) for a in seen.host_addresses}

    def test_is_seen_as_right_by_a_new_agent(self, world: Apps) -> None:
        before = world.networks.observe()
        assert world.restart_agent().observe() == before

    def test_is_left_alone(self, world: Apps) -> None:
        before, rules = links(world), generation()
        world.networks.ensure("web")
        world.networks.attach("web", "server", world.containers["web/server"].fd)
        assert not world.networks.publish([world.mapping(*port) for port in reversed(PORTS)])
        assert not world.restart_agent().publish([world.mapping(*port) for port in PORTS])
        world.networks.ensure("web")
        assert links(world) == before
        assert generation() == rules

    def test_costs_no_listing_of_the_table_while_the_generation_stands(self, world: Apps) -> None:
        world.networks.observe()
        first = world.networks._firewall.observe()
        assert world.networks._firewall.observe() is first

    def test_observing_changes_nothing(self, world: Apps) -> None:
        files = {path: path.stat().st_mtime_ns for path in world.layout.network.iterdir()}
        before = links(world), generation(), settings(world)
        world.restart_agent().observe()
        assert (links(world), generation(), settings(world)) == before
        assert {path: path.stat().st_mtime_ns for path in world.layout.network.iterdir()} == files


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        f"delete table {TABLE}",
        f"flush table {TABLE}",
        f"add rule {TABLE} forward accept",
        f"insert rule {TABLE} inward drop",
        f"flush chain {TABLE} nat_postrouting",
        f"delete element {TABLE} any_port {{ tcp . 8080 }}",
        f"add element {TABLE} any_port {{ tcp . 9999 : 22 }}",
        f"add element {TABLE} any_address {{ tcp . 9999 : 192.0.2.2 }}",
        f"delete element {TABLE} bridges {{ BRIDGE }}",
        f"add chain {TABLE} stranger",
    ],
)
def test_a_table_that_somebody_changed_is_seen_and_replaced(world: Apps, command: str) -> None:
    assert world.networks.observe().ruleset_intact
    bridge = world.networks.ensure("web").bridge
    world.host.run("nft", command.replace("BRIDGE", bridge))
    assert not world.networks.observe().ruleset_intact
    assert not world.restart_agent().observe().ruleset_intact
    assert world.networks.publish([world.mapping(*port) for port in PORTS])
    assert world.networks.observe().ruleset_intact
    assert reaches(world)
    assert not world.networks.publish([world.mapping(*port) for port in PORTS])


def test_ensure_by_a_new_agent_keeps_the_ports_that_the_kernel_has(world: Apps) -> None:
    world.host.run("nft", f"add chain {TABLE} stranger")
    world.restart_agent().ensure("second")
    assert reaches(world)
    assert world.networks.observe().ruleset_intact


def test_tables_of_others_are_not_touched(world: Apps) -> None:
    world.host.run("nft", "add table inet mine; add chain inet mine here; add rule inet mine here counter")
    before = world.host.run("nft", "list table inet mine")
    world.publish(PORTS[0])
    world.networks.clean()
    assert world.host.run("nft", "list table inet mine") == before


def break_bridge(*command: str) -> Callable[[Apps, str], None]:
    def do(world: Apps, bridge: str) -> None:
        world.host.run(*(word.replace("BRIDGE", bridge) for word in command))

    return do


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (break_bridge("ip", "link", "delete", "BRIDGE"), "bridge is missing"),
        (break_bridge("ip", "link", "set", "BRIDGE", "down"), "bridge is down"),
        (break_bridge("ip", "address", "flush", "dev", "BRIDGE"), "bridge has no address"),
        (break_bridge("ip", "link", "set", "BRIDGE", "address", "02:00:00:00:00:09"), "bridge has another"),
        (break_bridge("sysctl", "-q", "net/ipv4/conf/BRIDGE/route_localnet=0"), "route_localnet off"),
        (break_bridge("sysctl", "-q", "net/ipv4/conf/BRIDGE/forwarding=0"), "forwarding off"),
        (break_bridge("sysctl", "-q", "net.ipv4.ip_forward=0"), "net.ipv4.ip_forward is off"),
    ],
)
def test_a_bridge_that_somebody_broke_is_seen_and_repaired_with_its_links(
    world: Apps, damage: Callable[[Apps, str], None], fault: str
) -> None:
    damage(world, world.networks.ensure("web").bridge)
    seen = world.networks.observe().apps["web"]
    assert not seen.healthy
    assert any(fault in found for found in seen.faults), seen.faults
    world.networks.ensure("web")
    seen = world.networks.observe().apps["web"]
    assert seen.healthy, seen.faults
    assert seen.attached == {"server", "sibling"}
    assert reaches(world)
    assert ask(world.host, "127.0.0.1", 8080) is not None
    assert ask(world.containers["web/sibling"], world.address("web", "server"), 80) is not None
    assert ask(world.containers["web/server"], world.HOST, 8080) is not None


def test_attaching_makes_a_missing_bridge_first(world: Apps) -> None:
    world.host.run("ip", "link", "delete", world.networks.ensure("web").bridge)
    world.networks.attach("web", "server", world.containers["web/server"].fd)
    assert world.networks.observe().apps["web"].attached == {"server", "sibling"}
    assert reaches(world)


def host_link(world: Apps, name: str) -> str:
    """The name of the host's end of a container's link."""
    for line in world.host.run("ip", "-o", "link").splitlines():
        if f" web/{name} " in line:
            return line.split(": ")[1].partition("@")[0]
    raise AssertionError(f"no link of {name}")


def test_a_link_that_somebody_deleted_is_seen_and_made_again(world: Apps) -> None:
    world.host.run("ip", "link", "delete", host_link(world, "server"))
    assert world.networks.observe().apps["web"].attached == {"sibling"}
    assert silent(world.outside, world.HOST, 8080)
    world.networks.attach("web", "server", world.containers["web/server"].fd)
    assert world.networks.observe().apps["web"].attached == {"server", "sibling"}
    assert reaches(world)


@pytest.mark.parametrize("damage", ["nomaster", "down"])
def test_a_link_that_somebody_took_off_is_seen_and_put_back(world: Apps, damage: str) -> None:
    world.host.run("ip", "link", "set", host_link(world, "server"), damage)
    seen = world.networks.observe().apps["web"]
    assert seen.attached == {"sibling"}
    assert seen.detached == {"server"}
    world.networks.attach("web", "server", world.containers["web/server"].fd)
    assert world.networks.observe().apps["web"].attached == {"server", "sibling"}
    assert reaches(world)
    assert ask(world.containers["web/server"], world.HOST, 8080) is not None


def test_settings_inside_that_are_gone_are_put_back(world: Apps) -> None:
    inside = world.containers["web/server"]
    inside.run("ip", "address", "flush", "dev", "eth0")
    inside.run("ip", "link", "set", "lo", "down")
    world.networks.attach("web", "server", inside.fd)
    assert reaches(world)
    assert "default via" in inside.run("ip", "route")
    assert ask(inside, "127.0.0.1", 80) is not None


def test_a_new_container_of_a_name_need_not_wait_for_the_old_ones_namespace(world: Apps) -> None:
    old = world.containers["web/server"]
    assert reaches(world)
    world.start("web", "server", answer="new")
    for client, address, port in (
        (world.outside, world.HOST, 8080),
        (world.host, world.HOST, 8080),
        (world.containers["web/sibling"], world.address("web", "server"), 80),
    ):
        assert (ask(client, address, port) or "").startswith("new "), "the old one still answers"
    assert len(forwarding_entry(world, mac_of(world, "server"))) == 1
    assert silent(old, world.OUTSIDE, 9) is True
    assert (ask(world.outside, world.HOST, 8080) or "").startswith("new ")


class TestAFailedAttach:
    def test_leaves_nothing_when_the_descriptor_is_no_namespace(self, world: Apps) -> None:
        before = world.host.run("ip", "-o", "link")
        world.networks.lease("web", "third")
        fd = os.open("/dev/null", os.O_RDONLY)
        try:
            with pytest.raises(ReconcilerError, match="web/third"):
                world.networks.attach("web", "third", fd)
        finally:
            os.close(fd)
        assert world.host.run("ip", "-o", "link") == before

    def test_leaves_nothing_when_the_namespace_has_an_eth0_of_its_own(self, world: Apps) -> None:
        inside = world.namespace()
        inside.run("ip", "link", "add", "eth0", "type", "bridge")
        world.networks.lease("web", "third")
        before = world.host.run("ip", "-o", "link")
        with pytest.raises(BlockedError, match="web/third: its network namespace has an interface eth0"):
            world.networks.attach("web", "third", inside.fd)
        assert world.host.run("ip", "-o", "link") == before

    def test_leaves_nothing_when_the_inside_cannot_be_set_up(
        self, world: Apps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOMEM, "netlink request 24: Cannot allocate memory")

        monkeypatch.setattr("reconciler.engine.network.attach._configure", refuse)
        inside = world.namespace()
        world.networks.lease("web", "third")
        before = world.host.run("ip", "-o", "link")
        with pytest.raises(ReconcilerError, match=r"link of web/third: .* Cannot allocate memory") as caught:
            world.networks.attach("web", "third", inside.fd)
        assert caught.value.transient
        assert world.host.run("ip", "-o", "link") == before
        assert "eth0" not in inside.run("ip", "-o", "link")

    def test_says_that_nothing_is_leased(self, world: Apps) -> None:
        with pytest.raises(NotFoundError, match="web/third: no address is leased to it"):
            world.networks.attach("web", "third", world.containers["web/server"].fd)


class TestALostLeaseFile:
    def test_is_made_again_from_the_kernels_links(self, world: Apps) -> None:
        before = world.networks.observe()
        world.layout.leases.unlink()
        networks = world.restart_agent()
        assert networks.observe() == before
        networks.lease("web", "third")
        assert {k: v for k, v in networks.members("web").items() if k != "third"} == before.apps[
            "web"
        ].addresses
        assert world.layout.leases.exists()

    def test_is_made_again_without_the_bridge_too(self, world: Apps) -> None:
        before = world.networks.observe().apps["web"]
        world.host.run("ip", "link", "delete", before.bridge)
        world.layout.leases.unlink()
        networks = world.restart_agent()
        networks.ensure("web")
        assert networks.observe().apps["web"] == before

    def test_that_is_damaged_is_kept_aside(self, world: Apps) -> None:
        before = world.networks.observe()
        world.layout.leases.write_bytes(b'{"version":1,"apps":{"web":')
        networks = world.restart_agent()
        assert networks.observe() == before, "reading is possible, and moves nothing"
        networks.lease("web", "third")
        kept = [p for p in world.layout.network.iterdir() if "corrupt" in p.name]
        assert [p.read_bytes() for p in kept] == [b'{"version":1,"apps":{"web":']
        assert networks.observe().apps["web"].attached == {"server", "sibling"}


class TestUdpFlows:
    """A client that goes on sending from one port follows every change of the port table."""

    def exchange(self, world: Apps, port: int) -> str | None:
        with world.outside.socket(socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.4)
            sock.bind((world.OUTSIDE, 40000))
            sock.connect((world.HOST, port))
            try:
                sock.send(b"?")
                return sock.recv(100).decode()
            except (TimeoutError, ConnectionError):
                return None

    def test_follow_a_port_that_is_pointed_elsewhere(self, world: Apps) -> None:
        assert self.exchange(world, 8080) == f"web/server {world.OUTSIDE}"
        world.publish(("web", "sibling", ANY, 8080, 80, "udp"))
        assert self.exchange(world, 8080) == f"web/sibling {world.OUTSIDE}"

    def test_follow_a_port_that_is_taken_away(self, world: Apps) -> None:
        assert self.exchange(world, 8080) is not None
        world.publish(PORTS[0])
        assert self.exchange(world, 8080) is None

    def test_find_a_port_that_is_published_late(self, world: Apps) -> None:
        server = world.serve(world.host, "host", ("udp", 7000))
        assert self.exchange(world, 7000) == f"host {world.OUTSIDE}"
        world.publish(*PORTS, ("web", "server", ANY, 7000, 81, "udp"))
        assert self.exchange(world, 7000) == f"web/server {world.OUTSIDE}"
        assert server.asked == 1

    def test_are_forgotten_with_the_address_and_nothing_else_is(self, world: Apps) -> None:
        world.serve(world.outside, "outside", ("udp", 9000))
        assert self.exchange(world, 8080) is not None
        assert ask(world.containers["web/server"], world.OUTSIDE, 9000, "udp") is not None
        assert ask(world.containers["web/sibling"], world.OUTSIDE, 9000, "udp") is not None
        assert tracked(world, "server") == 2
        assert tracked(world, "sibling") == 1
        address = world.address("web", "server")
        world.networks.release("web", "server")
        assert tracked_address(world, address) == 0
        assert tracked(world, "sibling") == 1
        world.networks.release("web", "server")


def tracked(world: Apps, name: str) -> int:
    return tracked_address(world, world.address("web", name))


def tracked_address(world: Apps, address: str) -> int:
    lines = world.host.run("cat", "/proc/thread-self/net/nf_conntrack").splitlines()
    return sum(f"src={address} " in line for line in lines)
