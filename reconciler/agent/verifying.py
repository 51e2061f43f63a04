"""`verify`: whether an image is signed as the device's rules ask, or by a key that is named, looked at afresh.

What is kept with the image is verified again; then its bundles, mirrors and the registry are asked, as for a pull. What
it finds for an image that is here is kept, so that an agent which held the image goes on.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.agent.images import open_images
from reconciler.agent.pinning import pinned
from reconciler.config import Device, TrustRule
from reconciler.engine import tags
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.engine.trust.gate import UntrustedImageError, Verdict
from reconciler.engine.trust.keys import KeyFileError, read_key
from reconciler.engine.trust.verify import load
from reconciler.errors import NotFoundError, UsageError
from reconciler.spec.reference import Digest, Reference

_EVERY = "*"


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of it: the image by its digest, and what is said of it."""

    reference: Reference
    verdict: Verdict

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "reference": str(self.reference),
            "digest": str(self.reference.digest),
            **self.verdict.document(),
        }


def verify(
    layout: Layout, device: Device, text: str, *, keys: Sequence[str] = (), bundle: str = ""
) -> Verified:
    """Verify the image that `text` means: what is called so here, a digest, or what a registry's tag means now.

    By the rules of `device`, or by `keys` (paths) alone; from `bundle` alone where one is given. NotFoundError where no
    rule is about the image; what is not signed is a verdict without a voucher, not an error.
    """
    if keys:
        _check(keys)
        device = replace(device, trust=(TrustRule(_EVERY, tuple(keys), place="--key"),))
    store = Store(layout)
    only = [Path(bundle)] if bundle else []
    with closing(open_images(layout, device, store, only=only)) as images:
        here = None if bundle else _here(layout, text)
        reference = here or pinned(text, images.digest, bundle=bundle).reference
        rule = images.trust.rule(reference)
        if rule is None:
            raise NotFoundError(
                f"image {reference}: no rule of device.yaml is about it, so that it needs no signature",
                hint="to check it with a key: reconciler verify --key FILE IMAGE",
            )
        try:
            verdict = images.admit(reference, keep=_is_here(store, reference.digest), afresh=True)
        except UntrustedImageError as error:
            verdict = Verdict(rule, problem=str(error))
    return Verified(reference, verdict)


def _check(keys: Sequence[str]) -> None:
    for path in keys:
        try:
            load(read_key(path))
        except KeyFileError as error:
            raise UsageError(f"--key: {error}", hint=error.hint) from error


def _here(layout: Layout, text: str) -> Reference | None:
    """What that name was given to on this device, if it was."""
    if "@" in text:
        return None
    try:
        name = tags.full_name(text)
    except UsageError:
        return None
    tag = tags.find(layout, name)
    return None if tag is None else replace(Reference.parse(name), digest=tag.digest)


def _is_here(store: Store, digest: Digest | None) -> bool:
    return digest is not None and store.resolved(digest) is not None
