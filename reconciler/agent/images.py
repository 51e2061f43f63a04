"""Composition of what deals with images alone: a verb that pulls one has no use for networks and containers.

Loading the modules of those takes as long as pulling a small image does.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from reconciler.config import Device
from reconciler.engine.bundlepath import BundlePath
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Holder
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.keyring import Keyring
from reconciler.engine.registry.proxy import Proxies
from reconciler.engine.store import Store


def limits_of(device: Device) -> Limits:
    """What an image may cost on this device."""
    given = device.limits
    return Limits(
        unpacked=given.unpacked,
        entries=given.entries,
        ratio=given.ratio,
        path=given.path,
        nesting=given.nesting,
        reserve=device.reserve,
    )


def open_images(
    layout: Layout,
    device: Device,
    store: Store,
    platform: Platform | None = None,
    *,
    only: Sequence[Path | Holder] = (),
    registry: Registry | None = None,
) -> Images:
    """The way to images: the store, then the device's bundles, then the registry that the reference names.

    With `only`, these bundles alone are asked, and no registry. `registry` is for who has one: its keys are those of
    the device, also where `layout` is not the device's.
    """
    return Images(
        store,
        layout,
        registry=registry or open_registry(layout, device),
        bundles=only or [BundlePath(path) for path in device.bundles],
        offline=bool(only),
        keep_blobs=device.gc.keep_blobs,
        trust=device.trust,
        platform=platform or host_platform(),
        limits=limits_of(device),
    )


def open_keyring(layout: Layout, device: Device) -> Keyring:
    """The credentials of this device: what device.yaml names, then what `login` keeps."""
    authfile = device.registries.authfile
    return Keyring(layout.auth, Path(authfile) if authfile else None)


def open_registry(layout: Layout, device: Device) -> Registry:
    """The registry client alone, for who has no images to fetch."""
    proxies = Proxies.of_environment(os.environ)
    return Registry(
        device.registries,
        credentials=open_keyring(layout, device),
        proxies=proxies,
        peers=device.peers.ask,
    )
