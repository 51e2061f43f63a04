"""Several containers' logs as one, by time: what they hold now, then what comes. Reads only, as `logs`."""

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine import logs
from reconciler.engine.logs import Changes, Lines, Reader, Record, Stretches
from reconciler.errors import NotFoundError

Keep = Callable[[Record], bool]
_STREAMS = ("stdout", "stderr")
_LONGEST_MS = 3_600_000  # poll(2) takes an int; a time years away is waited for in pieces


@dataclass(frozen=True, slots=True)
class Log:
    """One log: its `directory`, and the pidfd of the shim that writes it, None where nothing will come any more."""

    directory: Path
    ended: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What is wanted of each log: the last `tail` lines that `keep` agrees to, from wall times `since` to `until`.

    With `raw` there are no lines: each record is what came at once, and `tail` is None or 0.
    """

    tail: int | None = None
    since: float | None = None
    until: float | None = None
    keep: Keep | None = None
    raw: bool = False

    def newest(self, records: Iterator[Record]) -> Iterator[Record]:
        """The last `tail` of those that are to be kept."""
        kept = records if self.keep is None else filter(self.keep, records)
        if self.raw:
            return kept  # from where reading began: nothing of what came since is to be lost
        return iter(kept if self.tail is None else deque(kept, maxlen=max(self.tail, 0)))


def read_all(found: Sequence[Log], window: Window) -> Iterator[tuple[int, Record]]:
    """Yield what the logs hold now, oldest first, each record with the number of its log in `found`.

    Raise NotFoundError where one of them is not there.
    """
    # With a filter the last lines are not the last that match: everything has to be looked at.
    tail = window.tail if window.keep is None else None
    return _merged(
        [
            (
                number,
                window.newest(logs.read(log.directory, tail=tail, since=window.since, until=window.until)),
            )
            for number, log in enumerate(found)
        ]
    )


def follow_all(found: Sequence[Log], window: Window) -> Iterator[tuple[int, Record]]:
    """Yield what the logs hold, then what comes, across rotations, each line once, as soon as it is complete.

    Ends when all have ended or are deleted, each after its last byte, or, with `until`, at that time. What the logs
    hold is in the order of time; what comes is in the order in which it is seen, and by time where several have
    something at once. With a `tail` of 0 that begins now, and not when the first record is asked for. A reader so slow
    that files are rotated away unread goes on with the oldest that is left. Raise NotFoundError where one of them is
    not there.
    """
    with ExitStack() as undo:
        followers = [undo.enter_context(_Follower(number, log, window)) for number, log in enumerate(found)]
        return _follow(followers, window, undo.pop_all())


def _follow(
    followers: Sequence["_Follower"], window: Window, stack: ExitStack
) -> Iterator[tuple[int, Record]]:
    with stack:
        yield from _merged([(one.number, one.backlog()) for one in followers])
        poll = select.poll()
        owners: dict[int, _Follower] = {}
        left = {one for one in followers if not one.over}
        for one in left:
            for fd in one.changes.descriptors:
                poll.register(fd, select.POLLIN)
                owners[fd] = one
        while left:
            timeout = min(
                [one.changes.timeout for one in left if one.changes.timeout is not None], default=None
            )
            if window.until is not None:
                rest = min(_LONGEST_MS, max(0, round((window.until - time.time()) * 1000) + 1))
                timeout = rest if timeout is None else min(timeout, rest)
            ready = {fd for fd, _ in poll.poll(timeout)}
            over = window.until is not None and time.time() > window.until
            awake = {owners[fd] for fd in ready} | {one for one in left if one.changes.timeout is not None}
            batches = []
            for one in sorted((left if over else awake & left), key=lambda one: one.number):
                more = one.changes.take(ready) and not over
                batches.append((one.number, iter(list(one.more(last=not more)))))
                if not more or one.reader.gone():
                    left.discard(one)
                    for fd in one.changes.descriptors:
                        poll.unregister(fd)
            yield from _merged(batches)


def _merged(parts: Sequence[tuple[int, Iterator[Record]]]) -> Iterator[tuple[int, Record]]:
    def numbered(number: int, records: Iterator[Record]) -> Iterator[tuple[int, Record]]:
        return ((number, record) for record in records)

    return heapq.merge(*(numbered(*part) for part in parts), key=lambda item: item[1].time_ns)


class _Follower:
    """One log that is being followed."""

    def __init__(self, number: int, log: Log, window: Window) -> None:
        self.number = number
        self.over = log.ended is None
        self._window = window
        try:
            self._fd = os.open(log.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{log.directory}: no log") from error
        held = Path(
            f"/proc/self/fd/{self._fd}"
        )  # the log may be renamed to `previous` while it is being read
        self.changes = Changes(held, log.ended)
        tail = window.tail if window.keep is None else None
        kind = Stretches if window.raw else Lines
        self.reader = Reader(held, kind(logs.selected(_STREAMS), window.since, window.until), tail)

    def __enter__(self) -> "_Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.changes.close()
        os.close(self._fd)

    def backlog(self) -> Iterator[Record]:
        parts = (self.reader.advance(), self.reader.finish() if self.over else ())
        return self._window.newest(record for part in parts for record in part)

    def more(self, *, last: bool) -> Iterator[Record]:
        """What is there by now; with `last` also lines whose newline will not come."""
        keep = self._window.keep or (lambda _: True)
        yield from filter(keep, self.reader.advance())
        if last:
            yield from filter(keep, self.reader.finish())
