"""Beside Docker, firewalld, ufw and NetworkManager themselves: what of theirs blocks us is said, with what helps."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.apps import ANY, Apps
from tests.kernel.neighbours import Daemon, Neighbours
from tests.kernel.netns import ask, silent

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.network,
    pytest.mark.usefixtures("leak_check"),
    pytest.mark.xdist_group("neighbours"),
]

DOCKER = ("docker", "-H", "unix:///run/docker.sock")
OPEN = 9000  # where the neighbour of the device listens


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    with Neighbours(tmp_path_factory.mktemp("neighbours")) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path, neighbours: Neighbours) -> Iterator[Apps]:
    with ExitStack() as stack:
        yield Apps(stack, tmp_path)


def begin(world: Apps) -> None:
    """Start an app with a published port, and a server outside."""
    world.serve(world.outside, "outside", ("tcp", OPEN))
    world.start("web", "server")
    world.publish(("web", "server", ANY, 8080, 80, "tcp"))


def passes(world: Apps) -> None:
    """Traffic passes in both directions, and nobody is said to stop any."""
    assert ask(world.outside, world.HOST, 8080) == f"web/server {world.OUTSIDE}"
    assert ask(world.containers["web/server"], world.OUTSIDE, OPEN) == f"outside {world.HOST}"
    assert world.networks.forward_blockers() == ()
    assert world.networks.observe().ruleset_intact


def firewalld(world: Apps, neighbours: Neighbours) -> Daemon:
    return neighbours.start(
        world.host, "firewalld", "--nofork", "--nopid", ready=("firewall-cmd", "-q", "--state")
    )


def docker(world: Apps, neighbours: Neighbours) -> Daemon:
    places = ("--data-root=/run/data", "--exec-root=/run/docker", "--pidfile=/run/docker.pid")
    return neighbours.start(
        world.host, "dockerd", *places, "--storage-driver=vfs", DOCKER[1], DOCKER[2], ready=(*DOCKER, "info")
    )


class Ufw:
    """Not a daemon: what it has loaded stays in the kernel."""

    def __init__(self, world: Apps, neighbours: Neighbours) -> None:
        self._world, self._neighbours = world, neighbours

    def __enter__(self) -> None:
        self._neighbours.run(self._world.host, "ufw", "--force", "enable")

    def __exit__(self, *_: object) -> None:
        self._neighbours.run(self._world.host, "ufw", "--force", "reset")


RELOADED = {
    "firewalld": ("firewall-cmd", "--reload"),
    "ufw": ("ufw", "reload"),
    "docker": (*DOCKER, "network", "create", "further"),
}


@pytest.mark.parametrize(
    ("name", "start", "chain", "blocked", "first"),
    [
        ("firewalld", firewalld, "inet firewalld filter_FORWARD: by its rules", {"out"}, False),
        ("ufw", Ufw, "ip filter FORWARD: policy drop", {"in", "out"}, False),
        # Docker drops what others forward only where it was Docker who turned forwarding on
        ("docker", docker, "ip filter FORWARD: policy drop", {"in", "out"}, True),
    ],
)
def test_what_a_firewall_drops_is_named_and_its_remedy_helps(
    world: Apps,
    neighbours: Neighbours,
    name: str,
    start: Callable[[Apps, Neighbours], Daemon | Ufw],
    chain: str,
    blocked: set[str],
    first: bool,
) -> None:
    web = world
    if not first:
        begin(web)
        passes(web)
    with start(web, neighbours):
        if first:
            begin(web)
        (blocker,) = web.networks.forward_blockers()
        assert f"firewall: {chain}: " in str(blocker)
        said = {
            way
            for way, words in (("in", "comes to published ports"), ("out", "containers send out"))
            if words in blocker.reason
        }
        is_silent = {
            way
            for way, quiet in (
                ("in", silent(web.outside, web.HOST, 8080)),
                ("out", silent(web.containers["web/server"], web.OUTSIDE, OPEN)),
            )
            if quiet
        }
        assert said == is_silent == blocked
        apply(blocker.hint, web, neighbours)
        passes(web)
        neighbours.run(web.host, *RELOADED[name])
        passes(web)
        web.start("web", "later")
        web.start("other", "first")  # a bridge that was not there when the remedy was applied
        passes(web)
        assert ask(web.containers["other/first"], web.OUTSIDE, OPEN) == f"outside {web.HOST}"
        theirs = foreign_rules(web)
        web.networks.remove("other")
        web.networks.remove("web")
        assert foreign_rules(web) == theirs


def apply(hint: str, world: Apps, neighbours: Neighbours) -> None:
    """Give the commands of a remedy, word for word."""
    text = hint.partition(": ")[2].partition(" (")[0].removesuffix(", and once more with --permanent")
    commands = text.split("; ")
    if "--permanent" in hint:
        commands += [f"{command} --permanent" for command in commands]
    for command in commands:
        neighbours.run(world.host, *command.split())


def foreign_rules(world: Apps) -> list[str]:
    """All rules but ours, without their counters."""
    tables = f"\n{world.host.run('nft', '-s', 'list', 'ruleset')}".split("\ntable ")
    return [table.strip() for table in tables if "reconciler" not in table.split("{")[0]]


def test_docker_that_comes_later_stops_nothing_and_neither_takes_subnets_of_the_other(
    world: Apps, neighbours: Neighbours
) -> None:
    web = world
    begin(web)
    with docker(web, neighbours):
        passes(web)
        subnets = {
            neighbours.run(
                web.host, *DOCKER, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", name
            ).strip()
            for name in ("bridge", neighbours.run(web.host, *DOCKER, "network", "create", "own").strip())
        }
        assert len(subnets) == 2
        ours = {str(web.networks.ensure(app).subnet) for app in ("web", "other", "third")}
        assert not ours & subnets
        routes = web.host.run("ip", "route").splitlines()
        for subnet in ours | subnets:
            assert len([route for route in routes if route.startswith(f"{subnet} dev ")]) == 1, (
                subnet,
                routes,
            )


class TestNetworkManager:
    def test_leaves_our_links_and_addresses_alone(self, world: Apps, neighbours: Neighbours) -> None:
        world.serve(world.outside, "outside", ("tcp", OPEN))
        with manager(world, neighbours):
            world.start("web", "server")
            world.publish(("web", "server", ANY, 8080, 80, "tcp"))
            settled = self.settle(world, neighbours)
            assert settled
            passes(world)
            before = world.host.run("ip", "-4", "-o", "address"), world.host.run("ip", "-4", "route")
        passes(world)  # its end
        with manager(world, neighbours):  # and what it makes of links that are there when it starts
            assert self.settle(world, neighbours).keys() == settled.keys()
            passes(world)
            after = world.host.run("ip", "-4", "-o", "address"), world.host.run("ip", "-4", "route")
            assert after == before
            world.networks.remove("web")
            assert self.settle(world, neighbours) == {}
        kept = neighbours.run(world.host, "find", "/etc/NetworkManager/system-connections", "-type", "f")
        assert kept == ""

    def settle(self, world: Apps, neighbours: Neighbours) -> dict[str, str]:
        """Wait until it is busy with none of our links; give what it says of each."""
        for _ in range(100):
            lines = neighbours.run(world.host, "nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines()
            found = dict(line.split(":") for line in lines if line.startswith("r"))
            if not any("connecting" in state for state in found.values()):
                return found
        raise AssertionError(f"NetworkManager wants to configure {found}")


def manager(world: Apps, neighbours: Neighbours) -> Daemon:
    return neighbours.start(
        world.host, "NetworkManager", "--no-daemon", ready=("nmcli", "-t", "general", "status")
    )
