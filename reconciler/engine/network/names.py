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


def bridge_name(instance: str, app: str) -> str:
    """The app's bridge: 15 bytes, which is IFNAMSIZ - 1."""
    return "rc-" + _digest(12, "bridge", instance, app)


def link_name(instance: str, app: str, container: str, namespace: int) -> str:
    """The host's end of a container's link: 15 bytes.

    The inode of the network namespace is part of it: the kernel takes a dead container's link apart some time after
    its last process, and the next container of that name must not wait for it.
    """
    return "rv" + _digest(13, "link", instance, app, container, str(namespace))


def table_name(instance: str) -> str:
    return TABLE_PREFIX + instance


def hardware_address(address: IPv4Address) -> bytes:
    """A locally administered, unicast MAC that follows from the address, so that neighbours' caches stay right."""
    return b"\x02\x72" + address.packed


def bridge_label(instance: str, app: str) -> str:
    return f"{_LABEL} {instance} {app}"


@dataclass(frozen=True, slots=True)
class LinkLabel:
    """What the label of a link says: whose it is, with which address, into which network namespace (its inode)."""

    instance: str
    app: str
    container: str
    address: IPv4Address
    namespace: int

    def __str__(self) -> str:
        return f"{_LABEL} {self.instance} {self.app}/{self.container} {self.address} {self.namespace}"

    @property
    def name(self) -> str:
        return link_name(self.instance, self.app, self.container, self.namespace)


def read_bridge_label(alias: str, instance: str) -> str | None:
    """The app whose bridge carries this label, or None where it is not one of this instance's."""
    match alias.split(" "):
        case [label, owner, app] if label == _LABEL and owner == instance and "/" not in app:
            return app
        case _:
            return None


def read_link_label(alias: str, instance: str) -> LinkLabel | None:
    """What a link's label says, or None where it is not one of this instance's."""
    match alias.split(" "):
        case [label, owner, full_name, address, namespace] if label == _LABEL and owner == instance:
            app, slash, container = full_name.partition("/")
            try:
                found = LinkLabel(owner, app, container, IPv4Address(address), int(namespace))
            except (AddressValueError, ValueError):
                return None
            return found if slash and app and container else None
        case _:
            return None
