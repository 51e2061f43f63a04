"""Limits of containers' own file systems where the kernel counts nothing: measured on a thread of its own.

What has reached its limit is ended, with its grace; what comes then is its restart policy's. The pause between two
looks is long against what a look takes, so that a large layer costs a small part of one CPU, and no look is made while
nobody has such a limit.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from reconciler.engine import rootfslimit
from reconciler.engine.layout import Layout
from reconciler.engine.snapshot import Uppers
from reconciler.errors import ReconcilerError
from reconciler.state.observed import Container, Running

_EVERY: Final = 5.0  # seconds
_COUNTED: Final = 60.0  # where the kernel keeps limits there is nothing to see, unless quotas are turned off
_SHARE: Final = 20  # a pause is at least so many times what the look took


class OverfullWatch:
    """Looks at the containers that it was last told of; tells `noted` (app, text) of each that it ends."""

    def __init__(self, layout: Layout, noted: Callable[[str, str], None], *, every: float = _EVERY) -> None:
        self._layout = layout
        self._noted = noted
        self._every = every
        self._uppers = Uppers(layout)
        self._wanted: tuple[Container, ...] = ()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._ending: set[str] = set()
        self._troubled: set[str] = set()

    def watch(self, containers: Iterable[Container]) -> None:
        """Look at exactly these of them that run and have a limit."""
        wanted = tuple(
            container
            for container in containers
            if container.settings.limits.rootfs is not None
            and isinstance(container.phase, Running)
            and not container.paused
        )
        with self._changed:
            fresh = {one.id for one in wanted} - {one.id for one in self._wanted}
            self._wanted = wanted
            self._ending &= {one.id for one in wanted}  # one that keeps its id may run, and write, again
            if wanted and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="overfull", daemon=True)
                self._thread.start()
            if fresh:
                self._changed.notify()

    def close(self) -> None:
        """Look no more. What is being ended is ended: its grace is not waited for here."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._wanted) or self._closed)
                wanted = self._wanted
            began = time.monotonic()
            for container in wanted:
                if self._closed:
                    return
                self._look(container)
            pause = max(self._every, _SHARE * (time.monotonic() - began))
            if rootfslimit.counts(self._layout, self._uppers):
                pause = max(pause, _COUNTED)
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, pause):
                    return

    def _look(self, container: Container) -> None:
        limit = container.settings.limits.rootfs
        if limit is None or container.id in self._ending:
            return
        try:
            why = rootfslimit.check(self._layout, self._uppers, container.id, limit)
        except OSError as error:
            if container.id not in self._troubled:
                self._troubled.add(container.id)
                text = f"{container.full_name}: limits.rootfs can't be measured: {error.strerror}"
                self._noted(container.app, text)
            return
        self._troubled.discard(container.id)
        if why:
            self._ending.add(container.id)
            threading.Thread(
                target=self._end, args=(container, why), name="overfull-end", daemon=True
            ).start()

    def _end(self, container: Container, why: str) -> None:
        """On a thread of its own: a grace may be long, and the next one is not to wait for it."""
        try:
            settings = container.settings
            self._noted(container.app, f"end {container.full_name}: {why}")
            rootfslimit.finish(self._layout, container.id, settings.stop_signal, settings.stop_grace, why)
        except (OSError, ReconcilerError) as error:
            self._noted(container.app, f"{container.full_name}: {why}, and it does not end: {error}")
            self._ending.discard(container.id)
