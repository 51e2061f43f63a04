"""What an interrupted write leaves: temporary files beside the ones they were to replace.

They are small, but a device that loses its power every day would gather them for years. Their name holds the pid of who
wrote them, so that nothing is taken from a writer that lives. Only directories that `durable` writes to are looked at,
never a layer, a volume's data or what containers wrote.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reconciler.engine.layout import Layout

_PARTIAL: Final = re.compile(r"\..+\.(\d+)\.[0-9a-f]{6}")  # see durable.replace_bytes


def sweep(layout: Layout) -> None:
    """Delete the temporary files of writers that are gone; succeeds where a directory is missing."""
    for directory in _directories(layout):
        for name in _listing(directory):
            match = _PARTIAL.fullmatch(name)
            if match and not Path(f"/proc/{match[1]}").exists():
                (directory / name).unlink(missing_ok=True)


def _directories(layout: Layout) -> Iterator[Path]:
    """The directories with files that are replaced; those of containers go with their containers."""
    yield from (
        layout.state,
        layout.resolved,
        layout.layers,
        layout.network,
        layout.lastgood_root,
        layout.generations,
        layout.run,
    )
    for app in _listing(layout.volumes):
        for volume in _listing(layout.volumes / app):
            yield layout.volume(app, volume)


def _listing(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
