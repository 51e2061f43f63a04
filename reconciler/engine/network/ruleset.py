"""The whole nftables table of this instance, rendered as libnftables JSON, and read back from the kernel's listing.

Pure. The table is always replaced as a whole, in one transaction. Two chains without rules are its marks:
`wanted_<hash>` names what was rendered and goes in with it; `sealed_<hash>` names what the kernel listed right
afterwards. A table whose listing still has the sealed hash was touched by nobody, whichever version of libnftables
prints it, and a new version costs one more replacement, never a loop.

What each rule is for stands at its place below. Families and priorities are the standard ones of nft(8).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

from reconciler.engine.network.names import bridge_name, table_name
from reconciler.engine.network.ports import ANY, PROTOCOLS, PortMapping, PortTable

Json = dict[str, object]

_WANTED = "wanted_"
_SEALED = "sealed_"
_FOUND_FORWARDING = "found_ip_forward_"
_RAW, _DSTNAT, _FILTER, _SRCNAT = -300, -100, 0, 100
_LOOPBACK: Json = {"prefix": {"addr": "127.0.0.0", "len": 8}}
_NUMBER_TO_PROTOCOL = {number: name for name, number in PROTOCOLS.items()}


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
_ADDRESS_PORT = ["ipv4_addr", "inet_proto", "inet_service"]
_SHARE = [*_ADDRESS_PORT, "ipv4_addr"]  # and the address of the replica
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


def _translate(key: Json, table: str) -> Json:
    # Two maps, since libnftables before 1.0.8 cannot read a map to `address . port` from JSON.
    return {
        "dnat": {
            "family": "ip",
            "addr": {"map": {"key": key, "data": f"@{table}_address"}},
            "port": {"map": {"key": key, "data": f"@{table}_port"}},
        }
    }


_PORT_KEY = _concat(_meta("l4proto"), _field("th", "dport"))
_ADDRESS_PORT_KEY = _concat(_field("ip", "daddr"), _meta("l4proto"), _field("th", "dport"))

_CHAINS: tuple[tuple[str, str, str, int], ...] = (
    ("raw_prerouting", "filter", "prerouting", _RAW),
    ("nat_prerouting", "nat", "prerouting", _DSTNAT),
    ("nat_output", "nat", "output", _DSTNAT),
    ("forward", "filter", "forward", _FILTER),
    ("nat_postrouting", "nat", "postrouting", _SRCNAT),
)

_RULES: tuple[tuple[str, tuple[Json, ...]], ...] = (
    # route_localnet on the bridges would let a container with NET_ADMIN route 127.0.0.1 to us and reach the host's
    # loopback services (CVE-2020-8558). Before connection tracking, so that answers to translated flows still pass.
    ("raw_prerouting", (_FROM_BRIDGE, _match(_field("ip", "daddr"), _LOOPBACK), _DROP)),
    # A container speaks with an address of its own subnet only.
    ("raw_prerouting", (_FROM_BRIDGE, _match(_concat(_IN, _field("ip", "saddr")), "@members", "!="), _DROP)),
    # Not for 127/8: a neighbour on the wire could send to it, and a port published on 127.0.0.1 would answer.
    (
        "nat_prerouting",
        (_match(_field("ip", "daddr"), _LOOPBACK, "!="), _TO_THIS_HOST, {"jump": {"target": "published"}}),
    ),
    ("nat_output", (_TO_THIS_HOST, {"jump": {"target": "published"}})),
    ("published", (_translate(_ADDRESS_PORT_KEY, "one"),)),
    ("published", (_translate(_PORT_KEY, "any"),)),
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
    # From the host's 127.0.0.1 to a published port: a container can't answer to 127.0.0.1.
    ("nat_postrouting", (_TO_BRIDGE, _match(_field("ip", "saddr"), _LOOPBACK), _MASQUERADE)),
    # From a sibling, or the container itself, through a published port: the answer must come back through us. By the
    # address, and not by the link it came from, which br_netfilter does not show here.
    ("nat_postrouting", (_match(_concat(_OUT, _field("ip", "saddr")), "@members"), _TRANSLATED, _MASQUERADE)),
    # Outwards.
    ("nat_postrouting", (_FROM_BRIDGE, _match(_OUT, "@bridges", "!="), _MASQUERADE)),
)

# To the chain of a port that replicas share. One that none of them serves has none: then the host itself refuses.
_SHARED_RULES: tuple[tuple[str, tuple[Json, ...]], ...] = (
    ("published", ({"vmap": {"key": _ADDRESS_PORT_KEY, "data": "@one_shared"}},)),
    ("published", ({"vmap": {"key": _PORT_KEY, "data": "@any_shared"}},)),
)


def render(
    instance: str,
    networks: Mapping[str, IPv4Network],
    ports: PortTable,
    *,
    internal: Iterable[str] = (),
    found_forwarding: str = "",
) -> list[Json]:
    """The commands that replace the table, in one transaction: the same input gives the same bytes.

    `networks` are the subnets by key, `internal` the keys of those that are closed. `found_forwarding` is what
    ip_forward was before any instance changed it; it is kept as a mark, so that the last instance to leave can restore
    it.
    """
    name = table_name(instance)
    table: Json = {"family": "ip", "name": name}

    def add(kind: str, **content: object) -> Json:
        return {"add": {kind: {"family": "ip", "table": name, **content}}}

    bridges = sorted((bridge_name(instance, app), subnet) for app, subnet in networks.items())
    one = [mapping for mapping in ports if mapping.host_ip != ANY and not mapping.balance]
    any_ = [mapping for mapping in ports if mapping.host_ip == ANY and not mapping.balance]
    content = [
        add("set", name="bridges", type="ifname", **_elems([bridge for bridge, _ in bridges])),
        add(
            "set",
            name="internal",
            type="ifname",
            **_elems([*sorted(bridge_name(instance, key) for key in internal)]),
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
            type=["ifname", "ipv4_addr"],
            flags=["interval"],
            **_elems([_concat(bridge, _prefix(subnet)) for bridge, subnet in bridges]),
        ),
    ]
    for kind, mappings, types in (
        ("one", one, _ADDRESS_PORT),
        ("any", any_, _ADDRESS_PORT[1:]),
    ):
        keys = [(_key(mapping), mapping) for mapping in mappings]
        addresses: list[object] = [[_commented(key, m.app), str(m.address)] for key, m in keys]
        targets: list[object] = [[_commented(key, m.container), m.target] for key, m in keys]
        content.append(add("map", name=f"{kind}_address", type=types, map="ipv4_addr", **_elems(addresses)))
        content.append(add("map", name=f"{kind}_port", type=types, map="inet_service", **_elems(targets)))
    content += [add("chain", name=chain) for chain in ("published", "inward")]
    shared = [mapping for mapping in ports if mapping.balance]
    content += [add(kind, **value) for kind, value in _shared(shared)]
    content += [
        add("chain", name=chain, type=kind, hook=hook, prio=priority, policy="accept")
        for chain, kind, hook, priority in _CHAINS
    ]
    content += [
        add("rule", chain=chain, expr=list(expression))
        for chain, expression in (*(_SHARED_RULES if shared else ()), *_RULES)
    ]
    if found_forwarding:
        content.append(add("chain", name=_FOUND_FORWARDING + found_forwarding))
    wanted = add("chain", name=_WANTED + _hash(content))
    # `delete` fails on a table that is not there, and adding one that is there succeeds.
    return [
        {"add": {"table": table}},
        {"delete": {"table": table}},
        {"add": {"table": table}},
        *content,
        wanted,
    ]


def fingerprint(commands: Sequence[Json]) -> str:
    """The hash that `render` marked the table with."""
    match commands[-1]:
        case {"add": {"chain": {"name": str(name)}}} if name.startswith(_WANTED):
            return name.removeprefix(_WANTED)
        case _:
            raise ValueError("not a rendered table")


def seal(instance: str, listing: Sequence[Json]) -> list[Json]:
    """The commands that mark a table as being what `listing` says it is."""
    chain = {"family": "ip", "table": table_name(instance), "name": _SEALED + _hash(_normal(listing))}
    return [{"add": {"chain": chain}}]


def _elems(items: Sequence[object]) -> Json:
    return {"elem": list(items)} if items else {}


def _prefix(subnet: IPv4Network) -> Json:
    return {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}


def _key(mapping: PortMapping) -> Json:
    port: tuple[object, ...] = (mapping.protocol, mapping.published)
    return _concat(*port) if mapping.host_ip == ANY else _concat(str(mapping.host_ip), *port)


def _share(mapping: PortMapping) -> Json:
    return _concat(str(mapping.host_ip), mapping.protocol, mapping.published, str(mapping.address))


def _shared(ports: Sequence[PortMapping]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Kind and content of what ports that replicas share need beside the rules; nothing where there are none."""
    if not ports:
        return
    # No rule asks these: they say whose a shared port is, and who serves it, to whoever reads the table.
    yield "set", {"name": "shared", "type": _SHARE, "elem": [_commented(_share(m), m.app) for m in ports]}
    targets = [[_commented(_share(m), m.container), m.target] for m in ports]
    yield "map", {"name": "shared_port", "type": _SHARE, "map": "inet_service", "elem": targets}
    serving = [mapping for mapping in ports if mapping.serving]
    yield "set", {"name": "serving", "type": _SHARE, **_elems([_share(m) for m in serving])}
    members: dict[tuple[IPv4Address, str, int], list[PortMapping]] = {}
    for mapping in serving:
        members.setdefault(mapping.key, []).append(mapping)
    for key, same in members.items():
        yield "chain", {"name": _chain(key)}
        for expression in _in_turn(same):
            yield "rule", {"chain": _chain(key), "expr": list(expression)}
    for name, types in (("one_shared", _ADDRESS_PORT), ("any_shared", _ADDRESS_PORT[1:])):
        jumps: list[object] = [
            [_key(same[0]), {"jump": {"target": _chain(key)}}]
            for key, same in members.items()
            if (key[0] == ANY) == (types != _ADDRESS_PORT)
        ]
        yield "map", {"name": name, "type": types, "map": "verdict", **_elems(jumps)}


def _chain(key: tuple[IPv4Address, str, int]) -> str:
    host_ip, protocol, port = key
    return f"shared_{protocol}_{port}" + ("" if host_ip == ANY else f"_{host_ip}")


def _in_turn(members: Sequence[PortMapping]) -> Iterable[tuple[Json, ...]]:
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
            {"dnat": {"family": "ip", "addr": str(member.address), "port": member.target}},
        )


def _commented(key: Json, comment: str) -> Json:
    # A comment holds 127 bytes (NFTNL_UDATA_COMMENT_MAXLEN): enough for an app, or for a container, not for both.
    return {"elem": {"val": key, "comment": comment}}


def _hash(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


# --- reading the kernel's listing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """The table as the kernel lists it. `sealed` says that nobody changed it since it was put there."""

    fingerprint: str
    sealed: bool
    found_forwarding: str
    ports: tuple[PortMapping, ...]


def read(listing: Sequence[Json]) -> Table:
    """Read a listing of the table; where it was changed by somebody, `ports` holds what could be understood."""
    chains = [str(chain.get("name", "")) for chain in _objects(listing, "chain")]
    seals = [name.removeprefix(_SEALED) for name in chains if name.startswith(_SEALED)]
    return Table(
        fingerprint=next((c.removeprefix(_WANTED) for c in chains if c.startswith(_WANTED)), ""),
        sealed=seals == [_hash(_normal(listing))],
        found_forwarding=found_forwarding(chains),
        ports=tuple(sorted(_ports(listing))),
    )


def found_forwarding(chains: Iterable[str]) -> str:
    """What ip_forward was before an instance with these chains changed it, or an empty string."""
    marks = (c.removeprefix(_FOUND_FORWARDING) for c in chains if c.startswith(_FOUND_FORWARDING))
    return next(marks, "")


def _objects(listing: Sequence[Json], kind: str) -> list[Json]:
    return [value for entry in listing if isinstance(value := entry.get(kind), dict)]


def _normal(listing: Sequence[Json]) -> list[Json]:
    """The listing without what differs between two listings of one table: versions, handles, order, the seal."""
    normal: list[Json] = []
    for entry in listing:
        for kind, value in entry.items():
            if kind == "metainfo" or not isinstance(value, dict):
                continue
            if kind == "chain" and str(value.get("name", "")).startswith(_SEALED):
                continue
            kept = {key: item for key, item in value.items() if key not in ("handle", "index")}
            if isinstance(elements := kept.get("elem"), list):
                kept["elem"] = sorted(elements, key=lambda item: json.dumps(item, sort_keys=True))
            normal.append({kind: kept})
    return normal


def _ports(listing: Sequence[Json]) -> list[PortMapping]:
    maps = {str(value.get("name")): value.get("elem", []) for value in _objects(listing, "map")}
    found: list[PortMapping] = []
    for kind in ("one", "any"):
        targets = dict(_elements(maps.get(f"{kind}_port", [])))
        for key, (address, app) in _elements(maps.get(f"{kind}_address", [])):
            target, container = targets.get(key, (0, ""))
            try:
                destination = IPv4Address(str(address))
                host_ip = IPv4Address(key[0]) if key[0] else ANY
            except AddressValueError:
                continue
            if isinstance(target, int) and target:
                found.append(PortMapping(app, container, host_ip, key[2], target, key[1], destination))
    return [*found, *_shared_ports(listing, maps)]


def _shared_ports(listing: Sequence[Json], maps: Mapping[str, object]) -> Iterable[PortMapping]:
    sets = {str(value.get("name")): value.get("elem", []) for value in _objects(listing, "set")}
    apps = {share: comment for share, comment, _ in _shares(sets.get("shared", []))}
    serving = {share for share, _, _ in _shares(sets.get("serving", []))}
    for share, container, target in _shares(maps.get("shared_port", [])):
        host_ip, protocol, port, address = share
        try:
            where, to = IPv4Address(host_ip), IPv4Address(address)
        except AddressValueError:
            continue
        if share in apps and target:
            yield PortMapping(
                apps[share], container, where, port, target, protocol, to, True, share in serving
            )


def _shares(items: object) -> Iterable[tuple[tuple[str, str, int, str], str, int]]:
    """(host ip, protocol, port, address), comment ("" for none) and value (0 for none) of elements like ours."""
    for item in items if isinstance(items, list) else []:
        element, value = (item[0], item[1]) if isinstance(item, list) and len(item) == 2 else (item, 0)
        match element:
            case {"elem": {"val": {"concat": [*key]}, "comment": str(comment)}}:
                pass
            case {"concat": [*key]}:
                comment = ""
            case _:
                continue
        match key:
            case [str(host_ip), str() | int() as proto, int(port), str(address)] if isinstance(value, int):
                protocol = proto if isinstance(proto, str) else _NUMBER_TO_PROTOCOL.get(proto, str(proto))
                yield (host_ip, protocol, port, address), comment, value
            case _:
                continue


_Key = tuple[str, str, int]


def _elements(items: object) -> Iterable[tuple[_Key, tuple[object, str]]]:
    """(host ip, protocol, port) -> (value, comment) of each element that looks like one of ours."""
    for item in items if isinstance(items, list) else []:
        match item:
            case [
                {
                    "elem": {
                        "val": {"concat": [*key, str() | int() as proto, int(port)]},
                        "comment": str(comment),
                    }
                },
                value,
            ]:
                protocol = proto if isinstance(proto, str) else _NUMBER_TO_PROTOCOL.get(proto, str(proto))
                yield (str(key[0]) if key else "", protocol, port), (value, comment)
            case _:
                continue
