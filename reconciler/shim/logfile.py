"""A container's log as its shim writes it: straight from the pipe to the disk, indexed, rotated, never in the way.

The container must not block because of its log, and nothing may vanish silently: what the disk does not take (full,
failing, read-only, deleted) is drained and counted, the count goes into the index as soon as the disk takes entries
again. The format is `shim.logindex`'s. Not synced: after a power cut the container is a new one, with a new log.
Bytes go from pipe to page cache by splice, so that a flood costs one copy in the kernel and none here.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable

from reconciler.shim import logindex
from reconciler.shim.logindex import (
    CONTINUES,
    CURRENT_INDEX,
    CURRENT_LOG,
    DROPPED,
    JUMP,
    PARTIAL,
    SIZE,
    TOTAL,
)

PIPE_SIZE = 512 * 1024
_JUMP_NS = 1_000_000_000
_SHORT_LIVED = 10.0
_LEAST_SIZE = 4096
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Discard:
    """The driver `none`: takes everything out of the pipes and keeps nothing but the counts."""

    def __init__(self) -> None:
        self.bytes = {logindex.STDOUT: 0, logindex.STDERR: 0}
        self.dropped = 0
        self.error = 0
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def take(self, pipe: int, stream: int) -> int:
        """Empty `pipe` into nothing: bytes taken, 0 at its end; BlockingIOError where it holds nothing."""
        count = drain(pipe, self._null)
        self.bytes[stream] += count
        return count

    def configure(self, max_size: int, max_files: int, compress: bool) -> None:
        """Nothing is kept, so nothing rotates."""

    def close(self) -> None:
        os.close(self._null)


class LogFile:
    """The driver `file`: `take` moves what a pipe holds into current.log and notes it in current.idx.

    `opened` comes from `shim.logopen`. `max_size` bounds one pair of log and index in bytes, `max_files` the number of
    pairs. `compress` is called with the sequence numbers of rotated files that are still plain, for somebody else to
    compress.
    """

    def __init__(
        self,
        opened: tuple[int, int, int, int],
        *,
        max_size: int,
        max_files: int,
        compress: Callable[[list[int]], None] | None = None,
    ) -> None:
        self._directory, self._log, self._index, self.sequence = opened
        self.bytes = {logindex.STDOUT: 0, logindex.STDERR: 0}
        self.dropped = 0  # bytes lost in all, and in `_unnoted` those the index does not yet tell of
        self.error = 0  # errno of the last write that failed, 0 when the last one succeeded
        self._unnoted = {logindex.STDOUT: 0, logindex.STDERR: 0}
        self._compress = compress
        self.configure(max_size, max_files, compress is not None)
        self._within_line = {logindex.STDOUT: False, logindex.STDERR: False}
        self._pending: list[
            bytes
        ] = []  # entries whose bytes are in the log, and which the index did not take yet
        self._renames: list[tuple[str, str]] = []  # what is left to do of a rotation
        self._splice = True
        self._end = self._entries = self._carried = 0
        self._next = (-1, -1)
        self._born = time.monotonic()
        self._clock = (time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def configure(self, max_size: int, max_files: int, compress: bool) -> None:
        """Change the rotation; counts from the next write on."""
        self.max_size = max(max_size, _LEAST_SIZE)
        self.max_files = max(max_files, 1)
        self._compressing = compress

    def close(self) -> None:
        """Note what is still unnoted, if the disk takes it, and let go."""
        try:
            self._note_dropped()
            self._flush()
        except OSError as error:
            self.error = error.errno or 0
        for fd in (
            self._log,
            self._index,
            self._directory,
            self._null,
            *(self._next if self._renames else ()),
        ):
            os.close(fd)

    def take(self, pipe: int, stream: int) -> int:
        """Move what `pipe` holds into the log: bytes taken, 0 at its end; BlockingIOError where it holds nothing.

        The bytes leave the pipe in any case.
        """
        try:
            self._make_room()
            self._flush()
            self._note_dropped()
            count = self._move(pipe, stream)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = error.errno or 0
            count = drain(pipe, self._null)
            self._lost(stream, count)
        self.bytes[stream] += count
        return count

    def _lost(self, stream: int, count: int) -> None:
        self.dropped += count
        self._unnoted[stream] += count
        self._within_line[stream] = False  # whatever line this was in is torn now

    def _move(self, pipe: int, stream: int) -> int:
        room = min(PIPE_SIZE, self.max_size - self._used() - SIZE)
        count = 0
        if self._splice:
            try:
                count = os.splice(pipe, self._log, room, offset_dst=self._end, flags=_FLAGS)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._splice = False  # this file system can't
        if self._splice:
            lost = 0
        else:
            count, lost = self._copy(pipe, room)
        if count:
            self._indexed(stream, count)
        if lost:
            self._lost(stream, lost)
        return count + lost

    def _copy(self, pipe: int, room: int) -> tuple[int, int]:
        """Do what splice does, by hand: bytes written, bytes lost."""
        data = os.read(pipe, room)
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._log, data[done:], self._end + done)
        except OSError as error:
            self.error = error.errno or 0
        return done, len(data) - done

    def _indexed(self, stream: int, count: int) -> None:
        flags = CONTINUES if self._within_line[stream] else 0
        whole = os.pread(self._log, 1, self._end + count - 1) == b"\n"
        self._within_line[stream] = not whole
        self._pending.append(self._entry(self._end, count, stream, flags if whole else flags | PARTIAL))
        self._end += count
        try:
            self._flush()
            self.error = 0
        except OSError as error:  # the bytes are in: the entry waits, and nothing goes in before it
            self.error = error.errno or 0

    def _entry(self, offset: int, length: int, stream: int, flags: int) -> bytes:
        wall, boot = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        drift = (wall - self._clock[0]) - (boot - self._clock[1])
        if not -_JUMP_NS < drift < _JUMP_NS:
            flags |= JUMP
        self._clock = (wall, boot)
        return logindex.pack(wall, offset, length, stream, flags)

    def _note_dropped(self) -> None:
        for stream, count in self._unnoted.items():
            if count:
                self._pending.append(self._entry(self._end, count, stream, DROPPED))
                self._unnoted[stream] = 0
                self._flush()

    def _flush(self) -> None:
        """Write the entries that wait. Positions are absolute, so that a torn write is repeated, not appended to."""
        while self._pending:
            if os.pwrite(self._index, self._pending[0], SIZE * (1 + self._entries)) < SIZE:
                raise OSError(errno.ENOSPC, "index: no space left on device")
            self._entries += 1
            del self._pending[0]

    def _used(self) -> int:
        return self._end + SIZE * (1 + self._entries + len(self._pending))

    # --- rotation -------------------------------------------------------------------------------------------------
    def _make_room(self) -> None:
        if not self._renames:
            if self._used() + SIZE < self.max_size:
                return
            self._flush()
            self._begin_rotation()
        self._finish_rotation()

    def _begin_rotation(self) -> None:
        """Make the next pair under temporary names: where the disk has no room for it, nothing has changed."""
        totals = [
            logindex.pack(self._clock[0], 0, count, stream, TOTAL) for stream, count in self._told() if count
        ]
        self._next = new_pair(self._directory, self.sequence + 1, b"".join(totals))
        self._carried = len(totals)
        # In this order a reader that finds current.idx knows by its header which log belongs to it.
        self._renames = [
            (CURRENT_LOG, logindex.rotated_log(self.sequence)),
            (CURRENT_INDEX, logindex.rotated_index(self.sequence)),
            (logindex.NEW_INDEX, CURRENT_INDEX),
            (logindex.NEW_LOG, CURRENT_LOG),
        ]

    def _told(self) -> list[tuple[int, int]]:
        """By stream, how many bytes the entries written so far tell of."""
        return [(stream, count - self._unnoted[stream]) for stream, count in self.bytes.items()]

    def _finish_rotation(self) -> None:
        while self._renames:
            old, new = self._renames[0]
            os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            del self._renames[0]
        os.close(self._log)
        os.close(self._index)
        self._log, self._index = self._next
        self.sequence += 1
        self._end, self._entries = 0, self._carried
        now = time.monotonic()
        lived, self._born = now - self._born, now
        self._forget_old()
        # A file that filled within seconds will be deleted within seconds too: compressing it would only burn CPU.
        if self._compress is not None and self._compressing and lived >= _SHORT_LIVED:
            plain = rotated(self._directory, (".log",))
            if plain:
                self._compress(plain)

    def _forget_old(self) -> None:
        for sequence in rotated(self._directory, (".log", ".log.gz", ".idx")):
            if sequence <= self.sequence - self.max_files:
                for name in (logindex.rotated_log, logindex.compressed_log, logindex.rotated_index):
                    unlink(self._directory, name(sequence))


def new_pair(directory: int, sequence: int, entries: bytes = b"") -> tuple[int, int]:
    """Make a log and an index with number `sequence` in the open `directory`, under their temporary names.

    `entries` are those that the index begins with.
    """
    for name in (logindex.NEW_LOG, logindex.NEW_INDEX):
        unlink(directory, name)
    log = os.open(logindex.NEW_LOG, _CREATE, 0o640, dir_fd=directory)
    try:
        index = os.open(logindex.NEW_INDEX, _CREATE, 0o640, dir_fd=directory)
        try:
            header = logindex.pack_header(sequence, time.time_ns()) + entries
            if os.pwrite(index, header, 0) != len(header):
                raise OSError(errno.ENOSPC, "index: no space left on device")
        except OSError:
            os.close(index)
            raise
    except OSError:
        os.close(log)
        raise
    return log, index


def rotated(directory: int, kinds: tuple[str, ...]) -> list[int]:
    """Give the numbers of the rotated files of these kinds in the open `directory`, oldest first."""
    found = set()
    for name in os.listdir(directory):
        sequence = logindex.sequence_of(name)
        if sequence is not None and name.endswith(kinds):
            found.add(sequence)
    return sorted(found)


def unlink(directory: int, name: str) -> None:
    """Remove `name` from the open `directory`, if it is there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def drain(pipe: int, null: int) -> int:
    """Empty `pipe` into /dev/null, opened as `null`: bytes, 0 at its end; BlockingIOError where it holds nothing."""
    return os.splice(pipe, null, PIPE_SIZE, flags=os.SPLICE_F_NONBLOCK)


def pipe() -> tuple[int, int]:
    """Open a pipe for output: a large one, whose read end does not block."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except PermissionError:
        pass  # fs.pipe-max-size is lower: more rounds, the same log
    return reader, writer
