"""Copying and removing directory trees by descriptor: for a volume's first content, and for tmpfs with tmpcopyup.

Nothing here follows a link or leaves the two directories it was given. Written for this program because shutil would
cost memory in every shim, and follows path strings.
"""

import errno
import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def copy(source: int, target: int) -> None:
    """Copy what is in the directory `source` into the empty directory `target`, and then source's own attributes.

    Owner, mode, times, extended attributes, symbolic links, FIFOs, sockets and hard links within the tree stay as they
    are. A device node is an OSError(EPERM): volumes are mounted nodev, so it could not work there.
    """
    _copy_directory(source, target, _Copy(target), "")


class _Copy:
    """One copy: the target's own directory, and where in it the first of each set of hard links went."""

    __slots__ = ("links", "top")

    def __init__(self, top: int) -> None:
        self.top = top
        self.links: dict[tuple[int, int], str] = {}


def copy_attributes(source: int, target: int) -> None:
    """Give the directory or file `target` the owner, mode, extended attributes and times of `source`."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))  # after the owner: a change of it clears set-uid bits
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            _set_attribute(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _set_attribute(target: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(target, name, value)
    except OSError as error:
        # As with `cp -a`: notes (user.*, labels of a security module) are lost where the target's file system has no
        # room for them, tmpfs before 6.6 for one. What decides about access is not: file capabilities and ACLs.
        if error.errno != errno.ENOTSUP or name == "security.capability" or name.startswith("system."):
            raise


def _copy_directory(source: int, target: int, whole: _Copy, where: str) -> None:
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        _copy_entry(source, target, name, whole, f"{where}{name}")
    copy_attributes(source, target)


def _copy_entry(source: int, target: int, name: str, whole: _Copy, where: str) -> None:
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = stat.S_IFMT(info.st_mode)
    key = (info.st_dev, info.st_ino)
    if info.st_nlink > 1 and kind != stat.S_IFDIR and key in whole.links:
        # By name is safe in the target: nobody else can reach it yet, and its directories are the ones made here
        first = whole.links[key]
        os.link(first, name, src_dir_fd=whole.top, dst_dir_fd=target, follow_symlinks=False)
        return
    if kind == stat.S_IFDIR:
        inner = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            made = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                _copy_directory(inner, made, whole, f"{where}/")
            finally:
                os.close(made)
        finally:
            os.close(inner)
    elif kind == stat.S_IFREG:
        _copy_file(source, target, name)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        _attributes_of_special(info, target, name)
    elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
        os.mknod(name, kind | 0o600, dir_fd=target)
        _attributes_of_special(info, target, name)
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    else:
        raise OSError(errno.EPERM, "a device node can't be copied into a volume", where)
    if info.st_nlink > 1 and kind != stat.S_IFDIR:
        whole.links[key] = where


def _attributes_of_special(info: os.stat_result, target: int, name: str) -> None:
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    # O_NONBLOCK: should the entry have become a FIFO since it was looked at, nothing waits
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        write = os.open(name, flags, 0o600, dir_fd=target)
        try:
            while data := os.read(read, _CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(write, view) :]
            copy_attributes(read, write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def remove(parent: int, name: str) -> None:
    """Remove `name` in the directory `parent` with all that is in it; succeed where it is already gone."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return
    try:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries]
        for inner in names:
            remove(fd, inner)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
