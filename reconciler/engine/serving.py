"""Which replicas serve the ports that they share: those that run, are neither paused nor being stopped, and listen.

Looked up where it is asked, from the containers' files and the kernel's lists of sockets: a look is good for one
decision. Reads only.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from reconciler.engine.layout import Layout
from reconciler.engine.network.listeners import read_proc_net
from reconciler.engine.network.ports import PROTOCOLS, Address, PortMapping, Serves
from reconciler.engine.process import alive, read_shim
from reconciler.engine.record import CorruptRecordError, Record, parse, records
from reconciler.state.desired import Settings
from reconciler.state.observed import Container, Running

_Names = tuple[str, str]
_Socket = tuple[str, int, int]  # protocol, port, 4 or 6

_PROC: Final = Path("/proc")
_PATIENCE: Final = 30.0  # seconds that a program may take to listen before its siblings are turned to
_AGAIN: Final = 0.02


def look(
    layout: Layout,
    ids: Mapping[_Names, Iterable[str]] | None = None,
    paused: Callable[[str], bool] = lambda _: False,
) -> Serves:
    """Return a function that says of a shared port whether its container serves it now.

    `ids` are the containers' ids by app and name; without, the records on disk are read. Those do not serve that are
    `paused`, by their ids: their sockets go on listening, and nobody answers.
    """
    known = ids if ids is not None else _ids(layout)
    seen: dict[_Names, frozenset[_Socket]] = {}

    def serves(mapping: PortMapping) -> bool:
        names = mapping.app, mapping.container
        if names not in seen:
            found = (sockets(layout, one) for one in known.get(names, ()) if not paused(one))
            seen[names] = frozenset[_Socket]().union(*found)
        return (mapping.protocol, mapping.target, mapping.version) in seen[names]

    return serves


def _ids(layout: Layout) -> dict[_Names, list[str]]:
    found: dict[_Names, list[str]] = {}
    for record in records(layout):
        found.setdefault((record.app, record.name), []).append(record.id)
    return found


def sockets(layout: Layout, container_id: str) -> frozenset[_Socket]:
    """The ports that take what comes from outside; none of a container that is being stopped.

    What listens on `::` takes both kinds, which nothing here tells from one that takes IPv6 alone.
    """
    shim = read_shim(layout.shim_record(container_id))
    if shim is None or shim.started_boot is None or layout.stopping(container_id).exists():
        return frozenset()
    found: set[_Socket] = set()
    for protocol in PROTOCOLS:
        for family in ("", "6"):
            with suppress(OSError, ValueError):
                text = (_PROC / str(shim.init.pid) / "net" / f"{protocol}{family}").read_text("ascii")
                found |= {
                    (protocol, listener.port, version)
                    for listener in read_proc_net(text, protocol)
                    if not listener.address.is_loopback
                    for version in _versions(listener.address)
                }
    # Asked last: as long as it lives, the pid was its own all the time.
    return frozenset(found) if alive(shim.init) else frozenset()


def _versions(address: Address) -> tuple[int, ...]:
    if address.version == 4:
        return (4,)
    if address.is_unspecified:
        return (4, 6)
    return (6,) if address.ipv4_mapped is None else (4,)


def until_served(layout: Layout, found: Record) -> bool:
    """Wait until a container that was just started listens on the ports that it shares, and say whether it shares any.

    One that is shared by IPv4 and by IPv6 need not be listened on by both.
    It returns sooner where the program ends, and after half a minute in any case: it is not held to be broken then,
    but gets no connections until it listens.
    """
    wanted = _shared(found.settings)
    deadline = time.monotonic() + _PATIENCE
    while wanted and time.monotonic() < deadline:
        shim = read_shim(layout.shim_record(found.id))
        if shim is None or not alive(shim.init) or _listens(layout, found.id, wanted):
            break
        time.sleep(_AGAIN)
    return bool(wanted)


def _shared(settings: Settings) -> set[tuple[str, int]]:
    return {(port.protocol, port.target) for port in settings.ports if port.balance}


def _listens(layout: Layout, container_id: str, wanted: set[tuple[str, int]]) -> bool:
    return wanted <= {(protocol, port) for protocol, port, _ in sockets(layout, container_id)}


def is_awaited(layout: Layout, have: Container, boottime: float) -> bool:
    """Return whether `until_served` would still wait for the container: whoever waited may have ended since."""
    if not isinstance(have.phase, Running) or have.paused or boottime - have.phase.since >= _PATIENCE:
        return False
    wanted = _shared(have.settings)
    return bool(wanted) and not _listens(layout, have.id, wanted)


def sharing(layout: Layout, container_id: str) -> Record | None:
    """The container's record, if it shares a port with its siblings; None also where it can't be read any more."""
    try:
        found = parse(layout.identity(container_id).read_bytes(), container_id)
    except (OSError, CorruptRecordError):
        return None
    return found if any(port.balance for port in found.settings.ports) else None
