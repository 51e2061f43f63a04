"""Tables of what one layer makes the unpacker remember: in memory while they are small, in a file when they grow.

A layer may have hundreds of thousands of directories, whiteouts and links, and whoever made it decides how many; a pull
may not take more memory for that. The file is an SQLite database without a name, on the file system that is unpacked
to, and goes with the process. It holds nothing that a crash would have to keep.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ENTRIES: Final = 20_000  # of all tables together ...
_BYTES: Final = 2 << 20  # ... and of their keys and values, before they go to the file
_RECENT: Final = 4096  # keys of a table in the file that are known without asking it
_CACHE: Final = 4096  # KiB that SQLite may keep


class Overflow:
    """The tables of one layer; `directory` is a descriptor of a directory on the file system for the file."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._tables: list[Table] = []
        self._entries = self._bytes = 0
        self._file: sqlite3.Connection | None = None

    def table(self) -> "Table":
        """A new, empty table."""
        found = Table(self, f"t{len(self._tables)}")
        self._tables.append(found)
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def count(self, size: int) -> None:
        """Take note of an entry of `size` bytes in memory, and move everything to the file if that is too much."""
        self._entries += 1
        self._bytes += size
        if self._entries > _ENTRIES or self._bytes > _BYTES:
            with _as_os_error():
                self._spill()
            self._entries = self._bytes = 0

    def _spill(self) -> None:
        if self._file is None:
            path = f"/proc/self/fd/{self._directory}/.overflow-{os.getpid()}-{id(self)}"
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for line in (
                "journal_mode = off",
                "synchronous = off",
                "locking_mode = exclusive",
                "temp_store = file",
                f"cache_size = -{_CACHE}",
            ):
                self._file.execute(f"pragma {line}")
            self._file.execute(
                "create table made (id)"
            )  # it exists from here on, and is locked: the name can go
            os.unlink(path)
            self._file.execute("begin")  # one transaction for ever: nothing is to be kept
        for table in self._tables:
            table.move(self._file)


class Table:
    """Bytes to bytes, in the order in which keys came. Keys that are paths can be asked for by what they lie below."""

    def __init__(self, overflow: Overflow, name: str) -> None:
        self._overflow = overflow
        self._name = name
        self._memory: dict[bytes, bytes] = {}
        self._file: sqlite3.Connection | None = None
        self._recent: set[bytes] = set()

    def move(self, file: sqlite3.Connection) -> None:
        """Have everything in `file` from now on."""
        if self._file is not None:
            return
        file.execute(f"create table {self._name} (n integer primary key, key blob unique, value blob)")
        rows = self._memory.items()
        file.executemany(f"insert into {self._name} (key, value) values (?, ?)", rows)
        self._memory = {}
        self._file = file

    def __bool__(self) -> bool:
        """Tell whether anything is in it."""
        if self._file is None:
            return bool(self._memory)
        with _as_os_error():
            return self._file.execute(f"select 1 from {self._name} limit 1").fetchone() is not None

    def __contains__(self, key: bytes) -> bool:
        if self._file is None:
            return key in self._memory
        return key in self._recent or self.get(key) is not None

    def get(self, key: bytes) -> bytes | None:
        if self._file is None:
            return self._memory.get(key)
        with _as_os_error():
            row = self._file.execute(f"select value from {self._name} where key = ?", (key,)).fetchone()
        if row is None:
            return None
        if len(self._recent) >= _RECENT:
            self._recent.clear()
        self._recent.add(key)
        return bytes(row[0])

    def set(self, key: bytes, value: bytes = b"") -> None:
        """Put `value` in the place of what the key has had, whose place in the order it keeps."""
        if self._file is None:
            before = len(self._memory)
            self._memory[key] = value
            if len(self._memory) > before:
                self._overflow.count(len(key) + len(value))
            return
        if len(self._recent) >= _RECENT:
            self._recent.clear()
        self._recent.add(key)
        with _as_os_error():
            self._file.execute(
                f"insert into {self._name} (key, value) values (?, ?)"
                " on conflict (key) do update set value = excluded.value",
                (key, value),
            )

    def drop(self, key: bytes) -> None:
        """Forget the key; succeeds if it is not there."""
        if self._file is None:
            self._memory.pop(key, None)
            return
        self._recent.discard(key)
        with _as_os_error():
            self._file.execute(f"delete from {self._name} where key = ?", (key,))

    def drop_below(self, path: bytes) -> None:
        """Forget every key that is a path below `path`."""
        inside = path + b"/"
        if self._file is None:
            for key in [key for key in self._memory if key.startswith(inside)]:
                del self._memory[key]
            return
        self._recent.clear()
        with _as_os_error():
            self._file.execute(f"delete from {self._name} where key > ? and key < ?", (inside, path + b"0"))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield everything, first come first; what is added meanwhile may be among it or not."""
        last, file = 0, self._file
        if file is None:
            yield from list(self._memory.items())
            return
        while True:
            with _as_os_error():
                rows = file.execute(
                    f"select n, key, value from {self._name} where n > ? order by n limit 500", (last,)
                ).fetchall()
            if not rows:
                return
            for _, key, value in rows:
                yield bytes(key), bytes(value)
            last = rows[-1][0]


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, f"{os.strerror(number)}: {error}") from error
