"""Items, made below a directory's descriptor: nothing outside of it is reached, whatever is in it and changes there.

A file is written under a name of its own and then renamed over what is there, in the directory's descriptor: nobody
sees a half of it, no link in its place is followed, and what else had the old file open keeps it. Directories on the
way are opened without following links (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS); a link in a directory's place is
refused.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from reconciler.engine.transfer.item import Data, Item, Path
from reconciler.engine.transfer.place import explained
from reconciler.errors import ReconcilerError
from reconciler.linux.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_BELOW: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose the files are afterwards: `uid` and `gid`, or with None each item's own, with its extended attributes.

    `special` False takes set-uid and set-gid bits from files: a container's file must not become a program that gives
    away the rights of whoever copied it. `first` is the device's id that 0 is where the files go.
    """

    uid: int | None = None
    gid: int | None = None
    special: bool = True
    first: int = 0

    @property
    def kept(self) -> bool:
        return self.uid is None


class Landing:
    """Puts items below the directory `top`, the first one under `name` ("" for `top` itself); `close` at the end.

    `where` names the place in messages, `warn` hears of what is left out, `progress` of bytes written.
    """

    def __init__(
        self,
        top: int,
        name: str,
        where: str,
        *,
        ownership: Ownership,
        warn: Callable[[str], None],
        progress: Callable[[int], None],
    ) -> None:
        self._top = top
        self._prefix: Path = (name,) if name else ()
        self._where = where.rstrip("/")
        self._ownership = ownership
        self._warn = warn
        self._progress = progress
        self._directories: list[tuple[Path, Item]] = []
        self._open: tuple[Path, int] | None = None

    def put(self, item: Item) -> None:
        """Make one item, in place of what had its name; ReconcilerError says where it failed."""
        path = (*self._prefix, *item.path)
        if not path:
            return  # the directory that is there already stays as it is
        said = "/".join((self._where, *item.path))
        try:
            self._put(path, item, said)
        except OSError as error:
            raise explained(error, said) from error

    def finish(self) -> None:
        """Give directories the mode and the times that they had, now that nothing more is made in them."""
        for path, item in reversed(self._directories):
            try:
                fd = openat2(self._top, "/".join(path), _DIRECTORY, resolve=_BELOW)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue  # whoever lives there has taken it away
                raise explained(error, "/".join((self._where, *item.path))) from error
            try:
                self._dress(fd, item)
            finally:
                os.close(fd)
        self._directories.clear()

    def close(self) -> None:
        """Let go of descriptors; `top` stays the caller's."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    # --- making --------------------------------------------------------------------------------------------------

    def _put(self, path: Path, item: Item, said: str) -> None:
        parent = self._parent(path[:-1])
        name = path[-1]
        if item.is_directory:
            self._make_directory(parent, name, said)
            self._directories.append((path, item))
            return
        partial = f".reconciler-cp-{secrets.token_hex(8)}"
        if not self._make(parent, partial, item, said):
            return
        try:
            os.rename(partial, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            _unlink(parent, partial)
            raise
        if item.link is not None:
            _unlink(parent, partial)  # two names of one file already: rename(2) does nothing, and succeeds

    def _make(self, parent: int, partial: str, item: Item, said: str) -> bool:
        """Make the file under a name of its own; False where its kind does not travel."""
        if item.link is not None:
            self._link(item.link, parent, partial)
            return True
        match item.kind:
            case stat.S_IFREG:
                self._write(parent, partial, item)
            case stat.S_IFLNK:
                os.symlink(item.target, partial, dir_fd=parent)
                self._own(parent, partial, item)
            case stat.S_IFIFO:
                os.mkfifo(partial, 0o600, dir_fd=parent)
                self._own(parent, partial, item)
                _allow(parent, partial, item.mode & 0o777)
            case _:
                self._warn(f"{said}: left out: a socket or a device is no file")
                return False
        return True

    def _write(self, parent: int, partial: str, item: Item) -> None:
        fd = os.open(partial, _WRITE, 0o600, dir_fd=parent)
        try:
            self._fill(fd, item.data())
            os.truncate(fd, item.size)
            self._dress(fd, item)
        except BaseException:
            _unlink(parent, partial)
            raise
        finally:
            os.close(fd)

    def _fill(self, fd: int, data: Data) -> None:
        for offset, chunk in data:
            view = memoryview(chunk)
            while view:
                written = os.pwrite(fd, view, offset)
                self._progress(written)
                offset += written
                view = view[written:]

    def _link(self, first: Path, parent: int, partial: str) -> None:
        *above, name = (*self._prefix, *first)
        directory = openat2(self._top, "/".join(above) or ".", _DIRECTORY, resolve=_BELOW)
        try:
            os.link(name, partial, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(directory)

    def _make_directory(self, parent: int, name: str, said: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                raise ReconcilerError(
                    f"{said}: something is there that is not a directory", hint="remove it first"
                ) from None

    def _parent(self, path: Path) -> int:
        """The directory `path`; one that an archive left out is made."""
        if self._open is not None and self._open[0] == path:
            return self._open[1]
        self.close()
        try:
            fd = openat2(self._top, "/".join(path) or ".", _DIRECTORY, resolve=_BELOW)
        except FileNotFoundError:
            if not path:
                raise
            above = self._parent(path[:-1])
            os.mkdir(path[-1], 0o755, dir_fd=above)
            return self._parent(path)
        self._open = (path, fd)
        return fd

    # --- attributes ----------------------------------------------------------------------------------------------

    def _ids(self, item: Item) -> tuple[int, int]:
        wanted = self._ownership
        return (
            wanted.first + (item.uid if wanted.uid is None else wanted.uid),
            wanted.first + (item.gid if wanted.gid is None else wanted.gid),
        )

    def _own(self, parent: int, name: str, item: Item) -> None:
        os.chown(name, *self._ids(item), dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(item.mtime, item.mtime), dir_fd=parent, follow_symlinks=False)

    def _dress(self, fd: int, item: Item) -> None:
        os.fchown(fd, *self._ids(item))
        mode = item.mode if self._ownership.special or item.is_directory else item.mode & ~_SPECIAL
        os.fchmod(fd, mode)  # after the owner: a change of it clears set-uid bits
        for name, value in item.xattrs if self._ownership.kept else ():
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
        os.utime(fd, ns=(item.mtime, item.mtime))


def _allow(parent: int, name: str, mode: int) -> None:
    """Change the mode of a FIFO by descriptor: chmod(2) by name would follow a link that took its place."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _unlink(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
