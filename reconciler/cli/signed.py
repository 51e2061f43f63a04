"""What listings and `inspect` show of signatures: what is kept with an image, by the rules of today; asks nobody."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.cli.common import device_of
from reconciler.engine.layout import Layout
from reconciler.spec.reference import InvalidReferenceError, Reference
from reconciler.state.image import Image

if TYPE_CHECKING:
    from reconciler.config import TrustRule


def rules_of(args: argparse.Namespace) -> "Sequence[TrustRule]":
    """The device's rules about signatures. Where its file has none, nothing is loaded that reads it."""
    try:
        if b"trust" not in Path(args.device).read_bytes():
            return ()
    except OSError:
        return ()
    return device_of(args).trust


def verdict_of(rules: "Sequence[TrustRule]", layout: Layout, reference: Reference) -> dict[str, object]:
    """What is known of the image that `reference` pins; {} where no rule is about it."""
    if not rules:
        return {}
    from reconciler.engine.trust.gate import Trust
    from reconciler.engine.trust.record import Records

    trust = Trust(rules, Records(layout))
    return trust.verdict(reference).document() if trust.rule(reference) is not None else {}


def verdicts_of(
    rules: "Sequence[TrustRule]", layout: Layout, image: Image, names: Iterable[str]
) -> list[dict[str, object]]:
    """The same for each name of an image that a rule is about."""
    found = []
    for name in names if rules else ():
        try:
            reference = Reference.parse(f"{name.partition('@')[0]}@{image.index}")
        except InvalidReferenceError:
            continue
        verdict = verdict_of(rules, layout, reference)
        if verdict:
            found.append({"reference": str(reference), **verdict})
    return found
