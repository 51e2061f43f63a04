"""What is done once after a boot that the one before did not end in order: layers that came in then are read.

What a container needs is read by the pull of its image, on its own lane (`engine.doubt`); the rest here, on the
thread of the scrub, so that it is decided some time after the boot and not at a roll-back a month later.
"""

import threading
from collections.abc import Callable

from reconciler.engine import doubt
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store


def check(
    store: Store, layout: Layout, stopped: threading.Event, noted: Callable[[str, str, str], None]
) -> None:
    """Read every layer that is in doubt, and note that none is; `noted` is told what came of it, if there was any."""
    for chain in sorted(store.session.doubted(store.layers())):
        if stopped.is_set():
            return
        with store.adding():
            doubt.vet(store, layout, [doubt.chain_id(chain)])
    if store.session.doubted(store.layers()):
        return  # one is being read for a pull: the next start of the agent finds it done
    with store.committing():
        store.session.settle()
    found = store.session.checked
    if found.layers:
        noted(
            "checked",
            "store",
            f"the last boot did not end in order: {found.layers} layers ({found.bytes} bytes) that came in then were"
            f" read in {found.seconds:.1f} s, {found.wrong} wrong",
        )
