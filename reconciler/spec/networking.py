"""Rules about networks: of a container, within an app, and between apps. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from reconciler.spec.attachment import DEFAULT, Network, first_usable, usable
from reconciler.spec.finding import Finding
from reconciler.spec.marks import WARNING
from reconciler.spec.model import App, Container
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
        if place.ipv4_address is None or (name in declared and name not in app.networks):
            continue
        where = (*where, "ipv4_address")
        address = IPv4Address(place.ipv4_address)
        if network.subnet is None:
            what = (
                "is external: nobody here may say who has which address"
                if network.external
                else "has no 'subnet'"
            )
            yield Finding(where, f"ipv4_address: the network '{name}' {what}")
            continue
        subnet = IPv4Network(network.subnet)
        gateway = IPv4Address(network.gateway) if network.gateway else first_usable(subnet)
        if not usable(subnet, address):
            yield Finding(where, f"ipv4_address: {address} is no address of a host in {subnet}")
        elif address == gateway:
            yield Finding(
                where, f"ipv4_address: {address} is the gateway of '{name}', the device's own address"
            )
        if container.replicas > 1:
            yield Finding(where, f"ipv4_address: {container.replicas} replicas can't have one address")
    if container.ports and not open_ones:
        hint = "have it in another network too"
        message = "ports can't be published: all networks of the container are internal"
        yield Finding((*at, "ports"), message, at_key=True, hint=hint)


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
    if one.subnet is None or other.subnet is None:
        return False
    return IPv4Network(one.subnet).overlaps(IPv4Network(other.subnet))


def _same_addresses(app: App) -> Iterable[Finding]:
    holders: dict[tuple[str, str], str] = {}
    for name, container in app.containers.items():
        for network, place in container.networks.items():
            if place.ipv4_address is None:
                continue
            holder = holders.setdefault((network, place.ipv4_address), name)
            if holder != name:
                path = ("containers", name, "networks", network, "ipv4_address")
                yield Finding(path, f"ipv4_address: {place.ipv4_address} is that of '{holder}' already")


def subnets_between(apps: Sequence[tuple[str, str, App, bool]]) -> Iterable[Finding]:
    """Return which subnets of different apps overlap; an app is its name, path, model, and whether that is partial.

    Apps whose file is whole don't get to hear of those whose file is not, or they would suffer from it.
    """
    declared = [
        (IPv4Network(network.subnet), key, name, path, partial)
        for name, path, app, partial in apps
        for key, network in sorted(app.networks.items())
        if network.subnet is not None
    ]
    declared.sort(key=lambda one: (int(one[0].network_address), one[0].prefixlen))
    rivals: dict[tuple[str, str], list[str]] = {}
    open_ones: list[tuple[IPv4Network, str, str, str, bool]] = []
    for one in declared:
        open_ones = [other for other in open_ones if other[0].broadcast_address >= one[0].network_address]
        for other in open_ones:
            if other[3] == one[3]:
                continue
            for mine, its in ((one, other), (other, one)):
                if mine[4] or not its[4]:
                    rivals.setdefault((mine[3], mine[1]), []).append(f"{its[2]}/{its[1]}")
        open_ones = [*open_ones, one][-_MOST_OPEN:]
    for subnet, key, _, path, _ in declared:
        others = sorted(rivals.get((path, key), ()))
        if others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            message = f"the subnet {subnet} of '{key}' overlaps that of {', '.join(others[:_NAMED])}{more}"
            yield Finding(("networks", key, "subnet"), message, app=path)


_MOST_OPEN: Final = 1000  # that overlap each other: a hostile repository must not cost more than that
