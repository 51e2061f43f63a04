"""How much containers have written, by stream: counted from the indexes of their logs, as these grow.

An index carries over what files before it told of, so the one that is being written is enough, also for an agent that
has just started and for files that are long deleted. What the disk did not take counts too: the container wrote it.
Each index is read once, from where the last look ended; a look reads a bounded number of entries.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reconciler.shim import logindex
from reconciler.shim.logindex import SIZE, STDERR, STDOUT

LOOK: Final = 4096  # entries, about 3 ms: what one scrape may read; a flood makes some hundred in a second
_STREAMS: Final = {STDOUT: "stdout", STDERR: "stderr"}


class LogBytes:
    """The counts of several logs, by whatever name the caller has for them. Not thread-safe; close it."""

    def __init__(self) -> None:
        self._logs: dict[Path, _Log] = {}

    def close(self) -> None:
        """Let go of every descriptor."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def look(self, directories: Mapping[str, Path], *, limit: int = LOOK) -> bool:
        """Count what has come, at most `limit` entries in all; False if that was not everything.

        Logs that are not among `directories` are forgotten.
        """
        wanted = set(directories.values())
        for gone in self._logs.keys() - wanted:
            self._logs.pop(gone).close()
        left = limit
        for directory in directories.values():
            log = self._logs.get(directory)
            if log is None:
                log = self._logs[directory] = _Log(directory)
            left -= log.look(left)
            if left <= 0:
                return False
        return True

    def counts(self, directories: Mapping[str, Path]) -> dict[tuple[str, str], int]:
        """Bytes by (name, stream) as counted last; without those that have not been counted to the end once.

        A count never falls as long as the log is the same one.
        """
        return {
            (name, _STREAMS[stream]): count
            for name, directory in directories.items()
            if (log := self._logs.get(directory)) is not None and log.shown is not None
            for stream, count in log.shown.items()
        }


class _Log:
    """One container's log: the index that is being written, and how far it has been read."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / logindex.CURRENT_INDEX)
        self._fd = -1
        self._inode = 0
        self._position = SIZE
        self._sums = {STDOUT: 0, STDERR: 0}
        self._whole = False  # read to its end
        self.shown: dict[int, int] | None = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def look(self, limit: int) -> int:
        """Read on, at most `limit` entries; return how many that were."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
            if found.st_ino != self._inode:
                self._open()
            elif found.st_size < self._position + SIZE and self._whole:
                return 0
            data = os.pread(self._fd, limit * SIZE, self._position)
        except FileNotFoundError:  # between two renames of a rotation; or there is no log
            data = b""
        except OSError:  # EIO: what can't be read can't be counted
            return 0
        count = len(data) // SIZE
        for start in range(0, count * SIZE, SIZE):
            entry = logindex.unpack(data, start)
            if entry is not None:
                self._sums[entry[3]] += entry[2]
        self._position += count * SIZE
        self._whole = count < limit
        if self._whole:
            before = self.shown or self._sums
            self.shown = {stream: max(before[stream], self._sums[stream]) for stream in self._sums}
        return count

    def _open(self) -> None:
        self.close()
        self._inode, self._position = 0, SIZE
        self._sums = {STDOUT: 0, STDERR: 0}
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._inode = os.fstat(self._fd).st_ino
