"""`image unpack`: the root file system of an image as files of one's own, from the store, a layout or a registry.

What is here whole is copied out of the store, under its lock, whether an agent runs or not. Anything else is unpacked
by the same code as for a container, into a store of this call's own beside the target, and moved from there: nothing
comes into the device's store, nothing is given a name, and no agent is needed.
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from reconciler.agent.images import open_images, open_registry
from reconciler.agent.pinning import pinned
from reconciler.config import Device
from reconciler.engine import doubt
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.progress import Progress
from reconciler.engine.registry.client import Registry
from reconciler.engine.rootfs import merge
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError
from reconciler.linux.path import syncfs
from reconciler.state.image import Image


@dataclass(frozen=True, slots=True)
class Wish:
    """What to unpack: `text` is what a person calls the image, `bundle` a layout, `platform` another than ours."""

    text: str
    bundle: str = ""
    platform: str = ""

    @property
    def for_platform(self) -> Platform:
        return Platform.parse(self.platform) if self.platform else host_platform()


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of layers that come in, and of bytes that are copied out."""

    layers: Callable[[Progress], None]
    bytes: Callable[[int], object]


def check_target(target: Path) -> None:
    """Raise unless `target` may become a root file system: it is not there, or an empty directory of a larger tree."""
    try:
        with os.scandir(target) as found:
            if next(found, None) is not None:
                raise BlockedError(
                    f"{target}: is not empty", hint="name a directory that is empty or not there"
                )
    except NotADirectoryError as error:
        raise BlockedError(
            f"{target}: is no directory", hint="name one that is empty or not there"
        ) from error
    except FileNotFoundError as error:
        if not target.parent.is_dir():
            raise NotFoundError(f"{target.parent}: no such directory") from error
    if target.is_mount():
        raise BlockedError(
            f"{target}: is where something is mounted, which can't be replaced in one step",
            hint=f"name a directory in it: {target}/rootfs",
        )


def unpack(layout: Layout, device: Device, wish: Wish, target: Path, scratch: Path, tell: Listeners) -> Image:
    """Make `target` the root file system that `wish` means, whole, or leave it as it was; return the image.

    `scratch` is an empty directory beside it, and the caller's to remove. Raises what a pull raises, and BlockedError
    where `target` is in use.
    """
    root = scratch / "root"
    root.mkdir(mode=0o700)
    held = None if wish.bundle else _held(layout, device, wish)
    try:
        image = held or _apart(open_registry(layout, device), device, wish, scratch, root, tell)
        if held is not None:
            _copy(layout, held, root, tell)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        check_target(target)
        root.rename(target)  # over an empty directory too, in one step
    except OSError as error:
        raise _explained(error, target) from error
    return image


def _held(layout: Layout, device: Device, wish: Wish) -> Image | None:
    """The image in the store that is meant, if it is there for that platform."""
    if not layout.layers.is_dir():
        return None
    from reconciler.agent.stock import Stock  # reads specs and records: only for a store that has something

    try:
        image = Stock(layout, device, Store(layout)).find(wish.text)
    except NotFoundError:
        return None
    wanted, found = wish.for_platform, Platform.parse(image.platform)
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return None
    store = Store(layout)
    with store.adding():
        doubt.vet(store, layout, (layer.chain_id for layer in image.layers))
    return image if all(store.has_layer(layer.chain_id) for layer in image.layers) else None


def _copy(layout: Layout, image: Image, root: Path, tell: Listeners) -> None:
    store = Store(layout)
    with store.adding():  # nothing is swept meanwhile
        merge(_paths(store, image), root, move=False, limits=Limits(), told=tell.bytes)


def _apart(
    registry: Registry, device: Device, wish: Wish, scratch: Path, root: Path, tell: Listeners
) -> Image:
    layout = Layout(scratch / "store", scratch / "run")
    store = Store(layout)
    store.prepare()
    only = [Path(wish.bundle)] if wish.bundle else []
    with closing(
        open_images(layout, device, store, wish.for_platform, only=only, registry=registry)
    ) as images:
        reference = pinned(wish.text, images.digest, bundle=wish.bundle).reference
        image = images.resolve(reference)
        images.pull(image, reference, tell.layers)
    merge(_paths(store, image), root, move=True, limits=Limits())
    return image


def _paths(store: Store, image: Image) -> Sequence[Path]:
    return [store.layer_path(layer.chain_id) for layer in image.layers]


def _explained(error: OSError, target: Path) -> ReconcilerError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
        return BlockedError(f"{target}: came into use meanwhile: {os.strerror(error.errno)}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BlockedError(f"{target}: disk full: the image does not fit", hint="make room", transient=True)
    return ReconcilerError(f"{target}: {error.strerror or error}")
