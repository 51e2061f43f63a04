"""Connecting a container's network namespace to the bridge of a network.

The pair of links is born in its two places by one message: nothing is moved, renamed or deleted on the way. Work inside
the namespace goes through a netlink socket that a short-lived thread opened there; the agent's own threads never leave
their namespace. It leases nothing and knows no files.
"""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from reconciler.engine.network import bridge
from reconciler.engine.network.names import LinkLabel, hardware_address
from reconciler.engine.network.sysctl import exists, write_value
from reconciler.errors import BlockedError, ReconcilerError
from reconciler.linux import netlink, rtnetlink
from reconciler.linux.namespace import CLONE_NEWNET, setns
from reconciler.linux.rtnetlink import Link

INSIDE = "eth0"
_LOOPBACK_INDEX = 1  # the kernel gives every namespace its loopback first (net/core/dev.c)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's place in a network: `network` is its key, unless it is the app's own.

    `gateway` is where everything without a better route goes, None where this is not the network for that.
    `address6` and its like are of IPv6, None where it has none there.
    """

    instance: str
    app: str
    container: str
    address: IPv4Address
    subnet: IPv4Network
    gateway: IPv4Address | None = None
    network: str = ""
    interface: str = INSIDE
    address6: IPv6Address | None = None
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None

    def label(self, namespace: int) -> LinkLabel:
        return LinkLabel(self.instance, self.app, self.container, self.address, namespace, self.network)

    def __str__(self) -> str:
        return f"{self.app}/{self.container}"


def attach(sock: netlink.Socket, app_bridge: Link, wanted: Attachment, namespace: int) -> None:
    """Connect `namespace` (a descriptor) to the bridge: link, address, default route, loopback.

    Either all of it is there afterwards, or what this call added is gone again. Succeeds where it was there before.
    """
    label = wanted.label(os.fstat(namespace).st_ino)
    with open_inside(namespace) as inside, ExitStack() as undo:
        made, labelled = sock.try_all(
            rtnetlink.new_veth(
                label.name,
                bridge=app_bridge.index,
                mtu=app_bridge.mtu,
                peer=wanted.interface,
                peer_mac=hardware_address(label.address),
                peer_namespace=namespace,
            ),
            rtnetlink.set_link(name=label.name, alias=str(label), hairpin=True),
        )
        if made is not None and made.errno != errno.EEXIST:
            raise made
        host = bridge.find(sock, label.name)
        if host is None:
            raise BlockedError(
                f"{wanted}: its network namespace has an interface {wanted.interface} that is not ours",
                hint="the container is made anew when it restarts",
            )
        if made is None:
            undo.callback(_take_back, sock, host.index)
            if labelled is not None:
                raise labelled
            sock.request(
                *bridge.neighbour_entries(app_bridge.index, host.index, label.address, wanted.address6)
            )
        else:
            sock.request(rtnetlink.set_link(host.index, alias=str(label)))
            bridge.connect(sock, app_bridge.index, host, label.address)
        if wanted.address6 is not None:
            do_inside(namespace, lambda: _prepare_ipv6(wanted))
        _configure(inside, wanted)
        undo.pop_all()  # complete: keep everything


def _configure(inside: netlink.Socket, wanted: Attachment) -> None:
    """Give the inner end its address and routes. Each part replaces or finds what is there."""
    link = bridge.find(inside, wanted.interface)
    if link is None:
        raise ReconcilerError(
            f"{wanted}: {wanted.interface} is gone from its network namespace", transient=True
        )
    inside.request(
        rtnetlink.set_link(_LOOPBACK_INDEX, up=True),
        rtnetlink.set_link(link.index, up=True),
        rtnetlink.new_address(link.index, wanted.address.packed, wanted.subnet.prefixlen),
    )
    if wanted.address6 is not None and wanted.subnet6 is not None:
        inside.request(rtnetlink.new_address(link.index, wanted.address6.packed, wanted.subnet6.prefixlen))
    for gateway in (wanted.gateway, wanted.gateway6):
        if gateway is not None:
            inside.request(rtnetlink.new_default_route(gateway.packed, link.index))


def _prepare_ipv6(wanted: Attachment) -> None:
    """Have the inner end take the address that it is given and no other, at once, and believe no router but ours."""
    settings = f"net/ipv6/conf/{wanted.interface}"
    if not exists(settings):
        raise ReconcilerError(f"{wanted}: {wanted.interface} has no IPv6", transient=True)
    for name in ("accept_ra", "accept_redirects", "accept_dad", "disable_ipv6"):
        write_value(f"{settings}/{name}", "0")


def raise_loopback(namespace: int) -> None:
    """Bring up the loopback of a namespace that has nothing else; the device's own is left as it is."""
    if os.fstat(namespace).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
        return
    with open_inside(namespace) as inside:
        inside.request(rtnetlink.set_link(_LOOPBACK_INDEX, up=True))


def _take_back(sock: netlink.Socket, host: int) -> None:
    try:
        sock.request(rtnetlink.delete_link(host))
    except OSError as error:
        if error.errno != errno.ENODEV:  # the namespace died, and the pair with it
            raise


def open_inside(namespace: int) -> netlink.Socket:
    """A route socket inside the network namespace `namespace` (a descriptor).

    A thread of its own joins the namespace, opens the socket and ends: a socket stays where it was opened (setns(2)
    changes the calling thread alone).
    """
    return do_inside(namespace, lambda: netlink.Socket(netlink.ROUTE))


_T = TypeVar("_T")


def do_inside(namespace: int, work: Callable[[], _T]) -> _T:
    """What `work` returns in a thread that has joined the namespace: its /proc/sys/net is that of the namespace."""
    done: list[_T] = []
    failed: list[OSError | ReconcilerError] = []

    def join_and_work() -> None:
        try:
            setns(namespace, CLONE_NEWNET)
            done.append(work())
        except (OSError, ReconcilerError) as error:
            failed.append(error)

    thread = threading.Thread(target=join_and_work, name="join-netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
