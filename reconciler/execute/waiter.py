"""One thread that waits for processes to end or deadlines to pass, so that no lane holds a worker while it
waits.

It knows descriptors and times, not containers.
"""

import os
import select
import threading
import time
from collections.abc import Callable


class Waiter:
    """Calls back once per `wait`, from its own thread, when the descriptor is readable or the deadline is
    over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[float, Callable[[], None]]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closed = False
        self._thread: threading.Thread | None = None

    def wait(self, fd: int, deadline: float, done: Callable[[], None]) -> None:
        """Take over `fd`;

        close it and call `done` when it is readable or at `deadline` (time.monotonic()).
        """
        with self._lock:
            self._waiting[fd] = (deadline, done)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="waiter", daemon=True)
                self._thread.start()
        self._poke()

    def close(self) -> None:
        """Stop waiting; callbacks that have not come will not come."""
        self._closed = True
        self._poke()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for fd in self._waiting:
                os.close(fd)
            self._waiting.clear()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _poke(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                waiting = dict(self._waiting)
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            for fd in waiting:
                poll.register(fd, select.POLLIN)
            timeout = None
            if waiting:
                nearest = min(deadline for deadline, _ in waiting.values())
                timeout = max(0.0, nearest - time.monotonic()) * 1000 + 1
            ready = {fd for fd, _ in poll.poll(timeout)}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            now = time.monotonic()
            for fd, (deadline, done) in waiting.items():
                if fd in ready or deadline <= now:
                    with self._lock:
                        del self._waiting[fd]
                    os.close(fd)
                    done()
