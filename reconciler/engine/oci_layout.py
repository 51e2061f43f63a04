"""Bundles: OCI image layouts as a source of blobs: a USB stick, a directory beside the specs, an archive.

A blob is looked up by its digest alone, so the layout's index.json, its tags and its annotations have no say, except
where somebody asks for an image by its name there (`named`). Whoever
reads a blob verifies it. A bundle that is not there (a stick not plugged in, or pulled out) holds nothing, and nothing
of it stays open between two blobs, so that it can be unmounted. Reads only.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from reconciler.engine.bundlepath import BundlePath
from reconciler.engine.document import Object, parse
from reconciler.errors import NotFoundError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from reconciler.spec.reference import Digest

CHUNK = 1 << 16
_INDEX = 4 << 20  # the ceiling of manifests (distribution specification 1.1, "Pulling")
_REF_NAME = "org.opencontainers.image.ref.name"


class Holder(Protocol):
    """Whatever has blobs by their digests: a layout's directory, an archive."""

    def blob(self, digest: Digest) -> IO[bytes] | None:
        """Open the blob of that name, for whoever closes it, or return None; nothing is verified."""
        ...


@dataclass(frozen=True, slots=True)
class Directory:
    """The layout in the directory `path`, which need not be there. A blob is a regular file within it."""

    path: Path

    def blob(self, digest: Digest) -> IO[bytes] | None:
        try:
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # also EIO and ESTALE, of what was pulled out
            return None
        try:
            return _blob(root, digest)
        finally:
            os.close(root)


def _blob(root: int, digest: Digest) -> IO[bytes] | None:
    """Open a blob of the layout in the directory `root`, or return None."""
    try:
        # A stick is a stranger's: a symlink in it may not lead out of it, and a FIFO may not hold us up.
        fd = openat2(
            root,
            f"blobs/{digest.algorithm}/{digest.hex}",
            os.O_RDONLY | os.O_NONBLOCK,
            resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
        )
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return open(fd, "rb", buffering=0)


class Bundles:
    """The bundles of this device, asked in order. Thread-safe.

    `news` grows when somebody has seen one appear: who waits for a registry looks here first, then.
    """

    def __init__(self, bundles: Sequence[Path | BundlePath | Holder]) -> None:
        self._bundles: tuple[Holder | BundlePath, ...] = ()
        self._found: dict[str, Directory] = {}
        self.news = 0
        for bundle in bundles:
            self.add(bundle)

    def add(self, bundle: Path | BundlePath | Holder) -> None:
        """Ask one more, last, from now on."""
        holder = Directory(bundle) if isinstance(bundle, Path) else bundle
        if holder not in self._bundles:
            self._bundles = (*self._bundles, holder)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Each of them that is there now, in the order in which they are asked; the same object for the same path."""
        found: list[Holder] = []
        for holder in self._bundles:
            if isinstance(holder, BundlePath):
                paths = [path for path, _ in holder.directories()]
                found += [self._found.setdefault(path, Directory(Path(path))) for path in paths]
            else:
                found.append(holder)
        return tuple(found)

    def copies(self, digest: Digest) -> Iterator[IO[bytes]]:
        """Open every blob of that name, one after the other, each for whoever closes it; nothing is verified."""
        for holder in self._bundles:
            yield from _of(holder, digest)

    def has(self, digest: Digest) -> bool:
        """Tell whether some bundle has a blob of that name."""
        for file in self.copies(digest):
            file.close()
            return True
        return False

    def contents(self, digest: Digest, limit: int) -> Iterator[bytes]:
        """Yield what each bundle has of that name, a small blob: one byte more than `limit` at most. Not verified."""
        for file in self.copies(digest):
            data = bytearray()
            try:
                with file:
                    while len(data) <= limit and (chunk := file.read(CHUNK)):
                        data += chunk
            except OSError:
                continue  # pulled out, or worn out: as if it had none
            yield bytes(data[: limit + 1])


def _of(holder: Holder | BundlePath, digest: Digest) -> Iterator[IO[bytes]]:
    if not isinstance(holder, BundlePath):
        found = holder.blob(digest)
        if found is not None:
            yield found
        return
    for _, root in holder.directories():
        found = _blob(root, digest)
        if found is not None:
            yield found


def named(directory: Path, name: str) -> Digest:
    """Return what the layout in `directory` calls `name` (org.opencontainers.image.ref.name), or raise NotFoundError.

    This is what a person asked for by that name in that layout; it says nothing about any other name.
    """
    index = read_index(directory)
    found: dict[str, Digest] = {}
    for entry in index.children("manifests") or []:
        notes = entry.child("annotations")
        known = notes.text(_REF_NAME) if notes is not None else None
        if known is not None:
            found[known] = Digest.parse(entry.required_text("digest"))
    if name not in found:
        raise NotFoundError(
            f"{directory}: nothing there is called {name}",
            hint=f"there are: {', '.join(sorted(found)) or 'no names'}",
        )
    return found[name]


def read_index(directory: Path) -> Object:
    """Return the index.json of the layout in `directory`; NotFoundError where there is none."""
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"{directory}: {(error.strerror or '').lower()}") from error
    try:
        return index_in(root, str(directory))
    finally:
        os.close(root)


def index_in(root: int, directory: str) -> Object:
    """Return the index.json in the open directory `root`, called `directory`; NotFoundError where there is none."""
    try:
        fd = openat2(
            root, "index.json", os.O_RDONLY | os.O_NONBLOCK, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
        )
    except OSError as error:
        raise NotFoundError(
            f"{directory}: not an OCI image layout: it has no index.json",
            hint="if it is a bundle, its making was interrupted: run bundle create once more",
        ) from error
    try:
        with open(fd, "rb") as file:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            data = file.read(_INDEX + 1) if regular else b""
    except OSError as error:
        raise NotFoundError(f"{directory}/index.json: {(error.strerror or '').lower()}") from error
    return parse(data, subject=f"{directory}/index.json", limit=_INDEX)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of `file` in pieces."""
    while chunk := file.read(CHUNK):
        yield chunk
