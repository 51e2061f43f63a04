"""/dev inside the container: nodes, links and the console's terminal. By descriptor, before pivot_root.

Which nodes there are comes from the bundle and the specification's default list (config-linux.md, "Default Devices").
"""

import array
import errno
import fcntl
import os
import socket
import stat
import struct
import termios

from reconciler.linux import mount
from reconciler.shim.config import Prepared
from reconciler.shim.rootfs import Root
from reconciler.shim.step import Step, StepError

_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_TIOCGPTPEER = 0x5441  # _IO('T', 0x41), since Linux 4.13
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430


def make(prepared: Prepared, root: Root) -> None:
    """Make the device nodes and the links of /dev; raise StepError naming the path.

    Where the kernel forbids mknod (a devices cgroup, a user namespace) the host's node is bound instead, if it is one.
    """
    with Step("device", "/dev"):
        dev = root.real_directory("/dev")
    for name, mode, major, minor, uid, gid in prepared.devices:
        with Step("device", name):
            folder, _, last = name.rpartition("/")
            parent = dev if folder == "/dev" else root.real_directory(folder)
            if _node(parent, last, name, mode, os.makedev(major, minor)):
                first = prepared.process.ids[0] if prepared.process.ids is not None else 0
                os.chown(last, first + uid, first + gid, dir_fd=parent, follow_symlinks=False)
            if parent != dev:
                os.close(parent)
    links = list(_LINKS)
    if any(entry.kind == "devpts" and entry.destination == "/dev/pts" for entry in prepared.mounts):
        links.append(("ptmx", "pts/ptmx"))
    for name, text in links:
        with Step("device", f"/dev/{name}"):
            try:
                os.symlink(text, name, dir_fd=dev)
            except FileExistsError:
                pass  # the image, or a bind on /dev, has its own
    os.close(dev)


def _node(parent: int, name: str, where: str, mode: int, device: int) -> bool:
    """Have the node there; say whether it was made, and may be given an owner."""
    try:
        os.mknod(name, mode, device, dir_fd=parent)
    except FileExistsError:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(info.st_mode) != stat.S_IFMT(mode) or info.st_rdev != device:
            raise OSError(errno.EEXIST, "something else is there") from None
    except PermissionError:
        _bind_node(parent, name, where, mode, device)
    else:
        return True
    return False


def _bind_node(parent: int, name: str, where: str, mode: int, device: int) -> None:
    """Bind the host's node of the same path: no symbolic link, and the very device that is wanted."""
    source = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(source)
        if stat.S_IFMT(info.st_mode) != stat.S_IFMT(mode) or info.st_rdev != device:
            raise OSError(errno.ENODEV, f"mknod is forbidden and the host's {where} is another device")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o000, dir_fd=parent)
        try:
            copy = mount.open_tree(source)
            # The host's own inode: read-only, or chmod inside would change it; the device can be written all the same
            mount.mount_setattr(copy, set_=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOEXEC)
            mount.move_mount(copy, target)
            os.close(copy)
        finally:
            os.close(target)
    finally:
        os.close(source)


def console(root: Root, devpts: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Open a pseudo-terminal of the container's own devpts and bind it on /dev/console; give its master and slave.

    The slave comes from the master by ioctl and the bind from the mount's own descriptor, so that no link in the image
    takes part (CVE-2025-52565).
    """
    with Step("console", "/dev/console"):
        if devpts < 0:
            raise StepError("console", "/dev/pts", 0, "no devpts mount")
        master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=devpts)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        number = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))[0]
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size is not None:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        copy = mount.open_tree(devpts, str(number))
        if os.fstat(copy).st_rdev != os.fstat(slave).st_rdev:
            raise OSError(errno.ENXIO, "the pseudo-terminal is not the one just opened")
        dev = root.real_directory("/dev")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open("console", flags, 0o000, dir_fd=dev)
        except FileExistsError:
            target = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev)
            if stat.S_ISLNK(os.fstat(target).st_mode):
                raise OSError(errno.ELOOP, "a symbolic link in the image") from None
        mount.move_mount(copy, target)
        for fd in (copy, dev, target):
            os.close(fd)
        return master, slave


def send_master(console_fd: int, master: int) -> None:
    """Send the terminal's master through the unix socket `console_fd`, as runc's console sockets do."""
    with Step("console", "socket"), socket.socket(fileno=os.dup(console_fd)) as channel:
        channel.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])


def take_terminal(slave: int) -> None:
    """Make `slave` the controlling terminal of this session, which has none, and descriptors 0 to 2."""
    with Step("console", "/dev/console"):
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
