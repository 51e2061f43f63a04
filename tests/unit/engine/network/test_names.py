"""Names in the kernel: short enough, different for different things, readable back from labels."""

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.names import (
    LinkLabel,
    bridge_label,
    bridge_name,
    hardware_address,
    link_name,
    read_bridge_label,
    read_link_label,
    table_name,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[0-9]{1,2})?", fullmatch=True)
instances = st.text("0123456789abcdef", min_size=16, max_size=16)
inodes = st.integers(1, 2**32 - 1)
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)


@given(instances, names, names, inodes)
def test_links_fit_into_what_the_kernel_allows(instance: str, app: str, container: str, inode: int) -> None:
    for name in (bridge_name(instance, app), link_name(instance, app, container, inode)):
        assert len(name) == 15
        assert name.isascii()
    address = IPv4Address("255.255.255.255")
    for network in ("", f"{app[:40]}/{container[:63]}", f"/{container[:63]}"):
        assert len(str(LinkLabel(instance, app[:40], container, address, inode, network))) < 256


@given(st.lists(st.tuples(instances, names, names, inodes), unique=True, min_size=2, max_size=20))
def test_different_things_have_different_names(things: list[tuple[str, str, str, int]]) -> None:
    links = [link_name(*thing) for thing in things]
    bridges = {(instance, app): bridge_name(instance, app) for instance, app, _, _ in things}
    assert len(set(links)) == len(things)
    assert len(set(bridges.values())) == len(bridges)
    assert not set(links) & set(bridges.values())


def test_a_slash_in_the_wrong_place_makes_no_difference_go_away() -> None:
    assert link_name("i", "a", "b-c", 1) != link_name("i", "a-b", "c", 1)
    assert bridge_name("ab", "c") != bridge_name("a", "bc")


@given(instances, instances, names, names, addresses, inodes)
def test_labels_are_read_back_by_their_own_instance_alone(
    instance: str, other: str, app: str, container: str, address: IPv4Address, inode: int
) -> None:
    label = LinkLabel(instance, app, container, address, inode)
    assert read_link_label(str(label), instance) == label
    for key in (f"{app}/{container}", f"/{app}"):
        further = LinkLabel(instance, app, container, address, inode, key)
        assert read_link_label(str(further), instance) == further
        assert further.name != label.name
        assert read_bridge_label(bridge_label(instance, key), instance) == key
    assert read_bridge_label(bridge_label(instance, app), instance) == app
    assert read_bridge_label(str(label), instance) is None
    assert read_link_label(bridge_label(instance, app), instance) is None
    if other != instance:
        assert read_link_label(str(label), other) is None
        assert read_bridge_label(bridge_label(instance, app), other) is None


@given(st.text(max_size=80))
def test_labels_of_others_are_nobodys(alias: str) -> None:
    assert read_link_label(alias, "0123456789abcdef") is None
    assert read_link_label(f"reconciler 0123456789abcdef {alias}", "0123456789abcdef") is None or "/" in alias


@given(addresses, addresses)
def test_hardware_addresses_are_local_unicast_and_one_to_one(one: IPv4Address, two: IPv4Address) -> None:
    mac = hardware_address(one)
    assert len(mac) == 6
    assert mac[0] & 0b11 == 0b10
    assert (mac == hardware_address(two)) == (one == two)


def test_the_table_is_named_after_the_instance() -> None:
    assert table_name("0123456789abcdef") == "reconciler_0123456789abcdef"
