"""The ranges of ids that containers with `userns: auto` have for themselves: 65,536 each, from 0x70000000 to
0x7FFE0000, where systemd gives none away (systemd.io, "Users, Groups, UIDs and GIDs"). Not above 2^31: programs take
such ids for negative ones, and ping_group_range has none of them (net/ipv4/sysctl_net_ipv4.c, GID_T_MAX).

What is on disk keeps its ids, so a range belongs to a container only while it is there; its record holds it. Two
instances on a device don't know of each other's: each begins at a place of its own among the 4,094 ranges, and a
container at one that its id gives, so that they seldom meet; if they do, they share numbers, and nothing that
is on disk has these.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from reconciler.engine import record
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError
from reconciler.state.desired import Container

COUNT: Final = 65536
FIRST: Final = 0x70000000
_SLOTS: Final = (0x7FFE0000 - FIRST) // COUNT
_SUBORDINATE: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
_LARGEST: Final = 1 << 20


class IdRanges:
    """The ranges of one state directory. Thread-safe."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._making: set[int] = set()  # those of containers that have no record yet

    @contextmanager
    def of(self, desired: Container, container_id: str) -> Iterator[int]:
        """Give the first id of the range of a container that is being made, 0 where it is to have the device's ids.

        No other gets that range meanwhile. One that is made again keeps it, unless that has become somebody else's.
        """
        if desired.identity.userns != "auto":
            yield 0
            return
        with self._lock:
            found = {one.id: one.ids for one in record.records(self._layout)}
            before = found.pop(container_id, 0)
            taken = {*found.values(), *self._making}
            first = before if before and before not in taken else choose(container_id, taken, subordinate())
            self._making.add(first)
        try:
            yield first
        finally:
            with self._lock:
                self._making.discard(first)


def choose(container_id: str, taken: Iterable[int], foreign: Iterable[tuple[int, int]] = ()) -> int:
    """Return the first id of a range that is not `taken` and meets none of `foreign`, each (first, count)."""
    used = set(taken)
    others = [(first, first + count) for first, count in foreign if first + count > FIRST]
    start = int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:4]) % _SLOTS
    for step in range(_SLOTS):
        first = FIRST + (start + step) % _SLOTS * COUNT
        if first not in used and all(end <= first or first + COUNT <= begin for begin, end in others):
            return first
    raise ReconcilerError(
        f"userns: none of the {_SLOTS} ranges of ids is free",
        hint="shorten those in /etc/subuid and /etc/subgid",
    )


def subordinate() -> list[tuple[int, int]]:
    """The ranges that this device gives its users (subuid(5)), for containers of theirs."""
    found: list[tuple[int, int]] = []
    for path in _SUBORDINATE:
        try:
            with path.open("rb") as file:
                lines = file.read(_LARGEST).decode(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            _, _, numbers = line.partition(":")
            first, _, count = numbers.partition(":")
            if first.strip().isdecimal() and count.strip().isdecimal():
                found.append((int(first), int(count)))
    return found
