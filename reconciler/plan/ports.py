"""Who may have which published port: the wanted port table, and the containers that have to wait for a port.

A port belongs to one container at a time. What a container has it keeps; a port that a stranger's process holds is left
out of the table until the stranger is gone; nothing that runs is ever touched for the sake of a port. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from reconciler.state.observed import Listener, Published

Key = tuple[str, int]


def overlap(one: str, other: str) -> bool:
    """Return whether ports published on both addresses would take each other's packets; `::` is IPv6 alone."""
    first, second = _address(one), _address(other)
    if first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


def blocks(listener: Listener, host_ip: str) -> bool:
    """Return whether the socket takes packets to a port that is published on this address.

    On `::` it takes those of both kinds, as Linux does unless it asks for IPV6_V6ONLY.
    """
    address = _address(listener.address)
    if address.version == 6 and address.is_unspecified and not listener.v6_only:
        return True
    return overlap(host_ip, listener.address)


def _address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0] or "0.0.0.0")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@dataclass(slots=True)
class Claims:
    """The port table while it is being filled; the first claim of a port wins."""

    published: frozenset[Published]
    listeners: Mapping[Key, Sequence[Listener]]
    rows: dict[Key, list[Published]] = field(default_factory=dict)

    @classmethod
    def start(cls, published: Iterable[Published] | None, listeners: Iterable[Listener]) -> "Claims":
        """Begin with an empty table, knowing what is published now and which ports others listen on."""
        by_port: dict[Key, list[Listener]] = {}
        for listener in listeners:
            by_port.setdefault((listener.protocol, listener.port), []).append(listener)
        return cls(frozenset(published or ()), by_port)

    def keep(self, row: Published) -> None:
        """Claim a port without a question: it belongs to something that is left exactly as it is."""
        rows = self.rows.setdefault((row.port.protocol, row.port.published), [])
        if row not in rows:
            rows.append(row)

    def claim(self, row: Published) -> str:
        """Claim a port and return an empty string, or return who holds it."""
        for other in self.rivals(row):
            return f"port {_describe(row)} already used by {other.app}/{other.container}"
        if row not in self.published:
            for listener in self.listeners.get((row.port.protocol, row.port.published), ()):
                if blocks(listener, row.port.host_ip):
                    return f"port {_describe(row)} already used by {listener.process}"
        self.keep(row)
        return ""

    def rivals(self, row: Published) -> list[Published]:
        """The claims of other containers that exclude `row`; replicas may share a port."""
        return [
            other
            for other in self.rows.get((row.port.protocol, row.port.published), ())
            if not other.shares(row) and overlap(row.port.host_ip, other.port.host_ip)
        ]

    def reclaim(self, row: Published) -> None:
        """Give a port back, for now, to the container that is still there and has it.

        It comes before a claim of the same app that is not published yet, its successor's, and after all others.
        """
        key = (row.port.protocol, row.port.published)
        claims = self.rows.get(key, [])
        same_port = [
            other
            for other in claims
            if other != row
            and overlap(row.port.host_ip, other.port.host_ip)
            and not (other.container != row.container and other.shares(row))
        ]
        if any(other.app != row.app or other in self.published for other in same_port):
            return
        if row not in self.published and any(
            blocks(listener, row.port.host_ip) for listener in self.listeners.get(key, ())
        ):
            return
        self.rows[key] = [other for other in claims if other not in same_port]
        self.keep(row)

    def table(self) -> tuple[Published, ...]:
        """The port table, sorted."""
        return tuple(sorted((row for rows in self.rows.values() for row in rows), key=order))


def order(row: Published) -> tuple[str, str, str, int, int, str]:
    """The order of `Published` itself, as a key: a thousand rows sort ten times faster by it."""
    port = row.port
    return row.app, row.container, port.host_ip, port.published, port.target, port.protocol


def _describe(row: Published) -> str:
    address = f"[{row.port.host_ip}]" if ":" in row.port.host_ip else row.port.host_ip
    return f"{address}:{row.port.published}/{row.port.protocol}"
