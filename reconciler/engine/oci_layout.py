"""Bundles: OCI image layouts as a source of blobs: a USB stick, a directory beside the specs, an archive.

A blob is looked up by its digest alone, so the layout's index.json, its tags and its annotations have no say, except
where somebody asks for an image by its name there (`named`). Whoever
reads a blob verifies it. A bundle that is not there (a stick not plugged in) holds nothing. Reads only.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from reconciler.engine.document import Object, parse
from reconciler.errors import NotFoundError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from reconciler.spec.reference import Digest

_CHUNK = 1 << 16
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
        except (FileNotFoundError, NotADirectoryError):
            return None
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
        finally:
            os.close(root)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return open(fd, "rb", buffering=0)


class Bundles:
    """The bundles of this device, asked in order."""

    def __init__(self, bundles: Sequence[Path | Holder]) -> None:
        self._bundles: tuple[Holder, ...] = ()
        for bundle in bundles:
            self.add(bundle)

    def add(self, bundle: Path | Holder) -> None:
        """Ask one more, last, from now on."""
        holder = Directory(bundle) if isinstance(bundle, Path) else bundle
        if holder not in self._bundles:
            self._bundles = (*self._bundles, holder)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Each of them, in the order in which they are asked."""
        return self._bundles

    @contextmanager
    def open(self, digest: Digest) -> Iterator[IO[bytes] | None]:
        """Open the blob `digest` of the first bundle that has it, or give None."""
        file = self._find(digest)
        if file is None:
            yield None
            return
        with file:
            yield file

    def has(self, digest: Digest) -> bool:
        """Tell whether some bundle has a blob of that name."""
        file = self._find(digest)
        if file is not None:
            file.close()
        return file is not None

    def read(self, digest: Digest, limit: int) -> bytes | None:
        """Return a small blob, or None where no bundle has it; one byte more than `limit` at most. Not verified."""
        with self.open(digest) as file:
            if file is None:
                return None
            data = bytearray()
            while len(data) <= limit and (chunk := file.read(_CHUNK)):
                data += chunk
            return bytes(data[: limit + 1])

    def _find(self, digest: Digest) -> IO[bytes] | None:
        return next((file for holder in self._bundles if (file := holder.blob(digest)) is not None), None)


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
        fd = openat2(
            root, "index.json", os.O_RDONLY | os.O_NONBLOCK, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
        )
    except OSError as error:
        raise NotFoundError(
            f"{directory}: not an OCI image layout: it has no index.json",
            hint="if it is a bundle, its making was interrupted: run bundle create once more",
        ) from error
    finally:
        os.close(root)
    with open(fd, "rb") as file:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        data = file.read(_INDEX + 1) if regular else b""
    return parse(data, subject=f"{directory}/index.json", limit=_INDEX)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of `file` in pieces."""
    while chunk := file.read(_CHUNK):
        yield chunk
