"""Which subnets and addresses are given: never one that is taken, always the same for the same names."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.address import (
    POOLS,
    allocate,
    allocate6,
    choose_subnet,
    choose_subnet6,
    gateway,
    gateway6,
    unique_local,
)
from reconciler.errors import BlockedError

SUBNET = IPv4Network("172.20.5.0/24")

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63)
networks = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(8, 32),
)
near = st.builds(
    lambda third, length: IPv4Network((int(IPv4Address("172.16.0.0")) + (third << 8), length), strict=False),
    st.integers(0, 4095),
    st.integers(12, 32),
)


@given(st.lists(networks | near, max_size=30), st.lists(networks | near, max_size=30), names)
def test_a_subnet_overlaps_nothing_that_is_taken_or_routed(
    taken: list[IPv4Network], routes: list[IPv4Network], seed: str
) -> None:
    try:
        subnet = choose_subnet(taken, routes, seed=seed)
    except BlockedError:
        assert any(route.prefixlen < 16 for route in [*taken, *routes])
        return
    assert subnet.prefixlen == 24
    assert any(subnet.subnet_of(pool) for pool in POOLS)
    assert not any(subnet.overlaps(other) for other in [*taken, *routes])


@given(st.lists(near, max_size=10), names)
def test_a_subnet_follows_from_what_is_taken_and_the_seed(taken: list[IPv4Network], seed: str) -> None:
    assert choose_subnet(taken, [], seed=seed) == choose_subnet(reversed(taken), [], seed=seed)


@given(st.lists(names, min_size=2, max_size=20, unique=True))
def test_subnets_of_many_apps_never_overlap(apps: list[str]) -> None:
    taken: list[IPv4Network] = []
    for app in apps:
        taken.append(choose_subnet(taken, [], seed=app))
    assert len(set(taken)) == len(apps)


def test_default_routes_also_split_ones_take_nothing() -> None:
    everything = [IPv4Network(text) for text in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1")]
    assert choose_subnet([], everything, seed="x") == choose_subnet([], [], seed="x")


def test_a_pool_that_is_taken_as_a_whole_leads_to_the_next() -> None:
    assert choose_subnet([], POOLS[:1], seed="x").subnet_of(POOLS[1])
    assert choose_subnet([], POOLS[:2], seed="x").subnet_of(POOLS[2])


def test_no_free_subnet_is_said() -> None:
    with pytest.raises(BlockedError, match=r"no free /24 is left in 172\.16\.0\.0/12, 10\.0\.0\.0/8"):
        choose_subnet(POOLS, [], seed="x")


def test_the_last_free_subnet_is_found_from_anywhere() -> None:
    pool = IPv4Network("172.16.0.0/22")
    taken = [IPv4Network(f"172.16.{third}.0/24") for third in (0, 1, 3)]
    for seed in "abcdefgh":
        assert choose_subnet(taken, [], [pool], seed) == IPv4Network("172.16.2.0/24")


@given(st.lists(names, unique=True, max_size=60), st.randoms())
def test_addresses_are_in_the_subnet_all_different_and_none_of_the_reserved(
    wanted: list[str], random: object
) -> None:
    leased: dict[str, IPv4Address] = {}
    for name in wanted:
        leased[name] = allocate(SUBNET, leased, name)
    reserved = {SUBNET.network_address, gateway(SUBNET), SUBNET.broadcast_address}
    assert len(set(leased.values())) == len(wanted)
    assert all(address in SUBNET and address not in reserved for address in leased.values())


@given(st.dictionaries(names, st.integers(2, 254).map(lambda n: SUBNET[n]), max_size=40), names)
def test_an_address_is_never_one_that_is_leased_to_another(leased: dict[str, IPv4Address], name: str) -> None:
    address = allocate(SUBNET, leased, name)
    assert address == leased.get(name, address)
    assert address == allocate(SUBNET, leased, name)
    assert address not in {other for key, other in leased.items() if key != name} or name in leased


def test_a_full_subnet_is_said() -> None:
    leased = {str(number): SUBNET[number] for number in range(2, 255)}
    with pytest.raises(
        BlockedError, match=r"all 253 addresses of 172\.20\.5\.0/24 are leased, none is left for x"
    ):
        allocate(SUBNET, leased, "x")
    freed = leased.pop("77")
    assert allocate(SUBNET, leased, "x") == freed


INSTANCES = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(INSTANCES, st.lists(st.text(max_size=8), unique=True, max_size=8))
def test_subnets_of_ipv6_are_the_instances_own_and_never_overlap(instance: str, apps: list[str]) -> None:
    """RFC 4193: fd, 40 bits drawn at random, 16 for the subnet; the same instance has the same again."""
    own = unique_local(instance)
    assert own.prefixlen == 48
    assert own.subnet_of(IPv6Network("fd00::/8"))
    assert own == unique_local(instance)
    taken: list[IPv6Network] = []
    for app in apps:
        found = choose_subnet6(taken, [], instance, f"{instance}/{app}")
        assert found == choose_subnet6(
            taken, [IPv6Network("::/0"), IPv6Network("fd00::/8")], instance, f"{instance}/{app}"
        )
        assert found.prefixlen == 64
        assert found.subnet_of(own)
        assert not any(found.overlaps(other) for other in taken)
        taken.append(found)


def test_two_instances_have_other_subnets_and_a_route_is_gone_around() -> None:
    assert unique_local("0" * 16) != unique_local("1" * 16)
    first = choose_subnet6([], [], "0" * 16, "a")
    assert choose_subnet6([], [IPv6Network(first)], "0" * 16, "a") != first
    with pytest.raises(BlockedError, match=r"no free /64 is left in fd.*/48"):
        choose_subnet6([], [unique_local("0" * 16)], "0" * 16, "a")


def test_an_address_of_ipv6_ends_with_that_of_ipv4_where_there_is_room() -> None:
    own, wide, narrow = IPv4Address("172.20.5.7"), IPv6Network("fd12::/64"), IPv6Network("fd12::/126")
    assert allocate6(wide, {}, "db", own) == IPv6Address("fd12::ac14:507")
    taken = {"other": IPv6Address("fd12::ac14:507")}
    other = allocate6(wide, taken, "db", own)
    assert other in wide
    assert other not in taken.values()
    assert allocate6(wide, {"db": other}, "db", own) == other
    kept = [gateway6(narrow)]
    assert allocate6(narrow, {}, "db", own, kept) in set(narrow) - {narrow[0], narrow[1]}
    with pytest.raises(BlockedError, match="all 1 addresses of fd12::/126 are leased"):
        allocate6(narrow, {"a": narrow[2]}, "db", own, kept)
