"""The addresses and further names of containers in networks: leased, given back, told.

A lease is durable before anything uses it. Safe to use from several threads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from reconciler.engine.network import bridge, flows, settle
from reconciler.engine.network.bridge import HostRoute
from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.leases import LeaseFile, Leases, NetworkLease
from reconciler.engine.network.names import member, shown
from reconciler.engine.network.settle import Connected, Wish
from reconciler.linux import netlink


class Addresses:
    """What is leased in the networks of one instance."""

    def __init__(self, instance: str, leases: LeaseFile) -> None:
        self._instance = instance
        self._leases = leases

    def lease(
        self,
        app: str,
        container: str,
        network: str = "",
        aliases: Sequence[str] | None = None,
        connected: Connected | None = None,
        ipv6: bool = False,
    ) -> IPv4Address:
        """The container's address in a network (its app's own, or the one with that key), durable when this returns.

        Always the same until `release`, but for one that it, or another, asks for: then it is that once the holder is
        not `connected` any more. With `aliases` these are its further names there, with `ipv6` it has one of IPv6, too,
        where the network has that.
        """
        key = network or app
        name = member(key, app, container)
        found = self._leased(key, [name], connected, ipv6=ipv6)
        if aliases is not None:
            self.call(app, container, key, aliases)
        return found[name]

    def lease_all(self, app: str, containers: Iterable[str]) -> Mapping[str, IPv4Address]:
        """The addresses of several containers of an app in its own network, with one durable write for all."""
        return self._leased(app, tuple(containers))

    def _leased(
        self, key: str, names: Sequence[str], connected: Connected | None = None, *, ipv6: bool = False
    ) -> Mapping[str, IPv4Address]:
        routes: list[HostRoute] = []
        known = self._leases.read().get(key)
        connected = connected or self._connected
        if known is None:
            with kernel(shown(key)), netlink.Socket(netlink.ROUTE) as sock:
                routes = bridge.routes(sock)
        wanted = {key: Wish(members=names, members6=names if ipv6 else ())}
        lease = settle.lease_all(self._leases, self._instance, wanted, routes, connected=connected)[key]
        return {name: lease.addresses[name] for name in names}

    def _connected(self, key: str, name: str) -> bool:
        with kernel(shown(key)), netlink.Socket(netlink.ROUTE) as sock:
            labels = bridge.links_of(self._instance, key, bridge.links(sock))
        return any(label.member == name for _, label in labels)

    def call(self, app: str, container: str, network: str, aliases: Sequence[str]) -> None:
        """Have these further names, and no others, for a container that has an address in the network."""
        name, lease = member(network, app, container), self._leases.read().get(network)
        if lease is None or lease.aliases.get(name, ()) == tuple(aliases):
            return

        def change(leases: Leases) -> None:
            found = leases.get(network)
            if found is not None:
                others = {other: said for other, said in found.aliases.items() if other != name}
                leases[network] = replace(
                    found, aliases={**others, name: tuple(aliases)} if aliases else others
                )

        self._leases.change(change)

    def release(self, app: str, container: str, network: str = "") -> None:
        """Forget the connections of the container's address, then give it back; succeeds where it has none."""
        key = network or app
        name, lease = member(key, app, container), self._leases.read().get(key)
        if lease is None or name not in lease.addresses:
            return
        flows.forget_addresses(lease.addresses_of([name]))

        def drop(leases: Leases) -> None:
            found = leases.get(key)
            if found is not None:
                leases[key] = replace(
                    found,
                    addresses={other: leased for other, leased in found.addresses.items() if other != name},
                    addresses6={other: leased for other, leased in found.addresses6.items() if other != name},
                    aliases={other: said for other, said in found.aliases.items() if other != name},
                )

        self._leases.change(drop)

    def members(self, network: str) -> Mapping[str, IPv4Address]:
        """The addresses of the network's members, by name."""
        lease = self._leases.read().get(network)
        return {} if lease is None else dict(lease.addresses)

    def address6(self, app: str, container: str, network: str = "") -> IPv6Address | None:
        """The container's address of IPv6 in a network, None where it has none there."""
        key = network or app
        lease = self._leases.read().get(key)
        return None if lease is None else lease.addresses6.get(member(key, app, container))

    def lease_of(self, network: str) -> NetworkLease | None:
        """All that is leased of the network with this key, None where nothing is."""
        return self._leases.read().get(network)

    def gateway(self, network: str) -> IPv4Address | None:
        """The device's address in the network, None where it has none."""
        lease = self._leases.read().get(network)
        return None if lease is None else lease.gateway
