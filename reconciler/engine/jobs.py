"""Work that several may want at once: each piece runs once, in the order in which it was asked for, on few threads.

A piece is known by a key (a layer's chain id). Whoever asks for a key that is being worked on joins that work; when
the last one has left, it is told to stop. Knows nothing about images.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Job(Generic[K]):
    """One piece of work. `stop` is set when nobody waits for it any more; `error` is what it failed with."""

    def __init__(self, key: K, work: "Callable[[Job[K]], None]") -> None:
        self.key = key
        self.work = work
        self.stop = threading.Event()
        self.done = threading.Event()
        self.error: Exception | None = None
        self.waiters = 0


class Jobs(Generic[K]):
    """Runs jobs first come, first served, on at most `threads` threads, which end when there is nothing to do.

    Work may wait for jobs that were submitted before it: they are running or done when it runs.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running = 0
        self._lock = threading.Lock()
        self._queue: deque[Job[K]] = deque()
        self._jobs: dict[K, Job[K]] = {}

    def join(self, key: K, work: Callable[[Job[K]], None]) -> tuple[Job[K], bool]:
        """Return the job for `key` and whether it was made by this call; `leave` it once."""
        with self._lock:
            job = self._jobs.get(key)
            fresh = job is None
            if job is None:
                job = self._jobs[key] = Job(key, work)
                self._queue.append(job)
                if self._running < self._threads:
                    self._running += 1
                    threading.Thread(target=self._run, name="pull", daemon=True).start()
            job.waiters += 1
            return job, fresh

    def leave(self, job: Job[K]) -> None:
        """Stop waiting for `job`."""
        with self._lock:
            job.waiters -= 1
            if not job.waiters:
                job.stop.set()
                if self._jobs.get(job.key) is job:
                    del self._jobs[job.key]

    def stop(self) -> None:
        """Tell every job to stop."""
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running -= 1
                    return
                job = self._queue.popleft()
            try:
                job.work(job)
            except Exception as error:  # noqa: BLE001  raised again, as it is, in every thread that waits
                job.error = error
            with self._lock:
                if self._jobs.get(job.key) is job:
                    del self._jobs[job.key]
            job.done.set()
