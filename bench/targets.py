"""What the program has to reach, row by row. Ratios are to peers measured in the same run; limits in the row's unit.

Values only. A change here is a change of a promise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class AtMost:
    """An absolute limit, for what no peer does."""

    limit: float

    def __str__(self) -> str:
        return f"<= {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Best:
    """At most `factor` times the best of the peers that are here."""

    factor: float

    def __str__(self) -> str:
        return f"<= {self.factor:.2g}x the best"


@dataclass(frozen=True, slots=True)
class Against:
    """At most `factor` times the peer of that name."""

    peer: str
    factor: float

    def __str__(self) -> str:
        return f"<= {self.factor:.2g}x {self.peer}"


Target = AtMost | Best | Against

TARGETS: Final[Mapping[str, tuple[Target, ...]]] = {
    "pull/small/wall": (Best(0.7),),
    "pull/base/wall": (Best(0.5),),
    "pull/app/wall": (Best(0.5),),
    "pull/app/cpu": (AtMost(4.0),),
    "pull/zstd/wall": (Best(0.5),),
    "pull/huge/wall": (Best(0.6),),
    "start/runtime": (Against("runc", 0.3), Against("crun", 0.7)),
    "start/ids": (Against("host", 1.15),),
    "start/path": (Against("docker", 1 / 12), Against("podman", 1 / 10)),
    "many/started": (AtMost(1.0),),
    "many/running": (AtMost(1.0),),
    "many/edit": (AtMost(120),),
    "turn/warm": (AtMost(15),),
    "turn/cold": (AtMost(300),),
    "memory/10": (AtMost(55),),
    "memory/50": (AtMost(80),),
    "memory/shim": (AtMost(0.8),),
    "idle/cpu": (AtMost(0.2),),
    "idle/written": (AtMost(0),),
    "ports/tcp": (Against("direct", 1 / 0.9),),
    "ports/udp": (Against("direct", 1 / 0.9),),
    "ports/http": (Against("direct", 1 / 0.9),),
    "lan/tcp": (Against("routed", 1 / 0.9),),
    "lan/udp": (Against("routed", 1 / 0.9),),
    "lan/http": (Against("routed", 1 / 0.9),),
    "logs/shim": (AtMost(15),),
}
