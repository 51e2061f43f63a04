"""How much room the state directory has, and what to say when there is none.

Part of it is kept free at all times: an agent that can't write its own state any more can't get out of a full disk.
"""

import errno
import os
from typing import Final

from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.errors import BlockedError, ReconcilerError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Room:
    """The file system of one state directory."""

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self._state = layout.state
        self._reserve = limits.reserve

    @property
    def free(self) -> int:
        """Bytes that may still be written, the reserve included."""
        found = os.statvfs(self._state)
        return found.f_bavail * found.f_frsize

    def ensure(self, more: int = 0) -> None:
        """Raise OSError(ENOSPC) where `more` bytes would leave less than the reserve."""
        if self.free - more < self._reserve:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def demand(self, needed: int, what: str) -> None:
        """Raise BlockedError unless `needed` bytes fit in besides the reserve."""
        if needed + self._reserve > self.free:
            raise self._blocked(needed + self._reserve, what)

    def explain(self, error: OSError, needed: int, what: str) -> ReconcilerError:
        """Turn a failed write into an error that says what to do; `needed` is the least that `what` takes."""
        if error.errno in _FULL:
            return self._blocked(needed + self._reserve, what)
        return ReconcilerError(f"{self._state}: {what}: {error.strerror or error}", transient=True)

    def _blocked(self, needed: int, what: str) -> BlockedError:
        return BlockedError(
            f"{self._state}: disk full: {what} needs more than {needed} bytes, {self.free} free",
            hint="make room, or run: reconciler gc",
            transient=True,
        )
