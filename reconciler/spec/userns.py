"""`userns`: whether a container has ids of its own, and what does not go with that. Pure."""

from collections.abc import Iterable
from typing import Final, Literal

from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.finding import Finding
from reconciler.spec.model import BindMount, Container
from reconciler.spec.places import Path

COUNT: Final = 65536
# Those that count over files and processes of its own. All others count over what stays the device's: its clock, its
# devices, and the namespaces of the container, which are not its user namespace's.
USEFUL: Final = frozenset((*DEFAULT_CAPABILITIES, "CAP_SETFCAP", "CAP_SYS_PTRACE"))


def check_userns(container: Container, at: Path) -> Iterable[Finding]:
    """Yield what a container with `userns: auto` can't have."""
    if container.userns == "auto":
        yield from _contrary(container, at)


def userns(
    container: Container, image_user: str, default: Literal["host", "auto"]
) -> Literal["host", "auto"]:
    """Whose ids a container has: what its spec says, or else `default`, unless `auto` does not go with the rest.

    What is the device's is left to who has the device's ids: host paths, whose owners a program may count on, and
    devices. `image_user` is the user whom its image names.
    """
    if container.userns or default == "host":
        return container.userns or "host"
    others = (
        container.devices,
        any(isinstance(mount, BindMount) for mount in container.volumes),
        container.user is None and any(map(_beyond, image_user.split(":"))),
        any(True for _ in _contrary(container, ())),
    )
    return "host" if any(others) else "auto"


def _contrary(container: Container, at: Path) -> Iterable[Finding]:
    """Yield what does not go with ids of a container's own."""
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
    owners = [one for config in container.configs for one in (config.uid, config.gid)]
    for where, ids in (
        ("user", (container.user or "").split(":")),
        ("group_add", container.group_add),
        ("configs", owners),
    ):
        for one in filter(_beyond, ids):
            yield Finding((*at, where), f"with userns: auto there are ids below {COUNT} only, not {one}")


def _beyond(one: object) -> bool:
    """Whether it is a number, and not a name, that a container's own ids do not reach."""
    return str(one).isdecimal() and int(str(one)) >= COUNT
