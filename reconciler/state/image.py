"""A resolved image: what a digest turned out to mean for this device's platform.

Values only. They are made by `engine.image` from verified manifest and config documents and never change: a digest
resolves to the same `Image` for ever, which is why the result may be cached on disk.
"""

from dataclasses import dataclass

from reconciler.spec.reference import Digest


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the compressed blob (`digest`, `size` in bytes, `media_type`) and what it unpacks to.

    `diff_id` is the digest of the uncompressed tar; `chain_id` names the layer on top of all those below it
    (OCI image specification, config.md, "Layer ChainID") and is the name of its directory in the store.
    """

    digest: Digest
    size: int
    media_type: str
    diff_id: Digest
    chain_id: Digest


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform, with the parts of its config that a container inherits.

    `index` is the digest that the spec pins if that is an index, else equal to `manifest`. `environment` holds
    `K=V` strings in the image's order. `entrypoint` and `command` are None where the image sets none.
    """

    index: Digest
    manifest: Digest
    config: Digest
    layers: tuple[Layer, ...]
    platform: str
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    stop_signal: str | None = None
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def download_size(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A digest whose manifest is not known yet: it holds up the apps that want it, and only those.

    `reason` is a sentence for `status`; `transient` says whether waiting may help.
    """

    reason: str
    transient: bool = True
