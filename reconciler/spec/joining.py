"""Rules about a container in the network of another one: `network_mode: container:NAME`. Pure.

What the two share is the other's: its addresses and ports, its host name, and the files that names are looked up in. So
nothing of that can be said a second time, and both have to be there in the same number.
"""

from collections.abc import Iterable
from typing import Final

from reconciler.spec.finding import Finding
from reconciler.spec.model import App, Container
from reconciler.spec.modes import JOINS, joined_by
from reconciler.spec.places import Path
from reconciler.spec.terms import Terms

_ITS_OWN: Final = ("hostname", "dns", "dns_search", "dns_opt", "extra_hosts")


def joined(container: Container) -> str:
    """Return the name of the container whose network it is in, as it is written; "" for none."""
    return joined_by(container.network_mode)


def check_joining(
    container: Container, at: Path, app: App, terms: Terms, declared: frozenset[str]
) -> Iterable[Finding]:
    """Return what is wrong with a container that joins the network of another one."""
    name = joined(container)
    if not name:
        return
    mode, other_one = f"network_mode: {JOINS}{name}", f"'{name}'" if "/" not in name else "that one"
    if "networks" in container.model_fields_set:
        message = f"networks can't be joined with {mode}: it is in those of {other_one}"
        yield Finding((*at, "networks"), message, at_key=True)
    if container.ports:
        hint = f"publish them at {other_one}: they reach what listens here too"
        yield Finding((*at, "ports"), f"ports can't be published with {mode}", at_key=True, hint=hint)
    for field in _ITS_OWN:
        if getattr(container, field):
            message = f"{field} can't be said with {mode}: it is that of {other_one}"
            yield Finding((*at, field), message, at_key=True)
    for sysctl in container.sysctls:
        if sysctl.startswith("net."):
            message = f"the sysctl '{sysctl}' belongs to {other_one} with {mode}"
            yield Finding((*at, "sysctls", sysctl), message, at_key=True)
    yield from _other(container, (*at, "network_mode"), app, name, terms, declared)


def _other(
    container: Container, where: Path, app: App, name: str, terms: Terms, declared: frozenset[str]
) -> Iterable[Finding]:
    """What is wrong with the one that is joined."""
    if "/" in name:
        if not terms.foreign:
            message = f"network_mode: '{name}' must be a container of this app, by its name alone"
            yield Finding(where, message)
        return
    if name not in declared:
        yield Finding(where, f"network_mode: there is no container '{name}' in this app")
        return
    other = app.containers.get(name)
    if other is None:
        return  # it is broken, which is said where it is
    if other is container:
        yield Finding(where, "network_mode: a container can't join its own network")
    elif second := joined(other):
        hint = f"write {JOINS}{second}" if second != where[1] else ""
        message = f"network_mode: '{name}' has no network of its own: it joins that of '{second}'"
        yield Finding(where, message, hint=hint)
    elif other.network_mode == "host":
        message = f"network_mode: '{name}' has no network of its own: it shares the device's"
        yield Finding(where, message, hint="write network_mode: host")
    elif container.replicas and container.replicas != other.replicas:
        message = (
            f"network_mode: '{name}' has {other.replicas} replicas and this one {container.replicas}: "
            "each joins the one of its number"
        )
        yield Finding(where, message, hint=f"write replicas: {other.replicas}")
