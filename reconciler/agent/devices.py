"""Wakes the loop when something appears where a device is missing. It reads nothing and decides nothing."""

import os
import select
import threading
from collections.abc import Callable

from reconciler.linux.inotify import IN_CREATE, IN_MOVED_TO, IN_ONLYDIR, inotify_add_watch, inotify_init


class DeviceWatch:
    """Watches the directories of the devices it was last told of; its thread is there only while one is missing."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._missing: frozenset[str] = frozenset()
        self._thread: threading.Thread | None = None
        self._stop = -1

    def watch(self, missing: frozenset[str]) -> None:
        """Watch exactly for these paths from now on. Where that can't be (no watches left), a later turn finds them."""
        if missing == self._missing:
            return
        self.close()
        self._missing = missing
        if not missing:
            return
        try:
            events = inotify_init()
        except OSError:
            return
        for directory in sorted({_nearest(path) for path in missing}):
            try:
                inotify_add_watch(events, directory, IN_CREATE | IN_MOVED_TO | IN_ONLYDIR)
            except OSError:
                continue
        stopped, self._stop = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, args=(events, stopped), name="devices", daemon=True)
        self._thread.start()
        if any(os.path.exists(path) for path in missing):
            self._wake()  # it appeared before it was watched

    def close(self) -> None:
        if self._thread is not None:
            os.close(self._stop)
            self._thread.join()
            self._thread = None
        self._missing = frozenset()

    def _run(self, events: int, stopped: int) -> None:
        poll = select.poll()
        poll.register(events, select.POLLIN)
        poll.register(stopped, select.POLLIN)
        try:
            while all(fd != stopped for fd, _ in poll.poll()):
                os.read(events, 65536)
                self._wake()
        finally:
            os.close(events)
            os.close(stopped)


def _nearest(path: str) -> str:
    """The nearest directory above `path` that exists."""
    while not os.path.isdir(path := os.path.dirname(path)):
        pass
    return path
