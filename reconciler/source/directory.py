"""Specs from a directory tree, read again in every turn; what has not changed costs one look at its inode.

Reads only. The tree belongs to somebody else, and may hold anything: every file is opened by descriptor, below the
root only (openat2 with RESOLVE_BENEATH, so that neither a link nor a rename during the walk leads out), without
waiting for a FIFO's writer, and must be a regular file of at most 1 MiB. A relative symbolic link that stays inside is
followed, because that is how Kubernetes mounts ConfigMaps; a directory with several names is read once.
"""

import errno
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from reconciler.errors import ReconcilerError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from reconciler.source.snapshot import MAX_BYTES, MAX_DEPTH, MAX_FILES, Snapshot, is_hidden, is_spec
from reconciler.spec.load import ReadFailure

_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
# The kernel stamps files with a clock that ticks every 1 to 10 ms: a file as young as this (nanoseconds) may change
# once more and keep its stamp.
_YOUNG: Final = 20_000_000
_TRIES: Final = 3
_TOO_LARGE: Final = "larger than 1 MiB"

_Key = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a file held when its inode had `key`; `key` is None where that can't be relied on."""

    key: _Key | None
    content: bytes | ReadFailure
    digest: bytes


@dataclass(slots=True)
class _Walk:
    """One walk over the tree whose root is open as `root`.

    `seen` are the directories that have been read, `fresh` the files that are not what the last walk found.
    """

    root: int
    kept: dict[str, _Kept] = field(default_factory=dict)
    fresh: int = 0
    problems: list[str] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)


class DirectorySource:
    """A directory tree of specs. `snapshot` is called by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: dict[str, _Kept] = {}
        self._configs: dict[str, _Kept] = {}
        self._last: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """Return what is there now.

        Unchanged files are the same `bytes` objects as in the last snapshot; where no file changed, came or went, it is
        the same mapping of files.
        """
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return Snapshot("", {}, problem=_sentence(self.root, error), read=self.read_config)
        walk = _Walk(root)
        try:
            self._walk(walk, root, "", 0)
        finally:
            os.close(root)
        kept, problems = walk.kept, walk.problems
        problem = "; ".join(problems[:3]) + ("; and more" if len(problems) > 3 else "")
        last = self._last
        if last is not None and not walk.fresh and len(kept) == len(self._kept):
            if problem != last.problem:
                last = self._last = replace(last, problem=problem)
            return last
        self._kept = kept
        revision = hashlib.sha256()
        files = {}
        for path in sorted(kept):
            files[path] = kept[path].content
            revision.update(os.fsencode(path) + b"\0" + kept[path].digest)
        self._last = Snapshot(revision.hexdigest(), files, problem=problem, read=self.read_config)
        return self._last

    def read_config(self, path: str) -> bytes:
        """Return the content of the file at `path` below the root, or raise a ReconcilerError that says why not."""
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ReconcilerError(_sentence(self.root, error), transient=True) from error
        try:
            kept = _read(root, path, self._configs.get(path))
        except FileNotFoundError as error:
            self._configs.pop(path, None)
            raise ReconcilerError(f"{path}: no such file") from error
        finally:
            os.close(root)
        if len(self._configs) > MAX_FILES:
            self._configs.clear()  # files of apps long gone; what is in use comes back with the next read
        self._configs[path] = kept
        if isinstance(kept.content, ReadFailure):
            raise ReconcilerError(f"{path}: {kept.content.reason}")
        return kept.content

    def _walk(self, walk: _Walk, fd: int, prefix: str, depth: int) -> None:
        """Read the spec files of the directory `fd` and below; what can't be listed is a problem of the whole."""
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) in walk.seen:
            return
        walk.seen.add((status.st_dev, status.st_ino))
        directories: list[str] = []
        links: list[str] = []
        before = self._kept
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name
                    # is_dir and is_symlink need no system call: getdents(2) tells the type.
                    if entry.is_dir(follow_symlinks=False):
                        if not is_hidden(name):
                            directories.append(name)
                    elif is_spec(name):
                        if len(walk.kept) >= MAX_FILES:
                            walk.problems.append(f"{self.root}: more than {MAX_FILES} spec files")
                            return
                        known = before.get(prefix + name)
                        if known is None or not self._is_same(entry, known):
                            self._file(walk, prefix, entry, known)
                        else:
                            walk.kept[prefix + name] = known
                    elif entry.is_symlink() and not is_hidden(name):
                        links.append(name)
        except OSError as error:
            walk.problems.append(_sentence(self.root / prefix, error))
            return
        for name in sorted(directories) + sorted(links):
            self._descend(walk, prefix + name, depth + 1, is_link=name in links)

    def _descend(self, walk: _Walk, path: str, depth: int, *, is_link: bool) -> None:
        if not is_link and depth >= MAX_DEPTH:
            walk.problems.append(f"{self.root / path}: more than {MAX_DEPTH} directories deep")
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | (0 if is_link else os.O_NOFOLLOW)
        try:
            child = openat2(walk.root, path, flags, resolve=_RESOLVE)
        except FileNotFoundError:
            return  # removed since it was listed
        except OSError as error:
            # A link to a file, or out of the directory, is nothing that specs are in.
            if not is_link:
                walk.problems.append(_sentence(self.root / path, error))
            return
        try:
            if depth < MAX_DEPTH:
                self._walk(walk, child, f"{path}/", depth)
        finally:
            os.close(child)

    @staticmethod
    def _is_same(entry: os.DirEntry[str], known: _Kept) -> bool:
        """Whether one look at the inode shows that the file is what it was; not where it is a link, or may be gone."""
        if known.key is None or entry.is_symlink():
            return False
        try:
            return _key(entry.stat(follow_symlinks=False)) == known.key
        except OSError:
            return False

    def _file(self, walk: _Walk, prefix: str, entry: os.DirEntry[str], known: _Kept | None) -> None:
        kept = walk.kept
        path = prefix + entry.name
        try:
            path.encode()
        except UnicodeEncodeError:
            visible = os.fsencode(path).decode("utf-8", "backslashreplace")
            kept[visible] = _failed(None, "its name is not UTF-8")
            walk.fresh += 1
            return
        try:
            found = _read(walk.root, path, known)
        except FileNotFoundError:
            if not entry.is_symlink():
                return  # removed since it was listed: a file that is gone is no failure
            found = _failed(None, "a symbolic link that leads nowhere")
        kept[path] = found
        walk.fresh += found is not known


def _read(root: int, path: str, known: _Kept | None) -> _Kept:
    """Read one file below `root`, or return `known` if it still is what is there.

    FileNotFoundError where there is none; every other reason becomes a ReadFailure.
    """
    try:
        # First without opening it in earnest: to open a device may already do something.
        probe = openat2(root, path, os.O_PATH, resolve=_RESOLVE)
        try:
            status = os.fstat(probe)
        finally:
            os.close(probe)
        if known is not None and known.key == _key(status):
            return known
        if not stat.S_ISREG(status.st_mode):
            return _failed(_key(status), f"{_kind(status.st_mode)}, not a regular file")
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=_RESOLVE)
    except FileNotFoundError:
        raise
    except OSError as error:
        return _failed(None, _open_failure(error))
    try:
        return _read_regular(fd, known)
    except OSError as error:
        return _failed(None, (error.strerror or str(error)).lower())
    finally:
        os.close(fd)


def _read_regular(fd: int, known: _Kept | None) -> _Kept:
    for _ in range(_TRIES):
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            return _failed(None, f"{_kind(before.st_mode)}, not a regular file")
        if before.st_size > MAX_BYTES:
            return _failed(_key(before), _TOO_LARGE)
        content = _all(fd)
        if len(content) > MAX_BYTES:
            return _failed(None, _TOO_LARGE)
        if _key(os.fstat(fd)) != _key(before):
            continue  # somebody was writing: half a file is not to be taken for the whole
        if known is not None and known.content == content:
            content = known.content  # the parser has seen this very object
        young = before.st_ctime_ns > time.time_ns() - _YOUNG
        return _Kept(None if young else _key(before), content, hashlib.sha256(content).digest())
    return _failed(None, "it keeps changing while it is read")


def _all(fd: int) -> bytes:
    """Read the file from its beginning, at most one byte more than is allowed."""
    parts: list[bytes] = []
    offset = 0
    while offset <= MAX_BYTES:
        part = os.pread(fd, MAX_BYTES + 1 - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _failed(key: _Key | None, reason: str) -> _Kept:
    return _Kept(key, ReadFailure(reason), hashlib.sha256(reason.encode()).digest())


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something unknown")


def _open_failure(error: OSError) -> str:
    match error.errno:
        case errno.EXDEV:
            return "a symbolic link, or a path, that leads out of the directory"
        case errno.ELOOP:
            return "a symbolic link that leads nowhere"
        case errno.ENXIO:
            return "a socket, not a regular file"
        case errno.ENOTDIR:
            return "a part of its path is not a directory"
        case _:
            return (error.strerror or str(error)).lower()


def _sentence(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{path}: no such directory"
        case errno.ENOTDIR:
            return f"{path}: not a directory"
        case _:
            return f"{path}: {(error.strerror or str(error)).lower()}"
