"""The rendered table: a golden file, determinism, and what is read back from a listing."""

import json
import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network import ruleset
from reconciler.engine.network.listing import fingerprints, joined, read, seal
from reconciler.engine.network.ports import PortMapping, PortTable, salvage
from reconciler.state.desired import replica_name

GOLDEN = Path(__file__).parents[3] / "golden" / "ruleset" / "two-apps.json"
INSTANCE = "0123456789abcdef"
NETWORKS = {"web": IPv4Network("172.20.5.0/24"), "other": IPv4Network("172.20.6.0/24")}


def mapping(
    app: str, container: str, host_ip: str, published: int, target: int, protocol: str, address: str
) -> PortMapping:
    return PortMapping(
        app, container, IPv4Address(host_ip), published, target, protocol, IPv4Address(address)
    )


PORTS = (
    mapping("web", "server", "0.0.0.0", 8080, 80, "tcp", "172.20.5.2"),
    mapping("web", "server", "0.0.0.0", 8080, 80, "udp", "172.20.5.2"),
    mapping("web", "db", "127.0.0.1", 5432, 5432, "tcp", "172.20.5.3"),
    mapping("other", "dns.2", "192.0.2.1", 53, 5353, "udp", "172.20.6.9"),
)

SHARED = tuple(
    PortMapping(
        "web",
        name,
        IPv4Address(host_ip),
        80,
        target,
        protocol,
        IPv4Address(address),
        True,
        address[-1] != "7",
    )
    for name, target, address in (
        ("page", 8080, "172.20.5.5"),
        ("page.2", 8081, "172.20.5.6"),
        ("page.3", 8080, "172.20.5.7"),
    )
    for host_ip, protocol in (("0.0.0.0", "tcp"), ("192.0.2.1", "udp"))
)

names = st.sampled_from(["a", "web", "x-1", "y.2", "z" * 63])
mappings = st.builds(
    mapping,
    names,
    names,
    st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["172.20.5.2", "172.20.5.3"]),
)
shared = st.builds(
    lambda one, balance, serving: replace(one, balance=balance, serving=serving or not balance),
    mappings,
    st.booleans(),
    st.booleans(),
)
replicas = st.builds(
    lambda number, serving, host_ip: PortMapping(
        "y",
        replica_name("y", number),
        IPv4Address(host_ip),
        80,
        81,
        "tcp",
        IPv4Address(f"172.20.5.{number}"),
        True,
        serving,
    ),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["0.0.0.0", "192.0.2.1"]),
)
several = st.lists(shared | replicas, max_size=8)
networks = st.dictionaries(
    names, st.integers(0, 255).map(lambda third: IPv4Network(f"172.20.{third}.0/24")), max_size=5
)


def listed(commands: list[ruleset.Json]) -> list[ruleset.Json]:
    """A listing such as the kernel gives after these commands: handles, numbers for protocols, another order."""
    listing: list[ruleset.Json] = [{"metainfo": {"version": "1.0.6"}}]
    for handle, command in enumerate(commands):
        added = command.get("add")
        if isinstance(added, dict) and "table" not in added:
            ((kind, value),) = json.loads(json.dumps(added)).items()
            if "elem" in value:
                value["elem"] = list(reversed(value["elem"]))
            listing.append({kind: {**value, "handle": handle}})
    numbers = json.dumps(listing).replace('"tcp"', "6").replace('"udp"', "17")
    result: list[ruleset.Json] = json.loads(numbers)
    return result


def sealed(listing: list[ruleset.Json]) -> list[ruleset.Json]:
    (command,) = seal(INSTANCE, listing)
    added = command["add"]
    assert isinstance(added, dict)
    return [*listing, added]


def test_the_table_is_the_golden_one() -> None:
    """A change here is a change of what every device filters: read the difference with care."""
    rendered = ruleset.render(INSTANCE, NETWORKS, PortTable(PORTS), found_forwarding="0")
    lines = ",\n".join(json.dumps(command, sort_keys=True) for command in rendered)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(f"[\n{lines}\n]\n")
    assert GOLDEN.read_text() == f"[\n{lines}\n]\n"


def test_the_table_of_shared_ports_is_the_golden_one() -> None:
    rendered = ruleset.render(INSTANCE, NETWORKS, PortTable([*PORTS, *SHARED]))
    lines = ",\n".join(json.dumps(command, sort_keys=True) for command in rendered)
    golden = GOLDEN.with_name("shared-ports.json")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(f"[\n{lines}\n]\n")
    assert golden.read_text() == f"[\n{lines}\n]\n"


def six(one: PortMapping) -> PortMapping:
    """The same port by IPv6."""
    host_ip = {"0.0.0.0": "::", "192.0.2.1": "2001:db8::1"}.get(str(one.host_ip), "2001:db8::7")
    to = SIX["other" if one.app == "other" else "web"][int(one.address)]
    return replace(one, host_ip=IPv6Address(host_ip), address=to)


SIX = {"web": IPv6Network("fd12:3456:789a:5::/64"), "other": IPv6Network("fd12:3456:789a:6::/64")}


def test_the_table_of_ipv6_is_the_golden_one() -> None:
    ports = PortTable([*PORTS, *map(six, (*PORTS, *SHARED))])  # those of IPv4 are not in it
    internal = ("other", "of-ipv4-alone")
    rendered = ruleset.render(
        INSTANCE, SIX, ports, internal=internal, found_forwarding="0", family=ruleset.IP6
    )
    lines = ",\n".join(json.dumps(command, sort_keys=True) for command in rendered)
    golden = GOLDEN.with_name("ipv6.json")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(f"[\n{lines}\n]\n")
    assert golden.read_text() == f"[\n{lines}\n]\n"


def test_ports_of_ipv6_leave_the_other_table_as_it_is() -> None:
    ports = PortTable([*PORTS, *map(six, PORTS)])
    assert ruleset.render(INSTANCE, NETWORKS, ports) == ruleset.render(INSTANCE, NETWORKS, PortTable(PORTS))


@given(several)
def test_both_tables_are_read_back_as_one(wanted: list[PortMapping]) -> None:
    table = salvage([*wanted, *map(six, wanted)])
    rendered = {
        ruleset.IP: ruleset.render(INSTANCE, NETWORKS, table, found_forwarding="0"),
        ruleset.IP6: ruleset.render(INSTANCE, SIX, table, found_forwarding="0", family=ruleset.IP6),
    }
    found = joined({family: read(listed(commands), family) for family, commands in rendered.items()})
    assert found is not None
    assert found.ports == table.mappings
    assert found.fingerprint == fingerprints(rendered)
    assert found.found == {ruleset.IP: "0", ruleset.IP6: "0"}
    alone = joined({ruleset.IP: read(listed(rendered[ruleset.IP]))})
    assert alone is not None
    assert alone.fingerprint != found.fingerprint


@given(networks, several, st.randoms(use_true_random=False))
def test_the_same_content_in_any_order_renders_the_same_bytes(
    apps: dict[str, IPv4Network], wanted: list[PortMapping], random: object
) -> None:
    table = salvage(wanted)
    shuffled = dict(reversed(apps.items()))
    one = ruleset.render(INSTANCE, apps, table)
    two = ruleset.render(INSTANCE, shuffled, salvage(reversed(wanted)))
    assert json.dumps(one) == json.dumps(two)
    assert ruleset.fingerprint(one) == ruleset.fingerprint(two)


@given(networks, several)
def test_what_was_rendered_is_read_back_and_known_as_ours(
    apps: dict[str, IPv4Network], wanted: list[PortMapping]
) -> None:
    table = salvage(wanted)
    commands = ruleset.render(INSTANCE, apps, table, found_forwarding="0")
    listing = listed(commands)
    found = read(listing)
    assert found.ports == table.mappings
    assert found.fingerprint == ruleset.fingerprint(commands)
    assert found.found_forwarding == "0"
    assert not found.sealed
    assert read(sealed(listing)).sealed


@given(st.lists(mappings, min_size=1, max_size=4), st.data())
def test_any_other_content_has_another_fingerprint(wanted: list[PortMapping], data: st.DataObject) -> None:
    table = salvage(wanted)
    less = PortTable([m for m in table if m != data.draw(st.sampled_from(table.mappings))])
    whole = ruleset.fingerprint(ruleset.render(INSTANCE, NETWORKS, table))
    assert ruleset.fingerprint(ruleset.render(INSTANCE, NETWORKS, less)) != whole or len(less) == len(table)
    assert ruleset.fingerprint(ruleset.render(INSTANCE, {"web": NETWORKS["web"]}, table)) != whole
    assert ruleset.fingerprint(ruleset.render("f" * 16, NETWORKS, table)) != whole


@pytest.mark.parametrize(
    "change",
    [
        lambda listing: listing.pop(),
        lambda listing: listing.append({"rule": {"chain": "forward", "expr": [{"accept": None}]}}),
        lambda listing: listing.insert(5, {"chain": {"name": "stranger"}}),
        lambda listing: listing[5]["map"]["elem"].pop(),
        lambda listing: listing.append({"chain": {"name": "sealed_" + "0" * 24}}),
    ],
)
def test_a_change_breaks_the_seal(change: object) -> None:
    listing = sealed(listed(ruleset.render(INSTANCE, NETWORKS, PortTable(PORTS))))
    assert read(listing).sealed
    assert callable(change)
    change(listing)
    assert not read(listing).sealed


def test_other_handles_and_another_version_do_not_break_the_seal() -> None:
    listing = sealed(listed(ruleset.render(INSTANCE, NETWORKS, PortTable(PORTS))))
    text = json.dumps(listing).replace('"handle": ', '"handle": 9').replace("1.0.6", "1.1.3")
    assert read(json.loads(text)).sealed


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["elem", "val", "concat", "comment", "name", "map", "chain"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(["map", "chain", "set"]), values, max_size=2), max_size=4))
def test_a_listing_of_anything_is_read_without_error(listing: list[ruleset.Json]) -> None:
    found = read(listing)
    assert not found.sealed
