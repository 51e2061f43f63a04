"""How far the scrub has come, and what it has found: a small file on the disk, and a newer one in the run directory.

Where it is now is written to the run directory, which is memory, so that a restart of the agent goes on from there. The
disk gets it when a pass is done, when the agent is stopped, and once a day besides, so that a device that is switched
off every night comes to an end of its store, and one that idles writes next to nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout

_LARGEST: Final = 1 << 20
KINDS: Final = ("blob", "container", "image", "layer", "tag")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """`at` is the object that is being read (kind, name) and `files` how many files of it were; `finished` the wall
    time of the last whole pass, 0 before the first, `began` that of this one; `found` what is wrong now, by kind and
    name, with a sentence; `bytes` were read in this pass.
    """

    at: tuple[str, str] | None = None
    files: int = 0
    began: float = 0.0
    finished: float = 0.0
    bytes: int = 0
    found: Mapping[tuple[str, str], str] | None = None

    @property
    def wrong(self) -> Mapping[tuple[str, str], str]:
        """What is wrong now."""
        return self.found or {}

    def with_wrong(self, kind: str, name: str, what: str) -> "Scrubbed":
        """The same with one object more, or with "" one less, that is wrong."""
        rest = {key: text for key, text in self.wrong.items() if key != (kind, name)}
        return replace(self, found={**rest, (kind, name): what} if what else rest)

    def corrupt(self) -> dict[str, int]:
        """How many objects of each kind are wrong."""
        return {kind: sum(key[0] == kind for key in self.wrong) for kind in KINDS}


def read(layout: Layout) -> Scrubbed:
    """What is known; nothing where no file can be read."""
    found = [one for path in (layout.scrub_progress, layout.scrub) if (one := _parse(path)) is not None]
    return found[0] if found else Scrubbed()


def write(path: Path, state: Scrubbed, *, durable: bool) -> None:
    """Replace the file. Raises OSError."""
    value = {
        "version": 1,
        "at": None if state.at is None else list(state.at),
        "files": state.files,
        "began": state.began,
        "finished": state.finished,
        "bytes": state.bytes,
        "found": [[*key, text] for key, text in sorted(state.wrong.items())],
    }
    replace_json(path, value, durable=durable)


def _parse(path: Path) -> Scrubbed | None:
    try:
        with path.open("rb") as file:
            value: dict[str, Any] = json.loads(file.read(_LARGEST))
        at = value["at"]
        return Scrubbed(
            None if at is None else (str(at[0]), str(at[1])),
            int(value["files"]),
            float(value["began"]),
            float(value["finished"]),
            int(value["bytes"]),
            {(str(kind), str(name)): str(text) for kind, name, text in value["found"]},
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
