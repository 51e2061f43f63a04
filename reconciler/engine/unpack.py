"""Turns a layer's archive into a directory that overlayfs can use as one of its layers.

Two phases, so that layers can be unpacked side by side: `extract` needs nothing but the archive; `finish` needs the
layers below, for what refers to them: hard links to their files (copied up), removals (whiteouts and opaque
directories, as overlayfs marks them), and the metadata of directories that the archive leaves out.

The rules are those of the OCI image specification ("layer.md": changesets, whiteouts) and the results those of umoci,
Docker and containerd. Refused, because no honest layer needs it: `..` in a name, device nodes, overlayfs' own extended
attributes, hard links to directories or to what isn't there, entries below a file, entries of an unknown kind.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, Final

from reconciler.engine.fileindex import IndexWriter
from reconciler.engine.limits import Limits
from reconciler.engine.lowers import OPAQUE, Lowers
from reconciler.engine.tar import DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry, Reader
from reconciler.engine.tarfields import InvalidLayerError, LimitError
from reconciler.engine.tree import DEFAULT, Metadata, Tree, shown

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = (
    b".wh..wh."  # other names of that form are aufs' own bookkeeping, which Docker and containerd skip
)
_MAX_ID: Final = (1 << 32) - 2  # 2**32 - 1 means "leave it as it is" to chown(2)
_REFUSED_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")
# Labels of the machine that packed the layer; umoci leaves out the same two.
_SKIPPED_XATTRS: Final = (b"security.selinux", b"system.nfs4_acl")
_ROOM_EVERY: Final = 4 << 20
_ZEROS: Final = bytes(1 << 16)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a layer turned out to hold: bytes of file content, and files, directories and links made."""

    size: int
    entries: int


class Unpacker:
    """Unpacks one layer into the empty directory `root`; `discarded` is another, for what the layer itself replaces.

    `index` receives the digest of every file. `room` is called every 4 MiB of content, with the bytes that come next,
    and raises where the disk gets full. Nothing made here may be used before both `extract` and `finish` have returned
    and the digests were checked.
    """

    def __init__(
        self, root: int, discarded: int, index: BinaryIO, *, limits: Limits, room: Callable[[int], None]
    ) -> None:
        self._tree = Tree(root, discarded, limits)
        remembered = self._tree.overflow
        self._index = IndexWriter(index, remembered.table())
        self._limits = limits
        self._room = room
        self._since = 0
        self._size = 0
        self._entries = 0
        self._opaque = remembered.table()  # directories that show nothing of lower layers
        self._renewed = (
            remembered.table()
        )  # of them, those that are not even the lower layer's directory any more
        self._removed = remembered.table()
        self._links = remembered.table()  # path -> that of its target, which is not in this layer

    @property
    def size(self) -> int:
        """Bytes of file content so far."""
        return self._size

    def close(self) -> None:
        self._tree.close()

    # --- phase one -------------------------------------------------------------------------------------------------

    def extract(self, reader: Reader) -> None:
        """Make everything the archive has, up to its end marker, or raise InvalidLayerError or OSError."""
        for entry in reader:
            self._apply(entry, reader)

    def _apply(self, entry: Entry, reader: Reader) -> None:
        parent, name = self._place(entry.name)
        if name.startswith(_WHITEOUT):
            self._mark(parent, name)
            return
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise InvalidLayerError(
                f"{shown(entry.name)}: uid {entry.uid} or gid {entry.gid} is out of range"
            )
        if entry.xattrs:
            entry.xattrs = _allowed(entry)
        self._entries += 1
        if entry.kind == REGULAR and name:
            self._file(parent, name, entry, reader)
            return
        metadata = Metadata(entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)
        if not name:
            if entry.kind != DIRECTORY:
                raise InvalidLayerError("layer: replaces its root directory by something else")
            self._tree.describe(b"", metadata)
        elif entry.kind == DIRECTORY:
            self._directory(parent, name, metadata)
        elif entry.kind == SYMLINK:
            if not entry.target:
                raise InvalidLayerError(f"{shown(entry.name)}: a symlink to nowhere")
            target = entry.target
            self._make(parent, name, lambda: self._tree.symlink(parent, name, target, metadata))
        elif entry.kind == HARD_LINK:
            self._hard_link(parent, name, entry)
        elif entry.kind == FIFO:
            self._make(parent, name, lambda: self._tree.fifo(parent, name, metadata))
        elif entry.kind in (b"3", b"4"):
            raise InvalidLayerError(
                f"{shown(entry.name)}: a device node: refused, containers get /dev from the engine"
            )
        else:
            raise InvalidLayerError(f"{shown(entry.name)}: an entry of the unknown kind {entry.kind!r}")

    def _place(self, name: bytes) -> tuple[bytes, bytes]:
        """Return the directory that an entry belongs into, made if need be, and its last component; "" for the root."""
        if name.startswith(b"./"):
            name = name[2:]
        parent, _, base = name.rstrip(b"/").rpartition(b"/")
        # The way of nearly every entry: its directory came before it, under the same name.
        if self._tree.has_directory(parent) and base not in (b".", b"..", b"") and not name.startswith(b"/"):
            return parent, base
        parts = _split(name)
        if not parts:
            return b"", b""
        for part in parts[:-1]:
            if part.startswith(_AUFS):
                return b"", _AUFS
            if part.startswith(_WHITEOUT):
                raise InvalidLayerError(f"{shown(name)}: lies below a whiteout")
        return self._tree.resolve(parts[:-1], create=True), parts[-1]

    def _make(self, parent: bytes, name: bytes, make: Callable[[], None]) -> None:
        """Run `make`, once more if something older has to give way: the later entry of an archive wins."""
        if self._links:
            self._links.drop(_join(parent, name))
        try:
            make()
        except FileExistsError:
            self._replace(parent, name)
            make()

    def _replace(self, parent: bytes, name: bytes) -> None:
        path = _join(parent, name)
        self._tree.charge(len(path))
        self._index.forget(path)
        if self._tree.has_directory(path):
            self._links.drop_below(path)
        self._tree.remove(parent, name)

    def _directory(self, parent: bytes, name: bytes, metadata: Metadata) -> None:
        path = _join(parent, name)
        if self._tree.has_directory(path):
            self._tree.describe(path, metadata)
            return
        self._links.drop(_join(parent, name))
        try:
            self._tree.mkdir(parent, name, metadata)
        except FileExistsError:
            # A file of this layer hid the lower directory; the directory that now replaces the file starts empty.
            self._replace(parent, name)
            self._tree.mkdir(parent, name, metadata)
            self._opaque.set(path)
            self._renewed.set(path)

    def _file(self, parent: bytes, name: bytes, entry: Entry, reader: Reader) -> None:
        self._grow(entry.size, entry.size if entry.segments is None else 0)
        if self._links:
            self._links.drop(_join(parent, name))
        try:
            fd = self._tree.create(parent, name, entry.mode)
        except FileExistsError:
            self._replace(parent, name)
            fd = self._tree.create(parent, name, entry.mode)
        try:
            if entry.segments is None and (whole := reader.whole()) is not None:
                digest = sha256(whole)
                if whole:
                    _write(fd, whole)
            elif entry.segments is None:
                digest = sha256()
                for _, data in reader.data():
                    digest.update(data)
                    _write(fd, data)
            else:
                digest = sha256()
                position = 0
                for offset, data in reader.data():
                    _hash_zeros(digest.update, offset - position)
                    digest.update(data)
                    position = offset + len(data)
                    while data:
                        written = os.pwrite(fd, data, offset)
                        data, offset = data[written:], offset + written
                _hash_zeros(digest.update, entry.size - position)
                os.ftruncate(fd, entry.size)
            self._tree.finish_file(fd, entry, name)
        finally:
            os.close(fd)
        self._index.add(_join(parent, name), digest.hexdigest())

    def _grow(self, size: int, written: int) -> None:
        """Count a file of `size` bytes, of which so many are written to the disk."""
        self._size += size
        self._since += size
        if self._size > self._limits.unpacked:
            raise LimitError(f"layer: unpacks to more than {self._limits.unpacked} bytes", "limits.unpacked")
        if self._since > _ROOM_EVERY:
            self._since = 0
            self._room(written)

    def _hard_link(self, parent: bytes, name: bytes, entry: Entry) -> None:
        parts = _split(entry.target)
        if not parts or any(part.startswith(_WHITEOUT) for part in parts):
            raise InvalidLayerError(f"{shown(entry.name)}: a hard link to {shown(entry.target)}")
        target = _join(self._tree.resolve(parts[:-1], create=False), parts[-1])
        if target == _join(parent, name):
            raise InvalidLayerError(f"{shown(entry.name)}: a hard link to itself")
        if self._tree.has_directory(target):
            raise InvalidLayerError(f"{shown(entry.name)}: a hard link to a directory")
        source, _, base = target.rpartition(b"/")
        here = self._tree.has_directory(source) and self._tree.lstat(source, base) is not None
        if here:
            self._make(parent, name, lambda: self._tree.link(target, parent, name))
            return
        if self._tree.lstat(parent, name) is not None:
            self._replace(parent, name)
        self._tree.charge(len(parent) + len(name) + len(target))
        self._links.set(_join(parent, name), self._links.get(target) or target)

    # --- whiteouts -------------------------------------------------------------------------------------------------

    def _mark(self, parent: bytes, name: bytes) -> None:
        """Note a removal. It concerns lower layers only, wherever in the archive it stands, so `finish` acts on it."""
        self._tree.charge(len(parent) + len(name))
        if name == _OPAQUE:
            self._opaque.set(parent)
            return
        if name.startswith(_AUFS):
            return
        gone = name[len(_WHITEOUT) :]
        if gone in (b"", b".", b".."):
            raise InvalidLayerError(f"{shown(_join(parent, name))}: a whiteout of nothing")
        self._removed.set(_join(parent, gone))

    def _hidden(self, path: bytes) -> bool:
        """Tell whether this layer hides everything that lower ones have at `path`."""
        while path:
            if path in self._opaque:
                return True
            path = path.rpartition(b"/")[0]
        return b"" in self._opaque

    # --- phase two -------------------------------------------------------------------------------------------------

    def finish(self, lowers: Lowers) -> Totals:
        """Add what depends on the layers below, then give directories their metadata; returns what the layer holds."""
        tree = self._tree
        for path, _ in self._removed.items():
            if tree.has_directory(path):
                self._opaque.set(path)
                self._renewed.set(path)
        for path, target in self._links.items():
            try:
                self._link_up(lowers, path, target)
            except FileExistsError as error:
                raise InvalidLayerError(f"{shown(path)}: a hard link to {shown(target)}") from error
        for path, _ in self._removed.items():
            self._remove(lowers, path)
        if b"" in self._opaque:  # overlayfs does not look for the mark on a layer's root
            for name in lowers.names():
                if tree.has_directory(name):
                    self._opaque.set(name)
                elif tree.lstat(b"", name) is None:
                    tree.whiteout(b"", name)
        self._index.finish()
        for path, given in tree.directories():
            metadata = given if given is not None else self._inherited(lowers, path)
            tree.settle(
                path, metadata, extra={OPAQUE.encode(): b"y"} if path and path in self._opaque else {}
            )
        self._room(0)
        return Totals(self._size, self._entries)

    def _remove(self, lowers: Lowers, path: bytes) -> None:
        """Make a whiteout where it hides something: overlayfs lists one that hides nothing as a ghost."""
        parent, _, gone = path.rpartition(b"/")
        if not self._tree.has_directory(parent) or self._tree.lstat(parent, gone) is not None:
            return
        if not self._hidden(parent) and lowers.find(path) is not None:
            self._tree.whiteout(parent, gone)

    def _inherited(self, lowers: Lowers, path: bytes) -> Metadata:
        """What overlayfs would copy up for a directory that the archive leaves out."""
        if path in self._renewed or (path and self._hidden(path.rpartition(b"/")[0])):
            return DEFAULT
        found = lowers.directory(path)
        return _metadata(found, os.lstat(found)) if found is not None else DEFAULT

    def _link_up(self, lowers: Lowers, path: bytes, target: bytes) -> None:
        """Make a hard link whose target is not in this layer: copy the lower file up first, as overlayfs does."""
        tree = self._tree
        parent, _, name = path.rpartition(b"/")
        source, _, base = target.rpartition(b"/")
        if not tree.has_directory(source) or tree.lstat(source, base) is None:
            found = None
            if target not in self._removed and not self._hidden(source):
                found = lowers.find(target)
            if found is None or stat.S_ISDIR(found[1].st_mode):
                raise InvalidLayerError(
                    f"{shown(path)}: a hard link to {shown(target)}, which is not a file of the image"
                )
            source = tree.resolve(source.split(b"/"), create=True)
            self._copy_up(source, base, *found)
        tree.link(_join(source, base), parent, name)

    def _copy_up(self, parent: bytes, name: bytes, origin: bytes, status: os.stat_result) -> None:
        metadata = _metadata(origin, status)
        self._entries += 1
        if stat.S_ISLNK(status.st_mode):
            self._tree.symlink(parent, name, os.readlink(origin), metadata)
        elif stat.S_ISFIFO(status.st_mode):
            self._tree.fifo(parent, name, metadata)
        elif stat.S_ISREG(status.st_mode):
            self._grow(status.st_size, status.st_size)
            digest = sha256()
            fd = self._tree.create(parent, name)
            try:
                with (
                    open(origin, "rb", buffering=0) as file,
                    open(fd, "wb", buffering=0, closefd=False) as copy,
                ):
                    while data := file.read(1 << 18):
                        digest.update(data)
                        copy.write(data)
                self._tree.finish_file(fd, metadata, name)
            finally:
                os.close(fd)
            self._index.add(_join(parent, name), digest.hexdigest())
        else:
            raise InvalidLayerError(f"{shown(_join(parent, name))}: a hard link to a device")


def _write(fd: int, data: memoryview) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _split(name: bytes) -> list[bytes]:
    """Split a name from an archive into components. A leading slash means the root, as in Docker; `..` is refused."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidLayerError(f"{shown(name)}: a path with `..`: refused")
    return parts


def _allowed(entry: Entry) -> dict[bytes, bytes]:
    """Return the extended attributes to set; overlayfs' own would let a layer hide or redirect what lies below it."""
    found = {}
    for key, value in entry.xattrs.items():
        if key.startswith(_REFUSED_XATTRS):
            raise InvalidLayerError(f"{shown(entry.name)}: the extended attribute {shown(key)}: refused")
        if b"\0" in key or not key:
            raise InvalidLayerError(f"{shown(entry.name)}: an extended attribute with an impossible name")
        if key not in _SKIPPED_XATTRS:
            found[key] = value
    return found


def _metadata(path: bytes, status: os.stat_result) -> Metadata:
    xattrs = {
        os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
        for key in os.listxattr(path, follow_symlinks=False)
        if not os.fsencode(key).startswith(_REFUSED_XATTRS)
    }
    return Metadata(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _hash_zeros(update: Callable[[bytes], None], count: int) -> None:
    while count > 0:
        update(_ZEROS[:count] if count < len(_ZEROS) else _ZEROS)
        count -= len(_ZEROS)
