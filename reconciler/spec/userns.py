"""`userns`: whether a container has ids of its own, and what does not go with that. Pure."""

from collections.abc import Iterable
from typing import Final

from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.finding import Finding
from reconciler.spec.model import Container
from reconciler.spec.places import Path

COUNT: Final = 65536
# Those that count over files and processes of its own. All others count over what stays the device's: its clock, its
# devices, and the namespaces of the container, which are not its user namespace's.
USEFUL: Final = frozenset((*DEFAULT_CAPABILITIES, "CAP_SETFCAP", "CAP_SYS_PTRACE"))


def check_userns(container: Container, at: Path) -> Iterable[Finding]:
    """Yield what a container with `userns: auto` can't have."""
    if container.userns != "auto":
        return
    if container.privileged:
        yield Finding(
            (*at, "userns"), "userns: auto takes away what privileged: true gives: write one of them"
        )
    if container.network_mode == "host":
        yield Finding(
            (*at, "userns"),
            "userns: auto does not go with network_mode: host",
            hint="its root could do nothing with the device's network: publish ports instead",
        )
    for name in container.cap_add:
        if name not in USEFUL:
            yield Finding(
                (*at, "cap_add"),
                f"{name.removeprefix('CAP_')} gives nothing with userns: auto",
                hint="a container with ids of its own has power over its own files and processes alone",
            )
    user, _, group = (container.user or "").partition(":")
    for part in (user, group, *container.group_add):
        if str(part).isdecimal() and int(part) >= COUNT:
            where = "group_add" if part in container.group_add else "user"
            yield Finding((*at, where), f"with userns: auto there are ids below {COUNT} only, not {part}")
