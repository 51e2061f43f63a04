"""A generation: what was applied, whole, once it had converged. Kept generations are roots of the garbage collector.

Pure values; `agent` writes and reads the files.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppliedApp:
    """One app in a generation: the hash of its spec, its image references and the objects they need.

    `images` holds (reference, manifest digest, config digest); `layers` hex chain ids; `blobs` digests.
    """

    name: str
    path: str
    digest: str
    images: tuple[tuple[str, str, str], ...]
    layers: tuple[str, ...]
    blobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """`number` counts from 1; `revision` is the commit or the hash of the directory; `created` is wall seconds."""

    number: int
    revision: str
    created: float
    apps: tuple[AppliedApp, ...]
