"""Removal of directories: renamed into the trash at once, deleted in the background.

Deleting a large image takes seconds and must be on nobody's path; a rename is instant, and atomic, so that what is
half deleted is never taken for what it was. Works on any tree that a container or a hostile layer left behind: never
recursive, never through a symlink, never by a path deeper than one component.
"""

import errno
import os
import secrets
import stat
from pathlib import Path

from reconciler.engine.durable import sync_directory
from reconciler.failpoint import failpoint

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def discard(path: Path, trash: Path, *, durable: bool = True) -> None:
    """Rename `path`, of whatever kind, into `trash`; succeeds if it is not there.

    With `durable` false a power cut may bring it back: for what is found, and discarded again, by whoever starts then.
    """
    try:
        os.rename(path, trash / f"{path.name[:80]}-{secrets.token_hex(4)}")
    except FileNotFoundError:
        return
    failpoint("trash.renamed")
    if durable:
        sync_directory(path.parent)


def delete(path: Path) -> bool:
    """Delete `path`, of whatever kind, with all below it; succeeds if it is not there.

    Return whether it is gone: a directory that something is mounted on is emptied and stays.
    """
    try:
        empty(path)
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY and os.path.ismount(path):
            return False
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        path.unlink(missing_ok=True)
    return True


def empty(trash: Path) -> int:
    """Delete everything in `trash` and return the bytes that were given back. Safe to interrupt, and to run twice."""
    freed = 0
    fd = os.open(trash, _DIRECTORY)
    try:
        # A directory inside another is renamed up to the top: no depth, and no long path, can get in the way.
        while names := os.listdir(fd):
            failpoint("trash.emptying")
            for name in names:
                freed += _delete(fd, name)
    finally:
        os.close(fd)
    return freed


def _delete(trash: int, name: str) -> int:
    try:
        status = os.stat(name, dir_fd=trash, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=trash)
            return _freed(status)
        directory = os.open(name, _DIRECTORY, dir_fd=trash)
    except FileNotFoundError:
        return 0  # another process is emptying too
    freed = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        _raise_up(directory, trash, entry.name)
                    else:
                        freed += _freed(entry.stat(follow_symlinks=False))
                        os.unlink(entry.name, dir_fd=directory)
                except FileNotFoundError:
                    continue
    finally:
        os.close(directory)
    try:
        os.rmdir(name, dir_fd=trash)
    except FileNotFoundError:
        pass
    return freed


def _freed(status: os.stat_result) -> int:
    return status.st_blocks * 512 if status.st_nlink == 1 else 0


def _raise_up(directory: int, trash: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError:  # not empty
        os.rename(name, secrets.token_hex(8), src_dir_fd=directory, dst_dir_fd=trash)
