"""What has come of layers whose transfer takes long, kept so that the next agent goes on instead of beginning anew.

One file per layer, `downloads/<algorithm>-<hex>-<offset>`: the packed bytes from `offset` on. The first seconds of a
transfer are not in it, since a layer that comes quickly is not worth writing twice; they are fetched again. Bytes are
only appended, and written out every few seconds: after a power cut the file is shorter, or it is wrong, which the
digest of the whole shows. Nothing here is believed, and nothing here makes a pull fail.
"""

import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from reconciler.engine.durable import sync_directory
from reconciler.engine.layout import Layout
from reconciler.engine.room import Room
from reconciler.spec.reference import Digest

_NAME: Final = re.compile(r"(sha256|sha512)-([0-9a-f]{64,128})-(0|[1-9][0-9]{0,18})", re.ASCII)
_SYNC_EVERY: Final = 5.0  # seconds
_LOOK_EVERY: Final = 8 << 20  # bytes
_ROOM: Final = 4  # times the layer's size that must be free: unpacking needs it more
_CHUNK: Final = 1 << 18
KEPT_FOR: Final = 86_400.0  # seconds without a byte more, after which nobody wants it any more


class Kept:
    """The bytes of one layer from `offset` on, `length` of them; none at first, and none for `after` seconds.

    Thread-safe: whoever has given a transfer up lets go of this while another thread still takes in its last bytes.
    """

    def __init__(self, layout: Layout, digest: Digest, size: int, room: Room, after: float) -> None:
        self._directory = layout.downloads
        self._digest = digest
        self._size = size
        self._room = room
        self._from = time.monotonic() + after
        self._fd = -1
        self._path = Path()
        self.offset = 0
        self.length = 0
        self._synced = time.monotonic()
        self._looked = 0
        self._given_up = False
        self._lock = threading.RLock()

    @property
    def end(self) -> int:
        """The byte of the layer that follows the last one that is kept; 0 where none is."""
        return self.offset + self.length if self.length else 0

    def find(self) -> None:
        """Take over what an earlier transfer has kept, unless another one has it now."""
        for path in sorted(self._directory.glob(f"{self._digest.algorithm}-{self._digest.hex}-*")):
            name = _NAME.fullmatch(path.name)
            if name is None or self._fd >= 0:
                continue
            try:
                self._open(path, int(name[3]), os.O_RDWR)
            except OSError:
                continue
            if not 0 < self.length <= self._size - self.offset:
                self.discard()
                self._given_up = False

    def _open(self, path: Path, offset: int, flags: int) -> None:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            length = os.fstat(fd).st_size
        except OSError:
            os.close(fd)
            raise
        self._fd, self._path, self.offset, self.length = fd, path, offset, length

    def read(self) -> Iterator[bytes]:
        """Yield what is kept; less of it if the disk fails."""
        at, end = 0, self.length
        while at < end:
            with self._lock:
                try:
                    data = os.pread(self._fd, min(_CHUNK, end - at), at)
                except OSError:
                    data = b""
            if not data:
                self.length = at
                return
            at += len(data)
            yield data

    def take(self, data: bytes, at: int) -> None:
        """Keep `data`, the bytes of the layer from `at` on, if it goes on where the kept ones end."""
        with self._lock:
            try:
                self._take(data, at)
            except OSError:
                self.discard()  # no room, or a broken disk: the transfer itself goes on

    def _take(self, data: bytes, at: int) -> None:
        if self._given_up or (self._fd < 0 and time.monotonic() < self._from):
            return
        if self._fd < 0:
            self._begin(at)
        if at != self.offset + self.length or self._crowded():
            return
        self.length += os.pwrite(self._fd, data, self.length)
        if time.monotonic() - self._synced >= _SYNC_EVERY:
            os.fdatasync(self._fd)
            self._synced = time.monotonic()

    def _begin(self, at: int) -> None:
        if self._room.free < _ROOM * self._size:
            self._given_up = True
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        name = f"{self._digest.algorithm}-{self._digest.hex}-{at}"
        self._open(self._directory / name, at, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self._fd, 0)  # only now that it is ours
        self.length = 0
        sync_directory(self._directory)

    def _crowded(self) -> bool:
        """Whether there is too little room for it; then it has gone."""
        if self._given_up:
            return True
        if self.length - self._looked >= _LOOK_EVERY:
            self._looked = self.length
            if self._room.free < _ROOM * (self._size - self.end):
                self.discard()
        return self._given_up

    def discard(self) -> None:
        """Throw it away, and keep no more of this transfer."""
        with self._lock:
            if self._fd >= 0:
                with suppress(OSError):
                    self._path.unlink()
            self.close()
            self.length = 0

    def close(self) -> None:
        """Let go of it; what is kept stays."""
        with self._lock:
            self._given_up = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Downloads:
    """The kept transfers of one state directory; a transfer is kept once it has taken `after` seconds."""

    def __init__(self, layout: Layout, room: Room, after: float) -> None:
        self._layout = layout
        self._room = room
        self._after = after

    @contextmanager
    def of(self, digest: Digest, size: int) -> Iterator[Kept]:
        """What is kept of a layer, for one transfer of it."""
        kept = Kept(self._layout, digest, size, self._room, self._after)
        try:
            kept.find()
            yield kept
        finally:
            kept.close()

    def forget(self, digest: Digest) -> None:
        """Throw away what is kept of a layer that is here now, or that is not what it should be."""
        for path in self._layout.downloads.glob(f"{digest.algorithm}-{digest.hex}-*"):
            with suppress(OSError):
                path.unlink()


def clear(layout: Layout, *, idle_for: float = 0.0) -> None:
    """Throw away what no transfer has at the moment and nothing was added to for `idle_for` seconds.

    A clock that went back makes nothing older: a device that boots in 1970 is one whose power was cut.
    """
    for path in layout.downloads.glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < idle_for:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def copied(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Pass `chunks` on, and write them to the file `path`; without it where the disk is full: it can be had again."""
    whole = False
    try:
        with open(path, "wb", buffering=0, opener=_new) as file:
            fits = True
            for chunk in chunks:
                if fits:
                    try:
                        fits = file.write(chunk) == len(chunk)
                    except OSError:
                        fits = False
                yield chunk
            if fits:
                os.fsync(file.fileno())
                whole = os.fstat(file.fileno()).st_size > 0
    finally:
        if not whole:
            path.unlink(missing_ok=True)


def _new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
