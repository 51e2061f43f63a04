"""What travels in a copy: files of a tree as values, whoever reads them and wherever they land.

A tree is walked, or an archive read, into items in the order in which they can be made: a directory before what is in
it, a hard link after what it names. Values only.
"""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

Data = Iterator[tuple[int, "bytes | memoryview"]]
Path = tuple[str, ...]

CHUNK: Final = 1 << 20
# What is kept beside owner, mode and times: what decides about access, and what users wrote; nothing of overlayfs.
XATTRS: Final = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


def _nothing() -> Data:
    return iter(())


@dataclass(frozen=True, slots=True)
class Item:
    """One file. `path` are the names below what is copied, () for the thing itself; `kind` is one of stat's S_IF*.

    `mtime` is in nanoseconds. `target` is a symbolic link's text, `link` the path of the item that this is another name
    of. `data` gives the content as (offset, bytes), holes left out; it must be read before the next item is asked for.
    """

    path: Path
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: str = ""
    device: int = 0
    link: Path | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    data: Callable[[], Data] = _nothing

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


def kept(name: str) -> bool:
    """Say whether the extended attribute `name` travels."""
    return name in XATTRS or name.startswith("user.")
