"""A container's other name in what the network keeps under it: its lease, the label of its link, its published ports.

The address stays, and with it every connection. Each part succeeds where it is done already.
"""

from collections.abc import Iterable
from dataclasses import replace

from reconciler.engine.network import bridge
from reconciler.engine.network.leases import AppLease, Leases
from reconciler.engine.network.ports import PortMapping, PortTable
from reconciler.linux import netlink, rtnetlink


def move_lease(leases: Leases, app: str, old: str, new: str) -> None:
    """Give what is leased to `old` to `new`."""
    found = leases.get(app)
    if found is not None and old in found.addresses:
        addresses = {new if name == old else name: address for name, address in found.addresses.items()}
        leases[app] = AppLease(found.subnet, addresses)


def move_links(sock: netlink.Socket, instance: str, app: str, old: str, new: str) -> None:
    """Name and label the host's end of the link of `old` as that of `new`; it is down then, and waits for `attach`."""
    for link, label in bridge.links_of(instance, app, bridge.links(sock)):
        if label.container == old:
            wanted = replace(label, container=new)
            sock.request(rtnetlink.set_link(link.index, up=False))  # or no other name, before Linux 6.2
            sock.request(rtnetlink.set_link(link.index, name=wanted.name, alias=str(wanted)))


def move_ports(ports: Iterable[PortMapping], app: str, old: str, new: str) -> PortTable:
    """The same ports, those of `old` as those of `new`."""
    return PortTable(
        replace(port, container=new) if (port.app, port.container) == (app, old) else port for port in ports
    )
