"""A container's /etc/hosts, /etc/resolv.conf and /etc/hostname: files beside its writable layer that are bind-mounted.

Root inside may write to them, as everywhere: images do, and a read-only bind would break them. So nothing here trusts
what they hold; only their names and their directory, which no container can reach, are the agent's own. They lie on
the file system of the writable layer, not in the run directory, so that what a container writes to them takes up what
its other files take up: disk, bounded as that is. On the host's /run it would be memory, under no limit where the
container has none, and a full /run stops the host.
"""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address

from reconciler.engine import record
from reconciler.engine.durable import replace_bytes
from reconciler.engine.layout import Layout
from reconciler.engine.network.resolv import host_resolv_conf, render_hosts, update_hosts
from reconciler.state.desired import Container

Members = Mapping[str, IPv4Address]


def write(layout: Layout, container_id: str, desired: Container, members: Members) -> None:
    """Write the three files of a container in the making; `members` are the addresses of its app's containers."""
    hosts = render_hosts(members, desired.name, desired.identity.hostname)
    replace_bytes(layout.hosts(container_id), hosts, mode=0o644, durable=False)
    replace_bytes(layout.resolv_conf(container_id), host_resolv_conf(), mode=0o644, durable=False)
    hostname = desired.identity.hostname.encode() + b"\n"
    replace_bytes(layout.hostname(container_id), hostname, mode=0o644, durable=False)


def tell_siblings(layout: Layout, app: str, members: Members) -> None:
    """Bring the /etc/hosts of every container of the app up to date, in place."""
    if len(members) < 2:
        return
    for other in record.records(layout):
        path = layout.hosts(other.id)
        if other.app == app and path.exists():
            update_hosts(path, render_hosts(members, other.name, _hostname(layout, other.id)))


def _hostname(layout: Layout, container_id: str) -> str:
    """From the bundle, and not from the file that the container sees as /etc/hostname."""
    try:
        return str(json.loads(layout.config(container_id).read_bytes())["hostname"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # deleted or damaged: that container is made again in a later turn
