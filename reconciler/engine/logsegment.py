"""One file of a container's log with its index, as found: opened while a shim writes, rotates, compresses and deletes.

Reads only. What a power cut left is taken as it is: torn or zeroed index entries are passed over, bytes that no entry
claims are given a made-up one, a damaged compressed file ends where the damage begins.
"""

import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from reconciler.shim import logindex
from reconciler.shim.logindex import SIZE, Entry

_BLOCK = 4096 * SIZE
_CHUNK = 256 * 1024
_ORPHANED_NS = 2_000_000_000


class Segment:
    """One pair of log and index, by sequence number. `current` says that it was the one being written when opened."""

    def __init__(self, sequence: int, index: int, log: int, *, compressed: bool, current: bool) -> None:
        self.sequence = sequence
        self.compressed = compressed
        self.current = current
        self._index = index
        self._log = log
        self._inflated = 0
        self._inflate = zlib.decompressobj(31)
        self._window = b""

    def close(self) -> None:
        for fd in (self._index, self._log):
            if fd >= 0:
                os.close(fd)
        self._index = self._log = -1

    def count(self) -> int:
        """How many entries the index has room for by its size."""
        return max(0, os.fstat(self._index).st_size // SIZE - 1) if self._index >= 0 else 0

    def entries(self, first: int = 0) -> Iterator[tuple[int, Entry]]:
        """The valid entries from number `first` on, each with its number."""
        position = SIZE * (1 + first)
        while self._index >= 0 and (block := os.pread(self._index, _BLOCK, position)):
            for start in range(0, len(block) - SIZE + 1, SIZE):
                if (entry := logindex.unpack(block, start)) is not None:
                    yield (position + start) // SIZE - 1, entry
            if len(block) < _BLOCK:
                return
            position += _BLOCK

    def entries_backwards(self) -> Iterator[tuple[int, Entry]]:
        """The valid entries from the last to the first, each with its number."""
        end = SIZE * (1 + self.count())
        while end > SIZE:
            start = max(SIZE, end - _BLOCK)
            block = os.pread(self._index, end - start, start)
            for position in range((len(block) // SIZE - 1) * SIZE, -1, -SIZE):
                if (entry := logindex.unpack(block, position)) is not None:
                    yield (start + position) // SIZE - 1, entry
            end = start

    def size(self) -> int | None:
        """Bytes of log, None where only reading to the end can tell."""
        if self._log < 0:
            return 0
        return None if self.compressed else os.fstat(self._log).st_size

    def orphaned(self) -> bool:
        """Say whether bytes that no entry claims will stay so: nobody has written for a while, or to the next file."""
        if not self.current or self._log < 0:
            return True
        return time.time_ns() - os.fstat(self._log).st_mtime_ns > _ORPHANED_NS

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """The bytes from `offset` in pieces; fewer than `length` where the file is damaged or cut short.

        In a compressed file offsets must not go backwards.
        """
        while length > 0 and self._log >= 0:
            data = (
                self._read_compressed(offset, length) if self.compressed else self._read_plain(offset, length)
            )
            if not data:
                return
            yield data
            offset += len(data)
            length -= len(data)

    def _read_plain(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._log, min(length, _CHUNK), offset)
        except OSError:  # EIO: what can't be read any more is told as lost by the caller
            return b""

    def _read_compressed(self, offset: int, length: int) -> bytes:
        while self._inflated + len(self._window) <= offset:
            self._inflated += len(self._window)
            self._window = self._more()
            if not self._window:
                return b""
        start = offset - self._inflated
        return self._window[start : start + length]

    def _more(self) -> bytes:
        while not self._inflate.eof:
            try:
                data = self._inflate.unconsumed_tail or os.read(self._log, _CHUNK)
                inflated = self._inflate.decompress(data, _CHUNK)
            except (OSError, zlib.error):
                return b""
            if inflated or not data:
                return inflated
        return b""


def sequences(directory: Path) -> list[int]:
    """The sequence numbers of what is there, oldest first."""
    found = _rotated(directory)
    number = current_sequence(directory)
    if number is None and (directory / logindex.CURRENT_LOG).exists():
        number = _after(found)  # its index is lost
    if number is not None:
        found.add(number)
    return sorted(found)


def current_sequence(directory: Path) -> int | None:
    """The sequence number of the pair that is being written; None where there is none, or its index is damaged."""
    fd = _open(directory / logindex.CURRENT_INDEX)
    if fd < 0:
        return None
    try:
        return logindex.unpack_header(os.pread(fd, SIZE, 0))
    finally:
        os.close(fd)


def open_segment(directory: Path, sequence: int) -> Segment | None:
    """Open the pair `sequence`, whatever its names are by now; None where it is gone, or not there yet.

    The writer renames the log first, then its index, and puts the next index in place before the next log; so a
    current.log belongs to the sequence number that current.idx bears before and after it was opened.
    """
    for _ in range(
        8
    ):  # a rotation or a compression may pass between two opens; the next round finds the new name
        index, current = _open_index(directory, sequence)
        log, compressed = _open_rotated(directory, sequence)
        if log < 0 and current:
            log = _open(directory / logindex.CURRENT_LOG)
            if log >= 0 and current_sequence(directory) != sequence:
                os.close(log)
                log = -1
        if index >= 0 and log >= 0:
            return Segment(sequence, index, log, compressed=compressed, current=current)
        for fd in (index, log):
            if fd >= 0:
                os.close(fd)
    log, compressed = _open_rotated(directory, sequence)
    current = log < 0
    if current and current_sequence(directory) is None and sequence == _after(_rotated(directory)):
        log = _open(directory / logindex.CURRENT_LOG)
    return Segment(sequence, -1, log, compressed=compressed, current=current) if log >= 0 else None


def _open_index(directory: Path, sequence: int) -> tuple[int, bool]:
    index = _open(directory / logindex.rotated_index(sequence))
    if index >= 0:
        return index, False
    index = _open(directory / logindex.CURRENT_INDEX)
    if index >= 0 and logindex.unpack_header(os.pread(index, SIZE, 0)) != sequence:
        os.close(index)
        index = -1
    return index, index >= 0


def _open_rotated(directory: Path, sequence: int) -> tuple[int, bool]:
    log = _open(directory / logindex.rotated_log(sequence))
    if log >= 0:
        return log, False
    log = _open(directory / logindex.compressed_log(sequence))
    return log, log >= 0


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1


def _rotated(directory: Path) -> set[int]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {number for name in names if (number := logindex.sequence_of(name)) is not None}


def _after(numbers: set[int]) -> int:
    return max(numbers, default=0) + 1
