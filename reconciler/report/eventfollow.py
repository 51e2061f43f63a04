"""Following the event log: what it holds, then what comes, across rotations and whoever writes it. Reads only."""

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from reconciler.linux import inotify
from reconciler.report.events import parse_event, previous_of

_CHANGES: Final = inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_DELETE
_POLL_MS: Final = 500  # where the user's inotify watches are used up
_LONGEST_MS: Final = 3_600_000
_CHUNK: Final = 65536


class EventReader:
    """A place in the event log at `path`, which need not be there yet. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def advance(self) -> Iterator[dict[str, Any]]:
        """Yield the events that came since the last call; those that were rotated away unread are lost."""
        while True:
            if self._fd >= 0:
                yield from self._read()
                if self._is(self._path):
                    return
                yield from self._read()  # it may have been written to between reading it and being renamed
                if self._rest:
                    yield from self._lines(b"\n")  # the last writer was cut off in the middle of a line
            if not self._next():
                return

    def _next(self) -> bool:
        """Open the file that follows the one that is open; False where there is none yet."""
        previous = previous_of(self._path)
        order = (self._path,) if self._fd >= 0 and self._is(previous) else (previous, self._path)
        for path in order:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            self._close()
            self._fd, self._rest = fd, b""
            return True
        return False

    def _is(self, path: Path) -> bool:
        """Whether `path` names the file that is open."""
        try:
            there, mine = os.stat(path, follow_symlinks=False), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def _read(self) -> Iterator[dict[str, Any]]:
        while data := os.read(self._fd, _CHUNK):
            yield from self._lines(data)

    def _lines(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = parse_event(line)
            if event is not None:
                yield event


def follow_events(path: Path, *, until: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield every event that is kept, then those that come, until the wall time `until` or until the directory of the
    log goes away.
    """
    watch = -1
    poll = select.poll()
    try:
        timeout: int | None = None
        try:
            watch = inotify.inotify_init()
            inotify.inotify_add_watch(watch, str(path.parent), _CHANGES)
            poll.register(watch, select.POLLIN)
        except OSError:  # EMFILE, ENOSPC
            timeout = _POLL_MS
        with EventReader(path) as reader:
            while True:
                yield from reader.advance()
                if not path.parent.is_dir():
                    return
                wait = timeout
                if until is not None:
                    left = (until - time.time()) * 1000
                    if left <= 0:
                        return
                    wait = min(round(left) + 1, timeout or _LONGEST_MS)
                if poll.poll(wait) and watch >= 0:
                    os.read(watch, _CHUNK)
    finally:
        if watch >= 0:
            os.close(watch)
