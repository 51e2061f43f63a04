"""The networks of all apps: what the engine asks for, put together from the parts.

Every verb is idempotent and safe to call from several threads; `observe` only reads. The order within a verb is the
order in which a crash does least harm: a lease is durable before it is used, the table guards a bridge before the
bridge exists, and an address is given back last.
"""

import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from reconciler.engine.layout import Layout
from reconciler.engine.network import address, bridge, flows, rename, ruleset
from reconciler.engine.network.attach import Attachment, attach
from reconciler.engine.network.bridge import Bridge, HostRoute
from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import ForwardBlocker, forward_blockers, ports_of_others
from reconciler.engine.network.leases import AppLease, LeaseFile, Leases
from reconciler.engine.network.listeners import Listener
from reconciler.engine.network.names import LinkLabel, bridge_name, read_bridge_label
from reconciler.engine.network.observed import AppNetwork, AppObserved, NetworkObserved
from reconciler.engine.network.ports import PortMapping, PortTable, Serves, salvage, served
from reconciler.engine.network.sysctl import FORWARDING, Forwarding
from reconciler.errors import BlockedError, NotFoundError
from reconciler.failpoint import failpoint
from reconciler.linux import netlink
from reconciler.linux.rtnetlink import Link


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the kernel and the lease file said when they were last looked at, and what it came to."""

    host: bridge.Found
    leases: Mapping[str, AppLease]
    table: ruleset.Table | None
    forwarding: bool
    found: NetworkObserved


class Networks:
    """The networks of one instance, in the network namespace of the calling process."""

    def __init__(
        self, layout: Layout, instance: str, look: Callable[[], Serves] = lambda: lambda port: port.serving
    ) -> None:
        """`look` returns what says of a port that replicas share whether its container serves it now."""
        self._layout = layout
        self._look = look
        self._instance = instance
        self._firewall = Firewall(instance)
        self._forwarding = Forwarding(layout.sysctls)
        self._leases = LeaseFile(layout.leases, layout.network_lock, self._recover)
        self._bridges_lock = threading.Lock()
        self._table_lock = threading.Lock()
        self._ports: PortTable | None = None  # what `publish` was last told, where it was told anything yet
        self._before = bridge.Before()
        self._last: _Seen | None = None
        self._compared: tuple[ruleset.Table, Mapping[str, AppLease], bool] | None = None

    # --- apps -------------------------------------------------------------------------------------------------------

    def ensure(self, app: str) -> AppNetwork:
        """Make the app's network what it must be; see `ensure_all`."""
        return self.ensure_all([app])[app]

    def ensure_all(
        self, apps: Iterable[str], containers: Iterable[tuple[str, str]] = ()
    ) -> Mapping[str, AppNetwork]:
        """Make the apps' networks what they must be: subnets, rules, forwarding, bridges, links that lost theirs.

        With the durable write that leases the subnets each of `containers` (app, name) is leased its address. The rules
        guard all the bridges before the first one is up, and before the host forwards.
        """
        wanted: dict[str, list[str]] = {app: [] for app in apps}
        names = tuple(wanted)
        for app, container in containers:
            wanted.setdefault(app, []).append(container)
        with self._bridges_lock, kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            routes = bridge.routes(sock)
            host = bridge.look(sock, self._instance)
            leases = self._settle(wanted, routes, host)
            if self._forwarding.found() is None:
                self._forwarding.remember(inherited=self._inherited_forwarding())
            failpoint("network.leased")
            self._install()
            failpoint("network.guarded")
            self._forwarding.enable()
            failpoint("network.forwards")
            mtu = bridge.uplink_mtu(sock, routes)
            bridges = [Bridge(self._instance, app, leases[app].subnet, mtu) for app in names]
            for found in bridges:
                with kernel(f"network of app {found.app}"):
                    bridge.ensure(sock, found, host)
                failpoint("network.bridged")
        return {
            found.app: AppNetwork(found.app, found.subnet, found.gateway, found.name, mtu)
            for found in bridges
        }

    def remove(self, app: str) -> None:
        """Take away the app's bridge, links, rules and leases; succeeds where they are gone."""
        with kernel(f"network of app {app}"), netlink.Socket(netlink.ROUTE) as sock:
            for link, _ in bridge.links_of(self._instance, app, bridge.links(sock)):
                bridge.delete(sock, link.name)
            failpoint("network.unlinked")
            bridge.delete(sock, bridge_name(self._instance, app))
        failpoint("network.unbridged")
        lease = self._leases.read().get(app)
        if lease is not None:
            flows.forget_addresses(lease.addresses.values())
            self._leases.change(lambda leases: leases.pop(app, None))
        failpoint("network.released")
        self._install(without=app)

    # --- addresses --------------------------------------------------------------------------------------------------

    def lease(self, app: str, container: str) -> IPv4Address:
        """The container's address: always the same until `release`; durable when this returns."""
        return self.lease_all(app, [container])[container]

    def lease_all(self, app: str, containers: Iterable[str]) -> Mapping[str, IPv4Address]:
        """The addresses of several containers of an app, with one durable write for all."""
        names = tuple(containers)
        routes: list[HostRoute] = []
        if app not in self._leases.read():
            with kernel(f"network of app {app}"), netlink.Socket(netlink.ROUTE) as sock:
                routes = bridge.routes(sock)
        lease = self._lease({app: names}, routes)[app]
        return {name: lease.addresses[name] for name in names}

    def release(self, app: str, container: str) -> None:
        """Forget the connections of the container's address, then give it back; succeeds where it has none."""
        lease = self._leases.read().get(app)
        if lease is None or container not in lease.addresses:
            return
        flows.forget_addresses([lease.addresses[container]])

        def drop(leases: Leases) -> None:
            found = leases.get(app)
            if found is not None:
                kept = {name: leased for name, leased in found.addresses.items() if name != container}
                leases[app] = AppLease(found.subnet, kept)

        self._leases.change(drop)

    def rename(self, app: str, old: str, new: str) -> None:
        """Keep under the name `new` what `old` has: address, link, ports. A link needs `attach` then."""
        self._leases.change(lambda leases: rename.move_lease(leases, app, old, new))
        failpoint("network.renamed")
        with kernel(f"link of {app}/{old}"), netlink.Socket(netlink.ROUTE) as sock:
            rename.move_links(sock, self._instance, app, old, new)
        ports = self._ports
        if ports is not None:
            self._install(rename.move_ports(ports, app, old, new))

    def members(self, app: str) -> Mapping[str, IPv4Address]:
        """The addresses of the app's containers, by name."""
        lease = self._leases.read().get(app)
        return {} if lease is None else dict(lease.addresses)

    def gateway(self, app: str) -> IPv4Address | None:
        """The device's address in the app's network, None where it has none."""
        lease = self._leases.read().get(app)
        return None if lease is None else address.gateway(lease.subnet)

    # --- links and ports --------------------------------------------------------------------------------------------

    def attach(self, app: str, container: str, namespace: int) -> None:
        """Connect a container's network namespace (a descriptor) to its app's bridge, with its leased address.

        Either the whole link is there afterwards or nothing of it. NotFoundError without a lease.
        """
        lease = self._leases.read().get(app)
        if lease is None or container not in lease.addresses:
            raise NotFoundError(f"{app}/{container}: no address is leased to it")
        wanted = Attachment(self._instance, app, container, lease.addresses[container], lease.subnet)
        name = bridge_name(self._instance, app)
        with kernel(f"link of {app}/{container}"), netlink.Socket(netlink.ROUTE) as sock:
            found = bridge.find(sock, name)
            if found is None or found.kind != "bridge":
                self.ensure(app)
                found = bridge.find(sock, name)
            if found is None:
                raise NotFoundError(f"{app}/{container}: bridge {name} is gone again")
            attach(sock, found, wanted, namespace)
            failpoint("network.attached")

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
        apps = {}
        if leases:
            general = () if forwarding else (f"{FORWARDING.replace('/', '.')} is off",)
            for app, lease in sorted(leases.items()):
                wanted = Bridge(self._instance, app, lease.subnet, 0)
                found = host.links.get(wanted.name)
                attached, detached = _sort_out(found, host.ports.get(app, ()))
                apps[app] = AppObserved(
                    subnet=lease.subnet,
                    bridge=wanted.name,
                    bridge_present=found is not None,
                    faults=(*bridge.faults(wanted, found, host.addresses), *general),
                    addresses=lease.addresses,
                    attached=attached,
                    detached=detached - attached,
                )
        ports = table.ports if table is not None else None if leases else ()
        observed = NetworkObserved(
            apps=apps,
            ports=ports,
            ruleset_intact=self._is_intact(table, leases),
            host_addresses=frozenset(found.address for found in host.addresses),
        )
        self._last = _Seen(host, leases, table, forwarding, observed)
        return observed

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

    def _settle(
        self, wanted: Mapping[str, Sequence[str]], routes: Sequence[HostRoute], host: bridge.Found
    ) -> Mapping[str, AppLease]:
        """The leases, with a subnet for each app that is not in the way of a route that the host got since.

        BlockedError where it is, and containers have its addresses.
        """
        leases = self._leases.read()
        moving = set()
        for app in wanted:
            lease = leases.get(app)
            if lease is None or bridge_name(self._instance, app) in host.links:
                continue
            rivals = [
                route
                for route in routes
                if address.blocks(route.destination) and route.destination.overlaps(lease.subnet)
            ]
            if not rivals:
                continue
            if host.ports.get(app):
                raise BlockedError(
                    f"app {app}: its subnet {lease.subnet} overlaps the host's route {rivals[0].destination}",
                    hint="remove that route, or stop the app's containers: they get other addresses then",
                )
            moving.add(app)
        return self._lease(wanted, routes, moving)

    def _lease(
        self, wanted: Mapping[str, Sequence[str]], routes: Sequence[HostRoute], moving: Container[str] = ()
    ) -> Mapping[str, AppLease]:
        """The leases, with a subnet for each app of `wanted` (another one if `moving`) and an address for each name.

        Durable when this returns, by one write, or by none where nothing is missing.
        """
        known = self._leases.read()
        if all(
            app in known and app not in moving and all(name in known[app].addresses for name in names)
            for app, names in wanted.items()
        ):
            return known

        def add(leases: Leases) -> Mapping[str, AppLease]:
            for app, names in wanted.items():
                found = leases.get(app)
                if found is None or app in moving:
                    found = AppLease(self._choose(app, leases, routes))
                addresses = dict(found.addresses)
                for name in names:
                    addresses[name] = address.allocate(found.subnet, addresses, name)
                leases[app] = AppLease(found.subnet, addresses)
            return leases

        return self._leases.change(add)

    def _choose(self, app: str, leases: Leases, routes: Sequence[HostRoute]) -> IPv4Network:
        return address.choose_subnet(
            taken=[lease.subnet for name, lease in leases.items() if name != app],
            host_routes=[route.destination for route in routes],
            seed=f"{self._instance}/{app}",
        )

    def _install(self, ports: PortTable | None = None, *, without: str = "") -> bool:
        """Bring the kernel's table up to date with the leases and the ports (those known, where None are given)."""
        with self._table_lock:
            before = self._firewall.observe()
            wanted = self._ports if ports is None else ports
            if wanted is None:
                wanted = salvage(before.ports if before is not None else ())
            if without:
                wanted = PortTable(mapping for mapping in wanted if mapping.app != without)
            wanted = served(wanted, self._look)
            networks = {app: lease.subnet for app, lease in self._leases.read().items()}
            if not networks and not len(wanted):
                changed = self._firewall.remove()
            else:
                found = (self._forwarding.found() or {}).get(FORWARDING, "")
                commands = ruleset.render(
                    self._instance, networks, wanted, found_forwarding="0" if found == "0" else ""
                )
                known = before.ports if before is not None and before.sealed else ()
                final = wanted
                changed = self._firewall.replace(
                    commands, lambda netfilter: self._forget_changed(netfilter, known, final)
                )
            if ports is not None or self._ports is not None:
                self._ports = wanted
            return changed

    @staticmethod
    def _forget_changed(netfilter: netlink.Socket, before: Sequence[PortMapping], after: PortTable) -> None:
        with netlink.Socket(netlink.ROUTE) as sock:
            local = frozenset(found.address for found in bridge.addresses(sock))
        flows.forget_changed(netfilter, before, after, local)

    def _is_intact(self, table: ruleset.Table | None, leases: Mapping[str, AppLease]) -> bool:
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
                self._instance, networks, PortTable(table.ports), found_forwarding=table.found_forwarding
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

    def _recover(self) -> Leases:
        """The leases as the kernel's links tell them, for when the file is lost."""
        with kernel("network"), netlink.Socket(netlink.ROUTE) as sock:
            links = bridge.links(sock)
            host_addresses = bridge.addresses(sock)
        subnets: dict[str, IPv4Network] = {}
        for link in links:
            app = read_bridge_label(link.alias, self._instance)
            if app is not None and link.name == bridge_name(self._instance, app):
                for found in host_addresses:
                    if found.link == link.index:
                        subnets[app] = IPv4Network((found.address, found.prefix_length), strict=False)
        members: dict[str, dict[str, IPv4Address]] = {}
        for _, label in bridge.links_of(self._instance, None, links):
            own = (label.address, address.SUBNET_PREFIX)
            subnet = subnets.setdefault(label.app, IPv4Network(own, strict=False))
            if label.address in subnet:
                members.setdefault(label.app, {})[label.container] = label.address
        return {app: AppLease(subnet, members.get(app, {})) for app, subnet in sorted(subnets.items())}


def _sort_out(
    app_bridge: Link | None, links: Sequence[tuple[Link, LinkLabel]]
) -> tuple[frozenset[str], frozenset[str]]:
    """The containers of these links that are connected to the bridge, and those that are not."""
    works: set[str] = set()
    broken: set[str] = set()
    for link, label in links:
        on_bridge = app_bridge is not None and link.master == app_bridge.index and link.up
        (works if on_bridge else broken).add(label.container)
    return frozenset(works), frozenset(broken)
