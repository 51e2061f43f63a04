"""A named volume's first content: what the image has at the place where the volume will be mounted.

A volume's directory holds `data` (what is mounted), and `pending` as long as the copy has not been settled. Every state
that a crash can leave behind is one of: pending and data empty (copy, again), pending and data filled (the rename
happened: only forget pending), no pending (done). `data.partial` is rubbish whenever it is found.
"""

import errno
import fcntl
import os

from reconciler.linux import capability, mount
from reconciler.linux.path import syncfs
from reconciler.shim import tree
from reconciler.shim.rootfs import Root, map_ids
from reconciler.shim.step import Step

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def settle(root: Root, destination: str, directory: str, users: int = -1) -> None:
    """Copy the image's content at `destination` into the volume `directory` if that is still to be done.

    With `users`, a user namespace, the ids of the image's files are not those of the device: see shim.users.

    Must come before anything is mounted on the root: only the image's own content is meant. Containers that share the
    volume and start at once wait for each other; a killed one's lock goes with it.
    """
    with Step("volume", destination):
        volume = os.open(directory, _DIRECTORY)
        try:
            fcntl.flock(volume, fcntl.LOCK_EX)
            if _pending(volume):
                if _is_empty(volume):
                    _fill(root, destination, volume if users < 0 else _mapped(volume, users, directory))
                os.unlink("pending", dir_fd=volume)
                os.fsync(volume)
        finally:
            os.close(volume)


def make(directory: str, subpath: str, users: int = -1) -> None:
    """Make the directory `subpath` of the volume where it is missing; raise StepError where a part of it is a link.

    What is in a volume is a container's work: a link in it may lead anywhere.
    """
    with Step("volume", subpath):
        volume = os.open(directory, _DIRECTORY)
        try:
            found = os.open("data", _DIRECTORY | os.O_NOFOLLOW, dir_fd=volume)
        finally:
            os.close(volume)
        data = Root(found if users < 0 else _mapped(found, users, directory))
        try:
            before = os.umask(0o022)
            try:
                os.close(data.real_directory(subpath))
            finally:
                os.umask(before)
        finally:
            os.close(data.fd)


def _mapped(volume: int, users: int, name: str) -> int:
    """Open the volume once more, with the ids that are on disk as those of `users`."""
    tree = mount.open_tree(volume)
    map_ids(tree, users, name)
    try:
        return os.open(".", _DIRECTORY, dir_fd=tree)
    finally:
        os.close(tree)


def _pending(volume: int) -> bool:
    try:
        os.stat("pending", dir_fd=volume, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_empty(volume: int) -> bool:
    data = os.open("data", _DIRECTORY | os.O_NOFOLLOW, dir_fd=volume)
    try:
        return not os.listdir(data)
    finally:
        os.close(data)


def _fill(root: Root, destination: str, volume: int) -> None:
    source = root.find(destination, os.O_RDONLY | os.O_DIRECTORY)
    if source is None:
        return  # the image has nothing there: the volume stays as the engine made it
    try:
        tree.remove(volume, "data.partial")
        os.mkdir("data.partial", 0o700, dir_fd=volume)
        try:
            _copy_limited(source, volume)
        except OSError as error:
            tree.remove(volume, "data.partial")
            if error.errno == errno.EDQUOT:
                text = (
                    "what the image has there does not fit into the volume's size_limit; nothing was copied"
                )
                raise OSError(errno.EDQUOT, text) from error
            raise
        # rename(2) replaces an empty directory; had somebody filled it meanwhile, ENOTEMPTY would stop us
        os.rename("data.partial", "data", src_dir_fd=volume, dst_dir_fd=volume)
        os.fsync(volume)
    finally:
        os.close(source)


def _copy_limited(source: int, volume: int) -> None:
    """Copy as somebody for whom the volume's limit holds: with CAP_SYS_RESOURCE a quota is passed over (dquot.c)."""
    effective, permitted, inheritable = capability.capget()
    partial = os.open("data.partial", _DIRECTORY | os.O_NOFOLLOW, dir_fd=volume)
    try:
        capability.drop_effective(capability.NUMBERS["CAP_SYS_RESOURCE"])
        try:
            tree.copy(source, partial)
            syncfs(partial)
        finally:
            capability.capset(effective, permitted, inheritable)
    finally:
        os.close(partial)
