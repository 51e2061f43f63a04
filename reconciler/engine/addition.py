"""One layer's way into the store, on a worker thread: fetched, verified, unpacked aside, and only then given its name.

Everything lies in a directory of its own in partial/ until it is complete; a crash at any moment leaves nothing else.
"""

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from reconciler.engine import downloads, fetch, oci_layout, shared
from reconciler.engine.downloads import Downloads
from reconciler.engine.fetch import AbandonedError, BundleError, Meter, Source
from reconciler.engine.image import compression
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.jobs import Job
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.lowers import Lowers
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.progress import Listener, Phase, Progress
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.places import Place
from reconciler.engine.room import Room
from reconciler.engine.session import this_boot
from reconciler.engine.store import Store
from reconciler.engine.stream import LayerStream
from reconciler.engine.tarfields import InvalidLayerError, LimitError
from reconciler.engine.turn import Turn
from reconciler.engine.unpack import Totals, Unpacker
from reconciler.engine.writeback import Writeback
from reconciler.errors import NotFoundError, ReconcilerError, UnsupportedError, VerificationError
from reconciler.failpoint import failpoint
from reconciler.spec.reference import Digest, Reference
from reconciler.state.image import Layer

_REPORT_EVERY: Final = 1 << 20
_NEWS_EVERY: Final = 0.5  # seconds between looks for a bundle, while a registry is waited for


@dataclass(frozen=True, slots=True)
class Addition:
    """What to add: the topmost of `layers` (an image's, lowest first), found under `reference`.

    `below` is the job that adds the layer below it, None where that one is in the store.
    """

    layers: tuple[Layer, ...]
    reference: Reference
    below: Job[Digest] | None
    progress: Listener

    @property
    def layer(self) -> Layer:
        return self.layers[-1]


class Adder:
    """Adds layers to one store. Thread-safe.

    `received` counts packed bytes by (registry, source, kind): source origin, mirror, peer or bundle, kind full or
    resumed.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        bundles: Bundles,
        registry: Registry | None,
        limits: Limits,
        *,
        keep: bool = False,
    ) -> None:
        """`registry` None: what no bundle has whole is not to be had. `keep`: the packed form stays in the store."""
        self._store = store
        self._layout = layout
        self._bundles = bundles
        self._registry = registry
        self._limits = limits
        self._keep = keep
        self._room = Room(layout, limits)
        after = registry.patience.kept_after if registry is not None else 0.0
        self._downloads = Downloads(layout, self._room, after)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._unpacking = Turn()
        self.received: Counter[tuple[str, str, str]] = Counter()

    def add(self, wanted: Addition, job: Job[Digest]) -> None:
        """Make the layer complete, or raise and leave nothing; waits for the layer below before the last steps."""
        layer = wanted.layer
        if job.stop.is_set():
            raise AbandonedError(f"layer {layer.digest.short}: given up")
        if not self._store.has_layer(layer.chain_id):
            self._make(wanted, job, self._store.commit_layer)

    def replace(self, wanted: Addition, job: Job[Digest]) -> None:
        """Make the layer anew, and let what is there give way to it; or raise, and leave it."""
        self._make(wanted, job, self._store.replace_layer)

    def _make(
        self, wanted: Addition, job: Job[Digest], commit: Callable[[LayerRecord, Path, Path], None]
    ) -> None:
        layer = wanted.layer
        partial = self._layout.partial / f"{layer.chain_id.hex[:16]}-{secrets.token_hex(4)}"
        needed = layer.size
        try:
            partial.mkdir(mode=0o700)
            failpoint("pull.begun")
            with _Workplace(partial, self._limits, self._room, self._turn) as place:
                meter = self._extract(place, wanted, job)
                failpoint("pull.unpacked")
                needed = place.unpacker.size
                if wanted.below is not None:
                    wanted.below.done.wait()
                    if wanted.below.error is not None:
                        raise wanted.below.error
                lowers = [self._store.layer_path(item.chain_id) for item in reversed(wanted.layers[:-1])]
                totals = place.finish(Lowers(lowers))
                self._within(wanted, totals)
                if job.stop.is_set():
                    raise AbandonedError(f"layer {layer.digest.short}: given up")
                failpoint("pull.finished")
                if place.packed.exists():
                    if meter.public is True:  # all of it: a peer may know the first bytes of anything
                        shared.mark(place.packed)
                    self._store.adopt_blob(layer.digest, place.packed)
                commit(_record(wanted, totals), place.root, place.index)
        except BaseException as error:
            self._store.discard(partial)
            self._store.empty_trash()  # gives the room back before anybody reads that there was none
            if not isinstance(error, RegistryError | AbandonedError):
                self._downloads.forget(layer.digest)
            if isinstance(error, InvalidLayerError):
                text = str(error).removeprefix("layer: ")
                raise InvalidLayerError(f"layer {layer.digest.short}: {text}", hint=error.hint) from error
            if isinstance(error, OSError):
                raise self._room.explain(error, needed, f"layer {layer.digest.short}") from error
            raise
        failpoint("pull.committed")
        self._downloads.forget(layer.digest)
        try:
            (partial / "gone").rmdir()
            partial.rmdir()
        except OSError:  # the layer replaced some of its own directories, or a source had to be tried twice
            self._store.discard(partial)
        shares = tuple(sorted(meter.shares.items()))
        wanted.progress(
            Progress(layer.digest, layer.size, layer.size, Phase.DONE, source=meter.source, shares=shares)
        )

    def _within(self, wanted: Addition, totals: Totals) -> None:
        """Raise LimitError where the layer and all below it, which are here by now, are more than an image may be."""
        below = [self._store.layer(item.chain_id) for item in wanted.layers[:-1]]
        size = totals.size + sum(record.size for record in below if record is not None)
        entries = totals.entries + sum(record.entries for record in below if record is not None)
        if size > self._limits.unpacked:
            raise LimitError(
                f"with the layers below it {size} bytes unpacked, an image may have {self._limits.unpacked}",
                "limits.unpacked",
            )
        if entries > self._limits.entries:
            raise LimitError(
                f"with the layers below it {entries} entries, an image may have {self._limits.entries}",
                "limits.entries",
            )

    def _extract(self, place: "_Workplace", wanted: Addition, job: Job[Digest]) -> Meter:
        """Unpack from the first source that has the layer whole, and tell of it; nothing stays of earlier ones."""
        layer = wanted.layer
        if self._store.has_blob(layer.digest):  # kept, or brought before it was wanted
            try:
                meter = Meter(source="store")
                self._stream(place, wanted, self._kept(layer, meter), meter, job, keep=False)
            except (VerificationError, FileNotFoundError):
                self._store.discard(self._layout.blob(layer.digest))
                place.clear()
            else:
                return meter
        while True:
            bad: ReconcilerError | None = None
            news = self._bundles.news
            for file in self._bundles.copies(layer.digest):
                meter = Meter()
                try:
                    self._stream(place, wanted, fetch.from_bundle(file, layer, meter), meter, job)
                except (VerificationError, BundleError) as error:
                    if isinstance(error, InvalidLayerError):
                        raise  # its digest is right, so that nobody has another
                    bad = error
                    place.clear()
                else:
                    return meter
            if self._registry is None:
                raise bad or NotFoundError(f"layer {layer.digest}: not there")
            try:
                return self._download(place, wanted, job, self._registry, news)
            except _BundleAppeared:
                place.clear()
            except RegistryError as error:
                error.hint = error.hint or (f"the bundle's copy: {bad}" if bad is not None else "")
                raise

    def _kept(self, layer: Layer, meter: Meter) -> Iterator[bytes]:
        with self._store.open_blob(layer.digest) as file:
            for chunk in oci_layout.chunks(file):
                meter.done += len(chunk)
                yield chunk

    def _download(
        self, place: "_Workplace", wanted: Addition, job: Job[Digest], registry: Registry, news: int
    ) -> Meter:
        """The same from peers, mirrors and the registry, which the digest at the end may prove to have lied."""
        layer = wanted.layer
        bad: set[Place] = set()
        again = True
        with self._downloads.of(layer.digest, layer.size) as kept:
            while True:
                meter = Meter()
                source = Source(registry, wanted.reference, layer, self._pause(wanted, meter, job, news), bad)
                try:
                    self._stream(place, wanted, fetch.from_registry(source, meter, kept), meter, job)
                except (VerificationError, UnsupportedError, OSError) as error:
                    suspects = _suspects(error, meter.others - bad)
                    lied = isinstance(error, VerificationError) and not isinstance(error, InvalidLayerError)
                    if not lied and (not suspects or isinstance(error, InvalidLayerError)):
                        raise  # the device's own trouble; or the digest is right, and nobody has another
                    kept.discard()
                    if meter.kept:
                        pass  # the first to be suspected: once more, without it
                    elif suspects:  # one of them, and nobody can tell which: once more, without them
                        for other in suspects:
                            registry.failed(other, error)
                        bad |= suspects
                    elif meter.resumes and again:  # it may have changed between two transfers (G7): once more
                        again = False
                    else:
                        raise
                    for useless in place.clear():  # the next try may need its room
                        self._store.discard(useless)
                    self._store.empty_trash()
                else:
                    if meter.finished is not None:
                        registry.worked(meter.finished)
                    return meter

    def _stream(
        self,
        place: "_Workplace",
        wanted: Addition,
        source: Iterator[bytes],
        meter: Meter,
        job: Job[Digest],
        *,
        keep: bool = True,
    ) -> None:
        layer = wanted.layer
        packed = fetch.verified(_watched(source, wanted, meter, job), layer)
        if keep and self._keep:
            packed = downloads.copied(packed, place.packed)
        try:
            stream = LayerStream(packed, compression(layer.media_type), self._limits, self._unpacking)
            stream.unpack(place.unpacker, layer.diff_id)
        finally:
            with self._lock:
                for (place_of, kind), count in meter.arrived.items():
                    self.received[wanted.reference.registry, place_of, kind] += count

    def _pause(
        self, wanted: Addition, meter: Meter, job: Job[Digest], news: int
    ) -> Callable[[float], object]:
        """Wait before the next try, telling until when, and why; cut short when nobody wants the layer any more.

        Raises _BundleAppeared once there are other news than `news`, and they have the layer.
        """
        layer = wanted.layer

        def pause(seconds: float) -> object:
            done = min(meter.done, layer.size)
            until = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
            wanted.progress(
                Progress(
                    layer.digest,
                    done,
                    layer.size,
                    Phase.WAITING,
                    meter.resumed,
                    until,
                    meter.trouble,
                    meter.source,
                )
            )
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not job.stop.wait(min(left, _NEWS_EVERY)):
                if self._bundles.news != news and self._bundles.has(layer.digest):
                    raise _BundleAppeared
            return None

        return pause


class _BundleAppeared(Exception):
    """What is waited for is somewhere else now."""


def _suspects(error: Exception, others: set[Place]) -> set[Place]:
    """Who of `others` may have caused it: peers, whose lies may end before the digest tells; else whoever took part."""
    peers = {other for other in others if other.is_peer}
    return peers or (others if isinstance(error, VerificationError) else set())


def _record(wanted: Addition, totals: Totals) -> LayerRecord:
    layer = wanted.layer
    parent = wanted.layers[-2].chain_id if len(wanted.layers) > 1 else None
    return LayerRecord(
        layer.chain_id,
        layer.diff_id,
        layer.digest,
        parent,
        totals.size,
        totals.entries,
        time.time(),
        this_boot(),
    )


def _watched(source: Iterator[bytes], wanted: Addition, meter: Meter, job: Job[Digest]) -> Iterator[bytes]:
    """Pass `source` on, tell the listener now and then, and end when nobody waits any more."""
    layer = wanted.layer
    reported = 0

    def report(phase: Phase) -> None:
        done = min(meter.done, layer.size)
        wanted.progress(Progress(layer.digest, done, layer.size, phase, meter.resumed, source=meter.source))

    report(Phase.DOWNLOADING)
    try:
        for chunk in source:
            if job.stop.is_set():
                raise AbandonedError(f"layer {layer.digest.short}: given up")
            if meter.done - reported >= _REPORT_EVERY:
                reported = meter.done
                report(Phase.DOWNLOADING)
            yield chunk
        report(Phase.UNPACKING)
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


class _Workplace:
    """The directory `path` while a layer is made in it: root/, what root/ lost (gone/), the file index, and the packed
    form where that is kept.
    """

    def __init__(self, path: Path, limits: Limits, room: Room, turn: threading.Lock) -> None:
        self.root = path / "root"
        self.index = path / "files"
        self.packed = path / "packed"
        self._gone = path / "gone"
        self._path = path
        self._limits = limits
        self._room = room
        self._turn = turn
        self._open = ExitStack()
        self._used = 0

    def __enter__(self) -> "_Workplace":
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _begin(self) -> None:
        with ExitStack() as undo:
            root, gone = (self._make(path, undo) for path in (self.root, self._gone))
            index = undo.enter_context(open(self.index, "w+b", buffering=1 << 17, opener=_private))
            self.unpacker = Unpacker(root, gone, index, limits=self._limits, room=self._room.ensure)
            undo.callback(self.unpacker.close)
            self._writeback = undo.enter_context(Writeback(root, self._written, self._turn))
            self._open = undo.pop_all()

    def _written(self) -> int:
        return self.unpacker.size

    def finish(self, lowers: Lowers) -> Totals:
        """Add what depends on the layers below, and write out everything, or raise OSError."""
        totals = self.unpacker.finish(lowers)
        self._writeback.finish()
        return totals

    def _make(self, path: Path, undo: ExitStack) -> int:
        path.mkdir(mode=0o755)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        return fd

    def clear(self) -> list[Path]:
        """Start over with empty directories, and return what was made so far, which is of no use."""
        self._open.close()
        self._used += 1
        moved = [
            path.rename(self._path / f"{path.name}.{self._used}")
            for path in (self.root, self._gone, self.index)
        ]
        self._begin()
        return moved
