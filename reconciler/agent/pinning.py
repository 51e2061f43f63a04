"""From what a person calls an image to a reference with its digest: the one place where a name is taken at its word.

Specs pin digests and need none of this. A bundle's own names count for whoever names the bundle; any other tag is a
question that its registry answers now.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from reconciler.agent.asked import reference_of
from reconciler.engine import oci_layout, tags
from reconciler.errors import ReconcilerError, UsageError
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference

_BUNDLE: Final = "bundle"  # the name of what has none that could be told here


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a text means: `name` is the whole name that the image was asked for by, "" where it was its digest."""

    reference: Reference
    name: str = ""


def pinned(
    text: str,
    digest_of: Callable[[Reference], Digest],
    *,
    bundle: str = "",
    last_known: Callable[[Reference], Digest | None] = lambda _: None,
) -> Pinned:
    """Return the image that `text` means: what the OCI layout `bundle` calls so, a digest, or a registry's tag.

    `digest_of` asks the registry. Where that fails for the moment `last_known` is asked, and else the error is raised.
    UsageError: `text` is no reference; NotFoundError: the bundle has no such name. What a bundle calls so that nothing
    here can have that name is told by its digest alone.
    """
    if bundle and "@" not in text:
        return _in_bundle(Path(bundle), text)
    reference = reference_of(text)
    if reference.digest is not None:
        return Pinned(reference)
    return Pinned(replace(reference, digest=_asked(reference, digest_of, last_known)), str(reference))


def _asked(
    reference: Reference,
    digest_of: Callable[[Reference], Digest],
    last_known: Callable[[Reference], Digest | None],
) -> Digest:
    try:
        return digest_of(reference)
    except ReconcilerError as error:
        known = last_known(reference) if error.transient else None
        if known is None:
            raise
        return known


def _in_bundle(directory: Path, text: str) -> Pinned:
    try:
        return Pinned(Reference.parse(f"localhost/{_BUNDLE}@{Digest.parse(text)}"))
    except InvalidReferenceError:
        digest = oci_layout.named(directory, text)
    # A layout may call an image by a whole name, by NAME:TAG, or, as the specification has it, by a tag alone.
    whole = text if ":" in text or "/" in text else f"{directory.name.lower()}:{text}"
    for name in (whole, f"{_BUNDLE}:{text}"):
        try:
            reference = Reference.parse(tags.full_name(name))
        except UsageError:
            continue
        return Pinned(replace(reference, digest=digest), str(reference))
    return Pinned(Reference.parse(f"localhost/{_BUNDLE}@{digest}"))
