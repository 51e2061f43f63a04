"""What our things are called in the kernel: bridges, links, the nftables table, hardware addresses, labels.

Pure. Names carry the instance id (hashed where the kernel allows only 15 bytes), so that two instances never meet, and
each link carries a label (its alias), so that what it belongs to can be read from the kernel alone.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

_LABEL = "reconciler"
TABLE_PREFIX = "reconciler_"


def _digest(length: int, *parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def bridge_name(instance: str, network: str) -> str:
    """The bridge of the network with this key: 15 bytes, which is IFNAMSIZ - 1."""
    return "rc-" + _digest(12, "bridge", instance, network)


def shown(network: str) -> str:
    """What messages call the network with this key."""
    return f"network {network}" if "/" in network else f"app {network}"


def member(network: str, app: str, container: str) -> str:
    """The name that a container has in a network: its full name where apps share that."""
    return container if network.partition("/")[0] == app else f"{app}/{container}"


def full_name(network: str, member: str) -> str:
    """The full name of a member of a network."""
    owner = network.partition("/")[0]
    return f"{owner}/{member}" if owner else member


def link_name(instance: str, app: str, container: str, namespace: int, network: str = "") -> str:
    """The host's end of a container's link: 15 bytes.

    The inode of the network namespace is part of it: the kernel takes a dead container's link apart some time after
    its last process, and the next container of that name must not wait for it. The key of the network is, unless it is
    the app's own.
    """
    further = (network,) if network not in ("", app) else ()
    return "rv" + _digest(13, "link", instance, app, container, str(namespace), *further)


def table_name(instance: str) -> str:
    return TABLE_PREFIX + instance


def hardware_address(address: IPv4Address) -> bytes:
    """A locally administered, unicast MAC that follows from the address, so that neighbours' caches stay right."""
    return b"\x02\x72" + address.packed


def bridge_label(instance: str, network: str) -> str:
    return f"{_LABEL} {instance} {network}"


@dataclass(frozen=True, slots=True)
class LinkLabel:
    """What the label of a link says: whose it is, with which address, into which network namespace (its inode).

    `network` is the key of its network, unless that is the app's own. The app's name is not in the label a second time:
    the kernel keeps 255 bytes of it (IFALIASZ).
    """

    instance: str
    app: str
    container: str
    address: IPv4Address
    namespace: int
    network: str = ""

    def __str__(self) -> str:
        further = f" {self.network.removeprefix(f'{self.app}/')}" if self.network else ""
        return (
            f"{_LABEL} {self.instance} {self.app}/{self.container} {self.address} {self.namespace}{further}"
        )

    @property
    def name(self) -> str:
        return link_name(self.instance, self.app, self.container, self.namespace, self.network)

    @property
    def key(self) -> str:
        """The key of its network."""
        return self.network or self.app

    @property
    def member(self) -> str:
        """What the container is called in its network."""
        return member(self.key, self.app, self.container)


def read_bridge_label(alias: str, instance: str) -> str | None:
    """The key of the network whose bridge carries this label, or None where it is not one of this instance's."""
    match alias.split(" "):
        case [label, owner, network] if label == _LABEL and owner == instance:
            return network
        case _:
            return None


def read_link_label(alias: str, instance: str) -> LinkLabel | None:
    """What a link's label says, or None where it is not one of this instance's."""
    match alias.split(" "):
        case [label, owner, name, address, namespace, *further] if label == _LABEL and owner == instance:
            app, slash, container = name.partition("/")
            network = "".join(further)
            key = network if network.startswith("/") or not network else f"{app}/{network}"
            try:
                found = LinkLabel(owner, app, container, IPv4Address(address), int(namespace), key)
            except (AddressValueError, ValueError):
                return None
            return found if slash and app and container and len(further) <= 1 else None
        case _:
            return None
