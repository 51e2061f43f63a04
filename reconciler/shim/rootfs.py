"""The container's root file system before it is the root: making it, and finding or creating places in it.

Until pivot_root nothing here uses a path string on it with the ordinary calls: every place is reached from a directory
descriptor, with openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) or one component at a time without following links,
because the image, and on a restart the container's own past, has written what is in there (CVE-2019-19921,
CVE-2021-30465, CVE-2023-27561).
"""

import errno
import os
import stat

from reconciler.linux import mount, path
from reconciler.shim.config import Prepared
from reconciler.shim.step import Step, StepError

IN_ROOT = path.RESOLVE_IN_ROOT | path.RESOLVE_NO_MAGICLINKS
_PLACE = os.O_PATH | os.O_CLOEXEC
_LINKS = 40  # as many symbolic links as the kernel follows in one path (MAXSYMLINKS)

# Nothing is followed or shared with an earlier mount: an image can't hold trusted.overlay.* (they are refused when
# it is unpacked), and with these options the kernel would not believe them either.
_OVERLAY_OPTIONS = (("redirect_dir", "nofollow"), ("index", "off"), ("metacopy", "off"))


class Root:
    """A container's root by descriptor. All paths are absolute in the container and end inside it, links or not."""

    __slots__ = ("fd", "status")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.status = os.fstat(fd)

    def find(self, name: str, flags: int = os.O_PATH) -> int | None:
        """Open what `name` leads to, or give None where there is nothing."""
        try:
            return path.openat2(self.fd, name, flags, resolve=IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def real_directory(self, name: str) -> int:
        """Open the directory `name`, making it where missing; raise OSError(ELOOP) where a part of it is a link.

        For the mounts that the kernel's own interfaces appear on: runc's history shows that /proc on a link is an
        exploit, and no honest image has one.
        """
        try:
            resolve = IN_ROOT | path.RESOLVE_NO_SYMLINKS
            return path.openat2(self.fd, name, os.O_PATH | os.O_DIRECTORY, resolve=resolve)
        except OSError:
            pass  # not there, or not what it should be: to be made, or said, below
        return self._walk(name, directory=True, links=0)

    def target(self, name: str, *, directory: bool) -> int:
        """Open `name` as the place to mount on, making a directory or an empty file where there is nothing.

        A dangling link is followed within the root and its end is made: Debian's /etc/resolv.conf is one.
        """
        found = self.find(name)
        if found is None:
            found = self._walk(name, directory=directory, links=_LINKS)
        is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
        if is_directory and not directory:
            raise IsADirectoryError(errno.EISDIR, "the target is a directory, the source is not")
        if directory and not is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return found

    def _walk(self, name: str, *, directory: bool, links: int) -> int:
        """Follow `name` one component at a time, making what is missing; `..` goes back up the walked descriptors."""
        walked = [os.dup(self.fd)]
        remaining = name.split("/")
        budget = links
        try:
            while remaining:
                part = remaining.pop(0)
                if part in ("", "."):
                    continue
                if part == "..":
                    if len(walked) > 1:
                        os.close(walked.pop())
                    continue
                parent = walked[-1]
                last = not any(rest not in ("", ".") for rest in remaining)
                fd = _open_or_make(parent, part, directory=directory or not last)
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    walked.append(fd)
                    continue
                text = os.readlink("", dir_fd=fd)
                os.close(fd)
                if budget == 0:
                    raise OSError(errno.ELOOP, "a symbolic link in the image", part)
                budget -= 1
                if text.startswith("/"):
                    while len(walked) > 1:
                        os.close(walked.pop())
                remaining = text.split("/") + remaining
            return walked.pop()
        finally:
            for fd in walked:
                os.close(fd)


def _open_or_make(parent: int, name: str, *, directory: bool) -> int:
    try:
        return os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        pass
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
    except FileExistsError:
        pass  # somebody who shares this volume was faster: what is there now is opened, and judged, below
    return os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=parent)


def open_source(name: str) -> int:
    """Open the absolute host path `name` without following any link.

    The engine has checked this very path against its policy; a link that appears later must not lead elsewhere.
    """
    resolve = path.RESOLVE_NO_SYMLINKS | path.RESOLVE_NO_MAGICLINKS
    return path.openat2(path.AT_FDCWD, name, os.O_PATH, resolve=resolve)


def make(prepared: Prepared, tree: int = -1) -> Root:
    """Mount the root file system in this mount namespace and give its descriptor; raise StepError.

    With layers it is an overlay, covering the directory `upper` in this namespace only; else `tree`, a detached mount,
    or a copy of the mount tree at `rootfs`, covering that. Device nodes in it have no power where /dev is a mount of
    its own.
    """
    with Step("propagation", "/"):
        # What is mounted from here on stays here; the host's own unmounts still arrive, so that nothing of the host
        # is kept busy by a container being made.
        mount.mount_setattr(path.AT_FDCWD, "/", propagation=prepared.root_propagation, recursive=True)
    if prepared.layers:
        with Step("overlay", prepared.upper):
            root = Root(_overlay(prepared))
    elif tree >= 0:
        with Step("rootfs", prepared.rootfs):
            place = _place(prepared.rootfs)
            mount.move_mount(tree, place)
            os.close(place)
            root = Root(tree)
    else:
        with Step("rootfs", prepared.rootfs):
            source = open_source(prepared.rootfs)
            tree = mount.open_tree(source, flags=mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE)
            mount.move_mount(tree, source)
            os.close(source)
            root = Root(tree)
    if prepared.powerless:
        with Step("rootfs", "/"):
            mount.mount_setattr(root.fd, set_=mount.MOUNT_ATTR_NODEV)
    return root


def _place(name: str) -> int:
    """Open where the root goes until it is the root: the root of a user namespace may not reach its own directory."""
    try:
        return open_source(name)
    except PermissionError:
        # Whatever is under it is hidden in this namespace only, which is about to let go of it
        return os.open("/tmp", _PLACE | os.O_DIRECTORY)


def map_ids(tree: int, users: int, name: str, *, recursive: bool = False) -> None:
    """Have the detached mount `tree` of `name` show its files' ids as those of the user namespace `users`."""
    try:
        mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_IDMAP, userns=users, recursive=recursive)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        text = f"{name}: its file system can't show other ids (id-mapped mounts): write userns: host"
        raise OSError(errno.EINVAL, text) from error


def _mapped(name: str, users: int, cover: str = "") -> int:
    """Cover the directory `name`, or `cover`, with an id-mapped mount of `name`, in this namespace only; give its
    descriptor. Overlay takes no detached one before Linux 6.15.
    """
    source = os.open(name, _PLACE | os.O_DIRECTORY)
    place = os.open(cover or name, _PLACE | os.O_DIRECTORY)
    try:
        tree = mount.open_tree(source)
        map_ids(tree, users, name)
        mount.move_mount(tree, place)
        return tree
    finally:
        os.close(source)
        os.close(place)


def _directories(prepared: Prepared) -> list[int]:
    """The layers, topmost first, then upper and work, which overlay wants to be of one mount."""
    users, upper = prepared.users, prepared.upper
    if users < 0:
        names = (*prepared.layers, upper, prepared.work)
        return [os.open(name, _PLACE | os.O_DIRECTORY) for name in names]
    opened = [_mapped(name, users) for name in prepared.layers]
    both = os.path.dirname(upper)
    if os.path.dirname(prepared.work) != both:
        raise OSError(errno.EINVAL, "upper and work must be in one directory")
    parent = _mapped(
        both, users, cover=upper
    )  # files of the engine beside it are mounted later: they stay in sight
    for name in (upper, prepared.work):
        opened.append(os.open(os.path.basename(name), _PLACE | os.O_DIRECTORY, dir_fd=parent))
    os.close(parent)
    return opened


def _overlay(prepared: Prepared) -> int:
    directories = _directories(prepared)
    upper = directories[-2]
    try:
        tree = _overlay_by_descriptor(directories)
        if tree is None:
            return _overlay_by_number(directories, os.path.basename(prepared.upper))
        mount.move_mount(tree, upper)
        return tree
    finally:
        for fd in directories:
            os.close(fd)


def _overlay_by_descriptor(directories: list[int]) -> int | None:
    """Give a detached overlay of `directories` (lowers, upper, work); None before Linux 6.13, which can't take them."""
    context = mount.fsopen("overlay")
    try:
        for index, fd in enumerate(directories[:-2]):
            try:
                mount.fsconfig_fd(context, "lowerdir+", fd)
            except OSError as error:
                # EOPNOTSUPP: up to 6.4, where overlay only has mount(2)'s option string; EINVAL, EBADF: up to 6.12
                if index == 0 and error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
                    return None
                raise
        mount.fsconfig_fd(context, "upperdir", directories[-2])
        mount.fsconfig_fd(context, "workdir", directories[-1])
        for key, value in _OVERLAY_OPTIONS:
            mount.fsconfig_string(context, key, value)
        mount.fsconfig_string(context, "source", "overlay")
        try:
            mount.fsconfig_create(context)
        except OSError as error:
            said = mount.context_messages(context)
            raise OSError(error.errno, f"{error.strerror}; {said}" if said else error.strerror) from error
        return mount.fsmount(context)
    finally:
        os.close(context)


def _overlay_by_number(directories: list[int], name: str) -> int:
    """Mount the overlay with the option string of old, in which every directory is its descriptor's number.

    `name` is that of the upper directory in its own. The numbers are names relative to /proc/self/fd. So 500 layers
    fit into the one page that mount(2) takes, whatever their paths are, and no `:` or `,` in a path is ever taken
    for a separator.
    """
    here = os.open(".", _PLACE | os.O_DIRECTORY)
    os.chdir("/proc/self/fd")
    try:
        options = [f"lowerdir={':'.join(str(fd) for fd in directories[:-2])}"]
        options += [f"upperdir={directories[-2]}", f"workdir={directories[-1]}"]
        options += [f"{key}={value}" for key, value in _OVERLAY_OPTIONS]
        mount.mount("overlay", str(directories[-2]), "overlay", 0, ",".join(options))
        # By its name: what a descriptor leads to is the directory under the new mount
        parent = os.open("..", _PLACE | os.O_DIRECTORY, dir_fd=directories[-2])
        try:
            return os.open(name, _PLACE | os.O_DIRECTORY, dir_fd=parent)
        finally:
            os.close(parent)
    finally:
        os.fchdir(here)
        os.close(here)


def enter(root: Root) -> None:
    """Make `root` the root of this process's mount namespace and let go of the old one; raise StepError.

    pivot_root(".", ".") stacks the old root on the new one (pivot_root(2), NOTES), so that no directory for it is
    needed in the image; it is detached at once with everything under it.
    """
    with Step("pivot_root", "/"):
        os.fchdir(root.fd)
        mount.pivot_root(".", ".")
        mount.umount(".", mount.MNT_DETACH)
        os.chdir("/")
    if not os.path.samestat(os.stat("/"), os.fstat(root.fd)):
        raise StepError("pivot_root", "/", 0, "the root is not the container's")
