"""The networks of all apps: what the engine asks for, put together from the parts.

Every verb is idempotent and safe to call from several threads; `observe` only reads. The order within a verb is the
order in which a crash does least harm: a lease is durable before it is used, the table guards a bridge before the
bridge exists, and an address is given back last.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.engine.layout import Layout
from reconciler.engine.network import bridge, flows, rename, settle
from reconciler.engine.network.addresses import Addresses
from reconciler.engine.network.attach import Attachment, attach
from reconciler.engine.network.bridge import Bridge
from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import (
    ForwardBlocker,
    forward_blockers,
    old_policy_drops,
    ports_of_others,
)
from reconciler.engine.network.installed import Installed
from reconciler.engine.network.ipv6 import lacking
from reconciler.engine.network.leases import LeaseFile, Leases, NetworkLease
from reconciler.engine.network.listeners import Listener
from reconciler.engine.network.listing import Table, found_forwarding
from reconciler.engine.network.names import bridge_name, member, read_bridge_label, shown
from reconciler.engine.network.observed import AppNetwork, NetworkObserved, networks_found
from reconciler.engine.network.ports import PortMapping, PortTable, Serves
from reconciler.engine.network.ruleset import IP, IP6, Family
from reconciler.engine.network.settle import Wish
from reconciler.engine.network.sysctl import FORWARDING, FORWARDING6, Forwarding, has_ipv6, ipv6_fault
from reconciler.errors import NotFoundError
from reconciler.failpoint import failpoint
from reconciler.linux import netlink
from reconciler.state.network import Network


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the kernel and the lease file said when they were last looked at, and what it came to."""

    host: bridge.Found
    leases: Mapping[str, NetworkLease]
    table: Table | None
    forwarding: bool
    found: NetworkObserved


class Networks(Addresses):
    """The networks of one instance, in the network namespace of the calling process."""

    def __init__(
        self, layout: Layout, instance: str, look: Callable[[], Serves] = lambda: lambda port: port.serving
    ) -> None:
        """`look` returns what says of a port that replicas share whether its container serves it now."""
        super().__init__(
            instance, LeaseFile(layout.leases, layout.network_lock, lambda: _recovered(instance))
        )
        self._layout = layout
        self._firewall = Firewall(instance)
        self._forwarding = Forwarding(layout.sysctls)
        self._installed = Installed(instance, self._firewall, self._forwarding, self._leases, look)
        self._bridges_lock = threading.Lock()
        self._before = bridge.Before()
        self._last: _Seen | None = None
        self._ipv6_tried = False
        self._blockers: tuple[tuple[object, ...], tuple[ForwardBlocker, ...]] | None = None

    # --- networks ---------------------------------------------------------------------------------------------------

    def ensure(self, network: str) -> AppNetwork:
        """Make the network with this key what it must be, declared as it was; see `ensure_all`."""
        return self._ensure({network: Wish()})[network]

    def ensure_all(
        self,
        networks: Iterable[Network],
        containers: Iterable[tuple[str, str, str]] = (),
        containers6: Iterable[tuple[str, str, str]] = (),
    ) -> Mapping[str, AppNetwork]:
        """Make the networks what they must be: subnets, rules, forwarding, bridges, links that lost theirs; by key.

        With the durable write that leases the subnets each of `containers` (key, app, name) is leased its address, and
        of `containers6` that of IPv6. The rules guard all the bridges before the first one is up, and before the host
        forwards.
        """
        wanted = {network.key: Wish(network) for network in networks}
        names, names6 = _members(containers), _members(containers6)
        for key in names.keys() | names6.keys():
            declared = wanted[key].declared if key in wanted else None
            both = dict.fromkeys([*names.get(key, ()), *names6.get(key, ())])
            wanted[key] = Wish(declared, [*both], names6.get(key, ()))
        return self._ensure(wanted)

    def _ensure(self, wanted: Mapping[str, Wish]) -> Mapping[str, AppNetwork]:
        with self._bridges_lock, kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            declared = [wish.declared for wish in wanted.values()]
            ipv6 = self._has_ipv6() or any(network is not None and network.ipv6 for network in declared)
            routes = bridge.routes(sock, ipv6=ipv6)
            host = bridge.look(sock, self._instance, ipv6=ipv6)
            leases, moved = settle.settle(self._leases, self._instance, wanted, routes, host)
            ipv6 = self._has_ipv6({key: leases[key] for key in wanted})
            self._remember_forwarding(ipv6=ipv6)
            failpoint("network.leased")
            gone = [bridge.delete(sock, bridge_name(self._instance, key)) for key in sorted(moved)]
            if any(gone):
                host = bridge.look(sock, self._instance, ipv6=ipv6)
            self._installed.update()
            failpoint("network.guarded")
            self._forwarding.enable(ipv6=ipv6)
            failpoint("network.forwards")
            uplink = bridge.uplink_mtu(sock, routes)
            bridges = [self._bridge(key, leases[key], uplink) for key in wanted]
            for found in bridges:
                with kernel(shown(found.network)):
                    bridge.ensure(sock, found, host)
                failpoint("network.bridged")
        return {
            found.network: AppNetwork(
                found.network,
                found.subnet,
                found.gateway,
                found.name,
                found.mtu,
                found.subnet6,
                found.gateway6,
            )
            for found in bridges
        }

    def _bridge(self, key: str, lease: NetworkLease, uplink: int) -> Bridge:
        mtu = bridge.mtu_for(uplink, ipv6=lease.subnet6 is not None)
        return Bridge(self._instance, key, lease.subnet, mtu, lease.gateway, lease.subnet6, lease.gateway6)

    def change(self, network: Network) -> None:
        """Make the network what is declared now, also with another subnet.

        No container is in it, nor in another network of its app that has the addresses: that gives way.
        """
        rivals = [
            key
            for key, lease in self._leases.read().items()
            if lease.declared is not None
            and lease.declared.owner == network.owner
            and lease.declared.overlaps(network)
        ]
        with kernel(shown(network.key)), netlink.Socket(netlink.ROUTE) as sock:
            # The kernel takes a dead container's link apart some time after its last process
            links = bridge.links(sock)
            for key in {network.key, *rivals}:
                for link, _ in bridge.links_of(self._instance, key, links):
                    bridge.delete(sock, link.name)
        failpoint("network.unlinked")
        self.ensure_all([network])

    def remove(self, network: str) -> None:
        """Take away the bridge, links, rules and leases of the network with this key; succeeds where they are gone."""
        with kernel(shown(network)), netlink.Socket(netlink.ROUTE) as sock:
            for link, _ in bridge.links_of(self._instance, network, bridge.links(sock)):
                bridge.delete(sock, link.name)
            failpoint("network.unlinked")
            bridge.delete(sock, bridge_name(self._instance, network))
        failpoint("network.unbridged")
        lease = self._leases.read().get(network)
        if lease is not None:
            flows.forget_addresses(lease.addresses_of(lease.addresses))
            self._leases.change(lambda leases: leases.pop(network, None))
        failpoint("network.released")
        with self._bridges_lock, kernel(shown(network)), netlink.Socket(netlink.ROUTE) as sock:
            # An `ensure` that had leased it before made the bridge since: without a lease nobody would ever look at it
            if network not in self._leases.read():
                bridge.delete(sock, bridge_name(self._instance, network))
        self._installed.update(without=network)

    def rename(self, app: str, old: str, new: str) -> None:
        """Keep under the name `new` what `old` has: addresses, links, ports. A link needs `attach` then."""
        self._leases.change(lambda leases: rename.move_leases(leases, app, old, new))
        failpoint("network.renamed")
        with kernel(f"link of {app}/{old}"), netlink.Socket(netlink.ROUTE) as sock:
            rename.move_links(sock, self._instance, app, old, new)
        ports = self._installed.ports
        if ports is not None:
            self._installed.update(rename.move_ports(ports, app, old, new))

    # --- links and ports --------------------------------------------------------------------------------------------

    def attach(self, app: str, container: str, namespace: int, networks: Sequence[str] = ()) -> None:
        """Connect a container's network namespace (a descriptor) to its networks, with its leased addresses.

        The interfaces are eth0 and so on, in the order of `networks` (keys; none: its app's own). Everything without a
        better route goes by the first that is not internal, and what is of IPv6 by the first of those that has it.
        Either a whole link is there afterwards or nothing of it. NotFoundError without a lease.
        """
        keys = tuple(networks) or (app,)
        leases = self._leases.read()
        for key in keys:
            if key not in leases or member(key, app, container) not in leases[key].addresses:
                raise NotFoundError(f"{app}/{container}: no address is leased to it in {shown(key)}")
        outward = next((key for key in keys if not leases[key].internal), None)
        held6 = [leases[key].addresses6.get(member(key, app, container)) for key in keys]
        open6 = (key for key, held in zip(keys, held6, strict=True) if held and not leases[key].internal)
        outward6 = next(open6, None)
        with kernel(f"link of {app}/{container}"), netlink.Socket(netlink.ROUTE) as sock:
            for number, key in enumerate(keys):
                lease = leases[key]
                wanted = Attachment(
                    self._instance,
                    app,
                    container,
                    lease.addresses[member(key, app, container)],
                    lease.subnet,
                    lease.gateway if key == outward else None,
                    key if key != app else "",
                    f"eth{number}",
                    held6[number],
                    lease.subnet6,
                    lease.gateway6 if key == outward6 else None,
                )
                self._attach(sock, key, wanted, namespace)
        self._installed.remap(app, container, leases)

    def _attach(self, sock: netlink.Socket, key: str, wanted: Attachment, namespace: int) -> None:
        name = bridge_name(self._instance, key)
        found = bridge.find(sock, name)
        if found is None or found.kind != "bridge":
            self.ensure(key)
            found = bridge.find(sock, name)
        if found is None:
            raise NotFoundError(f"{wanted}: bridge {name} is gone again")
        attach(sock, found, wanted, namespace)
        failpoint("network.attached")

    def publish(self, ports: Sequence[PortMapping]) -> bool:
        """Make the published ports exactly these; return whether anything had to change.

        UDP flows that the change makes wrong are forgotten. BlockedError where two of them want the same port.
        """
        return self._installed.update(PortTable(ports))

    def share(self, app: str, container: str) -> None:
        """Let the ports that the container shares lead to it, or not, as it serves them now; it may have none."""
        table = self._firewall.observe()
        mine = table.ports if table is not None else ()
        if any(port.balance and (port.app, port.container) == (app, container) for port in mine):
            self._installed.update()

    # --- reading ----------------------------------------------------------------------------------------------------

    def observe(self) -> NetworkObserved:
        """What there is, whoever made it so; changes nothing. Where all is as it was, it is the same object."""
        leases = self._leases.read()
        ipv6 = self._has_ipv6(leases)
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            host = bridge.look(sock, self._instance, self._before, ipv6=ipv6)
        table = self._firewall.observe()
        forwarding = not leases or self._forwarding.enabled(ipv6=ipv6)
        last = self._last
        if (
            last is not None
            and last.host is host
            and (last.leases is leases or not (last.leases or leases))
            and last.table is table
            and last.forwarding is forwarding
        ):
            return last.found
        general = () if forwarding else (f"{self._forwarding.off().replace('/', '.')} is off",)
        apps = networks_found(self._instance, leases, host, general)
        ports = table.ports if table is not None else None if leases else ()
        observed = NetworkObserved(
            apps=apps,
            ports=ports,
            ruleset_intact=self._installed.is_intact(table, leases),
            host_addresses=frozenset(found.address for found in (*host.addresses, *host.addresses6)),
        )
        self._last = _Seen(host, leases, table, forwarding, observed)
        return observed

    def conflicts(self, networks: Iterable[Network]) -> tuple[tuple[str, str], ...]:
        """Why declared subnets, or IPv6, can't be had now, as (key, reason); of those that are not there yet."""
        leases = self._leases.read()
        there = self._last.found.apps if self._last is not None else {}
        missing = [
            network
            for network in networks
            if not settle.is_there(network, leases.get(network.key))
            or (network.key in there and not there[network.key].bridge_present)
        ]
        if not missing:
            return ()
        asked = any(network.ipv6 for network in missing)
        fault = self._ipv6_fault() if asked else ""
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            routes = bridge.routes(sock, ipv6=asked)
            host = bridge.look(sock, self._instance)
        found = {
            network.key: (fault if network.ipv6 else "")
            or settle.conflict(network, leases, routes, host, self._instance)
            for network in missing
        }
        return tuple([(key, reason) for key, reason in found.items() if reason])

    def forward_blockers(self) -> tuple[ForwardBlocker, ...]:
        """Other people's chains that drop what is forwarded for containers; one message where nothing has changed."""
        seen = self._firewall.generation(), tuple(socket.if_nameindex()), self._has_ipv6(), old_policy_drops()
        if self._blockers is None or self._blockers[0] != seen:
            self._blockers = seen, forward_blockers(self._firewall, ipv6=seen[2])
        return self._blockers[1]

    def ports_of_others(self) -> tuple[Listener, ...]:
        """The ports that other instances on this host publish: as taken as those that a process listens on."""
        return ports_of_others(self._firewall)

    # --- the end ----------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove everything of this instance from the kernel, restore forwarding, forget the leases.

        Forwarding stays on while another instance's table is there; that instance has taken over what was found.
        """
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            links = bridge.links(sock)
            for link, _ in bridge.links_of(self._instance, None, links):
                bridge.delete(sock, link.name)
            for link in links:
                app = read_bridge_label(link.alias, self._instance)
                if app is not None and link.name == bridge_name(self._instance, app):
                    bridge.delete(sock, link.name)
        self._installed.remove()
        if self._firewall.other_instances():
            self._forwarding.forget()
        else:
            self._forwarding.restore()
        self._leases.remove()

    def close(self) -> None:
        """Free what this process holds; the networks stay."""
        self._firewall.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _has_ipv6(self, leases: Mapping[str, NetworkLease] | None = None) -> bool:
        found = self._leases.read() if leases is None else leases
        return any(lease.subnet6 is not None for lease in found.values()) and has_ipv6()

    def _ipv6_fault(self) -> str:
        """Why there can't be a network with IPv6, or an empty string; a trial that went well is not made again."""
        fault = ipv6_fault() if self._ipv6_tried else lacking()[0]
        self._ipv6_tried = self._ipv6_tried or not fault
        return fault

    def _remember_forwarding(self, *, ipv6: bool) -> None:
        found = self._forwarding.found() or {}
        if FORWARDING in found and (FORWARDING6 in found or not ipv6):
            return
        self._forwarding.remember(
            inherited=self._inherited_forwarding(IP),
            inherited6=self._inherited_forwarding(IP6) if ipv6 else "",
            ipv6=ipv6,
        )

    def _inherited_forwarding(self, family: Family) -> str:
        """What another instance found before it turned forwarding on, or an empty string."""
        if not self._forwarding.enabled(ipv6=family == IP6):
            return ""
        marks = (found_forwarding(chains, family) for chains in self._firewall.other_instances().values())
        return next((mark for mark in marks if mark), "")


def _members(containers: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """The names of (key, app, name) in their networks, by key."""
    names: dict[str, list[str]] = {}
    for key, app, container in containers:
        names.setdefault(key, []).append(member(key, app, container))
    return names


def _recovered(instance: str) -> Leases:
    with kernel("network"):
        return settle.recover(instance)
