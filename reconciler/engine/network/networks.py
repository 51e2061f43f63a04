"""The networks of all apps: what the engine asks for, put together from the parts.

Every verb is idempotent and safe to call from several threads; `observe` only reads. The order within a verb is the
order in which a crash does least harm: a lease is durable before it is used, the table guards a bridge before the
bridge exists, and an address is given back last.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from reconciler.engine.layout import Layout
from reconciler.engine.network import bridge, flows, rename, ruleset, settle
from reconciler.engine.network.addresses import Addresses
from reconciler.engine.network.attach import Attachment, attach
from reconciler.engine.network.bridge import Bridge
from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import ForwardBlocker, forward_blockers, ports_of_others
from reconciler.engine.network.leases import LeaseFile, Leases, NetworkLease
from reconciler.engine.network.listeners import Listener
from reconciler.engine.network.names import bridge_name, member, read_bridge_label, shown
from reconciler.engine.network.observed import AppNetwork, NetworkObserved, networks_found
from reconciler.engine.network.ports import PortMapping, PortTable, Serves, salvage, served
from reconciler.engine.network.settle import Wish
from reconciler.engine.network.sysctl import FORWARDING, Forwarding
from reconciler.errors import NotFoundError
from reconciler.failpoint import failpoint
from reconciler.linux import netlink
from reconciler.state.network import Network


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the kernel and the lease file said when they were last looked at, and what it came to."""

    host: bridge.Found
    leases: Mapping[str, NetworkLease]
    table: ruleset.Table | None
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
        self._look = look
        self._firewall = Firewall(instance)
        self._forwarding = Forwarding(layout.sysctls)
        self._bridges_lock = threading.Lock()
        self._table_lock = threading.Lock()
        self._ports: PortTable | None = None  # what `publish` was last told, where it was told anything yet
        self._before = bridge.Before()
        self._last: _Seen | None = None
        self._compared: tuple[ruleset.Table, Mapping[str, NetworkLease], bool] | None = None

    # --- networks ---------------------------------------------------------------------------------------------------

    def ensure(self, network: str) -> AppNetwork:
        """Make the network with this key what it must be, declared as it was; see `ensure_all`."""
        return self._ensure({network: Wish()})[network]

    def ensure_all(
        self, networks: Iterable[Network], containers: Iterable[tuple[str, str, str]] = ()
    ) -> Mapping[str, AppNetwork]:
        """Make the networks what they must be: subnets, rules, forwarding, bridges, links that lost theirs; by key.

        With the durable write that leases the subnets each of `containers` (key, app, name) is leased its address. The
        rules guard all the bridges before the first one is up, and before the host forwards.
        """
        wanted = {network.key: Wish(network) for network in networks}
        names: dict[str, list[str]] = {}
        for key, app, container in containers:
            names.setdefault(key, []).append(member(key, app, container))
        for key, members in names.items():
            wanted[key] = Wish(wanted[key].declared if key in wanted else None, members)
        return self._ensure(wanted)

    def _ensure(self, wanted: Mapping[str, Wish]) -> Mapping[str, AppNetwork]:
        with self._bridges_lock, kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            routes = bridge.routes(sock)
            host = bridge.look(sock, self._instance)
            leases, moved = settle.settle(self._leases, self._instance, wanted, routes, host)
            if self._forwarding.found() is None:
                self._forwarding.remember(inherited=self._inherited_forwarding())
            failpoint("network.leased")
            gone = [bridge.delete(sock, bridge_name(self._instance, key)) for key in sorted(moved)]
            if any(gone):
                host = bridge.look(sock, self._instance)
            self._install()
            failpoint("network.guarded")
            self._forwarding.enable()
            failpoint("network.forwards")
            mtu = bridge.uplink_mtu(sock, routes)
            bridges = [
                Bridge(self._instance, key, leases[key].subnet, mtu, leases[key].gateway) for key in wanted
            ]
            for found in bridges:
                with kernel(shown(found.network)):
                    bridge.ensure(sock, found, host)
                failpoint("network.bridged")
        return {
            found.network: AppNetwork(found.network, found.subnet, found.gateway, found.name, mtu)
            for found in bridges
        }

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
            flows.forget_addresses(lease.addresses.values())
            self._leases.change(lambda leases: leases.pop(network, None))
        failpoint("network.released")
        self._install(without=network)

    def rename(self, app: str, old: str, new: str) -> None:
        """Keep under the name `new` what `old` has: addresses, links, ports. A link needs `attach` then."""
        self._leases.change(lambda leases: rename.move_leases(leases, app, old, new))
        failpoint("network.renamed")
        with kernel(f"link of {app}/{old}"), netlink.Socket(netlink.ROUTE) as sock:
            rename.move_links(sock, self._instance, app, old, new)
        ports = self._ports
        if ports is not None:
            self._install(rename.move_ports(ports, app, old, new))

    # --- links and ports --------------------------------------------------------------------------------------------

    def attach(self, app: str, container: str, namespace: int, networks: Sequence[str] = ()) -> None:
        """Connect a container's network namespace (a descriptor) to its networks, with its leased addresses.

        The interfaces are eth0 and so on, in the order of `networks` (keys; none: its app's own). Everything without a
        better route goes by the first that is not internal. Either a whole link is there afterwards or nothing of it.
        NotFoundError without a lease.
        """
        keys = tuple(networks) or (app,)
        leases = self._leases.read()
        for key in keys:
            if key not in leases or member(key, app, container) not in leases[key].addresses:
                raise NotFoundError(f"{app}/{container}: no address is leased to it in {shown(key)}")
        outward = next((key for key in keys if not leases[key].internal), None)
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
                )
                self._attach(sock, key, wanted, namespace)
        self._remap(app, container, leases)

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

    def _remap(self, app: str, container: str, leases: Mapping[str, NetworkLease]) -> None:
        """Have the container's published ports reach the address that it has now."""
        known = self._ports
        if known is None:
            return
        changed = []
        for mapping in known:
            key = mapping.network or mapping.app
            if (mapping.app, mapping.container) == (app, container) and key in leases:
                address = leases[key].addresses.get(member(key, app, container), mapping.address)
                changed.append(replace(mapping, address=address))
            else:
                changed.append(mapping)
        if changed != list(known):
            self._install(PortTable(changed))

    def publish(self, ports: Sequence[PortMapping]) -> bool:
        """Make the published ports exactly these; return whether anything had to change.

        UDP flows that the change makes wrong are forgotten. BlockedError where two of them want the same port.
        """
        return self._install(PortTable(ports))

    def share(self, app: str, container: str) -> None:
        """Let the ports that the container shares lead to it, or not, as it serves them now; it may have none."""
        table = self._firewall.observe()
        mine = table.ports if table is not None else ()
        if any(port.balance and (port.app, port.container) == (app, container) for port in mine):
            self._install()

    # --- reading ----------------------------------------------------------------------------------------------------

    def observe(self) -> NetworkObserved:
        """What there is, whoever made it so; changes nothing. Where all is as it was, it is the same object."""
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            host = bridge.look(sock, self._instance, self._before)
        leases = self._leases.read()
        table = self._firewall.observe()
        forwarding = not leases or self._forwarding.enabled()
        last = self._last
        if (
            last is not None
            and last.host is host
            and (last.leases is leases or not (last.leases or leases))
            and last.table is table
            and last.forwarding is forwarding
        ):
            return last.found
        general = () if forwarding else (f"{FORWARDING.replace('/', '.')} is off",)
        apps = networks_found(self._instance, leases, host, general)
        ports = table.ports if table is not None else None if leases else ()
        observed = NetworkObserved(
            apps=apps,
            ports=ports,
            ruleset_intact=self._is_intact(table, leases),
            host_addresses=frozenset(found.address for found in host.addresses),
        )
        self._last = _Seen(host, leases, table, forwarding, observed)
        return observed

    def conflicts(self, networks: Iterable[Network]) -> tuple[tuple[str, str], ...]:
        """Why declared subnets can't be had now, as (key, reason); of those that are not there yet."""
        leases = self._leases.read()
        there = self._last.found.apps if self._last is not None else {}
        missing = [
            network
            for network in networks
            if network.subnet
            and (
                network.key not in leases
                or str(leases[network.key].subnet) != network.subnet
                or (network.key in there and not there[network.key].bridge_present)
            )
        ]
        if not missing:
            return ()
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            routes = bridge.routes(sock)
            host = bridge.look(sock, self._instance)
        found = (
            (network.key, settle.conflict(network, leases, routes, host, self._instance))
            for network in missing
        )
        return tuple([(key, reason) for key, reason in found if reason])

    def forward_blockers(self) -> tuple[ForwardBlocker, ...]:
        """Other people's chains that may drop what is forwarded to containers."""
        return forward_blockers(self._firewall)

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
        with self._table_lock:
            self._ports = None
            self._firewall.remove()
        if self._firewall.other_instances():
            self._forwarding.forget()
        else:
            self._forwarding.restore()
        self._leases.remove()

    def close(self) -> None:
        """Free what this process holds; the networks stay."""
        self._firewall.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _install(self, ports: PortTable | None = None, *, without: str = "") -> bool:
        """Bring the kernel's table up to date with the leases and the ports (those known, where None are given)."""
        with self._table_lock:
            before = self._firewall.observe()
            wanted = self._ports if ports is None else ports
            if wanted is None:
                wanted = salvage(before.ports if before is not None else ())
            if without:
                wanted = PortTable(m for m in wanted if (m.network or m.app) != without)
            wanted = served(wanted, self._look)
            leases = self._leases.read()
            networks = {key: lease.subnet for key, lease in leases.items()}
            kept = wanted
            if ports is None:  # what is known of before may be of a network that has changed or gone since
                wanted = PortTable(
                    m for m in wanted if any(m.address in subnet for subnet in networks.values())
                )
            if not networks and not len(wanted):
                changed = self._firewall.remove()
            else:
                found = (self._forwarding.found() or {}).get(FORWARDING, "")
                commands = ruleset.render(
                    self._instance,
                    networks,
                    wanted,
                    internal=_internal(leases),
                    found_forwarding="0" if found == "0" else "",
                )
                known = before.ports if before is not None and before.sealed else ()
                final = wanted
                changed = self._firewall.replace(
                    commands, lambda netfilter: self._forget_changed(netfilter, known, final)
                )
            if ports is not None or self._ports is not None:
                self._ports = kept
            return changed

    @staticmethod
    def _forget_changed(netfilter: netlink.Socket, before: Sequence[PortMapping], after: PortTable) -> None:
        with netlink.Socket(netlink.ROUTE) as sock:
            local = frozenset(found.address for found in bridge.addresses(sock))
        flows.forget_changed(netfilter, before, after, local)

    def _is_intact(self, table: ruleset.Table | None, leases: Mapping[str, NetworkLease]) -> bool:
        if table is None:
            return not leases
        # Both are the same objects for as long as nothing changed, so most turns render nothing.
        known = self._compared
        if known is not None and known[0] is table and known[1] is leases:
            return known[2]
        intact = table.sealed
        if intact:
            networks = {app: lease.subnet for app, lease in leases.items()}
            wanted = ruleset.render(
                self._instance,
                networks,
                PortTable(table.ports),
                internal=_internal(leases),
                found_forwarding=table.found_forwarding,
            )
            intact = table.fingerprint == ruleset.fingerprint(wanted)
        self._compared = (table, leases, intact)
        return intact

    def _inherited_forwarding(self) -> str:
        """What another instance found before it turned forwarding on, or an empty string."""
        if not self._forwarding.enabled():
            return ""
        marks = (ruleset.found_forwarding(chains) for chains in self._firewall.other_instances().values())
        return next((mark for mark in marks if mark), "")


def _recovered(instance: str) -> Leases:
    with kernel("network"):
        return settle.recover(instance)


def _internal(leases: Mapping[str, NetworkLease]) -> list[str]:
    return [key for key, lease in leases.items() if lease.internal]
