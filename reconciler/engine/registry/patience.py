"""How long a registry may take over each stage, and how long we wait for it, in one frozen value."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, unless said otherwise. A stage that takes longer fails with a transient error."""

    connect: float = 10
    headers: float = 30  # from the request to the end of the answer's header, redirects included
    document: float = 60  # a whole manifest, config or token
    idle: float = 30  # between two pieces of a blob
    window: float = 60  # over which `rate` is measured
    rate: int = 1024  # bytes per second: slower is not a download but a held connection
    kept_after: float = 3  # a transfer that takes longer is kept on disk, to go on with after a restart
    jitter: float = (
        0.3  # part of a pause that is left to chance, so that a fleet does not come back all at once
    )
    retries: tuple[float, ...] = (0.5, 2.0, 5.0)  # pauses before trying a transient failure again
    retry_after: float = 30  # the longest wait that a registry can ask for inside one step
    resumes: int = 50  # times that one blob may break off, each with progress

    @classmethod
    def for_peers(cls) -> "Patience":
        """What a device on the same network gets, before somebody else is asked instead."""
        return cls(connect=2, headers=5, document=10, idle=10, window=15, rate=128 * 1024)

    def pause(self, attempt: int, asked: float) -> float:
        """Seconds to wait before the try that follows number `attempt` (from 0); never less than what was `asked`."""
        return max(asked, self.retries[attempt]) * (1 + random.uniform(0, self.jitter))
