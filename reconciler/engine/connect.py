"""The place of containers in networks: their addresses, their links, and what each knows of the others by name.

A container knows those that it shares a network with. Those of its own app have their plain names, and what they are
called beside; those of other apps, in a network that apps share, are APP-CONTAINER, an ad-hoc one its plain name. What
its own app has a name for is never also somebody else's.
"""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from reconciler.engine import etc, joining, record
from reconciler.engine.layout import Layout
from reconciler.engine.network.attach import raise_loopback
from reconciler.engine.network.names import full_name, member
from reconciler.engine.network.networks import Networks
from reconciler.engine.process import ShimRecord, alive, open_pidfd, read_shim
from reconciler.errors import ReconcilerError
from reconciler.failpoint import failpoint
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import Container, replicated
from reconciler.state.network import owner_of


class Connections:
    """The connections of the containers of one state directory. As thread-safe as `Networks`."""

    def __init__(self, layout: Layout, networks: Networks) -> None:
        self._layout = layout
        self._networks = networks

    def lease(self, desired: Container) -> str:
        """Have an address for the container in each of its networks; return that in the first, "" where it has none."""
        found = ""
        for place in desired.places:
            key = place.network.key
            aliases = [name for network, name in desired.settings.aliases if network == key]
            address = self._networks.lease(
                desired.app,
                desired.name,
                key,
                aliases,
                lambda key, other: full_name(key, other) != desired.full_name and self._lives(key, other),
                place.network.ipv6,
            )
            found = found or str(address)
        return found

    def _lives(self, network: str, other: str) -> bool:
        """Whether a member of a network is a container that was made and has not ended."""
        name = full_name(network, other)
        shims = (
            read_shim(self._layout.shim_record(found.id))
            for found in record.records(self._layout)
            if found.full_name == name
        )
        return any(shim is not None and alive(shim.shim) for shim in shims)

    def neighbours(self, app: str, name: str, networks: Sequence[str]) -> etc.Neighbours:
        """Whom a container in these networks knows."""
        members: dict[str, IPv4Address] = {}
        members6: dict[str, IPv6Address] = {}
        aliases: dict[str, tuple[str, ...]] = {}
        further: list[tuple[str, str]] = []
        foreign: list[tuple[str, Sequence[IPv4Address | IPv6Address], tuple[str, ...]]] = []
        gateway = None
        inward = True
        for key in networks:
            lease = self._networks.lease_of(key)
            if lease is None:
                continue
            if gateway is None or (inward and not lease.internal):
                gateway, inward = lease.gateway, lease.internal
            addresses6 = lease.addresses6 if member(key, app, name) in lease.addresses6 else {}
            for other, address in lease.addresses.items():
                owner, _, plain = full_name(key, other).partition("/")
                said = lease.aliases.get(other, ())
                both = (address, addresses6[other]) if other in addresses6 else (address,)
                if owner != app:
                    foreign.append((plain if owner == ADHOC else f"{owner}-{plain}", both, said))
                    continue
                if plain in members:
                    further += [(plain, str(one)) if plain == name else ("", "") for one in both]
                elif other in addresses6:
                    members6[plain] = addresses6[other]
                members.setdefault(plain, address)
                aliases[plain] = (*aliases.get(plain, ()), *said)
        taken = {*members, *map(replicated, members), *(one for said in aliases.values() for one in said)}
        for shown, addresses, said in foreign:
            names = [shown] + ([shown.partition(".")[0]] if "." in shown else [])
            further += [
                (one, str(address)) for address in addresses for one in (*names, *said) if one not in taken
            ]
        return etc.Neighbours(members, gateway, aliases, tuple(pair for pair in further if pair[0]), members6)

    def connect(self, found: record.Record) -> None:
        """Attach a container that is about to start, and tell the others of it; or bring up its loopback.

        One that joined the network of another container must be in that one's still.
        """
        if found.joins:
            joining.demand(self._layout, found)
            return
        if not found.networks:
            self._in_namespace(found, raise_loopback)
            return
        self.attach(found)
        failpoint("start.attached")
        self._tell(found)
        failpoint("start.told")

    def attach(self, found: record.Record) -> None:
        """Connect the container's network namespace to its networks; succeeds if it is connected."""
        for key in found.networks:
            # One that asks for an address may have been given that of one that did not run. In a network of their own
            # app all have IPv6 that it has; in a shared one, those that were given it
            own = owner_of(key) == found.app
            self._networks.lease(found.app, found.name, key, connected=self._lives, ipv6=own)
        self._in_namespace(
            found,
            lambda namespace: self._networks.attach(found.app, found.name, namespace, found.networks),
        )

    def rename(self, found: record.Record, aliases: Iterable[tuple[str, str]]) -> None:
        """Have the container called by other further names, and tell the others."""
        for key in found.networks:
            names = [name for network, name in aliases if network == key]
            self._networks.call(found.app, found.name, key, names)
        failpoint("update.renamed")
        self._tell(found)

    def release(self, found: record.Record) -> None:
        """Give back the addresses of a container that is gone, and tell the others."""
        for key in found.networks:
            self._networks.release(found.app, found.name, key)
        failpoint("remove.released")
        self._tell(found)

    def _tell(self, about: record.Record) -> None:
        """Bring the /etc/hosts of every container in a network of this one up to date, in place."""
        shared = [
            key
            for key in about.networks
            if self._networks.members(key).keys() - {member(key, about.app, about.name)}
        ]
        if shared:
            self.tell(shared)

    def tell(self, networks: Iterable[str]) -> None:
        """Bring the /etc/hosts of every container in these networks up to date, in place."""
        keys = set(networks)
        for other in record.records(self._layout):
            if not keys.isdisjoint(other.networks):
                neighbours = self.neighbours(other.app, other.name, other.networks)
                etc.update(self._layout, other, neighbours)

    def _in_namespace(self, found: record.Record, act: Callable[[int], None]) -> None:
        """Call `act` with a descriptor of the container's network namespace."""
        shim: ShimRecord | None = read_shim(self._layout.shim_record(found.id))
        pidfd = open_pidfd(shim.init) if shim is not None else None
        if shim is None or pidfd is None:
            raise ReconcilerError(
                f"{found.full_name}: its process ended before the network was attached", transient=True
            )
        try:
            # The pidfd, checked against the start time, makes sure that /proc/PID is still that process.
            namespace = os.open(f"/proc/{shim.init.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                signal.pidfd_send_signal(pidfd, 0)
                act(namespace)
            finally:
                os.close(namespace)
        except ProcessLookupError as error:
            raise ReconcilerError(
                f"{found.full_name}: its process ended while it was started", transient=True
            ) from error
        finally:
            os.close(pidfd)
