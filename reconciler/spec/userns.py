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
    for where, ids in (("user", _numbers(container.user or "")), ("group_add", container.group_add)):
        for one in ids:
            if str(one).isdecimal() and int(one) >= COUNT:
                yield Finding((*at, where), f"with userns: auto there are ids below {COUNT} only, not {one}")


def userns(
    container: Container, image_user: str, default: Literal["host", "auto"]
) -> Literal["host", "auto"]:
    """Whose ids a container has: what its spec says, or else `default`, unless `auto` does not go with the rest.

    What is the device's is left to who has the device's ids: host paths, whose owners a program may count on, and
    devices. `image_user` is the user whom its image names.
    """
    if container.userns or default == "host":
        return container.userns or "host"
    users = _numbers(image_user if container.user is None else container.user)
    ids: list[str | int] = [*users, *container.group_add]
    ids += (id for config in container.configs for id in (config.uid, config.gid))
    others = (
        container.privileged,
        container.network_mode == "host",
        container.devices,
        any(isinstance(mount, BindMount) for mount in container.volumes),
        any(name not in USEFUL for name in container.cap_add),
        any(str(one).isdecimal() and int(one) >= COUNT for one in ids),
    )
    return "host" if any(others) else "auto"


def _numbers(user: str) -> tuple[str, ...]:
    """User and group of USER[:GROUP], names too."""
    user, _, group = user.partition(":")
    return user, group
