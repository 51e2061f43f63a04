"""Whose port it is."""

from dataclasses import replace

import pytest

from reconciler.plan.diff import plan
from reconciler.plan.networks import publishable
from reconciler.plan.ports import blocks, overlap
from reconciler.plan.steps import Blocked, ConfigureNetwork, Plan
from reconciler.state.desired import Container, Port, Settings, replica_name
from reconciler.state.network import Network
from reconciler.state.observed import Listener, Networks, Published
from tests import values
from tests.values import NOW


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.53", False),
        ("0.0.0.0", "::", False),
        ("192.0.2.1", "::", False),
        ("0.0.0.0", "::1", False),
        ("::", "2001:db8::5", True),
        ("2001:db8::5", "2001:db8::6", False),
        ("0.0.0.0", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("::1", "::", True),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_addresses_overlap_both_ways(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@pytest.mark.parametrize(
    ("address", "v6_only", "kinds"),
    [
        ("0.0.0.0", False, [True, False]),
        ("::", False, [True, True]),
        ("::", True, [False, True]),
        ("::1", False, [False, True]),
        ("2001:db8::5", False, [False, True]),
        ("127.0.0.1", False, [True, False]),
    ],
)
def test_a_socket_takes_ports_of_one_kind_or_of_both(address: str, v6_only: bool, kinds: list[bool]) -> None:
    listener = Listener("tcp", address, 80, "nginx (pid 612)", v6_only)
    assert [blocks(listener, host_ip) for host_ip in ("0.0.0.0", "::")] == kinds


def test_a_port_of_ipv6_is_published_once_its_network_has_that() -> None:
    old, new = Port("0.0.0.0", 80, 80), Port("::", 80, 80)
    rows = tuple(Published("a", "site", port) for port in (old, new))
    assert publishable(rows, {"a": Network("a")}) == rows[:1]
    assert publishable(rows, {}) == rows[:1]
    assert publishable(rows, {"a": Network("a", ipv6=True)}) == rows


def test_both_kinds_of_one_port_are_two_and_each_has_its_stranger() -> None:
    both = serving("a", Port("0.0.0.0", 80, 80), Port("::", 80, 80))
    two = serving("b", Port("::", 80, 80))
    want = values.desired(values.app("a", both), values.app("b", two))
    made = plan(want, values.world(), NOW)
    assert [(item.app, item.reason) for item in made.blocked] == [
        ("b", "port [::]:80/tcp already used by a/site")
    ]
    stranger = Listener("tcp", "::1", 80, "nginx (pid 612)")
    made = plan(values.desired(values.app("a", both)), values.world(listeners=(stranger,)), NOW)
    assert [(item.app, item.reason) for item in made.blocked] == [
        ("a", "port [::]:80/tcp already used by nginx (pid 612)")
    ]


def serving(app: str, *ports: Port) -> Container:
    return values.container(app, "site", settings=Settings(ports=ports))


def table(made: Plan) -> tuple[Published, ...]:
    (step,) = (step for step in made.steps if isinstance(step, ConfigureNetwork))
    return step.published


def test_protocols_and_addresses_are_told_apart() -> None:
    one = serving("a", Port("127.0.0.1", 53, 53, "udp"), Port("127.0.0.1", 53, 53, "tcp"))
    two = serving("b", Port("127.0.0.2", 53, 53, "udp"))
    want = values.desired(values.app("a", one), values.app("b", two))
    listener = Listener("udp", "127.0.0.53", 53, "systemd-resolve (pid 300)")
    made = plan(want, values.world(listeners=(listener,)), NOW)
    assert made.blocked == ()
    assert len(table(made)) == 3


def test_of_two_apps_that_want_one_port_the_one_that_has_it_keeps_it() -> None:
    port = Port("0.0.0.0", 80, 80)
    old, new = serving("z", port), serving("a", Port("127.0.0.1", 80, 80))
    want = values.desired(values.app("a", new), values.app("z", old))
    made = plan(want, values.world(values.found(old)), NOW)
    assert made.blocked == (Blocked("a", "site", "port 127.0.0.1:80/tcp already used by z/site"),)
    assert table(made) == (Published("z", "site", port),)


def test_a_stranger_in_the_way_of_an_old_versions_port_is_not_fought() -> None:
    old, new = serving("a", Port("0.0.0.0", 80, 80)), values.container("a", "site", image=values.IMAGES[1])
    world = values.world(
        values.found(old),
        images=values.IMAGES[:1],
        network=Networks(frozenset({"a"}), None),
        listeners=(Listener("tcp", "0.0.0.0", 80, "nginx (pid 612)"),),
    )
    assert table(plan(values.desired(values.app("a", new)), world, NOW)) == ()


def test_a_container_of_the_same_app_takes_a_port_over_after_the_pull() -> None:
    port = Port("0.0.0.0", 80, 80)
    old = serving("web", port)
    new = values.container("web", "front", image=values.IMAGES[1], settings=Settings(ports=(port,)))
    want = values.desired(values.app("web", new))
    have = values.world(values.found(old), images=values.IMAGES[:1])
    first = plan(want, have, NOW)
    assert not any(isinstance(step, ConfigureNetwork) for step in first.steps)
    have = values.turn(want, have)
    assert table(plan(want, have, NOW)) == (Published("web", "front", port),)
    assert plan(want, values.turn(want, have), NOW).steps == ()


def test_an_update_that_can_not_be_pulled_holds_back_no_port_from_another_app() -> None:
    port = Port("0.0.0.0", 80, 80)
    old, new = serving("a", port), values.container("a", "site", image=values.IMAGES[1])
    other = serving("b", port)
    want = values.desired(values.app("a", new), values.app("b", other))
    have = values.world(values.found(old), images=values.IMAGES[:1])
    assert table(plan(want, have, NOW)) == (Published("b", "site", port),)


def replica(number: int, *ports: Port, image: int = 0) -> Container:
    name = replica_name("site", number)
    return values.container("a", name, image=values.IMAGES[image], settings=Settings(ports=ports))


def test_replicas_share_a_port_and_nobody_else_does() -> None:
    port = Port("0.0.0.0", 80, 80, balance=True)
    both = replica(1, port), replica(2, port)
    other = serving("b", port)
    want = values.desired(values.app("a", *both), values.app("b", other))
    made = plan(want, values.world(), NOW)
    assert table(made) == (Published("a", "site", port), Published("a", "site.2", port))
    assert made.blocked == (Blocked("b", "site", "port 0.0.0.0:80/tcp already used by a/site"),)
    alone = replace(port, balance=False)
    want = values.desired(values.app("a", both[0], replica(2, alone)))
    assert table(plan(want, values.world(), NOW)) == (Published("a", "site", port),)


def test_a_shared_port_that_does_not_lead_to_who_serves_it_is_put_right() -> None:
    port = Port("0.0.0.0", 80, 80, balance=True)
    both = replica(1, port), replica(2, port)
    want = values.desired(values.app("a", *both))
    have = values.world(*(values.found(one) for one in both))
    assert plan(want, have, NOW).steps == ()
    astray = replace(have, network=replace(have.network, balanced=False))
    assert [type(step) for step in plan(want, astray, NOW).steps] == [ConfigureNetwork]
    assert plan(want, values.turn(want, astray), NOW).steps == ()


def test_a_change_of_the_target_goes_through_replica_by_replica() -> None:
    before, after = (Port("0.0.0.0", 80, target, balance=True) for target in (80, 8080))
    old = [replica(number, before) for number in (1, 2)]
    want = values.desired(values.app("a", *(replica(number, after, image=1) for number in (1, 2))))
    have = values.world(*(values.found(one) for one in old), images=values.IMAGES[:1])
    for _ in range(4):
        have = values.turn(want, have)
    assert plan(want, have, NOW).steps == ()
    assert {row.port for row in have.network.published or ()} == {after}
