"""Directory listings that cost one stat where nothing has changed: the store is looked at in every turn of the loop."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

_NOTHING: Final[Mapping[str, os.stat_result]] = MappingProxyType({})
_SETTLED: Final = 0.1  # seconds after which a directory's mtime is sure to tell the next change apart


class Listing:
    """The files of one directory, listed again only when the directory has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = -1
        self._found: Mapping[str, os.stat_result] = {}

    def files(self) -> Mapping[str, os.stat_result]:
        try:
            changed = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return _NOTHING
        if changed != self._seen:
            with os.scandir(self._path) as entries:
                found = {}
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    try:
                        found[entry.name] = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
            self._found = found
            # Two changes within one tick of the kernel's clock look alike.
            self._seen = changed if time.time() - changed / 1e9 > _SETTLED else -1
        return self._found
