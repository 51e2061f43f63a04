"""Composition of what deals with images alone: a verb that pulls one has no use for networks and containers.

Loading the modules of those takes as long as pulling a small image does.
"""

from pathlib import Path

from reconciler.config import Device
from reconciler.engine.layout import Layout
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.pull import Images
from reconciler.engine.store import Store


def open_images(layout: Layout, device: Device, store: Store, platform: Platform | None = None) -> Images:
    """The way to images: the store, then the device's bundles, then the registry that the reference names."""
    return Images(
        store,
        layout,
        insecure=device.registries.insecure,
        ca=Path(device.registries.ca) if device.registries.ca else None,
        bundles=[Path(path) for path in device.bundles],
        platform=platform or host_platform(),
    )
