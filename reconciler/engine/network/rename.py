"""A container's other name in what the network keeps under it: its lease, the label of its link, its published ports.

The address stays, and with it every connection. Each part succeeds where it is done already.
"""

from collections.abc import Iterable
from dataclasses import replace

from reconciler.engine.network import bridge
from reconciler.engine.network.leases import Leases
from reconciler.engine.network.names import member
from reconciler.engine.network.ports import PortMapping, PortTable
from reconciler.linux import netlink, rtnetlink
from reconciler.state.network import owner_of


def move_leases(leases: Leases, app: str, old: str, new: str) -> None:
    """Give what is leased to `old`, in each network, to `new`."""
    for key, lease in [*leases.items()]:
        before, after = member(key, app, old), member(key, app, new)
        if before in lease.addresses and owner_of(key) in (app, ""):
            addresses = {after if name == before else name: item for name, item in lease.addresses.items()}
            addresses6 = {after if name == before else name: item for name, item in lease.addresses6.items()}
            aliases = {after if name == before else name: said for name, said in lease.aliases.items()}
            leases[key] = replace(lease, addresses=addresses, addresses6=addresses6, aliases=aliases)


def move_links(sock: netlink.Socket, instance: str, app: str, old: str, new: str) -> None:
    """Name and label the host's ends of the links of `old` as those of `new`: they are down then, until `attach`."""
    for link, label in bridge.links_of(instance, None, bridge.links(sock)):
        if (label.app, label.container) == (app, old):
            wanted = replace(label, container=new)
            sock.request(rtnetlink.set_link(link.index, up=False))  # or no other name, before Linux 6.2
            sock.request(rtnetlink.set_link(link.index, name=wanted.name, alias=str(wanted)))


def move_ports(ports: Iterable[PortMapping], app: str, old: str, new: str) -> PortTable:
    """The same ports, those of `old` as those of `new`."""
    return PortTable(
        replace(port, container=new) if (port.app, port.container) == (app, old) else port for port in ports
    )
