"""What a pull tells of itself while it runs. Values only; how it looks is the listener's affair."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from reconciler.spec.reference import Digest


class Phase(StrEnum):
    """Where a layer stands."""

    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"  # everything has arrived, files are still being written
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One layer's progress: packed bytes, of them `resumed` after a transfer had broken off."""

    layer: Digest
    done: int
    total: int
    phase: Phase
    resumed: int = 0


Listener = Callable[[Progress], None]
