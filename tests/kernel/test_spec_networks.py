"""Apps in several networks, with addresses, names and neighbours of their own. Each effect is read from inside, or from
the kernel.
"""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from reconciler.cli.networks import found
from reconciler.execute.executor import perform
from reconciler.plan.diff import plan
from reconciler.plan.steps import ConfigureNetwork, Step
from reconciler.state.desired import App, Desired
from reconciler.state.observed import Now, Observed, Running
from tests.images import Built
from tests.kernel.trial import Trial, Trials, image, on_trial

pytestmark = [pytest.mark.kernel, pytest.mark.network]
__all__ = ["image"]

NOW = Now(0.0, 0.0)
Containers = Mapping[str, Mapping[str, Any]]


class Site:
    """A device that is made to run what specs say, by the plans of the planner and the engine of the device."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self.apps: dict[str, App] = {}

    def app(self, name: str, containers: Containers, **networks: Mapping[str, Any]) -> App:
        """What should run of an app from now on."""
        made = self.trials.app(name, containers, networks=networks)
        self.apps[name] = made
        return made

    def observe(self) -> Observed:
        wanted = [n for app in self.apps.values() for n in app.networks.values() if n.subnet]
        return self.trials.parts.observer.observe(failures={}, networks=wanted)

    def steps(self) -> tuple[Step, ...]:
        return plan(Desired(self.apps), self.observe(), NOW).steps

    def turn(self) -> list[str]:
        """Perform one plan, and leave nothing to do; its steps as text."""
        made = self.steps()
        for step in made:
            perform(self.trials.parts.engine, step)
        left = [str(step) for step in self.steps()]
        assert all(step.startswith("remove network /") for step in left), left  # which is nobody's lane
        return [str(step) for step in made]

    def inside(self, name: str) -> Trial:
        app, _, container = name.partition("/")
        (found,) = self.observe().containers[f"{app}/{container}"]
        assert isinstance(found.phase, Running)
        return Trial(self.trials, app, found.id)

    def reaches(self, name: str, target: str) -> bool:
        """Whether a container gets an answer from port 80 of another."""
        return self.inside(name).run_code("nc", "-w", "1", target, "80")[0] == 0

    def address(self, name: str, interface: str = "eth0") -> str:
        text = self.inside(name).run("ip", "-o", "-4", "address", "show", "dev", interface)
        return text.split()[3].partition("/")[0]


@pytest.fixture
def site(image: Built, patience: float) -> Iterator[Site]:
    with on_trial(image, patience) as trials:
        yield Site(trials)


SERVER = {"entrypoint": ["/bin/nc", "-ll", "-p", "80", "-e", "/bin/echo", "hello"]}


def answer(port: int) -> bytes:
    """What a published port says to the device itself."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        return connection.makefile("rb").readline()


def test_two_networks_isolate_and_who_is_in_both_reaches_both(site: Site) -> None:
    site.app(
        "shop",
        {
            "web": {**SERVER, "networks": ["front"], "ports": ["8080:80"]},
            "api": {**SERVER, "networks": {"back": {"aliases": ["api-inside"]}, "front": {}}},
            "db": {**SERVER, "networks": {"back": {"aliases": ["database"]}}},
        },
        front={},
        back={"internal": True},
    )
    site.turn()
    web, api, db = (site.inside(f"shop/{name}") for name in ("web", "api", "db"))
    assert site.reaches("shop/api", "web")
    assert site.reaches("shop/api", "database")
    assert site.reaches("shop/db", "api-inside")
    assert site.reaches("shop/web", "api")
    # Each knows the others by the address that it can reach, and nobody else
    assert site.address("shop/api", "eth0") in db.run("grep", "api", "/etc/hosts")
    assert site.address("shop/api", "eth1") in web.run("grep", "api", "/etc/hosts")
    assert "db" not in web.run("cat", "/etc/hosts")
    assert not site.reaches("shop/web", site.address("shop/db"))
    assert not site.reaches("shop/db", site.address("shop/web"))
    # What is internal has no way out; what is in both goes by the other, though it comes second
    assert "default" not in db.run("ip", "route")
    assert "default via" in api.run("ip", "route")
    assert "dev eth1" in api.run("ip", "route", "show", "default")
    # The device itself reaches the published port, in the network that is not internal
    assert answer(8080) == b"hello\n"

    # A name changes in place, and the others hear of it
    before = {name: one.pid for name, one in (("web", web), ("api", api), ("db", db))}
    containers: Containers = {
        "web": {**SERVER, "networks": ["front"], "ports": ["8080:80"]},
        "api": {**SERVER, "networks": {"back": {"aliases": ["api-inside"]}, "front": {}}},
        "db": {**SERVER, "networks": {"back": {"aliases": ["store"]}}},
    }
    site.app("shop", containers, front={}, back={"internal": True, "labels": {"zone": "inner"}})
    assert site.turn() == ["configure network (2 networks, 1 ports)", "update shop/db (aliases)"]
    [shown] = [
        item for item in found(site.trials.layout, site.trials.parts.instance) if item["name"] == "shop/back"
    ]
    assert (shown["labels"], shown["internal"]) == ({"zone": "inner"}, True)
    assert [one["name"] for one in shown["containers"] if one["connected"]] == ["shop/api", "shop/db"]
    assert site.reaches("shop/api", "store")
    assert "database" not in api.run("cat", "/etc/hosts")
    assert {name: site.inside(f"shop/{name}").pid for name in before} == before

    # A link of the second network that somebody deletes is repaired, and so is its bridge
    [link] = [
        line.split(":")[1].strip().partition("@")[0]
        for line in subprocess.check_output(["ip", "-o", "link"], text=True).splitlines()
        if "shop/api" in line and line.endswith("front")
    ]
    subprocess.run(["ip", "link", "delete", link], check=True)
    assert site.turn() == ["update shop/api (network)"]
    assert site.reaches("shop/api", "web")
    bridge = site.trials.parts.networks.observe().apps["shop/back"].bridge
    subprocess.run(["ip", "link", "delete", bridge], check=True)
    site.turn()
    assert site.reaches("shop/api", "store")
    assert site.trials.parts.networks.observe().ruleset_intact

    # The app goes with all of it
    site.apps.clear()
    steps = site.turn()
    assert steps[-3:] == ["remove network shop", "remove network shop/back", "remove network shop/front"]
    assert site.observe().network.known == frozenset()


def test_a_declared_subnet_is_had_kept_and_changed_under_nobody(site: Site) -> None:
    def wanted(subnet: str, address: str, **more: object) -> None:
        place = {"back": {"ipv4_address": address}}
        containers: Containers = {
            "a": {**SERVER, "networks": place, "ports": ["8080:80"]},
            "b": {"networks": ["back"]},
        }
        site.app("shop", containers, back={"subnet": subnet, **more})

    wanted("10.77.0.0/29", "10.77.0.5", gateway="10.77.0.6")
    assert "change network" not in " ".join(site.turn())
    assert site.address("shop/a") == "10.77.0.5"
    assert "default via 10.77.0.6 " in site.inside("shop/a").run("ip", "route")
    assert site.reaches("shop/b", "a")
    # A replacement has the address again
    wanted("10.77.0.0/29", "10.77.0.5", gateway="10.77.0.6")
    site.trials.parts.engine.remove_container(site.inside("shop/a").id, keep_previous=False)
    site.turn()
    assert site.address("shop/a") == "10.77.0.5"
    # Another subnet: both go down, the network changes, both come up, and the published port follows
    wanted("10.78.0.0/24", "10.78.0.5")
    steps = site.turn()
    assert steps[:1] + steps[4:5] + steps[-1:] == [
        "stop shop/b",
        "change network shop/back (10.78.0.0/24)",
        "start shop/b",
    ]
    assert site.address("shop/a") == "10.78.0.5"
    assert site.address("shop/b").startswith("10.78.0.")
    assert "default via 10.78.0.1 " in site.inside("shop/a").run("ip", "route")
    assert site.reaches("shop/b", "a")
    assert answer(8080) == b"hello\n"
    # One that somebody has by chance is left to him that asks for it once it is free
    taken = site.address("shop/b")
    wanted("10.78.0.0/24", taken)
    configure = site.steps()[0]
    assert isinstance(configure, ConfigureNetwork)
    perform(site.trials.parts.engine, configure)
    site.trials.parts.engine.remove_container(site.inside("shop/b").id, keep_previous=False)
    site.turn()
    assert site.address("shop/a") == taken
    assert site.address("shop/b") != taken
    # The same addresses under another name
    containers: Containers = {
        "a": {**SERVER, "networks": {"inner": {"ipv4_address": "10.78.0.9"}}, "ports": ["8080:80"]},
        "b": {"networks": ["inner"]},
    }
    site.app("shop", containers, inner={"subnet": "10.78.0.0/24"})
    steps = site.turn()
    assert "change network shop/inner (10.78.0.0/24)" in steps
    assert steps[-1] == "remove network shop/back"
    assert site.address("shop/a") == "10.78.0.9"
    assert answer(8080) == b"hello\n"
    assert site.observe().network.known == {"shop/inner"}
    # The lease file is lost: what runs stays as it is
    pids = [site.inside(f"shop/{name}").pid for name in ("a", "b")]
    site.trials.layout.leases.unlink()
    assert [step for step in site.turn() if not step.startswith("configure")] == []
    assert [site.inside(f"shop/{name}").pid for name in ("a", "b")] == pids


def test_a_subnet_that_the_device_routes_elsewhere_is_refused_by_the_plan(site: Site) -> None:
    subprocess.run(["ip", "link", "add", "wire", "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", "10.99.3.1/16", "dev", "wire"], check=True)
    subprocess.run(["ip", "link", "set", "wire", "up"], check=True)
    site.app("other", {"c": {}})
    site.app("shop", {"a": {"networks": ["back"]}}, back={"subnet": "10.99.7.0/24"})
    made = plan(Desired(site.apps), site.observe(), NOW)
    [blocked] = [item for item in made.blocked if item.app == "shop"]
    assert (
        blocked.reason == "network shop/back: its subnet 10.99.7.0/24 overlaps the host's route 10.99.0.0/16"
    )
    assert blocked.hint == "remove that, or declare another subnet in shop.yaml"
    for step in made.steps:
        perform(site.trials.parts.engine, step)
    assert set(site.observe().containers) == {"other/c"}
    # An automatic one that has it gives way once nothing is in it
    subnet = str(site.trials.parts.networks.observe().apps["other"].subnet)
    site.app("shop", {"a": {"networks": ["back"]}}, back={"subnet": subnet})
    [blocked] = [i for i in plan(Desired(site.apps), site.observe(), NOW).blocked if i.app == "shop"]
    assert blocked.reason.endswith(f"overlaps {subnet}, in which containers of app other are")
    site.trials.parts.engine.remove_container(site.inside("other/c").id, keep_previous=True)
    deadline = time.monotonic() + 10  # the kernel takes the link apart some time later
    while site.trials.parts.networks.observe().apps["other"].attached and time.monotonic() < deadline:
        time.sleep(0.01)
    site.turn()
    assert site.address("shop/a").rpartition(".")[0] == subnet.rpartition(".")[0]
    assert site.address("other/c").rpartition(".")[0] != subnet.rpartition(".")[0]


def test_apps_share_a_network_by_name_and_nothing_else(site: Site) -> None:
    lan = {"lan": {"external": True}}
    site.app("one", {"web": {**SERVER, "networks": ["default", "lan"]}, "db": SERVER}, **lan)
    site.app("two", {"web": {**SERVER, "networks": {"lan": {"aliases": ["second", "db"]}}}}, **lan)
    site.turn()
    assert site.reaches("one/web", "two-web")
    assert site.reaches("one/web", "second")
    assert site.reaches("two/web", "one-web")
    assert not site.reaches("two/web", site.address("one/db"))
    # What one's own app calls by a name is not to be had for anybody else
    db = [
        line for line in site.inside("one/web").run("cat", "/etc/hosts").splitlines() if "db" in line.split()
    ]
    assert db == [f"{site.address('one/db')}\tdb"]
    del site.apps["one"]
    assert "remove network /lan" not in site.turn()
    assert "one-web" not in site.inside("two/web").run("cat", "/etc/hosts")
    site.apps.clear()
    site.turn()
    assert site.turn() == ["remove network /lan"]
    assert site.observe().network.known == frozenset()
