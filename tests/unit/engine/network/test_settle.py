"""Which subnets and addresses are leased: declared ones before chosen ones, and never one twice."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.address import gateway, unique_local
from reconciler.engine.network.bridge import Found, HostRoute
from reconciler.engine.network.leases import LeaseFile, NetworkLease
from reconciler.engine.network.names import LinkLabel
from reconciler.engine.network.settle import Wish, conflict, lease_all, settle
from reconciler.errors import BlockedError
from reconciler.linux.rtnetlink import Link
from reconciler.state.network import Network

INSTANCE = "0123456789abcdef"
BACK = Network("web/back", "10.20.0.0/24")
EMPTY = Found({}, [], {})


@pytest.fixture
def file(tmp_path: Path) -> LeaseFile:
    return LeaseFile(tmp_path / "leases.json", tmp_path / "lock", dict)


def inside(key: str, *members: str) -> Found:
    """A host on which these containers are in a network."""
    app = key.partition("/")[0]
    labels = [
        LinkLabel(INSTANCE, app, name, IPv4Address("10.0.0.9"), 1, key if key != app else "")
        for name in members
    ]
    link = Link(
        index=2, name="rv", kind="veth", up=True, mtu=1500, master=1, address=b"", alias="", devconf=()
    )
    return Found({}, [], {key: [(link, label) for label in labels]})


def wishes(*networks: Network, members: tuple[str, ...] = ()) -> Mapping[str, Wish]:
    return {network.key: Wish(network, members) for network in networks}


def test_what_is_declared_is_had_and_what_is_chosen_goes_around_it(file: LeaseFile) -> None:
    chosen = settle(file, INSTANCE, wishes(Network("web")), [], EMPTY)[0]["web"].subnet
    file.remove()
    taken = Network("other/back", str(chosen))
    leases, moved = settle(file, INSTANCE, wishes(Network("web"), taken), [], EMPTY)
    assert leases["other/back"].subnet == chosen
    assert not leases["web"].subnet.overlaps(chosen)
    assert moved == frozenset()


def test_a_chosen_subnet_gives_way_once_nothing_is_in_it(file: LeaseFile) -> None:
    chosen = settle(file, INSTANCE, wishes(Network("web"), members=("a",)), [], EMPTY)[0]["web"].subnet
    taken = Network("other/back", str(chosen))
    busy = inside("web", "a")
    assert conflict(taken, file.read(), [], busy, INSTANCE).endswith("in which containers of app web are")
    with pytest.raises(BlockedError, match="in which containers of app web are"):
        settle(file, INSTANCE, wishes(taken), [], busy)
    assert conflict(taken, file.read(), [], EMPTY, INSTANCE) == ""
    leases, moved = settle(file, INSTANCE, wishes(taken), [], EMPTY)
    assert set(leases) == {"other/back"}
    assert moved == {"web"}


def test_a_route_of_the_host_refuses_a_subnet_and_names_itself(file: LeaseFile) -> None:
    route = HostRoute(IPv4Network("10.20.0.0/16"), 7, 0, True)
    assert conflict(BACK, {}, [route], EMPTY, INSTANCE) == (
        "its subnet 10.20.0.0/24 overlaps the host's route 10.20.0.0/16"
    )
    assert conflict(Network("web"), {}, [route], EMPTY, INSTANCE) == ""
    with pytest.raises(BlockedError, match=r"network web/back: its subnet .* overlaps the host's route"):
        settle(file, INSTANCE, wishes(BACK), [route], EMPTY)
    assert file.read() == {}


@pytest.mark.parametrize(
    "other",
    [Network("web/back", "10.21.0.0/24"), Network("web/back"), Network(BACK.key, BACK.subnet, "10.20.0.9")],
)
def test_what_is_declared_otherwise_changes_under_nobody(file: LeaseFile, other: Network) -> None:
    settle(file, INSTANCE, wishes(BACK, members=("a",)), [], EMPTY)
    with pytest.raises(BlockedError, match="network web/back"):
        settle(file, INSTANCE, wishes(other), [], inside("web/back", "a"))
    leases, moved = settle(file, INSTANCE, wishes(other), [], EMPTY)
    assert moved == {"web/back"}
    assert leases["web/back"].addresses == {}
    assert leases["web/back"].network("web/back") == other


def test_being_internal_changes_in_place(file: LeaseFile) -> None:
    busy = inside("web/back", "a")
    before = settle(file, INSTANCE, wishes(BACK, members=("a",)), [], EMPTY)[0]["web/back"]
    closed = Network("web/back", "10.20.0.0/24", internal=True)
    after = settle(file, INSTANCE, wishes(closed), [], busy)[0]["web/back"]
    assert (after.internal, after.addresses) == (True, before.addresses)


def test_an_address_that_is_asked_for_is_taken_from_who_does_not_run(file: LeaseFile) -> None:
    held = lease_all(file, INSTANCE, wishes(BACK, members=("a",)))["web/back"].addresses["a"]
    asked = Network(BACK.key, BACK.subnet, fixed=(("b", str(held)),))

    def lease(name: str, *running: str) -> IPv4Address:
        found = lease_all(
            file, INSTANCE, wishes(asked, members=(name,)), connected=lambda key, other: other in running
        )
        return found["web/back"].addresses[name]

    with pytest.raises(BlockedError, match="that of web/a, which runs"):
        lease("b", "a")
    assert lease("a", "a") == held, "what runs keeps what it has"
    assert lease("b") == held
    assert lease("a") != held
    swapped = Network(BACK.key, BACK.subnet, fixed=(("a", str(held)), ("b", "10.20.0.77")))
    leases = lease_all(file, INSTANCE, wishes(swapped, members=("a", "b")), connected=lambda *_: False)
    assert {name: str(a) for name, a in leases["web/back"].addresses.items()} == dict(swapped.fixed)


names = st.sampled_from("abcdef")


@given(st.lists(names, unique=True), st.dictionaries(names, st.integers(2, 6), max_size=3), st.integers(1, 6))
def test_no_address_is_had_twice_or_is_the_gateway(
    tmp_path_factory: pytest.TempPathFactory, members: list[str], fixed: dict[str, int], own: int
) -> None:
    subnet = IPv4Network("10.20.0.0/28")
    asked = {
        name: last for name, last in fixed.items() if list(fixed.values()).count(last) == 1 and last != own
    }
    declared = Network(
        "web/back",
        str(subnet),
        "" if subnet[own] == gateway(subnet) else str(subnet[own]),
        fixed=tuple(sorted((name, str(subnet[last])) for name, last in asked.items())),
    )
    path = tmp_path_factory.mktemp("leases")
    file = LeaseFile(path / "leases.json", path / "lock", dict)
    lease = NetworkLease(subnet)
    for name in members:
        found = lease_all(file, INSTANCE, wishes(declared, members=(name,)), connected=lambda *_: False)
        lease = found["web/back"]
    assert len(set(lease.addresses.values())) == len(lease.addresses)
    assert subnet[own] not in lease.addresses.values()
    assert all(lease.addresses[name] == subnet[last] for name, last in asked.items() if name in members)
    free = set(lease.addresses.values()) - {subnet[last] for last in asked.values()}
    assert free.isdisjoint(subnet[last] for last in asked.values())


SIX = Network("web", ipv6=True)
DECLARED6 = Network("web/six", ipv6=True, subnet6="fd12:3456:789a::/64")


def wishes6(*networks: Network, members: tuple[str, ...] = ()) -> Mapping[str, Wish]:
    return {network.key: Wish(network, members, members) for network in networks}


def test_a_network_with_ipv6_has_a_subnet_and_its_members_an_address_of_that(file: LeaseFile) -> None:
    leases, moved = settle(file, INSTANCE, wishes6(SIX, DECLARED6, members=("a", "b")), [], EMPTY)
    web, six = leases["web"], leases["web/six"]
    assert moved == frozenset()
    assert str(six.subnet6) == DECLARED6.subnet6
    assert str(six.gateway6) == "fd12:3456:789a::1"
    assert web.subnet6 is not None
    assert web.subnet6.subnet_of(unique_local(INSTANCE))
    for lease in (web, six):
        assert set(lease.addresses6) == {"a", "b"}
        for name, address in lease.addresses6.items():
            assert lease.subnet6 is not None
            assert address == lease.subnet6[int(lease.addresses[name])]
    assert settle(file, INSTANCE, wishes6(SIX, DECLARED6, members=("a", "b")), [], EMPTY)[0] is file.read()


def test_a_network_gets_ipv6_and_loses_it_when_nobody_is_in_it(file: LeaseFile) -> None:
    settle(file, INSTANCE, wishes(Network("web"), members=("a",)), [], EMPTY)
    with pytest.raises(BlockedError, match="app web: it is to have IPv6 by its declaration"):
        settle(file, INSTANCE, wishes6(SIX), [], inside("web", "a"))
    leases, moved = settle(file, INSTANCE, wishes6(SIX, members=("a",)), [], EMPTY)
    assert moved == {"web"}
    assert set(leases["web"].addresses6) == {"a"}
    leases, moved = settle(file, INSTANCE, wishes(Network("web"), members=("a",)), [], EMPTY)
    assert moved == {"web"}
    assert (leases["web"].subnet6, leases["web"].addresses6) == (None, {})


def test_one_that_apps_share_gets_it_and_loses_it_in_place(file: LeaseFile) -> None:
    before = settle(file, INSTANCE, wishes(Network("/lan"), members=("web/a",)), [], EMPTY)[0]["/lan"]
    busy = Found({}, [], {"/lan": inside("/lan", "web/a").ports.get("/lan", [])})
    leases, moved = settle(file, INSTANCE, wishes6(Network("/lan", ipv6=True)), [], busy)
    assert moved == frozenset()
    assert leases["/lan"].subnet6 is not None
    assert (leases["/lan"].addresses, leases["/lan"].addresses6) == (before.addresses, {})
    assert settle(file, INSTANCE, wishes(Network("/lan")), [], busy)[0]["/lan"] == before


def test_of_ipv6_too_what_is_declared_is_had_or_refused(file: LeaseFile) -> None:
    route = HostRoute(IPv6Network("fd12:3456::/32"), 7, 0, True)
    said = "its subnet fd12:3456:789a::/64 overlaps the host's route fd12:3456::/32"
    assert conflict(DECLARED6, {}, [route], EMPTY, INSTANCE) == said
    assert conflict(SIX, {}, [route], EMPTY, INSTANCE) == ""
    wide = HostRoute(IPv6Network("fd00::/8"), 7, 0, True)
    assert conflict(DECLARED6, {}, [wide], EMPTY, INSTANCE) == ""
    chosen = settle(file, INSTANCE, wishes6(SIX, members=("a",)), [], EMPTY)[0]["web"].subnet6
    rival = Network("other/six", ipv6=True, subnet6=str(chosen))
    busy = inside("web", "a")
    assert conflict(rival, file.read(), [], busy, INSTANCE).endswith("in which containers of app web are")
    leases, moved = settle(file, INSTANCE, wishes6(rival, SIX, members=("a",)), [], EMPTY)
    assert moved == {"web"}
    assert leases["web"].subnet6 not in (None, chosen)


def test_an_address_of_ipv6_that_is_asked_for_is_had(file: LeaseFile) -> None:
    settle(file, INSTANCE, wishes6(DECLARED6, members=("a",)), [], EMPTY)
    held = file.read()["web/six"].addresses6["a"]
    asks = replace(DECLARED6, fixed6=(("b", str(held)),))
    with pytest.raises(BlockedError, match=f"web/b: its address {held} is that of web/a, which runs"):
        lease_all(file, INSTANCE, wishes6(asks, members=("b",)))
    leases = lease_all(file, INSTANCE, wishes6(asks, members=("b",)), connected=lambda key, name: False)
    assert leases["web/six"].addresses6 == {"b": held}
    leases = lease_all(file, INSTANCE, wishes6(asks, members=("a", "b")), connected=lambda key, name: False)
    assert leases["web/six"].addresses6["a"] != held
