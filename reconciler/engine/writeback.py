"""Writing out what is unpacked while unpacking goes on, so that the end of a layer waits for its last part only.

The kernel leaves written pages in memory for up to 30 seconds; a layer that is finished sooner would be written out as
a whole by the one syncfs that makes it durable, while nothing else is left to do. Nothing here makes anything durable
by itself: what was written out early is merely less to do at the end, and an error that comes up early is kept for it.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from reconciler.linux.path import syncfs

_INTERVAL: Final = 0.2  # seconds between two looks
_LEAST: Final = 8 << 20  # bytes, below which it is not worth a commit of the journal


class Writeback:
    """Writes out the file system of `directory` while `written` (bytes so far) goes on growing; a context manager.

    `turn` is shared by all that write to one store: one of them at a time does it for all. It works at most half of the
    time, so that a disk that is slow to sync is not kept busy with syncing.
    """

    def __init__(self, directory: int, written: Callable[[], int], turn: threading.Lock) -> None:
        # Of its own and from the beginning: syncfs reports to each open file what went wrong since it was opened.
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        self._written = written
        self._turn = turn
        self._done = 0
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writeback", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writeback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        os.close(self._fd)

    @property
    def alive(self) -> bool:
        """Whether it still writes out early: not once it has finished, or failed."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Write out the rest; raise OSError if any of it could not be, since the beginning."""
        self._end()
        if self._error is not None:
            raise self._error
        syncfs(self._fd)

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause = _INTERVAL
        while not self._stop.wait(pause):
            pause = _INTERVAL
            written = self._written()
            if written - self._done < _LEAST or not self._turn.acquire(blocking=False):
                continue
            began = time.monotonic()
            try:
                syncfs(self._fd)
            except OSError as error:
                self._error = error
                return
            finally:
                self._turn.release()
            self._done = written
            pause = max(_INTERVAL, time.monotonic() - began)
