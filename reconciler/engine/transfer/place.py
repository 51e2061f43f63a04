"""From a path that a person typed to descriptors, by the rules of `docker cp`, in a container or on the host.

Inside a container every component of a path is resolved by openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) from the
descriptor of its root, so that no link in it, and none that it puts there meanwhile, leads out (CVE-2018-15664,
CVE-2019-14271 and their kin); and only a descriptor that was found so is ever used again.
"""

import errno
import os
import posixpath
import stat
from dataclasses import dataclass
from typing import Final

from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.linux import path as kernel

_PLACE: Final = os.O_PATH | os.O_CLOEXEC
_DIRECTORY: Final = _PLACE | os.O_DIRECTORY
_LINKS: Final = 40  # as many as the kernel follows in one path (MAXSYMLINKS)
_MISSING: Final = (errno.ENOENT, errno.ENOTDIR)
# What the kernel makes up, with effects of its own on being read or written; magic numbers of linux/magic.h.
_KERNEL_OWN: Final = frozenset(
    (
        kernel.PROC_SUPER_MAGIC,
        kernel.SYSFS_MAGIC,
        kernel.CGROUP_SUPER_MAGIC,
        kernel.CGROUP2_SUPER_MAGIC,
        kernel.NSFS_MAGIC,
        0x1CD1,  # devpts
        0x19800202,  # mqueue
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0x62656570,  # configfs
    )
)


def is_kernels(fd: int) -> bool:
    """Say whether `fd` is on a file system of the kernel's own (proc, sysfs ...), of which nothing is copied."""
    return kernel.filesystem_type(fd) in _KERNEL_OWN


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a path begins: a container's root by descriptor, or the host. `name` stands before paths in messages."""

    fd: int
    name: str
    contained: bool

    def open(self, path: str, flags: int) -> int:
        """Open `path`, inside this tree whatever links lead where."""
        resolve = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS if self.contained else 0
        return kernel.openat2(self.fd, path, flags, resolve=resolve)

    def said(self, path: str) -> str:
        """The path as messages spell it."""
        return f"{self.name}:{path}" if self.name else path


def host() -> Tree:
    """The host's own tree; relative paths begin at the working directory."""
    return Tree(kernel.AT_FDCWD, "", False)


@dataclass(frozen=True, slots=True)
class Source:
    """What is copied: its descriptor (O_PATH), the name that it has, and whether only what is in it is meant."""

    fd: int
    name: str
    contents: bool
    directory: bool


def source(tree: Tree, path: str, *, follow: bool) -> Source:
    """Find what is to be copied. The last link is followed if `follow`, or where the path ends in `/` or `/.`.

    Raises NotFoundError, or ReconcilerError for what the kernel makes up.
    """
    last = path.rstrip("/").rpartition("/")[2]
    inside = not last or last in (".", "..") or path.endswith("/")
    flags = _DIRECTORY if inside else _PLACE if follow else _PLACE | os.O_NOFOLLOW
    try:
        fd = tree.open(path, flags)
    except OSError as error:
        if error.errno in _MISSING:
            raise NotFoundError(
                f"{tree.said(path)}: {'no such directory' if inside else 'no such file or directory'}"
            ) from error
        raise explained(error, tree.said(path)) from error
    if tree.contained and is_kernels(fd):
        os.close(fd)
        raise ReconcilerError(
            f"{tree.said(path)}: it is the kernel's own, no file", hint="read it inside: reconciler exec"
        )
    base = posixpath.basename(posixpath.normpath(path if tree.contained else os.path.abspath(path)))
    directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    return Source(fd, base, directory and (last in (".", "") or not base), directory)


def destination(tree: Tree, path: str, what: Source) -> tuple[int, str]:
    """Find where `what` goes: a directory's descriptor, and the name to be made in it ("" for the directory itself).

    Docker's rules: into a directory that is there, under its own name unless only its contents are meant; over a file
    that is there; else under the path's last name, whose parent must be there.
    """
    last = path.rstrip("/").rpartition("/")[2]
    wants_directory = path.endswith("/") or last in ("", ".", "..")
    try:
        fd = tree.open(path, _PLACE)
    except OSError as error:
        if error.errno not in _MISSING:
            raise explained(error, tree.said(path)) from error
        if wants_directory and not what.directory:
            raise NotFoundError(
                f"{tree.said(path)}: no such directory", hint="make it, or leave the last / out"
            ) from error
        return final(tree, path.rstrip("/"))
    mode = os.fstat(fd).st_mode
    if tree.contained and is_kernels(fd):
        os.close(fd)
        raise ReconcilerError(f"{tree.said(path)}: it is the kernel's own, nothing is copied there")
    if stat.S_ISDIR(mode):
        return fd, "" if what.contents else what.name
    os.close(fd)
    if what.directory or wants_directory:
        raise ReconcilerError(f"{tree.said(path)}: not a directory")
    if not stat.S_ISREG(mode):
        raise ReconcilerError(
            f"{tree.said(path)}: it is neither a file nor a directory, and would be replaced",
            hint="`-` writes a tar archive to standard output",
        )
    return final(tree, path)


def directory(tree: Tree, path: str) -> int:
    """Open the directory that an archive is unpacked into; it must be there."""
    try:
        fd = tree.open(path, _DIRECTORY)
    except OSError as error:
        if error.errno in _MISSING:
            raise NotFoundError(f"{tree.said(path)}: no such directory") from error
        raise explained(error, tree.said(path)) from error
    if tree.contained and is_kernels(fd):
        os.close(fd)
        raise ReconcilerError(f"{tree.said(path)}: it is the kernel's own, nothing is copied there")
    return fd


def final(tree: Tree, path: str) -> tuple[int, str]:
    """Follow the last link of `path` by hand, and give the directory and the name where the file is, or would be."""
    asked = path
    for _ in range(_LINKS):
        parent_path, _, last = path.rstrip("/").rpartition("/")
        if last in ("", ".", ".."):
            raise UsageError(f"{tree.said(asked)}: no name for a file")
        above = parent_path or ("/" if path.startswith("/") else ".")
        try:
            parent = tree.open(above, _DIRECTORY)
        except OSError as error:
            if error.errno in _MISSING:
                raise NotFoundError(
                    f"{tree.said(asked)}: the directory {above} is not there", hint="make it first"
                ) from error
            raise explained(error, tree.said(asked)) from error
        try:
            text = os.readlink(last, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                os.close(parent)
                raise explained(error, tree.said(asked)) from error
            return parent, last
        os.close(parent)
        path = text if text.startswith("/") else f"{above.rstrip('/')}/{text}" if above != "/" else f"/{text}"
    raise ReconcilerError(f"{tree.said(asked)}: more than {_LINKS} links in a row")


def explained(error: OSError, where: str) -> ReconcilerError:
    """Put a failed call at `where` into words."""
    match error.errno:
        case errno.EROFS:
            return ReconcilerError(
                f"{where}: it is mounted read-only", hint="copy to a volume or a tmpfs that is writable"
            )
        case errno.EBUSY:
            return ReconcilerError(f"{where}: something is mounted on it, so it can't be replaced")
        case errno.ENOSPC | errno.EDQUOT:
            return ReconcilerError(f"{where}: no space is left", hint="run: reconciler df")
        case errno.EISDIR | errno.ENOTEMPTY:
            return ReconcilerError(f"{where}: a directory is there, and no directory was to be copied")
        case errno.ENOTDIR | errno.ELOOP | errno.EEXIST:
            return ReconcilerError(f"{where}: something is there that is not a directory")
        case errno.ENAMETOOLONG:
            return ReconcilerError(f"{where}: a path that is too long, or too deep, to be copied")
        case errno.EXDEV:
            return ReconcilerError(f"{where}: it changed while it was copied")
        case _:
            return ReconcilerError(f"{where}: {(error.strerror or str(error)).rpartition(': ')[2].lower()}")
