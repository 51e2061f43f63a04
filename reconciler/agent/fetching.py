"""The image that `run` and `create` are to use, by Docker's three policies: from what is here, a bundle, or a registry.

`missing` takes what that name means here already, be it by a pull or by a container that was made from it, and asks the
registry only where that is nothing, or not complete. `always` asks, and fails where nobody answers; `never` takes what
is here or nothing. A digest means the same to all three, so that there is nothing to ask.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from reconciler.agent.asked import reference_of, text_of
from reconciler.agent.parts import Parts
from reconciler.agent.pinning import pinned
from reconciler.engine import tags
from reconciler.engine.progress import Listener
from reconciler.engine.record import records
from reconciler.errors import NotFoundError, UsageError
from reconciler.spec.reference import Digest, Reference

_ALWAYS, _MISSING, _NEVER = "always", "missing", "never"
POLICIES: Final = (_ALWAYS, _MISSING, _NEVER)


def fetch(parts: Parts, body: Mapping[str, Any], progress: Listener) -> dict[str, Any]:
    """Return which image is meant, by digest, once it is here: from a `bundle` that is given, or its registry.

    NotFoundError where it is not here and its policy is never to bring it. `warning` is why nobody vouches for it,
    where the device's rule about it only warns.
    """
    text, bundle = text_of(body, "image"), text_of(body, "bundle")
    policy = text_of(body, "pull") or _MISSING
    if policy not in POLICIES:
        raise UsageError(f"--pull {policy[:40]!r}: is none of {', '.join(POLICIES)}")
    reference = _here(parts, text, bundle) if policy != _ALWAYS else None
    if reference is None:
        if policy == _NEVER:
            more = f" --bundle {bundle}" if bundle else ""
            hint = f"run: reconciler pull{more} {text}, or leave --pull never out"
            raise NotFoundError(f"image {text}: is not here, and --pull is never", hint=hint)
        reference = pinned(
            text,
            parts.images.digest,
            bundle=bundle,
            last_known=lambda asked: _last_known(parts, asked) if policy == _MISSING else None,
        ).reference
        if bundle:
            parts.images.add_bundle(Path(bundle))
    image = parts.images.resolve(reference)
    parts.images.pull(image, reference, progress)
    warning = parts.images.trust.unsigned(reference)
    return {"image": str(reference), "digest": str(reference.digest), "warning": warning}


def _here(parts: Parts, text: str, bundle: str) -> Reference | None:
    """The image that `text` means here, if it is complete: by its digest, by what a bundle calls so, by its name."""
    if bundle and "@" not in text:
        meant = pinned(text, parts.images.digest, bundle=bundle).reference
        return meant if parts.images.is_here(meant) else None
    reference = reference_of(text)
    if reference.digest is not None:
        return reference if parts.images.is_here(reference) else None
    found = _of_containers(parts, reference)
    found += [(tag.created, tag.digest) for tag in tags.tags(parts.layout) if tag.name == str(reference)]
    newest_first = (replace(reference, digest=digest) for _, digest in sorted(found, reverse=True))
    return next((one for one in newest_first if parts.images.is_here(one)), None)


def _of_containers(parts: Parts, reference: Reference) -> list[tuple[float, Digest]]:
    """What that tag meant for containers that are here, with the times at which they were made."""
    known = ((record.created, Reference.parse(record.reference)) for record in records(parts.layout))
    return [
        (created, one.digest)
        for created, one in known
        if one.digest is not None and replace(one, digest=None) == reference
    ]


def _last_known(parts: Parts, reference: Reference) -> Digest | None:
    """What that tag meant last for a container that is here: a device may be off the net for long."""
    found = _of_containers(parts, reference)
    return max(found)[1] if found else None
