"""Durable writes: the one way in which the agent replaces a file that must survive a power cut.

Temporary name in the same directory, write, fsync, rename, fsync the directory. Leaving out any of these was seen to
leave a zero-length file under the final name after a power cut on ext4 and xfs.
"""

import json
import os
import time
from collections.abc import Iterable
from hashlib import new as new_hash
from pathlib import Path

from reconciler.errors import VerificationError
from reconciler.failpoint import failpoint
from reconciler.spec.reference import Digest


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_bytes(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` so that a reader, or a power cut, sees the old file or the new one.

    A directory in its place is renamed to NAME.corrupt-TIME. With `durable` false only the reader is protected: for
    files on a tmpfs, or ones that may be lost.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        _write(partial, data, mode, durable=durable)
        try:
            partial.rename(path)
        except IsADirectoryError:  # not ours, whatever it is: kept beside it, for people to look at
            path.rename(path.with_name(f"{path.name}.corrupt-{time.time_ns()}"))
            partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    failpoint("durable.renamed")
    if durable:
        sync_directory(path.parent)


def make_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make `path`, whole and durable, unless it is there; of several who do so at once the first one has it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        _write(partial, data, mode, durable=True)
        os.link(partial, path, follow_symlinks=False)
        failpoint("durable.renamed")
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def _write(partial: Path, data: bytes, mode: int, *, durable: bool) -> None:
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
            failpoint("durable.writing")
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    failpoint("durable.written")


def replace_json(path: Path, value: object, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` with `value` as sorted JSON; see `replace_bytes`."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    replace_bytes(path, data, mode=mode, durable=durable)


def write_verified(path: Path, chunks: Iterable[bytes], expected: Digest, size: int | None) -> None:
    """Write `chunks` to the new file `path` and sync it; VerificationError unless they are what `expected` names.

    No more than `size` bytes are taken.
    """
    found = new_hash(expected.algorithm)
    total = 0
    with path.open("xb") as file:
        for chunk in chunks:
            total += len(chunk)
            if size is not None and total > size:
                raise VerificationError(f"blob {expected.short}: longer than {size} bytes")
            found.update(chunk)
            file.write(chunk)
        if size is not None and total != size:
            raise VerificationError(f"blob {expected.short}: {total} bytes, expected {size}")
        if found.hexdigest() != expected.hex:
            raise VerificationError(
                f"blob {expected.short}: digest is {expected.algorithm}:{found.hexdigest()},"
                f" expected {expected}"
            )
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
