"""The table that is in the kernel, brought up to date with what is leased and what is published.

It remembers what it was last told to publish, so that the rest can change alone. Safe to use from several threads.
"""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from reconciler.engine.network import bridge, flows, ruleset
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.leases import LeaseFile, NetworkLease
from reconciler.engine.network.listing import Table, fingerprints
from reconciler.engine.network.names import member
from reconciler.engine.network.ports import PortMapping, PortTable, Serves, salvage, served
from reconciler.engine.network.ruleset import IP, IP6, Family, Json
from reconciler.engine.network.sysctl import FORWARDING, FORWARDING6, Forwarding, has_ipv6
from reconciler.linux import netlink


class Installed:
    """What one instance has in the kernel's tables. `look` is as in `Networks`."""

    def __init__(
        self,
        instance: str,
        firewall: Firewall,
        forwarding: Forwarding,
        leases: LeaseFile,
        look: Callable[[], Serves],
    ) -> None:
        self._instance = instance
        self._firewall = firewall
        self._forwarding = forwarding
        self._leases = leases
        self._look = look
        self._lock = threading.Lock()
        self._compared: tuple[Table, Mapping[str, NetworkLease], bool] | None = None
        self.ports: PortTable | None = None
        """What it was last told to publish, where it was told anything yet."""

    def update(self, ports: PortTable | None = None, *, without: str = "") -> bool:
        """Bring the kernel's table up to date with the leases and the ports (those known, where None are given).

        Those in the network `without` are left out. Return whether anything had to change.
        """
        with self._lock:
            before = self._firewall.observe()
            wanted = self.ports if ports is None else ports
            if wanted is None:
                wanted = salvage(before.ports if before is not None else ())
            if without:
                wanted = PortTable(m for m in wanted if (m.network or m.app) != without)
            wanted = served(wanted, self._look)
            leases = self._leases.read()
            kept = wanted
            if ports is None:  # what is known of before may be of a network that has changed or gone since
                wanted = PortTable(m for m in wanted if any(_has(lease, m) for lease in leases.values()))
            if not leases and not len(wanted):
                changed = self._firewall.remove()
            else:
                found = self._forwarding.found() or {}
                marks = {IP: found.get(FORWARDING, ""), IP6: found.get(FORWARDING6, "")}
                known = before.ports if before is not None and before.sealed else ()
                final = wanted
                changed = self._firewall.replace(
                    self._render(leases, wanted, {family: "0" for family in marks if marks[family] == "0"}),
                    lambda netfilter: _forget_changed(netfilter, known, final),
                )
            if ports is not None or self.ports is not None:
                self.ports = kept
            return changed

    def remap(self, app: str, container: str, leases: Mapping[str, NetworkLease]) -> None:
        """Have the container's published ports reach the addresses that it has now."""
        known = self.ports
        if known is None:
            return
        changed = []
        for mapping in known:
            key = mapping.network or mapping.app
            if (mapping.app, mapping.container) == (app, container) and key in leases:
                name, lease = member(key, app, container), leases[key]
                held = lease.addresses if mapping.version == 4 else lease.addresses6
                changed.append(replace(mapping, address=held.get(name, mapping.address)))
            else:
                changed.append(mapping)
        if changed != list(known):
            self.update(PortTable(changed))

    def remove(self) -> None:
        """Take the table away, and forget the ports."""
        with self._lock:
            self.ports = None
            self._firewall.remove()

    def is_intact(self, table: Table | None, leases: Mapping[str, NetworkLease]) -> bool:
        """Whether the table as found is ours, unchanged, and made for these leases."""
        if table is None:
            return not leases
        # Both are the same objects for as long as nothing changed, so most turns render nothing.
        known = self._compared
        if known is not None and known[0] is table and known[1] is leases:
            return known[2]
        intact = table.sealed and table.fingerprint == fingerprints(
            self._render(leases, PortTable(table.ports), table.found)
        )
        self._compared = (table, leases, intact)
        return intact

    def _render(
        self, leases: Mapping[str, NetworkLease], ports: PortTable, marks: Mapping[Family, str]
    ) -> dict[Family, list[Json]]:
        networks: dict[str, IPv4Network] = {key: lease.subnet for key, lease in leases.items()}
        networks6: dict[str, IPv6Network] = {
            key: lease.subnet6 for key, lease in leases.items() if lease.subnet6 is not None
        }
        internal = [key for key, lease in leases.items() if lease.internal]

        def render(
            family: Family, networks: Mapping[str, IPv4Network] | Mapping[str, IPv6Network]
        ) -> list[Json]:
            mark = marks.get(family, "")
            return ruleset.render(
                self._instance, networks, ports, internal=internal, found_forwarding=mark, family=family
            )

        return {
            IP: render(IP, networks),
            **({IP6: render(IP6, networks6)} if networks6 and has_ipv6() else {}),
        }


def _has(lease: NetworkLease, mapping: PortMapping) -> bool:
    subnet = lease.subnet if mapping.version == 4 else lease.subnet6
    return subnet is not None and mapping.address in subnet


def _forget_changed(netfilter: netlink.Socket, before: Sequence[PortMapping], after: PortTable) -> None:
    with netlink.Socket(netlink.ROUTE) as sock:
        local = [found.address for found in bridge.addresses(sock)]
        if any(port.version == 6 for port in (*before, *after)):
            local += [found.address for found in bridge.addresses(sock, socket.AF_INET6)]
    flows.forget_changed(netfilter, before, after, frozenset(local))
