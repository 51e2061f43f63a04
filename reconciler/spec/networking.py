"""Rules about networks: of a container, within an app, and between apps. Pure."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from reconciler.spec.adhoc import COMMAND_LINE
from reconciler.spec.attachment import DEFAULT, Network, first_usable, usable
from reconciler.spec.finding import Finding
from reconciler.spec.marks import WARNING
from reconciler.spec.model import App, Container, Port
from reconciler.spec.modes import JOINS
from reconciler.spec.network import HOST_GATEWAY
from reconciler.spec.places import Path

_NAMED: Final = 3  # others that a message names


def check_container(
    container: Container, at: Path, app: App, declared: Mapping[str, frozenset[str]]
) -> Iterable[Finding]:
    """Return what is wrong with the network of one container."""
    if container.network_mode == "bridge":
        yield from _places(container, at, app, declared["networks"])
        return
    if container.network_mode.startswith(JOINS):
        return
    mode = f"network_mode: {container.network_mode}"
    if "networks" in container.model_fields_set:
        message = f"networks can't be joined with {mode}: it has no interface of its own for them"
        if container.network_mode == "none":
            message = f"networks can't be joined with {mode}"
        yield Finding((*at, "networks"), message, at_key=True)
    if container.ports:
        what = (
            "its ports are the device's own" if container.network_mode == "host" else "nothing can reach it"
        )
        yield Finding((*at, "ports"), f"ports can't be published with {mode}: {what}", at_key=True)
    for name, address in container.extra_hosts:
        if address == HOST_GATEWAY:
            message = f"extra_hosts.{name}: there is no {HOST_GATEWAY} with {mode}"
            yield Finding((*at, "extra_hosts"), message, at_key=True)
    if container.network_mode != "host":
        return
    for name in container.sysctls:
        if name.startswith("net."):
            message = f"the sysctl '{name}' belongs to the whole device with {mode}"
            yield Finding((*at, "sysctls", name), message, at_key=True)
    yield Finding(
        (*at, "network_mode"),
        f"{'.'.join(map(str, at))} shares the device's network: it reaches what listens on 127.0.0.1 only",
        WARNING,
        at_key=True,
    )


def _places(container: Container, at: Path, app: App, declared: frozenset[str]) -> Iterable[Finding]:
    open_ones = False
    for name, place in container.networks.items():
        where = (*at, "networks", name)
        network = app.networks.get(name, Network())
        open_ones = open_ones or not network.internal
        if name != DEFAULT and name not in declared:
            hint = f"add at the top level: networks: {{{name}: {{}}}}"
            yield Finding(where, f"the network '{name}' is not declared", hint=hint)
            continue
        if name in declared and name not in app.networks:
            continue
        for said, key in ((place.ipv4_address, "ipv4_address"), (place.ipv6_address, "ipv6_address")):
            if said is not None:
                yield from _fixed(ipaddress.ip_address(said), name, network, container, (*where, key))
    if container.ports and not open_ones:
        hint = "have it in another network too"
        message = "ports can't be published: all networks of the container are internal"
        yield Finding((*at, "ports"), message, at_key=True, hint=hint)
    elif not has_ipv6(app, container) and all(
        name not in declared or name in app.networks for name in container.networks
    ):
        for index, port in enumerate(container.ports):
            if ":" in port.host_ip:
                message = f"{port.host_ip} is an IPv6 address: no network by which the container is reached has IPv6"
                first = next(iter(container.networks))
                hint = f"write at the top level: networks: {{{first}: {{ipv6: true}}}}"
                if app.name == COMMAND_LINE:
                    hint = "join one that has, and that apps share: --network NAME"
                yield Finding((*at, "ports", index), message, hint=hint)
    ipv6 = any(app.networks.get(name, Network()).ipv6 for name in container.networks)
    for index, server in enumerate(container.dns):
        if ":" in server and not ipv6:
            message = f"the name server {server} can't be reached: no network of the container has IPv6"
            yield Finding((*at, "dns", index), message, WARNING)
    if ipv6:
        for name in _NO_IPV6:
            if container.sysctls.get(name, "0") != "0":
                message = f"the sysctl '{name}' would take the IPv6 that a network of the container has"
                yield Finding((*at, "sysctls", name), message, at_key=True)


def _fixed(
    address: IPv4Address | IPv6Address, name: str, network: Network, container: Container, where: Path
) -> Iterable[Finding]:
    """Return what is wrong with an address that the container asks for in the network that is called `name`."""
    key = where[-1]
    kind = "IPv6 'subnet'" if address.version == 6 else "'subnet'"
    declared = network.subnet6 if address.version == 6 else network.subnet4
    if not declared:
        what = f"has no {kind}" if network.ipv6 or address.version == 4 else "has no IPv6"
        if network.external:
            what = "is external: nobody here may say who has which address"
        hint = "" if network.ipv6 or network.external or address.version == 4 else "write 'ipv6: true' in it"
        yield Finding(where, f"{key}: the network '{name}' {what}", hint=hint)
        return
    subnet = ipaddress.ip_network(declared)
    said = network.gateway6 if address.version == 6 else network.gateway4
    gateway = ipaddress.ip_address(said) if said else first_usable(subnet)
    if not usable(subnet, address):
        yield Finding(where, f"{key}: {address} is no address of a host in {subnet}")
    elif address == gateway:
        yield Finding(where, f"{key}: {address} is the gateway of '{name}', the device's own address")
    if container.replicas > 1:
        yield Finding(where, f"{key}: {container.replicas} replicas can't have one address")


def has_ipv6(app: App, container: Container) -> bool:
    """Return whether the container is reached from outside, and reaches it, by IPv6."""
    said = (app.networks.get(name, Network()) for name in container.networks)
    return container.network_mode == "bridge" and any(one.ipv6 and not one.internal for one in said)


def host_ips(port: Port, *, ipv6: bool) -> tuple[str, ...]:
    """Return the addresses that a port of a container is published on, which has IPv6 or not."""
    if ipv6 and port.host_ip == _ANY and "host_ip" not in port.model_fields_set:
        return (_ANY, ANY6)
    return (port.host_ip,)


_NO_IPV6: Final = tuple(f"net.ipv6.conf.{which}.disable_ipv6" for which in ("all", "default"))
_ANY: Final = "0.0.0.0"
ANY6: Final = "::"


def check_networks(app: App, *, partial: bool) -> Iterable[Finding]:
    """Return what is wrong with the networks of an app. Where it is `partial` nothing is said of what is not used."""
    yield from _default(app.networks)
    names = sorted(app.networks)
    for index, name in enumerate(names):
        for other in names[:index]:
            if _overlap(app.networks[name], app.networks[other]):
                message = f"the subnet of '{name}' overlaps that of '{other}'"
                yield Finding(("networks", name, "subnet"), message)
    yield from _same_addresses(app)
    used = {name for container in app.containers.values() for name in container.networks}
    for name in () if partial else names:
        if name not in used:
            yield Finding(("networks", name), f"the network '{name}' is not used", WARNING, at_key=True)


def _default(networks: Mapping[str, Network]) -> Iterable[Finding]:
    if DEFAULT in networks and networks[DEFAULT].external:
        message = "the network 'default' is the app's own: it can't be external"
        yield Finding(("networks", DEFAULT, "external"), message, hint="give the shared one another name")


def _overlap(one: Network, other: Network) -> bool:
    pairs = ((one.subnet4, other.subnet4), (one.subnet6, other.subnet6))
    return any(
        mine and its and ipaddress.ip_network(mine).overlaps(ipaddress.ip_network(its)) for mine, its in pairs
    )


def _same_addresses(app: App) -> Iterable[Finding]:
    holders: dict[tuple[str, str], str] = {}
    for name, container in app.containers.items():
        for network, place in container.networks.items():
            for key, said in (("ipv4_address", place.ipv4_address), ("ipv6_address", place.ipv6_address)):
                if said is None:
                    continue
                holder = holders.setdefault((network, said), name)
                if holder != name:
                    path = ("containers", name, "networks", network, key)
                    yield Finding(path, f"{key}: {said} is that of '{holder}' already")


def subnets_between(apps: Sequence[tuple[str, str, App, bool]]) -> Iterable[Finding]:
    """Return which subnets of different apps overlap; an app is its name, path, model, and whether that is partial.

    Apps whose file is whole don't get to hear of those whose file is not, or they would suffer from it.
    """
    declared = [
        (ipaddress.ip_network(subnet), key, name, path, partial)
        for name, path, app, partial in apps
        for key, network in sorted(app.networks.items())
        for subnet in network.subnet
    ]
    # By version first, so that those of one end before those of the other begin
    declared.sort(key=lambda one: (one[0].version, int(one[0].network_address), one[0].prefixlen))
    rivals: dict[tuple[str, str, int], list[str]] = {}
    open_ones: list[tuple[IPv4Network | IPv6Network, str, str, str, bool]] = []
    for one in declared:
        begins = one[0].version, int(one[0].network_address)
        open_ones = [
            other for other in open_ones if (other[0].version, int(other[0].broadcast_address)) >= begins
        ]
        for other in open_ones:
            if other[3] == one[3]:
                continue
            for mine, its in ((one, other), (other, one)):
                if mine[4] or not its[4]:
                    rivals.setdefault((mine[3], mine[1], mine[0].version), []).append(f"{its[2]}/{its[1]}")
        open_ones = [*open_ones, one][-_MOST_OPEN:]
    for subnet, key, _, path, _ in declared:
        others = sorted(rivals.get((path, key, subnet.version), ()))
        if others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            message = f"the subnet {subnet} of '{key}' overlaps that of {', '.join(others[:_NAMED])}{more}"
            yield Finding(("networks", key, "subnet"), message, app=path)


_MOST_OPEN: Final = 1000  # that overlap each other: a hostile repository must not cost more than that
