"""Whose turn it is: of several threads that unpack layers one works at a time, and the others wait in line.

Unpacking is short calls of the kernel with a little Python between them. Two threads at it at once take the interpreter
lock from each other tens of thousands of times, and need a third more time of the processors, and of the clock, for the
same work. What leaves that lock alone for long (downloading, inflating, hashing, syncing) needs no turn.
"""

import threading
import time
from collections import deque
from typing import Final

_SLICE: Final = 2.0  # seconds that one works while others wait: their servers should not wait for long


class Turn:
    """One turn, taken in order. Thread-safe."""

    def __init__(self, seconds: float = _SLICE) -> None:
        self._slice = seconds
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False
        self._since = 0.0

    def take(self) -> None:
        """Wait for the turn. Who has it already must not ask again."""
        with self._lock:
            if not self._taken:
                self._taken = True
                self._since = time.monotonic()
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def give(self) -> None:
        """Let the next one have it."""
        with self._lock:
            self._since = time.monotonic()
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    def share(self) -> None:
        """Go to the end of the line where others have waited for long enough; only for who has the turn."""
        if self._waiting and time.monotonic() - self._since > self._slice:
            self.give()
            self.take()
