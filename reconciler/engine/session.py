"""Which layers came in during a boot of the device that did not end in order: they are read before they are used.

A disk may lose what it said was written, when the power goes (a cache that is not what it claims, flash that was just
being moved); what came in long before is the scrub's to find. So each layer's record has the boot in which it came in,
and `session.json` has the boot in which something last came in or an agent ran, and whether the agent was stopped in
order since. It is written when either of that changes, never while nothing happens. What was read and found whole is
noted in the run directory, which the next boot does not have.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from reconciler.engine.durable import replace_json
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.layout import Layout
from reconciler.engine.process import boot_id
from reconciler.linux.path import syncfs
from reconciler.spec.reference import Digest

_ANY: Final = "*"
_LARGEST: Final = 1 << 16


def this_boot() -> str:
    """The boot of the kernel, in short: 16 hex digits."""
    return boot_id().replace("-", "")[:16]


@dataclass(frozen=True, slots=True)
class Mark:
    """What `session.json` says: the last boot, whether it has ended in order, and earlier ones still to be checked.

    `doubted` has `*` for every boot but this one, where the file can't be read.
    """

    boot: str = ""
    clean: bool = True
    doubted: tuple[str, ...] = ()

    def now(self, boot: str) -> "Mark":
        """The same as the boot that runs now sees it: one before it that did not end in order is in doubt."""
        if self.boot == boot or not self.boot or self.clean or self.boot in self.doubted:
            return self
        return replace(self, doubted=(*self.doubted, self.boot))


@dataclass(slots=True)
class Checked:
    """What was read because it was in doubt: layers, bytes of files, how many were wrong, and the seconds it took."""

    layers: int = 0
    bytes: int = 0
    wrong: int = 0
    seconds: float = 0.0


class Session:
    """The doubts about one state directory. Thread-safe; whoever writes holds the store's `committing`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._boot = this_boot()
        self._known: tuple[object, Mark] | None = None
        self._passed: tuple[object, frozenset[str]] = (None, frozenset())
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self.checked = Checked()

    # --- the mark ----------------------------------------------------------------------------------------------------

    def _mark(self) -> Mark:
        path = self._layout.session
        key = _key(path)
        if self._known is None or self._known[0] != key:
            self._known = key, _read(self._layout)
        return self._known[1]

    def begin(self) -> None:
        """Note, durably, that this boot has not ended in order so far. Cheap where that is known."""
        mark = self._mark()
        if mark.boot == self._boot and not mark.clean:
            return
        if not mark.boot and not any(self._layout.layers.glob("*.json")):
            mark = Mark()  # nothing is here that could be in doubt
        self._write(replace(mark.now(self._boot), boot=self._boot, clean=False))

    def end(self) -> None:
        """Note that whoever wrote has stopped in order, with everything on the disk; where that fails, it is not so."""
        with suppress(OSError):
            mark = self._mark()
            if mark.boot != self._boot or mark.clean:
                return
            fd = os.open(self._layout.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syncfs(fd)
            finally:
                os.close(fd)
            self._write(replace(mark, clean=True))

    def settle(self) -> None:
        """Note that nothing is in doubt any more."""
        mark = self._mark().now(self._boot)
        if mark.doubted:
            self._write(replace(mark, boot=self._boot, clean=False, doubted=()))

    def _write(self, mark: Mark) -> None:
        value = {"version": 1, "boot": mark.boot, "clean": mark.clean, "doubted": list(mark.doubted)}
        replace_json(self._layout.session, value)

    # --- doubts ------------------------------------------------------------------------------------------------------

    def doubts(self, record: LayerRecord) -> bool:
        """Tell whether that layer has to be read before it is used."""
        doubted = self._mark().now(self._boot).doubted
        if not doubted or record.boot in ("", self._boot):
            return False
        return (record.boot in doubted or _ANY in doubted) and record.chain_id.hex not in self._read_before()

    def doubted(self, layers: Mapping[Digest, LayerRecord]) -> frozenset[str]:
        """The hex chain ids of those of `layers` that are in doubt."""
        if not self._mark().now(self._boot).doubted:
            return frozenset()
        return frozenset(chain_id.hex for chain_id, record in layers.items() if self.doubts(record))

    def _read_before(self) -> frozenset[str]:
        """What was found whole since the device was booted."""
        key = _key(self._layout.verified)
        if self._passed[0] != key:
            lines: list[list[str]] = []
            with suppress(OSError):
                lines = [
                    line.split() for line in self._layout.verified.read_text("ascii", "replace").splitlines()
                ]
            self._passed = (
                key,
                frozenset(line[1] for line in lines if len(line) == 2 and line[0] == self._boot),
            )
        return self._passed[1]

    def check(
        self,
        chain: str,
        record: Callable[[], LayerRecord | None],
        wrong: Callable[[LayerRecord, Callable[[int], object]], bool],
    ) -> bool | None:
        """Have `wrong` read the layer if it is in doubt; return whether it was whole, None where there is no doubt.

        `record` gives the layer's record as it is now. `wrong` is given that and what is to hear of bytes, and says
        whether the layer was not what it should be; what it does about that is its own. Several who ask at once wait
        for the first.
        """
        known = record()
        if known is None or not self.doubts(known):
            return None
        with self._lock:
            busy = self._busy.setdefault(chain, threading.Lock())
        with busy:
            known = record()  # whoever had it first may have thrown it away, and another have brought it anew
            if known is None or not self.doubts(known):
                return None
            began = time.monotonic()
            read = 0

            def told(count: int) -> None:
                nonlocal read
                read += count

            bad = wrong(known, told)
            with self._lock:
                self.checked.layers += 1
                self.checked.bytes += read
                self.checked.wrong += bad
                self.checked.seconds += time.monotonic() - began
            if not bad:
                self._note(chain)
            return not bad

    def _note(self, chain: str) -> None:
        with suppress(OSError):  # it is read once more then
            line = f"{self._boot} {chain}\n".encode()
            fd = os.open(self._layout.verified, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)


def _key(path: "os.PathLike[str]") -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(layout: Layout) -> Mark:
    try:
        with open(layout.session, "rb") as file:
            found = json.loads(file.read(_LARGEST))
        boot, clean, doubted = found["boot"], found["clean"], found["doubted"]
        if not isinstance(boot, str) or not isinstance(clean, bool) or not isinstance(doubted, list):
            raise TypeError
        return Mark(boot, clean, tuple(map(str, doubted)))
    except FileNotFoundError:
        return Mark(
            "", True, (_ANY,)
        )  # records of releases that wrote none have no boot, and are in no doubt
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Mark(_ANY, False, (_ANY,))  # nobody knows: a torn write is what this is about
