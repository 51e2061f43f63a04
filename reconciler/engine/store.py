"""The image store: blobs by digest, layers unpacked once and shared, and what digests turned out to mean.

Everything in it is complete or not there: content is made in partial/ and renamed into place after it was verified and
written out. Nothing here knows a registry or a container (what one has mounted, `replaced` knows); which objects may go
is decided by a plan. The figures for metrics and garbage come from records and single directory listings, never from
walking a layer.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from reconciler.engine import trash
from reconciler.engine.durable import replace_json, sync_directory, write_verified
from reconciler.engine.fileindex import damaged
from reconciler.engine.image import digest_of
from reconciler.engine.imagerecord import InvalidRecordError, LayerRecord, decode_image, encode_image
from reconciler.engine.inventory import ALGORITHMS, Blob, Files, Inventory, blobs
from reconciler.engine.layout import Layout
from reconciler.engine.listing import Listing
from reconciler.engine.replaced import put_aside
from reconciler.engine.session import Session
from reconciler.engine.tags import Tags
from reconciler.errors import BlockedError, VerificationError
from reconciler.failpoint import failpoint
from reconciler.linux.path import syncfs
from reconciler.spec.reference import Digest
from reconciler.state import observed
from reconciler.state.image import Image


class Store:
    """One state directory's images. Safe to use from several threads, and beside another process's `Store`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._listings: dict[Path, Listing] = {}
        self._records: dict[str, tuple[tuple[int, int, int], LayerRecord | None]] = {}
        self._images: dict[Digest, Image] = {}
        self._digests: tuple[Files, frozenset[Digest]] | None = None
        self._inventory = Inventory(layout, self._listing, self._layers)
        self._tags = Tags(layout)
        self.session = Session(layout)
        self._commit = threading.Lock()
        # Held while a container lays claim to layers and volumes by its record, and while what no record names goes
        self.claims = threading.Lock()

    def prepare(self) -> None:
        """Make the directories of an empty store; succeeds if they are there. It is a valid OCI image layout."""
        layout = self._layout
        for path in (
            layout.state,
            layout.blobs,
            layout.blobs / "sha256",
            layout.partial,
            layout.resolved,
            layout.layers,
            layout.tags,
            layout.trash,
        ):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not layout.oci_layout.exists():
            replace_json(layout.oci_layout, {"imageLayoutVersion": "1.0.0"})
        if not layout.index.exists():
            replace_json(layout.index, {"schemaVersion": 2, "manifests": []})

    # --- locking ---------------------------------------------------------------------------------------------------

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Hold the store open for adding: nothing is swept meanwhile. Any number may hold it; a sweep is waited for."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store for sweeping, or raise BlockedError at once while content is being added."""
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        fd = os.open(self._layout.store_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, operation)
            except BlockingIOError as error:
                raise BlockedError(
                    "store: images are being added, garbage has to wait for them", transient=True
                ) from error
            yield
        finally:
            os.close(fd)

    def recover(self) -> None:
        """Drop what an interrupted addition left: everything in partial/, and layers without a record. A boot begins.

        Does nothing while another process adds. Call it once at start; the trash still has to be emptied.
        """
        layout = self._layout
        with self.committing():
            self.session.begin()
        try:
            with self.exclusive():
                for name in os.listdir(layout.partial):
                    trash.discard(layout.partial / name, layout.trash)
                names = set(os.listdir(layout.layers))
                records = {name.removesuffix(".json") for name in names if name.endswith(".json")}
                for name in sorted(names):
                    chain = name.removesuffix(".json").removesuffix(".files")
                    if chain not in records or chain not in names:
                        put_aside(
                            layout, layout.layers / name, chain
                        )  # a container may run on what lost its record
        except BlockedError:
            return

    # --- blobs -----------------------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest) -> bool:
        """Tell whether the blob is there; whether it is undamaged, `read_blob` finds out."""
        return self._layout.blob(digest).is_file()

    def read_blob(self, digest: Digest) -> bytes:
        """Return the blob, verified; FileNotFoundError if absent; a damaged one is discarded: VerificationError."""
        path = self._layout.blob(digest)
        try:
            data = path.read_bytes()
        except IsADirectoryError:
            data = b""
        if digest_of(data, digest.algorithm) != digest:
            trash.discard(path, self._layout.trash)
            raise VerificationError(f"store: blob {digest.short} is damaged, it was discarded")
        return data

    def open_blob(self, digest: Digest) -> IO[bytes]:
        """Open a blob for reading, not verified; FileNotFoundError if absent."""
        return self._layout.blob(digest).open("rb", buffering=0)

    def adopt_blob(self, digest: Digest, path: Path) -> None:
        """Make the file `path` of this store, which is written out and verified, the blob of that name."""
        target = self._layout.blob(digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.is_dir():
            trash.discard(target, self._layout.trash)
        path.rename(target)
        sync_directory(target.parent)

    def ingest(self, chunks: Iterable[bytes], expected: Digest, size: int | None = None) -> Path:
        """Store `chunks` under `expected`, return the path, or raise VerificationError and leave the store untouched.

        Storing what is there already succeeds: the promise is that the content is there afterwards, not that this call
        put it there. `size` in bytes is checked too, and never exceeded while reading.
        """
        with self.adding():
            path = self._ingest(chunks, expected, size)
            sync_directory(path.parent)
        return path

    def ingest_documents(self, documents: Mapping[Digest, bytes]) -> list[Digest]:
        """Store those of some documents that are not there, made durable together; return which those were."""
        with self.adding():
            new = [digest for digest in documents if not self.has_blob(digest)]
            for digest in new:
                self._ingest([documents[digest]], digest, len(documents[digest]))
            for directory in {self._layout.blob(digest).parent for digest in new}:
                sync_directory(directory)
        return new

    def _ingest(self, chunks: Iterable[bytes], expected: Digest, size: int | None) -> Path:
        """Make the blob, whose name is not durable yet. Only under `adding`."""
        path = self._layout.blob(expected)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._layout.partial / f"blob-{expected.short}-{secrets.token_hex(4)}"
        try:
            write_verified(partial, chunks, expected, size)
            if path.is_dir():
                trash.discard(path, self._layout.trash)
            failpoint("blob.written")
            partial.rename(path)
            failpoint("blob.renamed")
        finally:
            partial.unlink(missing_ok=True)
        return path

    def blobs(self) -> tuple[Blob, ...]:
        """Return every stored blob, by digest."""
        return blobs(self._listing(self._layout.blobs / algorithm) for algorithm in ALGORITHMS)

    def remove_blob(self, digest: Digest) -> None:
        """Remove a blob; succeeds if it is gone. Only under `exclusive`."""
        trash.discard(self._layout.blob(digest), self._layout.trash)
        failpoint("collect.blob")

    # --- layers ----------------------------------------------------------------------------------------------------

    def has_layer(self, chain_id: Digest) -> bool:
        """Tell whether the layer is there, complete: its directory and a record that says so, which is not in doubt."""
        record, path = self.layer(chain_id), self.layer_path(chain_id)
        return record is not None and path.is_dir() and not self.session.doubts(record)

    def layer(self, chain_id: Digest) -> LayerRecord | None:
        """Return the layer's record, or None where there is none that can be read."""
        path = self._layout.layer_record(chain_id)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return self._record(chain_id.hex, status)

    def _record(self, name: str, status: os.stat_result) -> LayerRecord | None:
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._records.get(name)
        if known is not None and known[0] == key:
            return known[1]
        try:
            path = self._layout.layers / f"{name}.json"
            record = LayerRecord.decode(path.read_bytes(), Digest("sha256", name))
        except (OSError, InvalidRecordError):
            record = None
        self._records[name] = (key, record)
        return record

    def layer_path(self, chain_id: Digest) -> Path:
        """The directory that overlayfs uses as this layer."""
        return self._layout.layer(chain_id)

    def layer_index(self, chain_id: Digest) -> Path:
        """The file with the digest of every file in the layer, as sha256sum writes it."""
        return self._layout.layers / f"{chain_id.hex}.files"

    def layers(self) -> Mapping[Digest, LayerRecord]:
        """Return the record of every complete layer."""
        return self._layers(self._listing(self._layout.layers))

    def _layers(self, names: Files) -> Mapping[Digest, LayerRecord]:
        """Return the record of every complete layer of one listing: the next one may know of more."""
        found = {}
        for name, status in names.items():
            chain = name.removesuffix(".json")
            if chain == name or chain not in names:
                continue
            record = self._record(chain, status)
            if record is not None:
                found[record.chain_id] = record
        return found

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Hold off the commits of other processes: what one has just committed may be in use when another looks."""
        fd = os.open(self._layout.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def commit_layer(self, record: LayerRecord, root: Path, index: Path) -> None:
        """Make the verified directory `root` with its `index`, both in partial/, the layer that `record` names.

        Durable, in this order: the content (syncfs), the renames, the record. Only under `adding`. A layer that is
        there without a readable record gives way.
        """
        layout = self._layout
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        final = self.layer_path(record.chain_id)
        with self._commit, self.committing():
            self.session.begin()
            if self.has_layer(record.chain_id):
                return  # the same layer, finished by somebody else: it may be in use already
            trash.discard(layout.layer_record(record.chain_id), layout.trash)
            put_aside(layout, final, record.chain_id.hex)
            trash.discard(self.layer_index(record.chain_id), layout.trash)
            failpoint("layer.synced")
            index.rename(self.layer_index(record.chain_id))
            failpoint("layer.indexed")
            root.rename(final)
            failpoint("layer.renamed")
            sync_directory(layout.layers)
            replace_json(layout.layer_record(record.chain_id), record.encode())
            failpoint("layer.recorded")
            self._records.pop(record.chain_id.hex, None)

    def replace_layer(self, record: LayerRecord, root: Path, index: Path) -> None:
        """Make `root` the layer instead of what is there, which is put aside: it may be mounted. Only under `adding`.

        Between the two renames the layer is not there, as `has_layer` says: whoever wants it then tries again.
        """
        layout = self._layout
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        with self._commit, self.committing():
            self.session.begin()
            put_aside(layout, self.layer_path(record.chain_id), record.chain_id.hex)
            root.rename(self.layer_path(record.chain_id))
            if self.layer_index(record.chain_id).is_dir():
                self.discard(self.layer_index(record.chain_id))
            index.rename(self.layer_index(record.chain_id))
            sync_directory(layout.layers)
            if layout.layer_record(record.chain_id).is_dir():
                self.discard(layout.layer_record(record.chain_id))
            replace_json(layout.layer_record(record.chain_id), record.encode())
            self._records.pop(record.chain_id.hex, None)

    def touch(self, image: Image) -> None:
        """Note that `image` was asked for just now: garbage collection goes by age."""
        paths = [self._layout.layer_record(layer.chain_id) for layer in image.layers]
        paths += [
            self._layout.blob(image.manifest),
            self._layout.blob(image.config),
            self._layout.blob(image.index),
        ]
        paths.append(self._layout.resolved_image(image.index))
        for path in paths:
            try:
                os.utime(path)
            except FileNotFoundError:
                continue
        self._listings.clear()  # the directories' own times tell nothing of it

    def remove_layer(self, chain_id: Digest) -> None:
        """Remove a layer, its record first; succeeds if it is gone. Only under `exclusive`."""
        layout = self._layout
        trash.discard(layout.layer_record(chain_id), layout.trash)
        failpoint("collect.unrecorded")
        trash.discard(self.layer_path(chain_id), layout.trash)
        failpoint("collect.unlayered")
        trash.discard(self.layer_index(chain_id), layout.trash)
        self._records.pop(chain_id.hex, None)

    def damaged_files(
        self,
        chain_id: Digest,
        told: Callable[[int], object] = lambda _: None,
        *,
        begin: int = 0,
        passed: Callable[[int], object] = lambda _: None,
    ) -> Iterator[bytes]:
        """Yield the paths in a layer whose content is not what was unpacked; reads it all, as `damaged` says."""
        path, index = self.layer_path(chain_id), self.layer_index(chain_id)
        return damaged(path, index, told, begin=begin, passed=passed)

    # --- resolved images ---------------------------------------------------------------------------------------------

    def resolved(self, digest: Digest) -> Image | None:
        """Return what `digest` was resolved to before, or None. A damaged record counts as none: it is a cache."""
        if digest in self._images:
            return self._images[digest]
        try:
            image = decode_image(self._layout.resolved_image(digest).read_bytes())
        except (FileNotFoundError, IsADirectoryError, InvalidRecordError):
            return None
        if image.index != digest:
            return None
        self._images[digest] = image
        return image

    def remember(self, image: Image) -> None:
        """Keep what `image.index` means, durably."""
        path = self._layout.resolved_image(image.index)
        if path.is_dir():
            self.discard(path)
        if self.resolved(image.index) != image or not path.exists():
            replace_json(path, encode_image(image))
            failpoint("image.remembered")
            self._images[image.index] = image

    def forget(self, digest: Digest) -> None:
        """Drop what `digest` means; succeeds if nothing is known."""
        self._images.pop(digest, None)
        self.discard(self._layout.signature(digest))
        self.discard(self._layout.resolved_image(digest))
        failpoint("collect.image")

    def resolved_digests(self) -> frozenset[Digest]:
        """Return the digests that were resolved, by the names of their records: what `resolved` can know of."""
        names = self._listing(self._layout.resolved)
        if self._digests is None or self._digests[0] is not names:
            digests = (Digest(*name.removesuffix(".json").split("-", 1)) for name in names if "-" in name)
            self._digests = names, frozenset(digests)
        return self._digests[1]

    def images(self) -> tuple[Image, ...]:
        """Return every image that is resolved, whether or not its layers are here."""
        found = []
        for name in sorted(self._listing(self._layout.resolved)):
            algorithm, _, rest = name.removesuffix(".json").partition("-")
            image = self.resolved(Digest(algorithm, rest))
            if image is not None:
                found.append(image)
        return tuple(found)

    # --- removal and figures -----------------------------------------------------------------------------------------

    def discard(self, path: Path, *, durable: bool = True) -> None:
        """Rename any directory of the state directory into the trash; see `trash.discard`."""
        trash.discard(path, self._layout.trash, durable=durable)

    def has_trash(self) -> bool:
        """Tell whether there is anything that was discarded and not deleted yet."""
        with os.scandir(self._layout.trash) as entries:
            return any(True for _ in entries)

    def empty_trash(self) -> int:
        """Delete what was discarded; slow, so for a thread of its own. Returns the bytes given back."""
        return trash.empty(self._layout.trash)

    def observe(self) -> observed.Store:
        """Return everything collectable and the room left, for a plan. Cheap: called in every turn of the loop."""
        found = self._inventory.observe()
        if doubted := self.session.doubted(self.layers()):
            found = replace(found, layers=found.layers - doubted)
        tagged = tuple(
            (tag.name, image)
            for tag in self._tags.current()
            if (image := self.resolved(tag.digest)) is not None
        )
        return replace(found, tagged=tagged) if tagged else found

    def _listing(self, path: Path) -> Files:
        listing = self._listings.get(path) or self._listings.setdefault(path, Listing(path))
        return listing.files()
