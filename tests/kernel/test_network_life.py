"""From the first app to the last: choice of subnets, two instances on one host, limits, what is missing, the end."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from reconciler import failpoint
from reconciler.engine.layout import Layout
from reconciler.engine.network.address import choose_subnet
from reconciler.engine.network.listeners import conflicts
from reconciler.engine.network.names import bridge_name
from reconciler.engine.network.networks import Networks
from reconciler.errors import BlockedError
from reconciler.state.network import Network
from tests.kernel.apps import ANY, INSTANCE, Apps
from tests.kernel.netns import ask, silent

pytestmark = [pytest.mark.kernel, pytest.mark.network, pytest.mark.usefixtures("leak_check")]

OTHER = "fedcba9876543210"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apps]:
    with ExitStack() as stack:
        yield Apps(stack, tmp_path)


def everything(world: Apps) -> tuple[str, str, str]:
    """The host's links, addresses, routes, tables and every IPv4 setting that is not a counter or a cache."""
    settings = world.host.run(
        "sh", "-c", "sysctl -a 2>/dev/null | grep -E '^net[.](ipv4[.](ip_|conf)|ipv6[.]conf)'"
    )
    return (
        world.host.run("ip", "-o", "link")
        + world.host.run("ip", "-4", "address")
        + world.host.run("ip", "route"),
        world.host.run("nft", "list", "ruleset"),
        settings,
    )


class TestCleaning:
    def test_leaves_the_host_as_it_was_found(self, world: Apps) -> None:
        before = everything(world)
        assert "net.ipv4.ip_forward = 0" in before[2]
        for app, name in (("web", "server"), ("web", "sibling"), ("other", "client")):
            world.start(app, name)
        world.publish(("web", "server", ANY, 8080, 80, "tcp"))
        assert everything(world) != before
        world.networks.clean()
        assert everything(world) == before
        assert [path.name for path in world.layout.network.iterdir()] == ["lock"]
        world.networks.clean()

    def test_restores_what_forwarding_resets_with_it(self, world: Apps) -> None:
        world.host.run("sysctl", "-q", "net.ipv4.conf.all.accept_redirects=0")
        world.host.run("sysctl", "-q", f"net.ipv4.conf.{world.UPLINK}.forwarding=1")
        before = everything(world)
        world.start("web", "server")
        world.networks.clean()
        assert everything(world) == before

    def test_leaves_forwarding_on_where_it_was_on(self, world: Apps) -> None:
        world.host.run("sysctl", "-q", "net.ipv4.ip_forward=1")
        world.networks.ensure("web")
        world.networks.clean()
        assert world.host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"

    def test_works_for_a_new_agent_without_a_lease_file(self, world: Apps) -> None:
        before = everything(world)
        world.start("web", "server")
        world.layout.leases.unlink()
        world.restart_agent().clean()
        assert everything(world) == before

    def test_forgets_values_of_an_earlier_boot(self, world: Apps) -> None:
        world.networks.ensure("web")
        record = world.layout.sysctls.read_text()
        world.layout.sysctls.write_text(re.sub(r'"boot":"[^"]*"', '"boot":"another"', record))
        world.host.run("sysctl", "-q", "net.ipv4.ip_forward=1")  # by the administrator, since that boot
        world.restart_agent().ensure("web")
        world.networks.clean()
        assert world.host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"


class TestRemovingAnApp:
    def test_takes_its_bridge_rules_and_leases_and_leaves_the_others(self, world: Apps) -> None:
        world.start("web", "server")
        world.publish(("web", "server", ANY, 8080, 80, "tcp"))
        alone = everything(world)
        world.start("other", "client")
        world.publish(("web", "server", ANY, 8080, 80, "tcp"), ("other", "client", ANY, 8081, 80, "tcp"))
        world.networks.remove("other")
        links, rules, settings = everything(world)
        assert (links, settings) == (alone[0], alone[2])
        assert [p.app for p in world.networks.observe().ports or ()] == ["web"]
        assert world.networks.observe().ruleset_intact
        assert "8081" not in rules
        assert world.networks.members("other") == {}
        assert ask(world.outside, world.HOST, 8080) == f"web/server {world.OUTSIDE}"
        world.networks.remove("other")

    def test_leaves_no_table_after_the_last_one(self, world: Apps) -> None:
        world.start("web", "server")
        world.networks.remove("web")
        assert "reconciler" not in world.host.run("nft", "list", "ruleset")
        seen = world.networks.observe()
        assert (seen.ports, seen.ruleset_intact, dict(seen.apps)) == ((), True, {})
        assert not world.networks.publish([])

    def test_takes_a_bridge_that_was_in_the_making_too(self, world: Apps) -> None:
        """An app whose file goes at once is removed while its network is made: a bridge without a lease is nobody's."""
        failpoint.arm("network.forwards:1*delay(300)")
        making = threading.Thread(target=world.networks.ensure, args=("web",))
        making.start()
        try:
            while "web" not in world.networks.observe().apps:
                assert making.is_alive()
            world.networks.remove("web")
        finally:
            making.join()
            failpoint.arm("")
        assert world.networks.observe().apps == {}
        assert bridge_name(INSTANCE, "web") not in world.host.run("ip", "-o", "link")

    def test_gives_the_same_subnet_when_it_comes_again(self, world: Apps) -> None:
        first = world.networks.ensure("web")
        world.networks.remove("web")
        assert world.networks.ensure("web") == first


class TestTwoInstances:
    @pytest.fixture
    def second(self, world: Apps, tmp_path: Path) -> Networks:
        return world.agent(OTHER, Layout(tmp_path / "second", tmp_path / "second-run"))

    def test_never_meet(self, world: Apps, second: Networks) -> None:
        first = world.networks
        one, two = first.ensure("web"), second.ensure("web")
        assert one.bridge != two.bridge
        assert not one.subnet.overlaps(two.subnet)
        before = first.observe()
        second.lease("web", "server")
        assert set(second.observe().apps["web"].addresses) == {"server"}
        assert first.observe() == before

    def test_never_choose_one_subnet_even_with_one_seed(self, world: Apps, tmp_path: Path) -> None:
        taken = world.networks.ensure("web").subnet
        assert choose_subnet([], [], seed=f"{INSTANCE}/web") == taken
        twin = world.agent(INSTANCE, Layout(tmp_path / "twin", tmp_path / "twin-run"))
        twin._leases._recover = dict  # a twin that can't see the links
        assert twin.lease("web", "server") not in taken

    def test_each_leave_what_the_other_needs_and_the_last_restores_forwarding(
        self, world: Apps, second: Networks
    ) -> None:
        before = everything(world)
        world.start("web", "server")
        second.ensure("web")
        world.publish(("web", "server", ANY, 8080, 80, "tcp"))
        second.publish([])
        assert ask(world.outside, world.HOST, 8080) == f"web/server {world.OUTSIDE}"
        world.networks.clean()
        assert second.observe().apps["web"].healthy
        assert second.observe().ruleset_intact
        second.clean()
        assert everything(world) == before

    def test_know_each_others_published_ports(self, world: Apps, second: Networks) -> None:
        world.start("web", "server")
        world.publish(("web", "server", "127.0.0.1", 8080, 80, "tcp"))
        second.ensure("web")
        assert world.networks.ports_of_others() == ()
        wanted = [world.mapping("web", "server", ANY, port, 80, "tcp") for port in (8080, 8081)]
        (conflict,) = conflicts(wanted, second.ports_of_others())
        assert str(conflict) == (f"port 0.0.0.0:8080/tcp already used by web/server of reconciler_{INSTANCE}")

    def test_are_cut_off_from_each_others_containers(
        self, world: Apps, tmp_path: Path, second: Networks
    ) -> None:
        world.start("web", "server")
        second.ensure("web")
        second.lease("web", "client")
        client = world.namespace()
        second.attach("web", "client", client.fd)
        assert silent(client, world.address("web", "server"), 80)


class TestSubnets:
    def test_avoid_the_hosts_routes_and_survive_a_vpn_that_takes_a_whole_pool(self, world: Apps) -> None:
        usual = choose_subnet([], [], seed=f"{INSTANCE}/web")
        world.host.run("ip", "route", "add", str(usual), "via", world.OUTSIDE)
        assert not world.networks.ensure("web").subnet.overlaps(usual)
        world.host.run("ip", "route", "add", "172.16.0.0/12", "via", world.OUTSIDE, "table", "77")
        assert not world.networks.ensure("other").subnet.overlaps(IPv4Network("172.16.0.0/12"))

    def test_change_before_the_start_when_the_host_got_a_route_there(self, world: Apps) -> None:
        before = world.networks.ensure("web")
        world.networks.lease("web", "server")
        world.host.run("ip", "link", "delete", before.bridge)  # as after a reboot
        world.host.run("ip", "route", "add", str(before.subnet), "via", world.OUTSIDE)
        after = world.restart_agent().ensure("web")
        assert not after.subnet.overlaps(before.subnet)
        assert world.networks.lease("web", "server") in after.subnet

    def test_do_not_change_under_running_containers(self, world: Apps) -> None:
        world.start("web", "server")
        before = world.networks.ensure("web")
        world.host.run("ip", "link", "delete", before.bridge)
        world.host.run("ip", "route", "add", str(before.subnet), "via", world.OUTSIDE)
        with pytest.raises(BlockedError, match=f"its subnet {before.subnet} overlaps the host's route"):
            world.networks.ensure("web")

    def test_that_are_full_say_so_and_take_back_what_is_released(self, world: Apps) -> None:
        names = [f"c{number}" for number in range(253)]
        assert len(set(world.networks.lease_all("web", names).values())) == 253
        with pytest.raises(
            BlockedError, match=r"all 253 addresses of .* are leased, none is left for one-more"
        ):
            world.networks.lease("web", "one-more")
        freed = world.networks.lease("web", "c7")
        world.networks.release("web", "c7")
        assert world.networks.lease("web", "one-more") == freed


def test_leases_from_many_threads_are_all_different_and_all_on_disk(world: Apps) -> None:
    found: dict[str, str] = {}

    def take(number: int) -> None:
        for step in range(5):
            name = f"c{number}-{step}"
            found[name] = str(world.networks.lease("web", name))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == len(found) == 40
    assert {k: str(v) for k, v in world.restart_agent().members("web").items()} == found


def test_apps_from_many_threads_all_get_networks(world: Apps) -> None:
    errors: list[BaseException] = []

    def make(number: int) -> None:
        try:
            world.networks.ensure(f"app{number}")
        except Exception as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    seen = world.networks.observe()
    assert [app.healthy for app in seen.apps.values()] == [True] * 4
    assert seen.ruleset_intact
    world.networks.clean()
    assert world.host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


class TestManyAppsAtOnce:
    APPS = ("a", "b", "web")
    NETWORKS = tuple(Network(app) for app in APPS)
    CONTAINERS = (("a", "a", "one"), ("a", "a", "two"), ("web", "web", "server"))

    @pytest.fixture(autouse=True)
    def _disarmed(self) -> Iterator[None]:
        yield
        failpoint.arm("")

    def test_cost_one_durable_write_of_leases(self, world: Apps) -> None:
        failpoint.arm("durable.renamed:2*off->error")  # the leases, and what forwarding was
        made = world.networks.ensure_all(self.NETWORKS, self.CONTAINERS)
        assert list(made) == list(self.APPS)
        assert [len(world.networks.members(app)) for app in self.APPS] == [2, 0, 1]
        assert world.networks.lease("web", "server") in made["web"].subnet
        again = world.networks.ensure_all(self.NETWORKS, self.CONTAINERS)
        assert again == made
        seen = world.networks.observe()
        assert [app.healthy for app in seen.apps.values()] == [True] * 3
        assert seen.ruleset_intact
        world.restart_agent()
        assert world.networks.ensure_all(self.NETWORKS, self.CONTAINERS) == made

    @pytest.mark.parametrize(
        ("point", "guarded", "forwards", "bridges"),
        [
            ("network.leased", False, "0", 0),
            ("network.guarded", True, "0", 0),
            ("network.forwards", True, "1", 0),
            ("network.bridged", True, "1", 1),
        ],
    )
    def test_are_all_guarded_before_the_host_forwards_and_before_any_bridge_is_there(
        self, world: Apps, point: str, guarded: bool, forwards: str, bridges: int
    ) -> None:
        failpoint.arm(f"{point}:1*error")
        with pytest.raises(failpoint.InjectedError):
            world.networks.ensure_all(self.NETWORKS, self.CONTAINERS)
        rules = world.host.run("nft", "list", "ruleset")
        names = [bridge_name(INSTANCE, app) for app in self.APPS]
        assert [name in rules for name in names] == [guarded] * 3
        assert world.host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == forwards
        links = world.host.run("ip", "link")
        assert sum(name in links for name in names) == bridges
        leased = [dict(world.networks.members(app)) for app in self.APPS]
        world.restart_agent().ensure_all(self.NETWORKS, self.CONTAINERS)
        seen = world.networks.observe()
        assert [app.healthy for app in seen.apps.values()] == [True] * 3
        assert [app.addresses for app in seen.apps.values()] == leased

    def test_give_way_to_a_route_together(self, world: Apps) -> None:
        before = world.networks.ensure_all(self.NETWORKS, self.CONTAINERS)
        for app in ("a", "web"):  # as after a reboot
            world.host.run("ip", "link", "delete", before[app].bridge)
            world.host.run("ip", "route", "add", str(before[app].subnet), "via", world.OUTSIDE)
        failpoint.arm("durable.renamed:1*off->error")
        after = world.networks.ensure_all(self.NETWORKS, self.CONTAINERS)
        assert [before[app].subnet == after[app].subnet for app in self.APPS] == [False, True, False]
        for _, app, name in self.CONTAINERS:
            assert world.networks.lease(app, name) in after[app].subnet


def test_a_bridge_name_that_is_taken_is_said_and_left_alone(world: Apps) -> None:
    name = world.networks.ensure("web").bridge
    world.networks.remove("web")
    world.host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "x0")
    with pytest.raises(BlockedError, match=f"app web: the name {name} is taken by a veth"):
        world.networks.ensure("web")
    assert name in world.host.run("ip", "link")


def test_the_mtu_follows_the_uplink(world: Apps) -> None:
    assert world.networks.ensure("web").mtu == 1400
    world.host.run("ip", "link", "set", world.UPLINK, "mtu", "1280")
    assert world.networks.ensure("web").mtu == 1280
    world.host.run("ip", "route", "delete", "default")
    assert world.networks.ensure("web").mtu == 1500


def load(world: Apps, rules: str) -> None:
    rules = rules.replace("} }", "}\n}")  # nft wants a line between them
    world.host.run("sh", "-c", f"echo '{rules}' | nft -f -")


class TestForwardBlockers:
    @pytest.mark.parametrize(
        ("rules", "said"),
        [
            (
                "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; } }",
                "policy drop: what comes to published ports from outside and what containers send out is dropped",
            ),
            (
                "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; "
                "ct state established accept; reject with icmpx type admin-prohibited; } }",
                "by its rules: what comes to published ports from outside and what containers send out is dropped",
            ),
        ],
    )
    def test_are_named_with_a_remedy_and_do_block(self, world: Apps, rules: str, said: str) -> None:
        world.start("web", "server")
        world.publish(("web", "server", ANY, 8080, 80, "tcp"))
        assert world.networks.forward_blockers() == ()
        assert not silent(world.outside, world.HOST, 8080)
        load(world, rules)
        (blocker,) = world.networks.forward_blockers()
        assert said in str(blocker)
        assert blocker.hint
        assert silent(world.outside, world.HOST, 8080)

    def test_are_found_in_the_older_iptables_too(self, world: Apps) -> None:
        if shutil.which("iptables-legacy") is None:
            pytest.skip("the program iptables-legacy is not installed")
        world.networks.ensure("web")
        world.host.run("iptables-legacy", "-A", "FORWARD", "-p", "tcp", "--dport", "5", "-j", "ACCEPT")
        assert world.networks.forward_blockers() == ()
        world.host.run("iptables-legacy", "-P", "FORWARD", "DROP")
        (blocker,) = world.networks.forward_blockers()
        assert str(blocker).startswith("firewall: iptables-legacy filter FORWARD: policy drop")
        world.host.run("iptables-legacy", "-A", "FORWARD", "-j", "REJECT")
        assert len(world.networks.forward_blockers()) == 1

    def test_are_not_chains_that_let_pass_or_belong_to_others(self, world: Apps) -> None:
        world.networks.ensure("web")
        load(
            world,
            "table ip filter { chain FORWARD { type filter hook forward priority 0; tcp dport 5 drop; } }",
        )
        load(world, "table ip6 x { chain F { type filter hook forward priority 0; policy drop; } }")
        assert world.networks.forward_blockers() == ()


PROGRAM = """
import sys
from pathlib import Path
from reconciler import failpoint
from reconciler.engine.layout import Layout
from reconciler.engine.network.listeners import conflicts
from reconciler.engine.network.names import bridge_name
from reconciler.engine.network.networks import Networks
from reconciler.errors import UnsupportedError
root = Path(sys.argv[1])
layout = Layout(root / "state", root / "run")
layout.network.mkdir(parents=True)
try:
    getattr(Networks(layout, "0123456789abcdef"), sys.argv[2])(*sys.argv[3:])
except UnsupportedError as error:
    print(error, "|", error.hint)
else:
    print("no error")
"""


class TestWhatIsMissing:
    def run(self, root: Path, before: str, *verb: str) -> str:
        script = f'{before} "$@"'
        done = subprocess.run(
            [
                "unshare",
                "--net",
                "--mount",
                "sh",
                "-ec",
                script,
                "sh",
                sys.executable,
                "-c",
                PROGRAM,
                str(root),
                *verb,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize("verb", [("ensure", "web"), ("observe",), ("forward_blockers",)])
    def test_the_library(self, tmp_path: Path, verb: tuple[str, ...]) -> None:
        hide = "for f in /usr/lib/*/libnftables.so.1; do mount --bind /dev/null $(readlink -f $f); done; exec"
        if verb == ("observe",):
            hide = "nft add table ip reconciler_0123456789abcdef;" + hide
        said = self.run(tmp_path, hide, *verb)
        assert "libnftables can't be loaded" in said
        assert "apt-get install libnftables1" in said

    @pytest.mark.parametrize("verb", [("ensure", "web"), ("observe",), ("clean",), ("forward_blockers",)])
    def test_the_privilege(self, tmp_path: Path, verb: tuple[str, ...]) -> None:
        said = self.run(tmp_path, "exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin", *verb)
        assert "not permitted" in said
        assert "CAP_NET_ADMIN" in said

    def test_a_writable_proc_sys(self, tmp_path: Path) -> None:
        said = self.run(
            tmp_path,
            "mount --bind -o ro /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec",
            "ensure",
            "web",
        )
        assert "/proc/sys is read-only" in said
