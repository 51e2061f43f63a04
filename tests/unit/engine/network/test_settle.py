"""Which subnets and addresses are leased: declared ones before chosen ones, and never one twice."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.address import gateway
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
