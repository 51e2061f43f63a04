"""Names for ad-hoc containers whose people give none: an adjective and a noun, as Docker's, and not taken yet."""

import secrets
from collections.abc import Set
from typing import Final

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
