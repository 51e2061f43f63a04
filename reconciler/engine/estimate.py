"""How large a layer will be, before it is fetched: what its packed form says of itself in a few bytes.

gzip ends with the size of what was packed, modulo 4 GiB and of its last member only (RFC 1952, 2.3.1); a zstd frame may
begin with it (RFC 8878, 3.1.1.1.4). Both are hints: whoever packed the layer wrote them, and nothing but a refusal that
would come later anyway follows from them. They are asked for only where the disk may be too small.
"""

from typing import IO, Final

from reconciler.engine.image import compression
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.registry.client import Registry
from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError
from reconciler.spec.reference import Reference
from reconciler.state.image import Layer

_DEFLATE_MOST: Final = 1032  # zlib, "Technical Details": no stream is longer unpacked
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_HEAD: Final = 18  # magic number and the longest frame header
DOUBT: Final = 32  # times its packed size: a disk with so much room is asked no further


class Estimate:
    """What layers take unpacked, at the least; `registry` None: only what is here and what bundles have is asked."""

    def __init__(self, store: Store, bundles: Bundles, registry: Registry | None) -> None:
        self._store = store
        self._bundles = bundles
        self._registry = registry

    def unpacked(self, layer: Layer, reference: Reference) -> int:
        """Bytes that the layer takes at the least; its packed size where nothing better is known. Raises nothing."""
        kind = compression(layer.media_type)
        if kind == "gzip" and layer.size > 18:
            return max(layer.size, gzip_size(self._read(layer, reference, layer.size - 4, 4), layer.size))
        if kind == "zstd" and layer.size > _ZSTD_HEAD:
            return max(layer.size, zstd_size(self._read(layer, reference, 0, _ZSTD_HEAD)))
        return layer.size

    def _read(self, layer: Layer, reference: Reference, offset: int, count: int) -> bytes:
        try:
            if self._store.has_blob(layer.digest):
                with self._store.open_blob(layer.digest) as file:
                    return _part(file, offset, count)
            for found in self._bundles.copies(layer.digest):
                with found:
                    return _part(found, offset, count)
            return self._ask(layer, reference, offset, count)
        except (OSError, ReconcilerError):
            return b""

    def _ask(self, layer: Layer, reference: Reference, offset: int, count: int) -> bytes:
        """Ask for these bytes alone; nothing from a server that would send the whole layer for it."""
        if self._registry is None:
            return b""
        # What nobody can verify is not asked of peers
        for place in self._registry.places(reference.registry, reference.repository, by_digest=False):
            try:
                with self._registry.blob(
                    place, layer.digest, offset=offset, until=offset + count
                ) as transfer:
                    if transfer.offset != offset:
                        continue
                    data = b""
                    for chunk in transfer.chunks:
                        data += chunk
                        if len(data) >= count:
                            return data[:count]
            except ReconcilerError:
                continue
        return b""


def _part(file: IO[bytes], offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def gzip_size(tail: bytes, packed: int) -> int:
    """What the last four bytes of a gzip file of `packed` bytes say that it unpacks to; 0 where they can't be true."""
    size = int.from_bytes(tail, "little") if len(tail) == 4 else 0
    return size if size <= packed * _DEFLATE_MOST else 0


def zstd_size(head: bytes) -> int:
    """What the first bytes of a zstd file say that its first frame unpacks to; 0 where they do not say."""
    if len(head) < 6 or not head.startswith(_ZSTD):
        return 0
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    width = {0: int(single), 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    field = head[start : start + width]
    if not width or len(field) < width:
        return 0
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
