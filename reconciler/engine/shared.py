"""What of the store other devices may have: blobs that a registry has given without being told who asks.

That is written down with the blob, as an extended attribute: it comes and goes with the file, and a mode that somebody
changes, or a copy that loses it, makes nothing public that was not. Where the file system has no such attributes
nothing is public.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import IO, Final, NamedTuple

from reconciler.engine.document import InvalidDocumentError, parse
from reconciler.engine.image import OCI_INDEX, OCI_MANIFEST, is_index, parse_index, parse_manifest
from reconciler.engine.layout import Layout
from reconciler.spec.reference import Digest

_MARK: Final = "user.reconciler.public"
DOCUMENT: Final = (
    4 << 20
)  # bytes of a manifest or index at most (distribution specification, "Pushing Manifests")


def mark(path: Path) -> None:
    """Note that the blob in the file `path` is one that anybody may have."""
    with contextlib.suppress(OSError):
        os.setxattr(path, _MARK, b"1")


def can_mark(directory: Path) -> bool:
    """Whether the file system of `directory` keeps the mark; leaves nothing there."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        os.setxattr(fd, _MARK, b"1")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


class Given(NamedTuple):
    """A blob that is given away, open for reading, and whether that is because anybody may have it."""

    file: IO[bytes]
    public: bool


class Shared:
    """The blobs of a store that are given away: the public ones, or with `everything` all of them."""

    def __init__(self, layout: Layout, *, everything: bool = False) -> None:
        self._layout = layout
        self._everything = everything

    def open(self, digest: Digest) -> Given | None:
        """Return the blob, open for reading and not verified; None where it is not there, or nobody else's."""
        try:
            fd = os.open(
                self._layout.blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except OSError:
            return None
        file = os.fdopen(fd, "rb", buffering=0)
        public = _is_marked(fd)
        if stat.S_ISREG(os.fstat(fd).st_mode) and (self._everything or public):
            return Given(file, public)
        file.close()
        return None


def _is_marked(fd: int) -> bool:
    try:
        return os.getxattr(fd, _MARK) == b"1"
    except OSError:
        return False


def media_type(data: bytes) -> str:
    """What a manifest or index is, also where it does not say so itself; "" for anything else."""
    try:
        index = is_index(data, subject="")
        (parse_index if index else parse_manifest)(data)
        return parse(data, subject="", limit=DOCUMENT).text("mediaType") or (
            OCI_INDEX if index else OCI_MANIFEST
        )
    except InvalidDocumentError:
        return ""
