"""What a pull looks like: bars while a person watches, one line per layer for everybody else.

Events come from several threads, a hundred times a second; the terminal is written to at most ten times a second, and
never after `close`. On anything but a terminal no control character is written.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from reconciler.engine.progress import Phase, Progress
from reconciler.report.tables import size
from reconciler.spec.reference import Digest

_INTERVAL: Final = 0.1
_PATIENCE: Final = 1.0  # seconds before a copy is shown
_BAR: Final = 30
_MIN_ROOM: Final = 45  # columns of a line without its bar


def heard(item: Mapping[str, Any]) -> Progress:
    """What the agent tells of a layer (GET /v1/progress)."""
    phase, layer = Phase(item["phase"]), Digest.parse(item["layer"])
    return Progress(layer, item["done"], item["total"], phase, item["resumed"], source=item["source"])


class PullProgress:
    """A listener for `Progress` values that draws to `stream`. Call it, and `close` it at the end."""

    def __init__(
        self,
        stream: TextIO,
        *,
        bars: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        """Bars are for a terminal that can move its cursor; `bars` overrides what is found."""
        self._stream = stream
        self._bars = stream.isatty() and os.environ.get("TERM") != "dumb" if bars is None else bars
        self._clock = clock
        self._columns = columns
        self._lock = threading.Lock()
        self._layers: dict[str, Progress] = {}
        self._drawn = 0
        self._last = float("-inf")
        self._began: dict[str, float] = {}
        self._closed = False

    def __call__(self, progress: Progress) -> None:
        """Take note of one layer's progress and show it if it is time."""
        name = progress.layer.short
        with self._lock:
            if self._closed:
                return
            before = self._layers.get(name)
            if before is not None and before.phase == Phase.DONE:
                return  # a late event of another thread
            now = self._clock()
            self._began.setdefault(name, now)
            self._layers[name] = progress
            done = progress.phase == Phase.DONE
            if not self._bars:
                if done:
                    seconds = now - self._began[name]
                    source = f" from {progress.source}" if progress.source not in ("", "origin") else ""
                    self._stream.write(f"{name}: done, {size(progress.total)}{source} in {seconds:.1f} s\n")
                    self._stream.flush()
                return
            if done or now - self._last >= _INTERVAL:
                self._last = now
                self._draw()

    def close(self) -> None:
        """Show the last state and leave the cursor below it; later events are not shown."""
        with self._lock:
            if self._bars and self._layers and not self._closed:
                self._draw()
            self._closed = True

    def _draw(self) -> None:
        """Write all layers over those drawn before: up, and each line to its end."""
        lines = [self._line(name, progress) for name, progress in self._layers.items()]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def _line(self, name: str, progress: Progress) -> str:
        """One layer, never wider than the terminal: a line that wraps would break the way back up."""
        total = max(progress.total, 1)
        part = min(1.0, max(0.0, progress.done / total))
        filled = "#" * int(part * _BAR)
        bar = f" [{filled:<{_BAR}}]" if self._columns() >= _MIN_ROOM + _BAR + 3 else ""
        text = f"{name} {progress.phase:<11}{bar} {part:4.0%} {size(progress.done)}/{size(progress.total)}"
        return text[: max(1, self._columns() - 1)]


class CopyProgress:
    """How much has been copied, or what `doing` says, on one line; nothing is shown of what takes no time."""

    def __init__(
        self,
        stream: TextIO,
        doing: str = "copying",
        *,
        shown: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A line is for a terminal that can move its cursor; `shown` overrides what is found."""
        self._stream = stream
        self._doing = doing
        self._shown = stream.isatty() and os.environ.get("TERM") != "dumb" if shown is None else shown
        self._clock = clock
        self._began = self._last = clock()
        self._drawn = False
        self.copied = 0

    def __call__(self, count: int) -> None:
        """Take note of `count` bytes more."""
        self.copied += count
        if not self._shown:
            return
        now = self._clock()
        if now - self._began >= _PATIENCE and now - self._last >= _INTERVAL:
            self._last = now
            rate = size(int(self.copied / (now - self._began)))
            self._stream.write(f"\r{self._doing}: {size(self.copied)}, {rate}/s\x1b[K")
            self._stream.flush()
            self._drawn = True

    def close(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
