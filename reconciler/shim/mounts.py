"""The mounts of a bundle, put on the root by descriptor: file systems, binds, masked and read-only paths.

Every mount is made detached, gets its attributes, and only then appears in its place. Sources of binds are the host's;
targets are inside the root and opened by shim.rootfs. Nothing here runs after pivot_root.
"""

import errno
import os
import stat

from reconciler.linux import mount, path
from reconciler.shim import tree
from reconciler.shim.config import Mount, Prepared
from reconciler.shim.rootfs import Root, map_ids, open_source
from reconciler.shim.step import Step, StepError

# What the kernel itself provides must appear on a real directory: on a link it would be somewhere else.
_KERNEL = frozenset(("proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"))
# The only files of /proc that a bundle may cover (lxcfs); anything else there would fake what programs trust.
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
    )
)
_SAFE = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC


class Mounted:
    """What is left to do after the mounts: `late` gets read-only once everything in it is in place.

    `devpts` is the container's own instance, whose descriptor the console needs; `proc` its own procfs, fresh from the
    kernel and not yet covered anywhere. Both are -1 where the bundle has none.
    """

    __slots__ = ("devpts", "late", "proc")

    def __init__(self) -> None:
        self.devpts = -1
        self.proc = -1
        self.late: list[int] = []


def take(prepared: Prepared) -> dict[Mount, int]:
    """Copy the sources of binds that later mounts are to pass through, each a `detached` one; raise StepError.

    Before the host's mounts are made private here: afterwards nothing connects a copy with them any more. A copy that
    is in no place yet is left alone by that.
    """
    copies: dict[Mount, int] = {}
    for entry in prepared.mounts:
        if entry.kind == "bind" and entry.options.propagation in (mount.MS_SLAVE, mount.MS_SHARED):
            with Step("mount", entry.destination):
                copies[entry] = detached(entry, _source(entry), prepared.users)
    return copies


def mount_all(prepared: Prepared, root: Root, sources: dict[Mount, int]) -> Mounted:
    """Do the bundle's mounts in their order, with the `sources` that are detached already; raise StepError naming the
    destination.
    """
    done = Mounted()
    for entry in prepared.mounts:
        with Step("mount", entry.destination):
            if entry.kind == "bind":
                _bind(entry, root, sources.get(entry, -1), prepared.users)
            elif entry.kind in ("cgroup", "cgroup2"):
                _cgroup(prepared, entry, root, done)
            else:
                _filesystem(entry, root, done, prepared.process.ids)
    return done


def finish(done: Mounted) -> None:
    """Make read-only what had to stay writable for the mounts and devices inside it."""
    for fd in done.late:
        with Step("mount", "read-only"):
            mount.mount_setattr(fd, set_=mount.MOUNT_ATTR_RDONLY)


def create(kind: str, data: tuple[tuple[str, str | None], ...], attributes: int, source: str = "") -> int:
    """Make a new file system and a detached mount of it; OSError carries what the kernel said about the options."""
    context = mount.fsopen(kind)
    try:
        try:
            mount.fsconfig_string(context, "source", source or kind)
            for key, value in data:
                if value is None:
                    mount.fsconfig_flag(context, key)
                else:
                    mount.fsconfig_string(context, key, value)
            mount.fsconfig_create(context)
        except OSError as error:
            said = mount.context_messages(context)
            raise OSError(error.errno, f"{error.strerror}; {said}" if said else error.strerror) from error
        return mount.fsmount(context, attributes)
    finally:
        os.close(context)


def _source(entry: Mount) -> int:
    try:
        return open_source(entry.source)
    except OSError as error:
        raise OSError(error.errno, f"bind source {entry.source}: {os.strerror(error.errno or 0)}") from error


def detached(entry: Mount, source: int, users: int = -1) -> int:
    """Give a copy of the mount at the descriptor `source`, which is closed, with all that `entry` wants of it; a mapped
    one shows its ids as those of the user namespace `users`.
    """
    options = entry.options
    recursive = options.recursive
    try:
        copy = mount.open_tree(source, flags=mount.OPEN_TREE_CLONE | (mount.AT_RECURSIVE if recursive else 0))
    finally:
        os.close(source)
    try:
        if users >= 0 and entry.mapped:
            map_ids(copy, users, entry.source, recursive=recursive)
        if options.tree_set or options.tree_clear:
            mount.mount_setattr(copy, set_=options.tree_set, clear=options.tree_clear, recursive=recursive)
        if options.set or options.clear:
            mount.mount_setattr(copy, set_=options.set, clear=options.clear)
        # Private unless asked otherwise: later mounts of the host do not appear inside. A shared copy is the host's
        # peer already; making it shared here would only make a new group of a private one.
        propagation = options.propagation or mount.MS_PRIVATE
        deep = options.propagation_recursive or not options.propagation
        if propagation != mount.MS_SHARED:
            mount.mount_setattr(copy, propagation=propagation, recursive=deep)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _bind(entry: Mount, root: Root, taken: int, users: int) -> None:
    copy = taken if taken >= 0 else detached(entry, _source(entry), users)
    try:
        _attach(copy, entry, root, directory=stat.S_ISDIR(os.fstat(copy).st_mode))
    finally:
        os.close(copy)


def _attach(fd: int, entry: Mount, root: Root, *, directory: bool = True) -> None:
    if entry.kind in _KERNEL or entry.destination == "/dev":
        target = root.real_directory(entry.destination)
    else:
        target = root.target(entry.destination, directory=directory)
    try:
        # A link in the image may lead into /proc, where a mount would change what this program, and every other,
        # takes for the kernel's word (CVE-2019-19921, CVE-2023-27561)
        if path.filesystem_type(target) == path.PROC_SUPER_MAGIC and entry.destination not in _PROC_FILES:
            raise OSError(errno.EPERM, "the target is inside /proc")
        if os.path.samestat(os.fstat(target), root.status):
            raise OSError(errno.EPERM, "the target is the root itself")
        mount.move_mount(fd, target)
    finally:
        os.close(target)


def _filesystem(entry: Mount, root: Root, done: Mounted, ids: tuple[int, int] | None) -> None:
    options = entry.options
    data, attributes = options.data, options.set
    if ids is not None:
        data = _outside(entry.kind, data, ids[0])
    existing = None
    if entry.kind == "tmpfs":
        existing = root.find(entry.destination, os.O_RDONLY | os.O_DIRECTORY)
        if existing is not None and options.value("mode") is None:
            data = (*data, ("mode", f"{stat.S_IMODE(os.fstat(existing).st_mode):o}"))
        attributes &= ~mount.MOUNT_ATTR_RDONLY
    source = entry.source if entry.kind not in ("proc", "sysfs", "tmpfs", "devpts", "mqueue") else ""
    if entry.kind == "devpts":
        # Since Linux 4.7 every mount of devpts is an instance of its own; the option is only tolerated
        data = tuple(pair for pair in data if pair[0] != "newinstance")
    fd = create(entry.kind, data, attributes, source)
    if existing is not None:
        if options.copy_up:
            tree.copy(existing, _writable(fd))
        os.close(existing)
    if options.propagation:
        mount.mount_setattr(fd, propagation=options.propagation)
    _attach(fd, entry, root)
    if entry.kind == "tmpfs" and options.set & mount.MOUNT_ATTR_RDONLY:
        done.late.append(fd)
    elif entry.kind == "devpts" and done.devpts < 0:
        done.devpts = fd
    elif entry.kind == "proc" and done.proc < 0:
        done.proc = fd
    else:
        os.close(fd)


def _outside(
    kind: str, data: tuple[tuple[str, str | None], ...], first: int
) -> tuple[tuple[str, str | None], ...]:
    """The options with the ids in them as the device knows them, and a tmpfs that belongs to the container's root."""
    owned = tuple(
        (key, str(first + int(value)) if key in ("uid", "gid") and value else value) for key, value in data
    )
    if kind != "tmpfs":
        return owned
    said = {key for key, _ in data}
    return owned + tuple((key, str(first)) for key in ("uid", "gid") if key not in said)


def _writable(tree_fd: int) -> int:
    """Reopen the O_PATH descriptor of a detached mount as a directory that entries can be made in."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree_fd)


def _cgroup(prepared: Prepared, entry: Mount, root: Root, done: Mounted) -> None:
    """Show the container its own cgroup directories, and nothing above them, read-only unless `rw` is asked for.

    They are binds of exactly those directories, so it does not matter whether the process has been placed yet, and
    release_agent, which is only in a hierarchy's root, is never inside (CVE-2022-0492).
    """
    attributes = entry.options.set | _SAFE
    if not entry.options.clear & mount.MOUNT_ATTR_RDONLY:
        attributes |= mount.MOUNT_ATTR_RDONLY
    if prepared.cgroup_v2 and not prepared.cgroup_v1:
        shown = _directory(prepared.cgroup_v2, attributes)
        _attach(shown, entry, root)
        os.close(shown)
        return
    fd = create("tmpfs", (("mode", "755"), ("size", "64k")), _SAFE)
    _attach(fd, entry, root)
    devices: dict[str, int] = {}
    named = [(_hierarchy(directory, devices), directory) for directory in prepared.cgroup_v1]
    if prepared.cgroup_v2:
        named.append(("unified", prepared.cgroup_v2))
    inside = _writable(fd)
    for name, directory in named:
        os.mkdir(name, 0o755, dir_fd=inside)
        # In a file system that has just been made here, and that nobody else can reach: nothing is in the way
        target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
        shown = _directory(directory, attributes)
        mount.move_mount(shown, target)
        os.close(shown)
        os.close(target)
        for controller in name.split(","):
            if controller != name:
                os.symlink(name, controller, dir_fd=inside)
    os.close(inside)
    done.late.append(fd)


def _directory(directory: str, attributes: int) -> int:
    """Give a detached mount of one directory of a cgroup."""
    source = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = mount.open_tree(source)
    os.close(source)
    mount.mount_setattr(fd, set_=attributes, propagation=mount.MS_PRIVATE)
    return fd


def _hierarchy(directory: str, devices: dict[str, int]) -> str:
    """Give the name of the v1 hierarchy that `directory` is in: the last part of its mount point's path.

    `devices` remembers what is asked for several of them.
    """
    current = directory
    device = os.stat(current).st_dev
    while (parent := os.path.dirname(current)) != current:
        if parent not in devices:
            devices[parent] = os.stat(parent).st_dev
        if devices[parent] != device:
            break
        current = parent
    if os.path.islink(current):  # cpu, say, which leads to cpu,cpuacct
        return _hierarchy(os.path.realpath(current), devices)
    return os.path.basename(current)


def mask(prepared: Prepared, root: Root) -> None:
    """Hide the masked paths (a file behind /dev/null, a directory behind an empty read-only tmpfs), seal the others.

    The host's /dev/null is taken, and only if it is the null device (CVE-2025-31133). Paths that do not exist are left.
    """
    null = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(null)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(1, 3):
        raise StepError("mask", "/dev/null", 0, "not the null device")
    empty = -1
    for name in prepared.masked:
        with Step("mask", name):
            target = root.find(name)
            if target is None:
                continue
            if not stat.S_ISDIR(os.fstat(target).st_mode):
                cover = mount.open_tree(null)
                # It is the host's own inode: on a writable mount, chmod inside would change the host's /dev/null
                mount.mount_setattr(cover, set_=_SAFE & ~mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_RDONLY)
            elif empty < 0:
                data = (("nr_blocks", "1"), ("nr_inodes", "1"))
                cover = empty = create("tmpfs", data, _SAFE | mount.MOUNT_ATTR_RDONLY)
            else:
                cover = mount.open_tree(
                    empty
                )  # attached by now: before 6.15 a detached mount can't be copied
            mount.move_mount(cover, target)
            os.close(target)
            if cover != empty:
                os.close(cover)
    for name in prepared.readonly:
        with Step("readonly", name):
            target = root.find(name)
            if target is None:
                continue
            cover = mount.open_tree(target, flags=mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE)
            mount.mount_setattr(cover, set_=mount.MOUNT_ATTR_RDONLY, recursive=True)
            mount.move_mount(cover, target)
            os.close(target)
            os.close(cover)
