"""Fields of a spec about the network. Each effect is read from inside."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.plan.steps import RemoveNetwork
from tests.kernel.trial import Trial, Trials, image, runs, trials

pytestmark = [pytest.mark.kernel, pytest.mark.network]
__all__ = ["image", "trials"]


def test_names_of_the_outside_are_asked_for_where_and_how_the_spec_says(trials: Trials) -> None:
    asked = {"dns": ["192.0.2.53", "192.0.2.54"], "dns_search": ["lab.example"], "dns_opt": ["ndots:2"]}
    assert trials.start(asked).run("cat", "/etc/resolv.conf").splitlines() == [
        "nameserver 192.0.2.53",
        "nameserver 192.0.2.54",
        "search lab.example",
        "options ndots:2",
    ]


def test_extra_hosts_resolve_and_stay_when_a_sibling_comes(trials: Trials) -> None:
    trial = trials.start(
        {"extra_hosts": {"printer": "192.0.2.7", "gate": "host-gateway", "six": "2001:db8::7"}}
    )
    hosts = trial.run("cat", "/etc/hosts").splitlines()
    gateway = str(trials.parts.networks.gateway(trial.app))
    assert {"192.0.2.7\tprinter", f"{gateway}\tgate", "2001:db8::7\tsix"} <= set(hosts)
    assert f"default via {gateway} " in trial.run("ip", "route")
    trials.parts.networks.lease(trial.app, "other")
    trials.parts.containers.start(trial.app, "c")
    again = trials.desire(trial.app, {"extra_hosts": {"printer": "192.0.2.7"}})
    assert trials.steps(again)[0] == f"stop {trial.app}/c"  # it is part of what it is


def test_without_a_network_there_is_loopback_and_nothing_else(trials: Trials) -> None:
    trial = trials.start({"network_mode": "none", "extra_hosts": ["printer:192.0.2.7"]})
    assert trial.shell("ls /sys/class/net") == "lo"
    assert "127.0.0.1" in trial.run("ip", "address", "show", "dev", "lo", "up")
    assert (
        "t1-c (127.0.1.1)" in trial.run_code("ping", "-c", "1", "t1-c")[1]
    )  # it may send no packets of its own
    assert "192.0.2.7\tprinter" in trial.run("cat", "/etc/hosts")
    assert trial.run("cat", "/etc/resolv.conf") == ""
    found = trial.found()
    assert runs(found)
    assert (found.attached, found.networked) == (True, False)
    assert trials.observe().network.known == frozenset()


def test_the_devices_own_network_is_shared_and_left_as_it_is(trials: Trials) -> None:
    trial = trials.start({"network_mode": "host", "hostname": "box"})
    assert os.readlink(f"/proc/{trial.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net")
    assert trial.run("cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text().strip()
    hosts = trial.run("cat", "/etc/hosts")
    assert hosts.startswith(Path("/etc/hosts").read_text().strip())
    assert hosts.endswith("127.0.1.1\tbox")
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(20 * trials.patience)
        said = pool.submit(trial.shell, f"echo hello | nc 127.0.0.1 {server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(5) == b"hello"
        said.result()
    for namespace in ("pid", "mnt", "uts", "ipc"):
        assert os.readlink(f"/proc/{trial.pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    assert trials.observe().network.known == frozenset()


def test_who_shares_a_port_and_does_not_listen_yet_is_awaited_also_by_whoever_comes_later(
    trials: Trials,
) -> None:
    shares = {"ports": [{"published": 8080, "target": 80, "balance": True}]}
    app = trials.desire("t", shares)
    made = Trial(trials, "t", trials.create(app))
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(trials.parts.engine.start_container, "t", "c")
        until = time.monotonic() + 20 * trials.patience
        while not runs(made.found()):
            assert time.monotonic() < until
        assert not made.found().listens
        assert not started.done()
        made.shell("httpd -p 80 -h /etc; sleep 1000 >/dev/null 2>&1 &")
        started.result(20 * trials.patience)
    assert made.found().listens
    assert trials.steps(app) == []


def test_an_app_that_leaves_its_network_loses_it_when_its_last_container_has(trials: Trials) -> None:
    trial = trials.start({})
    assert trials.observe().network.apps == {trial.app}
    alone = trials.desire(trial.app, {"network_mode": "none"})
    steps = trials.steps(alone)
    assert (steps[0], steps[-1]) == (f"stop {trial.app}/c", str(RemoveNetwork(trial.app)))
    trials.parts.engine.remove_container(trial.id, keep_previous=False)
    trials.create(alone)
    trials.parts.engine.start_container(trial.app, "c")
    assert trials.steps(alone) == [str(RemoveNetwork(trial.app))]
    trials.parts.engine.remove_network(trial.app)
    assert trials.steps(alone) == []
