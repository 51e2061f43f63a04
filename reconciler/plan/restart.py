"""When to try again: the restart of a container that ended, and the next attempt of a lane that failed.

Time is an argument, and so the jitter comes from a hash of the name and the attempt: the same input gives the same
moment, and yet a hundred containers that died together do not come back together. Pure.
"""

import hashlib
import math
from signal import Signals

from reconciler.state.desired import RestartPolicy
from reconciler.state.process import ExitRecord

_FAILURE_DELAY = 1.0
_FAILURE_MAX_DELAY = 300.0
_FAILURE_JITTER = 0.1


def next_start(
    policy: RestartPolicy, attempt: int, record: ExitRecord, *, name: str, boot: str
) -> float | None:
    """Return the boottime at which the container `name` is due to start again, or None if it stays ended.

    `attempt` is how many restarts in a row led to the run that `record` tells of. Boottime does not go on counting
    across a reboot: a record of another boot than `boot` is due since boottime 0, that is at once. A program that was
    never started has not ended either: `no` and `on-failure` have no say in it, only the number of attempts has.
    """
    if record.started_boot is not None and (
        policy.policy == "no" or (policy.policy == "on-failure" and record.code == 0)
    ):
        return None
    if record.boot != boot:
        exhausted = policy.max_attempts and attempt >= policy.max_attempts
        return None if exhausted else 0.0
    done = 0 if _succeeded(policy, record) else attempt
    if policy.max_attempts and done >= policy.max_attempts:
        return None
    return record.finished_boot + restart_delay(policy, done + 1, name)


def next_attempt(policy: RestartPolicy, attempt: int, record: ExitRecord, *, boot: str) -> int:
    """Return the attempt number of the start after `record`: one more, or 1 after a run that counts as a success.

    The end of a boot is neither a success nor a failure: the number stays.
    """
    if record.boot != boot:
        return attempt
    return 1 if _succeeded(policy, record) else attempt + 1


def _succeeded(policy: RestartPolicy, record: ExitRecord) -> bool:
    if record.started_boot is None:
        return False
    return record.finished_boot - record.started_boot >= policy.reset_after


def restart_delay(policy: RestartPolicy, restart: int, name: str) -> float:
    """Return the seconds before the `restart`-th restart in a row (from 1), jitter included."""
    return _delay(policy.delay, policy.max_delay, policy.factor, restart) * _jitter(
        policy.jitter, name, restart
    )


def failure_delay(count: int, app: str) -> float:
    """Return the seconds before a lane that failed `count` times in a row is tried again: 1, 2, 4 ... 300, +-10 %."""
    return _delay(_FAILURE_DELAY, _FAILURE_MAX_DELAY, 2.0, count) * _jitter(_FAILURE_JITTER, app, count)


def _delay(delay: float, max_delay: float, factor: float, count: int) -> float:
    try:
        return min(max_delay, delay * float(factor) ** (count - 1))
    except OverflowError:
        return max_delay if delay else 0.0


def _jitter(fraction: float, name: str, count: int) -> float:
    """Return a factor in [1 - fraction, 1 + fraction] that only the arguments decide."""
    digest = hashlib.sha256(f"{name}\0{count}".encode()).digest()
    return 1.0 + fraction * (2.0 * int.from_bytes(digest[:8], "big") / 2**64 - 1.0)


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th ... 11th, 12th ..."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def countdown(until: float, now: float) -> str:
    """Return how long it is until then, in the words of `status`: whole seconds, rounded up."""
    seconds = max(0, math.ceil(until - now))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60} s" if seconds % 60 else f"{seconds // 60} min"


def ending(record: ExitRecord) -> str:
    """Return how it ended, with the code a shell would show: `exit 3`, `exit 137 (OOM)`, `exit 143 (SIGTERM)`."""
    if record.reason:
        return f"exit {record.code if record.signal is None else 128 + record.signal} ({record.reason})"
    if record.signal is None:
        text = f"exit {record.code}"
        return f"{text} (OOM)" if record.oom else text
    if record.oom:
        return f"exit {128 + record.signal} (OOM)"
    try:
        name = Signals(record.signal).name
    except ValueError:  # a real-time signal has no name of its own
        name = f"signal {record.signal}"
    return f"exit {128 + record.signal} ({name})"
