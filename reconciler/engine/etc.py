"""A container's /etc/hosts, /etc/resolv.conf and /etc/hostname: files beside its writable layer that are bind-mounted.

Root inside may write to them, as everywhere: images do, and a read-only bind would break them. So nothing here trusts
what they hold; only their names and their directory, which no container can reach, are the agent's own. They lie on
the file system of the writable layer, not in the run directory, so that what a container writes to them takes up what
its other files take up: disk, bounded as that is. On the host's /run it would be memory, under no limit where the
container has none, and a full /run stops the host.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from reconciler.engine import record
from reconciler.engine.bundle import PREFIX, config_files
from reconciler.engine.durable import replace_bytes
from reconciler.engine.layout import Layout
from reconciler.engine.network import resolv
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.network import HOST_GATEWAY
from reconciler.state.desired import Container

_HOSTS = Path("/etc/hosts")
_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Whom a container knows: those of its app by name, the device's own address there, what members are called beside,
    and `further` (name, address) pairs; `members6` are the addresses of IPv6 of those that it reaches by that.
    """

    members: Mapping[str, IPv4Address]
    gateway: IPv4Address | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    further: tuple[tuple[str, str], ...] = ()
    members6: Mapping[str, IPv6Address] = field(default_factory=dict)


def write(layout: Layout, container_id: str, desired: Container, neighbours: Neighbours) -> None:
    """Write the three files of a container in the making."""
    identity = desired.identity
    for path, content in (
        (layout.hosts(container_id), _hosts(desired, neighbours)),
        (layout.resolv_conf(container_id), _resolv_conf(desired)),
        (layout.hostname(container_id), identity.hostname.encode() + b"\n"),
    ):
        replace_bytes(path, content, mode=0o644, durable=False)


def _hosts(desired: Container, neighbours: Neighbours) -> bytes:
    identity = desired.identity
    extra = _resolved(identity.extra_hosts, neighbours)
    if desired.networked:
        return _render(neighbours, desired.app, desired.name, identity.hostname, extra)
    # 127.0.1.1 as in Debian: a name of its own that resolves, where it has no address of its own
    own = [(identity.hostname, "127.0.1.1")] if identity.hostname else []
    given = _host_file(_HOSTS) if identity.network_mode == "host" else b""
    return (given or resolv.render_hosts({}, "", "")) + resolv.render_lines([*own, *extra])


def _render(
    neighbours: Neighbours, app: str, name: str, hostname: str, extra: Iterable[tuple[str, str]]
) -> bytes:
    return resolv.render_hosts(
        neighbours.members,
        name,
        hostname,
        [*neighbours.further, *extra],
        replicas=app != ADHOC,
        aliases=neighbours.aliases,
        members6=neighbours.members6,
    )


def _resolv_conf(desired: Container) -> bytes:
    identity = desired.identity
    asked = resolv.Asked(identity.dns, identity.dns_search, identity.dns_opt)
    if identity.network_mode == "none":
        return resolv.render_resolv_conf([], asked, fallback=())
    if identity.network_mode == "host":
        # Its loopback is the device's, so that a stub on 127.0.0.53 answers it too
        text = _host_file(resolv.HOST_FILES[0])
        return resolv.render_resolv_conf([text.decode(errors="replace")], asked, stubs=True)
    outward = any(place.network.ipv6 and not place.network.internal for place in desired.places)
    return resolv.host_resolv_conf(asked=asked, ipv6=outward)


def _host_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    return text if text.endswith(b"\n") or not text else text + b"\n"


def _resolved(extra: Iterable[tuple[str, str]], neighbours: Neighbours) -> list[tuple[str, str]]:
    gateway = str(neighbours.gateway or "")
    found = [(name, gateway if address == HOST_GATEWAY else address) for name, address in extra]
    return [(name, address) for name, address in found if address]


def update(layout: Layout, found: record.Record, neighbours: Neighbours) -> None:
    """Bring the /etc/hosts of a container that is there up to date, in place."""
    path = layout.hosts(found.id)
    if path.exists():
        hostname, extra = _names(layout, found.id)
        content = _render(neighbours, found.app, found.name, hostname, _resolved(extra, neighbours))
        resolv.update_hosts(path, content)


def _names(layout: Layout, container_id: str) -> tuple[str, list[tuple[str, str]]]:
    """The host name and the extra hosts, from the bundle, and not from files that the container can write."""
    try:
        config = json.loads(layout.config(container_id).read_bytes())
        extra = json.loads(config["annotations"].get(f"{PREFIX}extra-hosts", "[]"))
        return str(config["hostname"]), [(str(name), str(address)) for name, address in extra]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", []  # deleted or damaged: that container is made again in a later turn


def write_configs(layout: Layout, container_id: str, desired: Container) -> None:
    """Write the files that its config mounts show."""
    for name, mount in config_files(desired).items():
        path = layout.configs(container_id) / name
        path.write_bytes(desired.configs[mount.config])
        os.chown(path, mount.uid, mount.gid)
        path.chmod(mount.mode)
