"""One layer's bytes through its pipeline: verified, inflated and hashed in one thread, unpacked in another.

Inflating and hashing leave the interpreter lock alone, writing files holds the kernel: two threads keep two processor
cores busy, and a few chunks between them are all the memory that a layer of any size takes.
"""

import threading
from collections.abc import Iterator
from hashlib import sha256
from queue import SimpleQueue
from typing import Final

from reconciler.engine.inflate import inflate
from reconciler.engine.limits import Limits
from reconciler.engine.tar import Reader
from reconciler.engine.tarfields import InvalidLayerError
from reconciler.engine.turn import Turn
from reconciler.engine.unpack import Unpacker
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest

_AHEAD: Final = 8  # chunks of 256 KiB


class LayerStream:
    """The archive in the packed bytes `source`, produced ahead by a thread of its own.

    `source` raises VerificationError at its end if the packed bytes are not what they should be. That is the better
    error: when unpacking fails on an archive, the rest of the source is read first, to see which of the two is wrong.
    `turn` is shared by those that unpack in this process; it is not held while nothing has come.
    """

    def __init__(
        self, source: Iterator[bytes], compression: str, limits: Limits, turn: Turn | None = None
    ) -> None:
        self._source = source
        self._compression = compression
        self._limits = limits
        self._queue: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._turn = turn or Turn()
        self._working = False  # whether it is ours
        self._verify_only = False
        self._closed = False
        self._digest = sha256()

    def unpack(self, unpacker: Unpacker, diff_id: Digest) -> None:
        """Let `unpacker` extract the archive; returns only after both digests have been found right.

        Raises VerificationError, and whatever the source raises.
        """
        thread = threading.Thread(target=self._produce, name="inflate", daemon=True)
        thread.start()
        try:
            reader = Reader(self._consume(), self._limits)
            try:
                unpacker.extract(reader)
                reader.drain()
            except InvalidLayerError:
                self._verify_only = True
                for _ in self._consume():
                    pass
                raise
            if self._digest.hexdigest() != diff_id.hex:
                raise VerificationError(
                    f"layer: unpacked, its digest is sha256:{self._digest.hexdigest()}, expected {diff_id}"
                )
        finally:
            self._closed = True
            self._rest()
            self._room.release()

    def _work(self) -> None:
        if not self._working:
            self._turn.take()
            self._working = True

    def _rest(self) -> None:
        if self._working:
            self._working = False
            self._turn.give()

    def _consume(self) -> Iterator[bytes]:
        while not self._closed:
            if self._queue.empty():
                self._rest()
            elif self._working:
                self._turn.share()
            item = self._queue.get()
            if item is None:
                self._closed = True
                return
            if isinstance(item, BaseException):
                self._closed = True
                raise item
            self._work()
            yield item
            del item  # lets the allocator reuse it: touching fresh pages costs more than filling them
            self._room.release()

    def _produce(self) -> None:
        end: BaseException | None = None
        try:
            try:
                for chunk in inflate(self._source, self._compression, self._limits):
                    self._digest.update(chunk)
                    self._room.acquire()
                    if self._closed or self._verify_only:
                        break
                    self._queue.put(chunk)
            except InvalidLayerError:
                self._verify_only = True
                self._exhaust()
                raise
            if self._verify_only:
                self._exhaust()
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits, as it is
            end = error
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
            self._queue.put(end)

    def _exhaust(self) -> None:
        for _ in self._source:
            if self._closed:
                return
