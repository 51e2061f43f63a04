"""The table of this instance as the kernel lists it, read back: what was rendered, whether it is as it was put there,

and the ports that it maps. Pure. See `ruleset` for the marks.
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.engine.network.names import table_name
from reconciler.engine.network.ports import PROTOCOLS, Address, PortMapping
from reconciler.engine.network.ruleset import (
    ANYWHERE,
    FAMILIES,
    IP,
    IP6,
    SEALED,
    WANTED,
    Family,
    Json,
    digest,
    fingerprint,
)

_NUMBER_TO_PROTOCOL = {number: name for name, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Table:
    """The table as the kernel lists it, or the two of them; `sealed`: nobody changed it since it was put there."""

    fingerprint: str
    sealed: bool
    found_forwarding: str
    ports: tuple[PortMapping, ...]
    found_forwarding6: str = ""

    @property
    def found(self) -> dict[Family, str]:
        """What forwarding was before, by family."""
        return {IP: self.found_forwarding, IP6: self.found_forwarding6}


def joined(tables: Mapping[Family, Table]) -> Table | None:
    """The tables of both families as one: its fingerprint is that of `fingerprints`."""
    if not tables:
        return None
    if tables.keys() == {IP}:
        return tables[IP]
    return Table(
        fingerprint=" ".join(tables[family].fingerprint if family in tables else "" for family in FAMILIES),
        sealed=all(table.sealed for table in tables.values()),
        found_forwarding=tables[IP].found_forwarding if IP in tables else "",
        ports=tuple(sorted(port for table in tables.values() for port in table.ports)),
        found_forwarding6=tables[IP6].found_forwarding6 if IP6 in tables else "",
    )


def fingerprints(rendered: Mapping[Family, Sequence[Json]]) -> str:
    """The fingerprint of what is rendered for the families."""
    return " ".join(fingerprint(rendered[family]) for family in FAMILIES if family in rendered)


def seal(instance: str, listing: Sequence[Json], family: Family = IP) -> list[Json]:
    """The commands that mark a table as being what `listing` says it is."""
    chain = {"family": family.name, "table": table_name(instance), "name": SEALED + digest(_normal(listing))}
    return [{"add": {"chain": chain}}]


def read(listing: Sequence[Json], family: Family = IP) -> Table:
    """Read a listing of the table; where it was changed by somebody, `ports` holds what could be understood."""
    chains = [str(chain.get("name", "")) for chain in _objects(listing, "chain")]
    seals = [name.removeprefix(SEALED) for name in chains if name.startswith(SEALED)]
    return Table(
        fingerprint=next((c.removeprefix(WANTED) for c in chains if c.startswith(WANTED)), ""),
        sealed=seals == [digest(_normal(listing))],
        found_forwarding=found_forwarding(chains),
        found_forwarding6=found_forwarding(chains, IP6),
        ports=tuple(sorted(_ports(listing, ANYWHERE[family]))),
    )


def found_forwarding(chains: Iterable[str], family: Family = IP) -> str:
    """What forwarding was before an instance with these chains changed it, or an empty string."""
    mark = family.forwarding
    return next((chain.removeprefix(mark) for chain in chains if chain.startswith(mark)), "")


def _objects(listing: Sequence[Json], kind: str) -> list[Json]:
    return [value for entry in listing if isinstance(value := entry.get(kind), dict)]


def _normal(listing: Sequence[Json]) -> list[Json]:
    """The listing without what differs between two listings of one table: versions, handles, order, the seal."""
    normal: list[Json] = []
    for entry in listing:
        for kind, value in entry.items():
            if kind == "metainfo" or not isinstance(value, dict):
                continue
            if kind == "chain" and str(value.get("name", "")).startswith(SEALED):
                continue
            kept = {key: item for key, item in value.items() if key not in ("handle", "index")}
            if isinstance(elements := kept.get("elem"), list):
                kept["elem"] = sorted(elements, key=lambda item: json.dumps(item, sort_keys=True))
            normal.append({kind: kept})
    return normal


def _ports(listing: Sequence[Json], anywhere: Address) -> list[PortMapping]:
    maps = {str(value.get("name")): value.get("elem", []) for value in _objects(listing, "map")}
    found: list[PortMapping] = []
    for kind in ("one", "any"):
        targets = dict(_elements(maps.get(f"{kind}_port", [])))
        for key, (address, app) in _elements(maps.get(f"{kind}_address", [])):
            target, container = targets.get(key, (0, ""))
            destination = _address(str(address), anywhere)
            host_ip = _address(key[0], anywhere) if key[0] else anywhere
            if isinstance(target, int) and target and destination is not None and host_ip is not None:
                found.append(PortMapping(app, container, host_ip, key[2], target, key[1], destination))
    return [*found, *_shared_ports(listing, maps, anywhere)]


def _address(text: str, like: Address) -> Address | None:
    """The address, where it is one of the same kind as `like`."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found if found.version == like.version else None


def _shared_ports(
    listing: Sequence[Json], maps: Mapping[str, object], anywhere: Address
) -> Iterable[PortMapping]:
    sets = {str(value.get("name")): value.get("elem", []) for value in _objects(listing, "set")}
    apps = {share: comment for share, comment, _ in _shares(sets.get("shared", []))}
    serving = {share for share, _, _ in _shares(sets.get("serving", []))}
    for share, container, target in _shares(maps.get("shared_port", [])):
        host_ip, protocol, port, address = share
        where, to = _address(host_ip, anywhere), _address(address, anywhere)
        if share in apps and target and where is not None and to is not None:
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
