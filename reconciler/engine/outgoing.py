"""OCI image layouts that are written here, as a directory or one tar file: what `save` and `bundle create` give away.

`index.json` comes last, so that what was interrupted has none and is refused by every reader. A directory can be gone
on with: a blob that is there, and is what its name says, stays. A file appears under its name when it is whole.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from reconciler.engine.durable import sync_directory
from reconciler.errors import ReconcilerError
from reconciler.spec.reference import Digest

_CHUNK: Final = 1 << 20
_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


class Outgoing(Protocol):
    """A layout being written."""

    def has(self, digest: Digest) -> bool:
        """Tell whether the blob is in it already, whole."""
        ...

    @property
    def spool(self) -> Path:
        """A file for one blob at a time, which `take` takes."""
        ...

    def take(self, digest: Digest) -> None:
        """Make what was written to `spool`, and verified, the blob of that name."""
        ...

    def put(self, digest: Digest, data: bytes) -> None:
        """Add a small blob."""
        ...

    def finish(self, documents: Mapping[str, Any]) -> None:
        """Write the documents beside the blobs, `index.json` among them, and let the layout appear, durably."""
        ...


def _spelled(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class DirectoryLayout:
    """A layout as the directory `path`, made where it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists() and not path.is_dir():
            raise ReconcilerError(f"{path}: is no directory", hint="a file is called NAME.tar")
        (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        self.spool = path / ".partial"
        self.spool.unlink(missing_ok=True)

    def _blob(self, digest: Digest) -> Path:
        return self._path / "blobs" / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        try:
            with self._blob(digest).open("rb") as file:
                return hashlib.file_digest(file, digest.algorithm).hexdigest() == digest.hex
        except OSError:
            return False

    def take(self, digest: Digest) -> None:
        with self.spool.open("rb") as file:
            os.fsync(file.fileno())
        path = self._blob(digest)
        path.parent.mkdir(exist_ok=True)
        self.spool.rename(path)
        sync_directory(path.parent)

    def put(self, digest: Digest, data: bytes) -> None:
        self.spool.write_bytes(data)
        self.take(digest)

    def finish(self, documents: Mapping[str, Any]) -> None:
        documents = {"oci-layout": json.loads(_LAYOUT), **documents}
        for name in sorted(documents, key=lambda name: name == "index.json"):
            self.spool.write_bytes(_spelled(documents[name]))
            with self.spool.open("rb") as file:
                os.fsync(file.fileno())
            self.spool.rename(self._path / name)
        sync_directory(self._path)


class TarLayout:
    """A layout as one tar archive, written to `out` in one go; `scratch` is a directory for one blob at a time."""

    def __init__(self, out: IO[bytes], scratch: Path) -> None:
        self._out = out
        self._total = 0
        self._written: set[Digest] = set()
        self._directories: set[str] = set()
        self.spool = scratch / "blob"
        self._file("oci-layout", _LAYOUT)

    def has(self, digest: Digest) -> bool:
        return digest in self._written

    def take(self, digest: Digest) -> None:
        with self.spool.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._header(digest, size)
            while chunk := file.read(_CHUNK):
                self._write(chunk)
            self._write(bytes(-size % _BLOCK))
        self.spool.unlink()

    def put(self, digest: Digest, data: bytes) -> None:
        self._header(digest, len(data))
        self._write(data + bytes(-len(data) % _BLOCK))

    def finish(self, documents: Mapping[str, Any]) -> None:
        for name in sorted(documents, key=lambda name: name == "index.json"):
            self._file(name, _spelled(documents[name]))
        self._write(bytes(2 * _BLOCK + -(self._total + 2 * _BLOCK) % _RECORD))
        self._out.flush()

    def _header(self, digest: Digest, size: int) -> None:
        self._written.add(digest)
        for name in ("blobs/", f"blobs/{digest.algorithm}/"):
            if name not in self._directories:
                self._directories.add(name)
                self._write(_member(name, 0, tarfile.DIRTYPE))
        self._write(_member(f"blobs/{digest.algorithm}/{digest.hex}", size))

    def _file(self, name: str, data: bytes) -> None:
        self._write(_member(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def _write(self, data: bytes) -> None:
        self._total += len(data)
        view = memoryview(data)
        while view:
            view = view[self._out.write(view) :]


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def index(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The document `index.json` of these descriptors."""
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": list(entries),
    }
