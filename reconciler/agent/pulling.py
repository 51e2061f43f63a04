"""Pulling by hand: by digest, by a tag whose digest is looked up now, or from an OCI layout by the name it has there.

A tag is a question that its registry answers today; what was pulled is told by digest, and the tag's name is kept for
people on this device, unless a spec pins that name to something else: what a spec says is never overruled by hand.
"""

import glob
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from reconciler.agent.images import open_images
from reconciler.agent.pinning import pinned
from reconciler.config import Device
from reconciler.engine import tags
from reconciler.engine.layout import Layout
from reconciler.engine.platform import Platform, host_platform
from reconciler.engine.progress import Progress
from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.spec.reference import Reference
from reconciler.state.image import Image


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came: the reference with its digest, the image, the name it got by hand ("" for none), and why not.

    `shares` are the packed bytes that were fetched, by where they came from, in words.
    """

    reference: Reference
    image: Image
    name: str = ""
    warning: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "reference": str(self.reference),
            "digest": str(self.reference.digest),
            "manifest": str(self.image.manifest),
            "platform": self.image.platform,
            "name": self.name,
            "warning": self.warning,
            "bytes": dict(self.shares),
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where images are brought to: what a pull needs, and no more, since loading the rest takes as long as a pull."""

    layout: Layout
    device: Device
    store: Store
    images: Images


def pull(
    place: Place, text: str, progress: Callable[[Progress], None], *, bundle: str = "", platform: str = ""
) -> Pulled:
    """Bring the image that `text` means here, verified and unpacked, and give it the name that was asked for."""
    shares: Counter[str] = Counter()

    def hear(layer: Progress) -> None:
        shares.update(dict(layer.shares))
        progress(layer)

    for_platform = Platform.parse(platform) if platform else host_platform()
    with ExitStack() as stack:
        images = place.images
        if bundle or for_platform != host_platform():
            bundles = (glob.escape(bundle), *place.device.bundles) if bundle else place.device.bundles
            device = replace(place.device, bundles=bundles)
            images = open_images(place.layout, device, place.store, for_platform)
            stack.callback(images.close)
        asked = pinned(text, images.digest, bundle=bundle)
        reference, name = asked.reference, asked.name
        asked_for = reference
        foreign = for_platform != host_platform()
        if foreign:
            # By its own manifest: what the index means on this device must stay what specs are resolved to
            found = images.resolve_without_storing(reference)
            reference = replace(reference, digest=found.manifest)
        image = images.resolve(reference, vouched=foreign)
        images.pull(image, reference, hear, vouched=foreign)
        verdict = images.trust.verdict(asked_for)
    if not name:
        return Pulled(reference, image, warning=verdict.problem, shares=shares)
    from reconciler.agent import stock  # reads specs: only a name that is given has to be compared with them

    with place.store.adding(), place.store.claims:
        reason = stock.pinned_elsewhere(stock.Stock(place.layout, place.device, place.store), name, image)
        if reason:
            warning = _joined(verdict.problem, f"{name}: not renamed: {reason}")
            return Pulled(reference, image, warning=warning, shares=shares)
        tags.give(place.layout, name, image.index)
    return Pulled(reference, image, name, verdict.problem, shares)


def _joined(*sentences: str) -> str:
    return "; ".join(filter(None, sentences))
