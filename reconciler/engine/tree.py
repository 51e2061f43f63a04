"""The directory that a layer is unpacked into, and the only code that makes names in it.

It lies in the store's partial/ (0700, ours alone) and nothing outside it can be reached: a path is walked one component
at a time from the root's descriptor, symlinks are read and followed by this code within the tree and never by the
kernel, and every operation names one component relative to a directory descriptor got with RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS. Which entries may be made is `unpack`'s decision.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, Protocol

from reconciler.engine.limits import Limits
from reconciler.engine.overflow import Overflow
from reconciler.engine.tarfields import InvalidLayerError, LimitError
from reconciler.errors import UnsupportedError
from reconciler.linux.path import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES: Final = 64
_MAX_SYMLINKS: Final = 40  # as the kernel, path_resolution(7)
_METADATA: Final = Struct("<IIIq")  # mode, uid, gid, mtime
_LENGTHS: Final = Struct("<II")  # of an extended attribute's name and value


class Described(Protocol):
    """What has the fields of Metadata: an archive's entry, too."""

    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def xattrs(self) -> dict[bytes, bytes]: ...


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file has besides its content; `mtime` in nanoseconds, `xattrs` without overlayfs' own."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The same as bytes, a few of them."""
        found = _METADATA.pack(self.mode, self.uid, self.gid, self.mtime)
        for key, value in self.xattrs.items():
            found += _LENGTHS.pack(len(key), len(value)) + key + value
        return found

    @classmethod
    def unpack(cls, data: bytes) -> "Metadata":
        """What `pack` packed."""
        at = _METADATA.size
        xattrs = {}
        while at < len(data):
            key, value = _LENGTHS.unpack_from(data, at)
            at += _LENGTHS.size
            xattrs[data[at : at + key]] = data[at + key : at + key + value]
            at += key + value
        mode, uid, gid, mtime = _METADATA.unpack_from(data)
        return cls(mode, uid, gid, mtime, xattrs)


DEFAULT: Final = Metadata(0o755, 0, 0, 0)  # of a directory that no layer describes


def shown(path: bytes) -> str:
    """Spell a path from an archive for a message: printable, and not long."""
    return repr(os.fsdecode(path[:120]).encode("utf-8", "backslashreplace").decode())


_Given = tuple[int, int, int]  # owner, group and mode


class Tree:
    """A tree under construction. Paths are canonical: relative bytes without `.`, `..`, doubled slashes or symlinks.

    Every directory made so far is known with the metadata its entry gave, if one did; all of it is applied at the end,
    because modes, default ACLs and set-group-id bits would act on what is made inside. `overflow` has room for what
    else has to be remembered.
    """

    def __init__(self, root: int, discarded: int, limits: Limits) -> None:
        """`root` and `discarded` are descriptors of empty directories on one file system; they stay the caller's."""
        self._root = root
        self._discarded = discarded
        self._count = self._made = 0
        self._limits = limits
        self._names = self._kept = 0
        self._hops = 0
        self._last: tuple[list[bytes], bytes] = ([], b"")
        self._asked = 0
        self._given: dict[int, _Given] = {}  # by the mode that was asked for
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self.overflow = Overflow(discarded)
        self._directories = self.overflow.table()
        self._directories.set(b"")

    def close(self) -> None:
        self.overflow.close()
        while self._open:
            os.close(self._open.popitem()[1])

    # --- directories -------------------------------------------------------------------------------------------------

    def has_directory(self, path: bytes) -> bool:
        """Tell whether a directory was made at `path`, and is still there."""
        return path in self._directories

    def describe(self, path: bytes, metadata: Metadata) -> None:
        """Note what the directory at `path`, which is there, is to have in the end."""
        self._directories.set(path, metadata.pack())

    def directories(self) -> Iterator[tuple[bytes, Metadata | None]]:
        """Yield every directory with what it is to have; None where nobody described it."""
        for path, data in self._directories.items():
            yield path, Metadata.unpack(data) if data else None

    def fd(self, path: bytes) -> int:
        """Return a descriptor of the directory `path`, valid until the next call; raises OSError where it isn't one."""
        if not path:
            return self._root
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        if len(self._open) >= _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        found = openat2(self._root, path, _DIRECTORY, resolve=_RESOLVE)
        self._open[path] = found
        return found

    def resolve(self, parts: list[bytes], *, create: bool) -> bytes:
        """Return the canonical path of the directory that `parts` lead to inside this tree.

        A symlink of this very layer is followed as chroot would follow it, as Docker and containerd do. A component
        that this layer lacks is made with `create`, as a directory of its own: what a lower layer has there (a symlink,
        say) is not looked at, and hidden if it is no directory, because that is what overlayfs makes of the result in
        Docker, containerd and Podman too. Without `create` the rest is taken as it stands.
        """
        if create and parts == self._last[0]:
            return self._last[1]
        path = self._walk(parts, create=create)
        if create:
            self._last = (parts, path)
        return path

    def _walk(self, parts: list[bytes], *, create: bool) -> bytes:
        path = b""
        todo = parts[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                path = path.rpartition(b"/")[0]  # right, because `path` holds no symlink
                continue
            child = path + b"/" + name if path else name
            if child in self._directories:
                path = child
                continue
            status = self.lstat(path, name)
            if status is None:
                if create:
                    self.mkdir(path, name)
                path = child
                if not create and path not in self._directories:
                    rest = [part for part in reversed(todo) if part not in (b"", b".")]
                    if b".." in rest:
                        raise InvalidLayerError(f"{shown(child)}: leads through a directory that isn't there")
                    return b"/".join([child, *rest])
                continue
            if not stat.S_ISLNK(status.st_mode):
                raise InvalidLayerError(f"{shown(child)}: is a file, but the layer has entries below it")
            links += 1
            self._hops += 1
            if links > _MAX_SYMLINKS or self._hops > self._limits.symlink_hops:
                raise InvalidLayerError(f"{shown(b'/'.join(parts))}: leads through too many symlinks")
            target = os.readlink(name, dir_fd=self.fd(path))
            if target.startswith(b"/"):
                path = b""
            todo += target.split(b"/")[::-1]
        return path

    def lstat(self, parent: bytes, name: bytes) -> os.stat_result | None:
        """Return the status of what is at `name`, or None. A name too long for a file system is the layer's fault."""
        try:
            return os.stat(name, dir_fd=self.fd(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.explain(error, parent, name) from error

    def mkdir(self, parent: bytes, name: bytes, metadata: Metadata | None = None) -> bytes:
        """Make a directory, or raise FileExistsError; 0755 and root's until `settle`. Returns its path."""
        path = parent + b"/" + name if parent else name
        self._names += len(path)
        self._made += 1
        if self._made > self._limits.directories or self._names > self._limits.directory_names:
            raise InvalidLayerError(
                f"layer: more than {self._limits.directories} directories, or with too long paths"
            )
        if len(path) > self._limits.path:
            raise LimitError(f"{shown(path)}...: a path longer than {self._limits.path} bytes", "limits.path")
        try:
            os.mkdir(name, 0o755, dir_fd=self.fd(parent))
        except FileExistsError:
            raise
        except OSError as error:
            raise self.explain(error, parent, name) from error
        self._directories.set(path, metadata.pack() if metadata is not None else b"")
        return path

    def charge(self, length: int) -> None:
        """Count a name of `length` bytes that is remembered until the layer is done; raises beyond the limits."""
        self._names += length
        self._kept += 1
        if self._kept > self._limits.directories or self._names > self._limits.directory_names:
            raise InvalidLayerError(
                f"layer: more than {self._limits.directories} directories, or too long paths"
            )

    def settle(self, path: bytes, metadata: Metadata, *, extra: dict[bytes, bytes]) -> None:
        """Give the directory `path` its final metadata and the xattrs `extra`; nothing may be made in it afterwards."""
        fd = self.fd(path)
        self._apply(fd, metadata, path, _given(fd))
        for name, value in extra.items():
            os.setxattr(fd, name, value)

    # --- files -------------------------------------------------------------------------------------------------------

    def create(self, parent: bytes, name: bytes, mode: int = 0o600) -> int:
        """Create a new empty file and return its descriptor for writing, or raise FileExistsError.

        `mode` saves a call where it is what `finish_file` wants in the end; set-user-id and the like are left to that.
        """
        self._asked = mode & 0o777
        try:
            return os.open(name, _CREATE, self._asked, dir_fd=self.fd(parent))
        except FileExistsError:
            raise
        except OSError as error:
            raise self.explain(error, parent, name) from error

    def symlink(self, parent: bytes, name: bytes, target: bytes, metadata: Metadata) -> None:
        """Make a symlink, or raise FileExistsError. Its target may be anything: only containers will follow it."""
        fd = self.fd(parent)
        try:
            os.symlink(target, name, dir_fd=fd)
        except FileExistsError:
            raise
        except OSError as error:
            raise self.explain(error, parent, name) from error
        os.chown(name, metadata.uid, metadata.gid, dir_fd=fd, follow_symlinks=False)
        for key, value in metadata.xattrs.items():
            try:
                os.setxattr(f"/proc/self/fd/{fd}/".encode() + name, key, value, follow_symlinks=False)
            except OSError as error:
                raise _xattr_error(error, fd, name, key) from error
        os.utime(name, ns=(metadata.mtime, metadata.mtime), dir_fd=fd, follow_symlinks=False)

    def fifo(self, parent: bytes, name: bytes, metadata: Metadata) -> None:
        """Make a FIFO, or raise FileExistsError."""
        directory = self.fd(parent)
        try:
            os.mkfifo(name, 0o600, dir_fd=directory)
        except FileExistsError:
            raise
        except OSError as error:
            raise self.explain(error, parent, name) from error
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            self._apply(fd, metadata, name, _given(fd))
        finally:
            os.close(fd)

    def link(self, target: bytes, parent: bytes, name: bytes) -> None:
        """Give the file at the path `target` a second name, or raise FileExistsError."""
        source, _, base = target.rpartition(b"/")
        # Two descriptors at once: the first is a duplicate, since `fd` may close one to open another.
        first = os.dup(self.fd(source))
        try:
            os.link(base, name, src_dir_fd=first, dst_dir_fd=self.fd(parent), follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            raise self.explain(error, parent, name) from error
        finally:
            os.close(first)

    def whiteout(self, parent: bytes, name: bytes) -> None:
        """Mark `name` as removed, for overlayfs: a character device 0:0."""
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.fd(parent))

    def finish_file(self, fd: int, metadata: Described, name: bytes) -> None:
        """Give the file that was created last, and is completely written, its metadata."""
        # What the umask, the mount's options and an inherited ACL make of a mode is the same all over a new tree.
        given = self._given.get(self._asked)
        if given is None:
            given = self._given[self._asked] = _given(fd)
        self._apply(fd, metadata, name, given)

    def _apply(self, fd: int, metadata: Described, name: bytes, given: _Given) -> None:
        # In this order: chown clears set-user-id bits and security.capability; an ACL changes the mode's group bits;
        # everything before utime changes the times. What is right already is left alone: each of these calls is a
        # change of the file system's journal.
        uid, gid, mode = given
        owned = uid == metadata.uid and gid == metadata.gid
        if not owned:
            os.fchown(fd, metadata.uid, metadata.gid)
        for key, value in metadata.xattrs.items():
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                raise _xattr_error(error, fd, name, key) from error
        if not owned or metadata.xattrs or mode != metadata.mode:
            os.fchmod(fd, metadata.mode)
        os.utime(fd, ns=(metadata.mtime, metadata.mtime))

    # --- replacing -------------------------------------------------------------------------------------------------

    def remove(self, parent: bytes, name: bytes) -> None:
        """Take away what is at `name`; a directory goes aside as a whole, to be deleted with the partial."""
        path = parent + b"/" + name if parent else name
        self._last = ([], b"")
        if path not in self._directories:
            os.unlink(name, dir_fd=self.fd(parent))
            return
        self._count += 1
        if self._count > self._limits.replaced:
            raise InvalidLayerError(
                f"layer: replaces more than {self._limits.replaced} of its own directories"
            )
        os.rename(name, str(self._count), src_dir_fd=self.fd(parent), dst_dir_fd=self._discarded)
        inside = path + b"/"
        for gone in [known for known in self._open if known == path or known.startswith(inside)]:
            os.close(self._open.pop(gone))
        self._directories.drop(path)
        self._directories.drop_below(path)

    def explain(self, error: OSError, parent: bytes, name: bytes) -> Exception:
        """Tell faults of the archive from those of the device."""
        path = parent + b"/" + name if parent else name
        if error.errno == errno.ENAMETOOLONG:
            return InvalidLayerError(f"{shown(path)}: a name or target longer than the file system takes")
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EPERM, errno.EMLINK):
            return InvalidLayerError(f"{shown(path)}: can't be made: {os.strerror(error.errno)}")
        return error


def _given(fd: int) -> _Given:
    found = os.fstat(fd)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _xattr_error(error: OSError, fd: int, name: bytes, key: bytes) -> Exception:
    text = f"{shown(name)}: extended attribute {shown(key)}"
    room = os.fstatvfs(fd)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and room.f_bavail * room.f_frsize < 1 << 20:
        return error
    # ext4 says ENOSPC to a value that does not fit into a block, however empty the disk is.
    if error.errno in (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG):
        return UnsupportedError(
            f"{text}: the state directory's file system can't keep it: {os.strerror(error.errno)}",
            hint="put the state directory on ext4, xfs or btrfs",
        )
    return InvalidLayerError(f"{text}: {os.strerror(error.errno or 0)}")
