"""Notices bundles that appear: a stick that is mounted, a directory that is made, a layout that is being filled.

One thread, which sleeps in poll(2): /proc/self/mountinfo tells of mounts (POLLPRI; inotify does not), inotify of what
is made where a match could appear. Neither holds a mount: it can be taken away at any time. What a network file system
changes elsewhere nobody tells of; there the ordinary tries have to do. It decides nothing, and reads no more than each
index.json.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from reconciler.engine.bundlepath import BundlePath, opened
from reconciler.engine.oci_layout import index_in
from reconciler.errors import ReconcilerError
from reconciler.linux.inotify import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_IGNORED,
    IN_MASK_ADD,
    IN_MOVED_TO,
    IN_ONLYDIR,
    inotify_add_watch,
    inotify_events,
    inotify_init,
)

_OUTSIDE: Final = IN_CREATE | IN_MOVED_TO | IN_ONLYDIR | IN_MASK_ADD
_INSIDE: Final = IN_MOVED_TO | IN_CLOSE_WRITE | IN_CREATE | IN_ONLYDIR | IN_MASK_ADD
_QUIET: Final = 0.1  # seconds without an event, after which what belongs together is there ...
_MOST: Final = 3.0  # ... or so many since the first
_GONE: Final = 5.0  # seconds that ending waits for a file system which does not answer


@dataclass(frozen=True, slots=True)
class _Seen:
    """A bundle's directory, and its index.json (inode, time, size), None where it has none (yet)."""

    directory: tuple[int, int]
    index: tuple[int, int, int] | None


class BundleWatch:
    """Watches the entries of `bundles`; calls back from its own thread.

    `noted(path, text)` hears of each layout that appears or goes, once; `changed()` is called when an image may be
    there that was not. Where nothing can be watched (no watches left) `noted` hears of that.
    """

    def __init__(
        self, patterns: Sequence[str], noted: Callable[[str, str], None], changed: Callable[[], None]
    ) -> None:
        self._entries = [BundlePath(pattern) for pattern in patterns]
        self._noted = noted
        self._changed = changed
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
        self.watching = threading.Event()  # set once what appears is noticed
        self._inside: set[int] = set()  # the watches of what is within a bundle
        self._thread = threading.Thread(target=self._run, name="bundles", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stop)
        self._thread.join(_GONE)

    def __enter__(self) -> "BundleWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        events = -1
        poll = select.poll()
        poll.register(self._stopped, select.POLLIN)
        poll.register(mounts, select.POLLPRI)
        try:
            try:
                events = inotify_init()
                poll.register(events, select.POLLIN)
            except OSError as error:
                self._noted("bundles", f"bundles: only mounts are noticed at once, not files: {error}")
            before = dict(self._look(events))
            self.watching.set()
            while True:
                told, filled = {fd for fd, _ in poll.poll()}, False
                first = time.monotonic()
                while told and self._stopped not in told and time.monotonic() - first < _MOST:
                    if events in told:
                        filled |= self._read(events)
                    told = {fd for fd, _ in poll.poll(_QUIET * 1000)}  # a mount is one event, a copy has many
                if self._stopped in told:
                    return
                after = dict(self._look(events))
                if self._tell(before, after) or filled:
                    self._changed()
                before = after
        finally:
            for fd in (mounts, events, self._stopped):
                if fd >= 0:
                    os.close(fd)

    def _read(self, events: int) -> bool:
        """Take events in; return whether one is from within a bundle."""
        filled = False
        with suppress(BlockingIOError):
            for watch, mask in inotify_events(os.read(events, 65536)):
                if mask & IN_IGNORED:
                    self._inside.discard(watch)
                filled |= watch in self._inside
        return filled

    def _tell(self, before: dict[str, _Seen], after: dict[str, _Seen]) -> bool:
        """Tell of what came and went; return whether anything came."""
        for path, seen in sorted(before.items()):
            if path not in after and seen.index:
                self._noted(path, f"bundle {_shown(path)}: gone")
        for path, seen in sorted(after.items()):
            known = before.get(path)
            if seen.index and (known is None or not known.index or known.directory != seen.directory):
                self._noted(path, f"bundle {_shown(path)}: appeared, {_content(path)}")
        return any(before.get(path) != seen for path, seen in after.items())

    def _look(self, events: int) -> Iterator[tuple[str, _Seen]]:
        """The bundles that are there, by path; from now on, what could make more of them is watched."""
        for entry in self._entries:
            for way in entry.waypoints():
                self._watch(events, way, _OUTSIDE)
            for path, root in entry.directories():
                self._inside.add(self._watch(events, root, _INSIDE))
                for inner in ("blobs", "blobs/sha256", "blobs/sha512"):
                    with suppress(OSError):
                        fd = opened(root, inner)
                        self._inside.add(self._watch(events, fd, _INSIDE))
                        os.close(fd)
                with suppress(OSError):
                    directory = os.fstat(root)
                    index = None
                    with suppress(FileNotFoundError):
                        status = os.stat("index.json", dir_fd=root, follow_symlinks=False)
                        index = (status.st_ino, status.st_mtime_ns, status.st_size)
                    yield path, _Seen((directory.st_dev, directory.st_ino), index)

    def _watch(self, events: int, directory: int, mask: int) -> int:
        """Have `mask` of an open directory reported; return the watch, -1 where that can't be."""
        if events >= 0:
            with suppress(OSError):  # no watches left: a mount, or a later try, finds it
                return inotify_add_watch(events, f"/proc/self/fd/{directory}", mask)
        return -1


def _content(path: str) -> str:
    """What an index.json says of itself, in words: it is a stranger's, and nothing goes by it."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return (error.strerror or "").lower()
    try:
        count = len(index_in(root, _shown(path)).children("manifests") or [])
    except ReconcilerError as error:
        return f"with an index that can't be read ({error}): asked by digest all the same"
    finally:
        os.close(root)
    return f"{count} image{'' if count == 1 else 's'}"


def _shown(path: str) -> str:
    """A path fit for one line: its parts may be a stick's own name."""
    return path if path.isprintable() else ascii(path)
