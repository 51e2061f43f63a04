"""Reading a container's log: lines with their time and stream, the last few of a huge one, or as they come.

Reads only, and needs neither the shim nor the agent: the files are enough, whole or not. `shim.logindex` describes
them. Bytes become lines here, per stream: what the container wrote in two halves is one record.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine.layout import Layout
from reconciler.engine.logsegment import Segment, current_sequence, open_segment, sequences
from reconciler.errors import NotFoundError
from reconciler.linux import inotify
from reconciler.shim.logindex import CONTINUES, DROPPED, PARTIAL, RECOVERED, STDERR, STDOUT, TOTAL, Entry

_NUMBERS = {"stdout": STDOUT, "stderr": STDERR}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_LONGEST_LINE = 256 * 1024
_EVERYTHING = 1 << 62
_CHANGES = inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_DELETE
_POLL_MS = 250


@dataclass(frozen=True, slots=True)
class Record:
    """One line: `time_ns` is the wall clock when its first byte was read, `data` has no newline.

    `partial` says that no newline ended it: the container stopped there, something was lost, or the line is longer
    than 256 KiB and goes on in the next record of its stream. Where `dropped` is not 0, that many bytes were lost
    at this place, and `data` is empty.
    """

    time_ns: int
    stream: str
    data: bytes
    partial: bool
    dropped: int = 0


def read(
    directory: Path,
    *,
    tail: int | None = None,
    since: float | None = None,
    until: float | None = None,
    streams: tuple[str, ...] = ("stdout", "stderr"),
) -> Iterator[Record]:
    """Yield what the log holds now, oldest first: at most the last `tail`, from wall times `since` to `until`.

    Raise NotFoundError where there is no log at all.
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory}: no log")
    reader = Reader(directory, Lines(selected(streams), since, until), tail)
    try:
        records = (record for part in (reader.advance(), reader.finish()) for record in part)
        yield from records if tail is None else deque(records, maxlen=max(tail, 0))
    finally:
        reader.close()


def size(directory: Path) -> int:
    """Bytes of the log on disk, index included; 0 where there is none."""
    total = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_size if entry.is_file() else 0
    except (FileNotFoundError, NotADirectoryError):
        return total
    return total


def selected(streams: tuple[str, ...]) -> frozenset[int]:
    """The numbers of streams by name."""
    return frozenset(_NUMBERS[name] for name in streams)


class Changes:
    """Tells when a log may have changed, without asking again and again where the kernel has an inotify watch to spare.

    `descriptors` become readable then; where `timeout` is set, one has to look after so many ms, too.
    """

    def __init__(self, directory: Path, ended: int | None) -> None:
        self._ended = ended
        self.timeout: int | None = None
        self._inotify = -1
        try:
            self._inotify = inotify.inotify_init()
            inotify.inotify_add_watch(self._inotify, str(directory), _CHANGES)
        except OSError:  # EMFILE, ENOSPC: the user's instances or watches are used up
            self.timeout = _POLL_MS

    def close(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)

    @property
    def descriptors(self) -> list[int]:
        return [fd for fd in (self._ended, self._inotify) if fd is not None and fd >= 0]

    def take(self, ready: set[int]) -> bool:
        """Take note of what is readable; return False when nothing will come after what is there now."""
        if self._inotify in ready:
            os.read(self._inotify, 65536)
        return self._ended not in ready


class Lines:
    """Puts the stretches of each stream together to lines, and keeps those that were asked for."""

    def __init__(self, streams: frozenset[int], since: float | None, until: float | None) -> None:
        self.streams = streams
        self.cut = (
            False  # True where reading began somewhere inside the log, so that a first half may be missing
        )
        self._since = 0 if since is None else round(since * 1e9)
        self._until = _EVERYTHING if until is None else round(until * 1e9)
        self._open: dict[int, tuple[int, bytearray]] = {}
        self._skipping: set[int] = set()
        self._seen: set[int] = set()

    def wants(self, entry: Entry) -> bool:
        """Say whether the bytes of `entry` are needed; a line belongs to the time at which it began."""
        wall, _, _, stream, flags = entry
        if stream not in self.streams:
            return False
        if flags & DROPPED:
            return self._since <= wall <= self._until
        if self.cut and stream not in self._seen and flags & CONTINUES:
            self._skipping.add(stream)
        self._seen.add(stream)
        if stream in self._open or self._since <= wall <= self._until:
            return True
        if flags & PARTIAL:
            self._skipping.add(stream)
        else:
            self._skipping.discard(stream)
        return False

    def feed(self, entry: Entry, data: bytes) -> Iterator[Record]:
        """Take more bytes of a wanted entry; yield the lines that they complete."""
        wall, _, _, stream, _ = entry
        if stream in self._skipping:
            _, newline, data = data.partition(b"\n")
            if not newline:
                return
            self._skipping.discard(stream)
        *lines, rest = data.split(b"\n")
        for line in lines:
            began, start = self._open.pop(stream, (wall, b""))
            if self._since <= began <= self._until:
                yield Record(began, _NAMES[stream], bytes(start) + line, False)
        if not rest:
            return
        began, start = self._open.setdefault(stream, (wall, bytearray()))
        start += rest
        if len(start) >= _LONGEST_LINE:
            yield from self.flush(stream)

    def flush(self, stream: int) -> Iterator[Record]:
        """Give up waiting for the newline of the line that is open on `stream`."""
        if stream in self._open:
            began, start = self._open.pop(stream)
            if self._since <= began <= self._until:
                yield Record(began, _NAMES[stream], bytes(start), True)

    def lost(self, entry: Entry, count: int) -> Iterator[Record]:
        """Tell that `count` bytes are missing here."""
        wall, _, _, stream, _ = entry
        yield from self.flush(stream)
        yield Record(wall, _NAMES[stream], b"", False, dropped=count)


class Stretches(Lines):
    """Passes on the stretches as they are, each as a `partial` record: for who shows bytes and waits for no newline."""

    def wants(self, entry: Entry) -> bool:
        return entry[3] in self.streams and self._since <= entry[0] <= self._until

    def feed(self, entry: Entry, data: bytes) -> Iterator[Record]:
        yield Record(entry[0], _NAMES[entry[3]], data, True)


class Reader:
    """A place in the log, and the way on from it."""

    def __init__(self, directory: Path, lines: Lines, tail: int | None) -> None:
        self._directory = directory
        self._lines = lines
        self._segment: Segment | None = None
        self._sequence = 0  # of the segment that was read last
        self._number = 0  # the next entry, counting what is not valid
        self._expected: int | None = 0  # where its bytes should begin; None where any place will do
        self._last = (0, 0, 0, STDOUT, 0)
        if tail is not None and (place := _place(directory, tail, lines.streams)) is not None:
            sequence, number = place
            self._segment = open_segment(directory, sequence)
            self._sequence, self._number, self._expected = sequence, number, None
            lines.cut = True

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()

    def advance(self) -> Iterator[Record]:
        """Yield what can be read now."""
        while True:
            if self._segment is not None:
                yield from self._stretches(self._segment)
                if not self._superseded():
                    return
                # it may have been written to between reading it and being rotated
                self._segment.current = False
                yield from self._stretches(self._segment)
            if not self._next():
                return

    def finish(self) -> Iterator[Record]:
        """Yield the lines whose newline will not come."""
        for stream in sorted(self._lines.streams):
            yield from self._lines.flush(stream)

    def gone(self) -> bool:
        """Say whether a log that was there has been deleted. Our own open directory keeps IN_DELETE_SELF away."""
        return self._sequence > 0 and not sequences(self._directory)

    def _superseded(self) -> bool:
        return self._segment is None or any(number > self._sequence for number in sequences(self._directory))

    def _next(self) -> bool:
        # A listing made during a rotation may lack the very file that is being renamed: ask for the next one by name.
        following = self._sequence + 1
        if self._opened(following):
            return True
        if following == current_sequence(self._directory):
            return False  # its log is about to appear
        return any(self._opened(number) for number in sequences(self._directory) if number > following)

    def _opened(self, sequence: int) -> bool:
        segment = open_segment(self._directory, sequence)
        if segment is None:
            return False
        self.close()
        self._segment, self._sequence = segment, sequence
        self._number, self._expected = 0, 0
        return True

    def _stretches(self, segment: Segment) -> Iterator[Record]:
        for number, entry in segment.entries(self._number):
            _, offset, length, _, flags = entry
            self._number = number + 1
            if flags & TOTAL:
                continue
            if flags & DROPPED:
                if self._lines.wants(entry):
                    yield from self._lines.lost(entry, length)
                continue
            if self._expected is not None and offset > self._expected:
                yield from self._recovered(segment, offset - self._expected)
            if self._expected is not None and offset < self._expected:
                continue  # an older entry's bytes, seen already
            self._expected = offset + length
            self._last = entry
            if self._lines.wants(entry):
                yield from self._bytes(segment, entry)
        size = segment.size()
        if self._expected is not None and segment.orphaned() and (size is None or size > self._expected):
            yield from self._recovered(segment, _EVERYTHING if size is None else size - self._expected)

    def _recovered(self, segment: Segment, length: int) -> Iterator[Record]:
        """Read bytes that no entry claims: as old as those before, on an unknown stream, which counts as stdout."""
        wall, stream, offset = self._last[0], STDOUT, self._expected or 0
        self._expected = offset + length
        entry = (wall, offset, length, stream, RECOVERED)
        if self._lines.wants(entry):
            yield from self._bytes(segment, entry)

    def _bytes(self, segment: Segment, entry: Entry) -> Iterator[Record]:
        _, offset, length, _, flags = entry
        size = segment.size()
        there = length if size is None else max(0, min(length, size - offset))
        done = 0
        for data in segment.read(offset, there):
            done += len(data)
            yield from self._lines.feed(entry, data)
        if done < length and not flags & RECOVERED:
            yield from self._lines.lost(entry, length - done)


def _place(directory: Path, lines: int, streams: frozenset[int]) -> tuple[int, int] | None:
    """Find an entry from which the last `lines` lines of `streams` can be read whole; None for the very beginning.

    Walks backwards over the index and counts newlines in the bytes, so that the end of a huge log is cheap.
    """
    found = 0
    broken: set[int] = set()  # streams whose first line from here on began before
    for sequence in reversed(sequences(directory)):
        segment = open_segment(directory, sequence)
        if segment is None:
            continue
        try:
            if segment.compressed or not segment.count():
                found += _scan(segment, streams, broken)
                if found >= lines and not broken and segment.count():
                    return sequence, 0
                continue
            if lines == 0:
                return sequence, segment.count()
            for number, (_, offset, length, stream, flags) in segment.entries_backwards():
                if stream not in streams or flags & (DROPPED | TOTAL):
                    continue
                if flags & CONTINUES:
                    broken.add(stream)
                else:
                    broken.discard(stream)
                found += sum(data.count(b"\n") for data in segment.read(offset, length))
                if found >= lines and not broken:
                    return sequence, number
        finally:
            segment.close()
    return None


def _scan(segment: Segment, streams: frozenset[int], broken: set[int]) -> int:
    """Count the newlines of a segment that can only be read forwards, and say in `broken` how its streams begin."""
    found = 0
    seen: set[int] = set()
    for _, (_, offset, length, stream, flags) in segment.entries():
        if stream not in streams or flags & (DROPPED | TOTAL):
            continue
        if stream not in seen:
            seen.add(stream)
            if flags & CONTINUES:
                broken.add(stream)
            else:
                broken.discard(stream)
        found += sum(data.count(b"\n") for data in segment.read(offset, length))
    return found


def log_driver(layout: Layout, container_id: str) -> str:
    """The log driver of a container, "" where its config.json is gone or damaged."""
    try:
        annotations = json.loads(layout.config(container_id).read_bytes())["annotations"]
        return str(json.loads(annotations["dev.reconciler.log"])["driver"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
