"""Names for ad-hoc containers: what people give, if it is one and free, else an adjective and a noun, as Docker's."""

import secrets
from collections.abc import Set
from typing import Final

from reconciler.engine import byhand
from reconciler.engine.layout import Layout
from reconciler.engine.record import records
from reconciler.errors import BlockedError, UsageError
from reconciler.spec.adhoc import ADHOC, is_name

_ADJECTIVES: Final = (
    "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cosy", "crisp", "eager", "early",
    "fair", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "honest", "humble", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "merry", "modest", "noble", "patient", "plain", "polite", "proud", "quick",
    "quiet", "ready", "robust", "serene", "sharp", "silent", "simple", "sober", "steady", "sturdy", "sunny", "swift",
    "tidy", "vivid", "warm", "wise", "witty", "young",
)  # fmt: skip
_NOUNS: Final = (
    "acorn", "anchor", "aspen", "badger", "beacon", "beech", "birch", "brook", "canyon", "cedar", "cliff", "comet",
    "copper", "crane", "delta", "dune", "falcon", "fern", "fjord", "forge", "glacier", "harbor", "hazel", "heron",
    "island", "juniper", "kestrel", "lagoon", "lantern", "larch", "linden", "lynx", "maple", "marten", "meadow", "mesa",
    "moss", "oak", "orchard", "osprey", "otter", "pebble", "pine", "quartz", "raven", "reef", "ridge", "robin", "sable",
    "spruce", "summit", "thicket", "valley", "willow", "wren", "yew",
)  # fmt: skip


def fresh_name(taken: Set[str]) -> str:
    """Return a name that is not in `taken`."""
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
        if name not in taken:
            return name
        name = f"{name}-{secrets.randbelow(10_000)}"
        if name not in taken:
            return name


def new_name(layout: Layout, name: str, *, option: str = "--name", given: bool = False) -> str:
    """A name that no container has: `name`, or a fresh one where it is "" and need not be `given`.

    UsageError for what is no name, BlockedError where it is taken.
    """
    taken = byhand.adhoc_names(layout) or frozenset()
    taken |= {found.name for found in records(layout) if found.app == ADHOC}
    if not name and not given:
        return fresh_name(taken)
    if not is_name(name):
        raise UsageError(
            f"{option} {name[:80]!r}: must be letters, digits, '_', '.' and '-'",
            hint="at most 63, and the first a letter or a digit",
        )
    if name in taken:
        raise BlockedError(
            f"the name {name} is taken by another container",
            hint=f"use another {option}, or: reconciler rm {name}",
        )
    return name
