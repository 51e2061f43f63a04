"""The whole nftables table of this instance, rendered as libnftables JSON; `listing` reads it back.

Pure. The table is always replaced as a whole, in one transaction. Two chains without rules are its marks:
`wanted_<hash>` names what was rendered and goes in with it; `sealed_<hash>` names what the kernel listed right
afterwards. A table whose listing still has the sealed hash was touched by nobody, whichever version of libnftables
prints it, and a new version costs one more replacement, never a loop.

Networks with IPv6 have a second table of the same name in the family ip6, with the same sets, maps and chains; where
there is no such network there is no such table. What IPv4 has for its loopback addresses has no place in it: the kernel
takes no packet from ::1, or to it, on any link but lo (ip6_rcv_core, net/ipv6), and translates none either.

What each rule is for stands at its place below. Families and priorities are the standard ones of nft(8).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any

from reconciler.engine.network.names import bridge_name, table_name
from reconciler.engine.network.ports import ANY, Address, PortMapping, PortTable

Json = dict[str, object]

WANTED = "wanted_"
SEALED = "sealed_"
_RAW, _DSTNAT, _FILTER, _SRCNAT = -300, -100, 0, 100
_LOOPBACK: Json = {"prefix": {"addr": "127.0.0.0", "len": 8}}


@dataclass(frozen=True, slots=True)
class Family:
    """A family of tables, the type of its addresses, and what its mark of forwarding begins with."""

    name: str
    address: str
    forwarding: str


IP = Family("ip", "ipv4_addr", "found_ip_forward_")
IP6 = Family("ip6", "ipv6_addr", "found_forwarding6_")
FAMILIES = (IP, IP6)
ANYWHERE: Mapping[Family, Address] = {IP: ANY, IP6: IPv6Address("::")}
# What a link has beside the addresses that it is given: of a neighbour that asks who he may be, and of each.
_LINK: Json = {"prefix": {"addr": "fe80::", "len": 10}}
_ALWAYS: Json = {"set": ["::", _LINK]}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _concat(*parts: object) -> Json:
    return {"concat": list(parts)}


def _match(left: object, right: object, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


_IN, _OUT = _meta("iifname"), _meta("oifname")
_FROM_BRIDGE = _match(_IN, "@bridges")
_TO_BRIDGE = _match(_OUT, "@bridges")
_FROM_INTERNAL = _match(_IN, "@internal")
_TO_INTERNAL = _match(_OUT, "@internal")
_OTHER_BRIDGE = _match(_concat(_IN, _OUT), "@siblings", "!=")
_SAME_BRIDGE = _match(_concat(_IN, _OUT), "@siblings")
_TRANSLATED = _match({"ct": {"key": "status"}}, "dnat", "in")
_ANSWER = _match({"ct": {"key": "state"}}, ["established", "related"], "in")
_TO_THIS_HOST = _match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
_DROP: Json = {"drop": None}
_ACCEPT: Json = {"accept": None}
_MASQUERADE: Json = {"masquerade": None}


def _translate(family: Family, key: Json, table: str) -> Json:
    # Two maps, since libnftables before 1.0.8 cannot read a map to `address . port` from JSON.
    return {
        "dnat": {
            "family": family.name,
            "addr": {"map": {"key": key, "data": f"@{table}_address"}},
            "port": {"map": {"key": key, "data": f"@{table}_port"}},
        }
    }


_PORT_KEY = _concat(_meta("l4proto"), _field("th", "dport"))

_CHAINS: tuple[tuple[str, str, str, int], ...] = (
    ("raw_prerouting", "filter", "prerouting", _RAW),
    ("nat_prerouting", "nat", "prerouting", _DSTNAT),
    ("nat_output", "nat", "output", _DSTNAT),
    ("forward", "filter", "forward", _FILTER),
    ("nat_postrouting", "nat", "postrouting", _SRCNAT),
)

_Rules = tuple[tuple[str, tuple[Json, ...]], ...]


def _address_port_key(family: Family) -> Json:
    return _concat(_field(family.name, "daddr"), _meta("l4proto"), _field("th", "dport"))


def _is_member(family: Family, link: Json, op: str = "==") -> Json:
    return _match(_concat(link, _field(family.name, "saddr")), "@members", op)


_GUARD: _Rules = (
    # route_localnet on the bridges would let a container with NET_ADMIN route 127.0.0.1 to us and reach the host's
    # loopback services (CVE-2020-8558). Before connection tracking, so that answers to translated flows still pass.
    ("raw_prerouting", (_FROM_BRIDGE, _match(_field("ip", "daddr"), _LOOPBACK), _DROP)),
    # A container speaks with an address of its own subnet only.
    ("raw_prerouting", (_FROM_BRIDGE, _is_member(IP, _IN, "!="), _DROP)),
    # Not for 127/8: a neighbour on the wire could send to it, and a port published on 127.0.0.1 would answer.
    (
        "nat_prerouting",
        (_match(_field("ip", "daddr"), _LOOPBACK, "!="), _TO_THIS_HOST, {"jump": {"target": "published"}}),
    ),
    ("nat_output", (_TO_THIS_HOST, {"jump": {"target": "published"}})),
)

_PLAIN = _match(_field("ip6", "daddr"), {"set": ["::1", _LINK]}, "!=")

_GUARD6: _Rules = (
    # A container speaks with an address of its own subnet only, beside what IPv6 itself needs; with that it gets no
    # further than this host (ip6_forward).
    (
        "raw_prerouting",
        (_FROM_BRIDGE, _match(_field("ip6", "saddr"), _ALWAYS, "!="), _is_member(IP6, _IN, "!="), _DROP),
    ),
    # Not for what the kernel would not let through afterwards (it has no route_localnet for ::1, and forwards no
    # address of a link): then the host refuses at once, and who asked for localhost tries 127.0.0.1.
    ("nat_prerouting", (_PLAIN, _TO_THIS_HOST, {"jump": {"target": "published"}})),
    ("nat_output", (_PLAIN, _TO_THIS_HOST, {"jump": {"target": "published"}})),
)

_FORWARD: _Rules = (
    # Into a bridge come answers, published ports, and siblings (whose frames br_netfilter shows here too). So apps
    # can't reach each other, and a neighbour that routes a subnet of ours through this host can't reach what isn't
    # published.
    # Nothing but siblings leaves or enters an internal network, not even an answer.
    ("forward", (_FROM_INTERNAL, _OTHER_BRIDGE, _DROP)),
    ("forward", (_TO_INTERNAL, _OTHER_BRIDGE, _DROP)),
    ("forward", (_TO_BRIDGE, {"jump": {"target": "inward"}})),
    ("inward", (_ANSWER, _ACCEPT)),
    ("inward", (_TRANSLATED, _ACCEPT)),
    ("inward", (_SAME_BRIDGE, _ACCEPT)),
    ("inward", (_DROP,)),
)

_FROM_LOOPBACK: _Rules = (
    # From the host's 127.0.0.1 to a published port: a container can't answer to 127.0.0.1.
    ("nat_postrouting", (_TO_BRIDGE, _match(_field("ip", "saddr"), _LOOPBACK), _MASQUERADE)),
)


def _rules(family: Family, *, shared: bool) -> Iterator[tuple[str, tuple[Json, ...]]]:
    key = _address_port_key(family)
    if shared:
        # To the chain of a port that replicas share. One that none of them serves has none: then the host refuses.
        yield "published", ({"vmap": {"key": key, "data": "@one_shared"}},)
        yield "published", ({"vmap": {"key": _PORT_KEY, "data": "@any_shared"}},)
    yield from _GUARD if family == IP else _GUARD6
    yield "published", (_translate(family, key, "one"),)
    yield "published", (_translate(family, _PORT_KEY, "any"),)
    yield from _FORWARD
    yield from _FROM_LOOPBACK if family == IP else ()
    # From a sibling, or the container itself, through a published port: the answer must come back through us. By the
    # address, and not by the link it came from, which br_netfilter does not show here.
    yield "nat_postrouting", (_is_member(family, _OUT), _TRANSLATED, _MASQUERADE)
    # Outwards.
    yield "nat_postrouting", (_FROM_BRIDGE, _match(_OUT, "@bridges", "!="), _MASQUERADE)


def render(
    instance: str,
    networks: Mapping[str, IPv4Network] | Mapping[str, IPv6Network],
    ports: PortTable,
    *,
    internal: Iterable[str] = (),
    found_forwarding: str = "",
    family: Family = IP,
) -> list[Json]:
    """The commands that replace the table of a family, in one transaction: the same input gives the same bytes.

    `networks` are the subnets by key, `internal` the keys of those of them that are closed; `ports` of the other kind
    are left out. `found_forwarding` is what the setting was before any instance changed it; it is kept as a mark, so
    that the last instance to leave can restore it.
    """
    name = table_name(instance)
    table: Json = {"family": family.name, "name": name}
    anywhere = ANYWHERE[family]
    address_port = [family.address, "inet_proto", "inet_service"]

    def add(kind: str, **content: object) -> Json:
        return {"add": {kind: {"family": family.name, "table": name, **content}}}

    ports = PortTable(mapping for mapping in ports if mapping.version == anywhere.version)
    bridges = sorted((bridge_name(instance, app), subnet) for app, subnet in networks.items())
    one = [mapping for mapping in ports if not mapping.everywhere and not mapping.balance]
    any_ = [mapping for mapping in ports if mapping.everywhere and not mapping.balance]
    content = [
        add("set", name="bridges", type="ifname", **_elems([bridge for bridge, _ in bridges])),
        add(
            "set",
            name="internal",
            type="ifname",
            **_elems([*sorted(bridge_name(instance, key) for key in internal if key in networks)]),
        ),
        add(
            "set",
            name="siblings",
            type=["ifname", "ifname"],
            **_elems([_concat(bridge, bridge) for bridge, _ in bridges]),
        ),
        add(
            "set",
            name="members",
            type=["ifname", family.address],
            flags=["interval"],
            **_elems([_concat(bridge, _prefix(subnet)) for bridge, subnet in bridges]),
        ),
    ]
    for kind, mappings, types in (
        ("one", one, address_port),
        ("any", any_, address_port[1:]),
    ):
        keys = [(_key(mapping), mapping) for mapping in mappings]
        addresses: list[object] = [[_commented(key, m.app), str(m.address)] for key, m in keys]
        targets: list[object] = [[_commented(key, m.container), m.target] for key, m in keys]
        content.append(
            add("map", name=f"{kind}_address", type=types, map=family.address, **_elems(addresses))
        )
        content.append(add("map", name=f"{kind}_port", type=types, map="inet_service", **_elems(targets)))
    content += [add("chain", name=chain) for chain in ("published", "inward")]
    shared = [mapping for mapping in ports if mapping.balance]
    content += [add(kind, **value) for kind, value in _shared(shared, family)]
    content += [
        add("chain", name=chain, type=kind, hook=hook, prio=priority, policy="accept")
        for chain, kind, hook, priority in _CHAINS
    ]
    content += [
        add("rule", chain=chain, expr=list(expression))
        for chain, expression in _rules(family, shared=bool(shared))
    ]
    if found_forwarding:
        content.append(add("chain", name=family.forwarding + found_forwarding))
    wanted = add("chain", name=WANTED + digest(content))
    # `delete` fails on a table that is not there, and adding one that is there succeeds.
    return [
        {"add": {"table": table}},
        {"delete": {"table": table}},
        {"add": {"table": table}},
        *content,
        wanted,
    ]


def removal(instance: str, family: Family) -> list[Json]:
    """The commands that take the table of a family away; adding it first makes that succeed where it is gone."""
    table: Json = {"family": family.name, "name": table_name(instance)}
    return [{"add": {"table": table}}, {"delete": {"table": table}}]


def fingerprint(commands: Sequence[Json]) -> str:
    """The hash that `render` marked the table with."""
    match commands[-1]:
        case {"add": {"chain": {"name": str(name)}}} if name.startswith(WANTED):
            return name.removeprefix(WANTED)
        case _:
            raise ValueError("not a rendered table")


def _elems(items: Sequence[object]) -> Json:
    return {"elem": list(items)} if items else {}


def _prefix(subnet: IPv4Network | IPv6Network) -> Json:
    return {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}


def _key(mapping: PortMapping) -> Json:
    port: tuple[object, ...] = (mapping.protocol, mapping.published)
    return _concat(*port) if mapping.everywhere else _concat(str(mapping.host_ip), *port)


def _share(mapping: PortMapping) -> Json:
    return _concat(str(mapping.host_ip), mapping.protocol, mapping.published, str(mapping.address))


def _shared(ports: Sequence[PortMapping], family: Family) -> Iterable[tuple[str, dict[str, Any]]]:
    """Kind and content of what ports that replicas share need beside the rules; nothing where there are none."""
    if not ports:
        return
    address_port = [family.address, "inet_proto", "inet_service"]
    share = [*address_port, family.address]  # and the address of the replica
    # No rule asks these: they say whose a shared port is, and who serves it, to whoever reads the table.
    yield "set", {"name": "shared", "type": share, "elem": [_commented(_share(m), m.app) for m in ports]}
    targets = [[_commented(_share(m), m.container), m.target] for m in ports]
    yield "map", {"name": "shared_port", "type": share, "map": "inet_service", "elem": targets}
    serving = [mapping for mapping in ports if mapping.serving]
    yield "set", {"name": "serving", "type": share, **_elems([_share(m) for m in serving])}
    members: dict[tuple[Address, str, int], list[PortMapping]] = {}
    for mapping in serving:
        members.setdefault(mapping.key, []).append(mapping)
    for key, same in members.items():
        yield "chain", {"name": _chain(key)}
        for expression in _in_turn(same, family):
            yield "rule", {"chain": _chain(key), "expr": list(expression)}
    for name, types in (("one_shared", address_port), ("any_shared", address_port[1:])):
        jumps: list[object] = [
            [_key(same[0]), {"jump": {"target": _chain(key)}}]
            for key, same in members.items()
            if key[0].is_unspecified == (types != address_port)
        ]
        yield "map", {"name": name, "type": types, "map": "verdict", **_elems(jumps)}


def _chain(key: tuple[Address, str, int]) -> str:
    host_ip, protocol, port = key
    shown = str(host_ip) if host_ip.version == 4 else host_ip.packed.hex()  # no name has a colon
    return f"shared_{protocol}_{port}" + ("" if host_ip.is_unspecified else f"_{shown}")


def _in_turn(members: Sequence[PortMapping], family: Family) -> Iterable[tuple[Json, ...]]:
    """A rule per member: the first takes one of n connections, the next one of the n-1 that are left, and so on.

    Rules, and not a map of numbers: libnftables before 1.0.8 reads no map to `address . port`, and while a change of
    the target is under way the members' ports differ.
    """
    for position, member in enumerate(members):
        left = len(members) - position
        turn = {"numgen": {"mode": "inc", "mod": left}}
        yield (
            _match(_meta("l4proto"), member.protocol),
            *((_match(turn, 0),) if left > 1 else ()),
            {"dnat": {"family": family.name, "addr": str(member.address), "port": member.target}},
        )


def _commented(key: Json, comment: str) -> Json:
    # A comment holds 127 bytes (NFTNL_UDATA_COMMENT_MAXLEN): enough for an app, or for a container, not for both.
    return {"elem": {"val": key, "comment": comment}}


def digest(value: object) -> str:
    """The hash of what is rendered or listed."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]
