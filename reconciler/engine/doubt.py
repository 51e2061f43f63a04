"""Reads the layers that `session` doubts, and throws away those that are not what was unpacked: a pull brings new ones.

It happens on the way to a container, in the pull of its image, so that nothing else waits for it; a layer that passes
is not fetched again, and needs no registry.
"""

from collections.abc import Callable, Iterable

from reconciler.engine import trash
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.layout import Layout
from reconciler.engine.replaced import put_aside
from reconciler.engine.store import Store
from reconciler.errors import VerificationError
from reconciler.spec.reference import Digest


def chain_id(chain: str) -> Digest:
    """The id that a layer's directory is named after."""
    return Digest("sha256", chain)


def vet(
    store: Store, layout: Layout, layers: Iterable[Digest], told: Callable[[int], object] = lambda _: None
) -> int:
    """Read those of `layers` that are in doubt; return how many were wrong, and are gone now. `told` hears of bytes.

    Only under the store's `adding`.
    """
    return sum(_vet(store, layout, chain_id, told) is False for chain_id in layers)


def _vet(store: Store, layout: Layout, chain_id: Digest, told: Callable[[int], object]) -> bool | None:
    def wrong(record: LayerRecord, count: Callable[[int], object]) -> bool:
        def both(size: int) -> None:
            count(size)
            told(size)

        if _whole(store, record, both):
            return False
        drop(store, layout, chain_id)
        return True

    return store.session.check(chain_id.hex, lambda: store.layer(chain_id), wrong)


def _whole(store: Store, record: LayerRecord, told: Callable[[int], object]) -> bool:
    if not store.layer_path(record.chain_id).is_dir():
        return False
    try:
        return next(store.damaged_files(record.chain_id, told), None) is None
    except (OSError, VerificationError):  # its index, or the directory itself
        return False


def drop(store: Store, layout: Layout, chain_id: Digest) -> None:
    """Let the layer be there no more, its record first. What a container may have mounted is put aside."""
    with store.committing():
        trash.discard(layout.layer_record(chain_id), layout.trash)
        put_aside(layout, layout.layer(chain_id), chain_id.hex)
        trash.discard(store.layer_index(chain_id), layout.trash)
