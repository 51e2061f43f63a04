"""The thread that deletes what was thrown away, so that no lane and no turn waits for it.

Whatever is removed is renamed into the trash at once; taking it apart may take seconds. It is safe to interrupt: what
is left is taken by the next turn, also of another agent. It knows nothing of what it deletes.
"""

import threading
from collections.abc import Callable

from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError


class Sweeper:
    """Empties one store's trash in the background, at most once at a time. `failed` hears why it could not."""

    def __init__(self, store: Store, failed: Callable[[str], None]) -> None:
        self._store = store
        self._failed = failed
        self._thread: threading.Thread | None = None

    def sweep(self) -> None:
        """Begin to empty the trash if there is any; returns at once."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._store.has_trash():
            # A daemon: whoever ends the agent does not wait for a large image to be deleted.
            self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._store.empty_trash()
        except (OSError, ReconcilerError) as error:
            self._failed(f"trash: {error}")
