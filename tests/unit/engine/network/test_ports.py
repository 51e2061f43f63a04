"""The port table refuses what two sockets could not have, and what is no port (S12)."""

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.ports import PortMapping, PortTable, salvage
from reconciler.errors import BlockedError, ReconcilerError


def port(
    published: int, *, app: str = "web", host_ip: str = "0.0.0.0", protocol: str = "tcp", target: int = 80
) -> PortMapping:
    return PortMapping(
        app, "server", IPv4Address(host_ip), published, target, protocol, IPv4Address("172.20.5.2")
    )


some = st.builds(
    port,
    st.integers(1, 4),
    app=st.sampled_from(["web", "other"]),
    host_ip=st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
    protocol=st.sampled_from(["tcp", "udp"]),
)


def test_two_apps_cannot_have_one_port() -> None:
    with pytest.raises(
        BlockedError,
        match=r"web/server: port 0\.0\.0\.0:80/tcp is already published by other/server as 0\.0\.0\.0:80/tcp",
    ):
        PortTable([port(80, app="web"), port(80, app="other")])


def test_all_addresses_and_one_address_are_the_same_port() -> None:
    with pytest.raises(BlockedError, match=r"127\.0\.0\.1:80/tcp"):
        PortTable([port(80), port(80, app="other", host_ip="127.0.0.1")])


def test_other_protocols_and_other_addresses_are_other_ports() -> None:
    mappings = [
        port(80, host_ip="192.0.2.1"),
        port(80, host_ip="127.0.0.1"),
        port(80, protocol="udp"),
        port(81),
    ]
    assert len(PortTable(mappings)) == 4


def test_the_same_mapping_twice_is_one() -> None:
    assert len(PortTable([port(80), port(80)])) == 1


def test_replicas_that_share_a_port_do_not_exclude_each_other() -> None:
    one = replace(port(80), balance=True)
    two = replace(one, container="server.2", target=81)
    assert len(PortTable([one, two])) == 2
    for rival in (
        replace(two, balance=False),
        replace(two, container="other"),
        replace(two, app="other"),
        replace(two, container="server"),
        replace(two, host_ip=IPv4Address("127.0.0.1")),
    ):
        with pytest.raises(BlockedError):
            PortTable([one, rival])


@pytest.mark.parametrize("number", [0, -1, 65536, 100000])
def test_what_is_no_port_is_refused(number: int) -> None:
    with pytest.raises(ReconcilerError, match="expected 1 to 65535"):
        PortTable([port(number)])
    with pytest.raises(ReconcilerError, match="expected 1 to 65535"):
        PortTable([port(80, target=number)])


def test_what_is_no_protocol_is_refused() -> None:
    with pytest.raises(ReconcilerError, match="expected tcp or udp"):
        PortTable([port(80, protocol="sctp")])


@given(st.lists(some, max_size=12))
def test_order_does_not_matter_and_what_is_salvaged_is_valid(mappings: list[PortMapping]) -> None:
    kept = salvage(mappings)
    assert kept.mappings == salvage(reversed(mappings)).mappings == PortTable(kept).mappings
    try:
        table = PortTable(mappings)
    except BlockedError:
        assert any(a.overlaps(b) for a in mappings for b in mappings if a != b)
    else:
        assert table.mappings == kept.mappings == PortTable(reversed(mappings)).mappings


def test_ports_of_ipv6_are_others_and_have_their_place_in_the_order() -> None:
    to, to6 = IPv4Address("172.20.5.2"), IPv6Address("fd12::ac14:502")
    four = PortMapping("web", "site", IPv4Address("0.0.0.0"), 80, 8000, "tcp", to)
    six = PortMapping("web", "site", IPv6Address("::"), 80, 8000, "tcp", to6)
    one = PortMapping("api", "site", IPv6Address("2001:db8::5"), 80, 8000, "tcp", to6)
    assert not four.overlaps(six)
    assert one.overlaps(six)
    assert list(PortTable([six, four])) == [four, six]
    assert (str(six), str(one)) == ("[::]:80/tcp", "[2001:db8::5]:80/tcp")
    with pytest.raises(
        BlockedError, match=re.escape("[::]:80/tcp is already published by api/site as [2001:db8")
    ):
        PortTable([six, one])
    with pytest.raises(ReconcilerError, match=re.escape("[::]:80/tcp can't lead to 172.20.5.2")):
        PortTable([replace(six, address=to)])
