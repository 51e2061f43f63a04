"""Wakes the loop when a shim ends:

one thread that polls the pidfds of all shims. It reads nothing and decides nothing.
"""

import os
import select
import threading
from collections.abc import Callable

from reconciler.engine.process import ProcessId, open_pidfd


class ExitWatch:
    """Watches the shims it was last told of; calls `wake` from its own thread once per end."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._wanted: dict[ProcessId, int] = {}
        self._ended: set[ProcessId] = set()
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="exits", daemon=True)
        self._thread.start()

    def watch(self, wanted: frozenset[ProcessId]) -> None:
        """Watch exactly these shims, which were alive a moment ago; one that has ended since wakes at once."""
        ended = False
        with self._lock:
            self._ended &= wanted
            gone = self._wanted.keys() - wanted
            fresh = wanted - self._wanted.keys() - self._ended
            for process in gone:
                os.close(self._wanted.pop(process))
            for process in fresh:
                pidfd = open_pidfd(process)
                if pidfd is not None:
                    self._wanted[process] = pidfd
                else:
                    self._ended.add(process)
                    ended = True
        if gone or fresh:
            self._poke()
        if ended:
            self._wake()

    def close(self) -> None:
        self._closed = True
        self._poke()
        self._thread.join()
        for fd in (*self._wanted.values(), self._read, self._write):
            os.close(fd)

    def _poke(self) -> None:
        try:
            os.write(self._write, b"x")
        except BlockingIOError:
            pass  # it has been woken already

    def _run(self) -> None:
        while not self._closed:
            poll = select.poll()
            poll.register(self._read, select.POLLIN)
            with self._lock:
                owners = {fd: process for process, fd in self._wanted.items()}
                for fd in owners:
                    poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if self._read in ready:
                os.read(self._read, 4096)
            with self._lock:
                # A descriptor that was closed meanwhile may have been given away again: look at who owns it now.
                ended = [
                    process
                    for fd, process in owners.items()
                    if fd in ready and self._wanted.get(process) == fd
                ]
                for process in ended:
                    os.close(self._wanted.pop(process))
                    self._ended.add(process)
            if ended:
                self._wake()
