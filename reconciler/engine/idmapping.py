"""Whether containers can have ids of their own here: the kernel, and the file systems that their files are on."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from reconciler.config import Device
from reconciler.engine.enforcing import version
from reconciler.engine.idrange import COUNT, FIRST
from reconciler.engine.layout import Layout, existing
from reconciler.engine.snapshot import file_system_type
from reconciler.linux import mount
from reconciler.shim import users
from reconciler.shim.step import StepError

_FLOOR: Final = (5, 19)  # overlayfs on id-mapped layers
_RANGE: Final = (FIRST, COUNT)


def possible(device: Device, layout: Layout) -> Device:
    """The settings of a device, with the device's ids as the default of containers where it can't give them others."""
    if device.defaults.userns == "auto" and lacking(layout)[0]:
        return replace(device, defaults=replace(device.defaults, userns="host"))
    return device


def lacking(layout: Layout) -> tuple[str, str]:
    """Why no container can have ids of its own here, and the remedy; two empty strings where one can.

    Tries it, on mounts that nobody sees: of the state directory, which has layers and volumes, and of the run
    directory, which has /etc/hosts and its like. One that is not there yet stands for where it will be made.
    """
    if version() < _FLOOR:
        return "overlay has no id-mapped layers before Linux 5.19", "boot Linux 5.19 or newer"
    try:
        namespace = users.make_for(_RANGE)
    except StepError as error:
        if error.errno == errno.EPERM:
            return "", ""  # who asks may not try it, nor make containers
        return f"no user namespace can be made: {error}", "sysctl user.max_user_namespaces must not be 0"
    try:
        for directory in (existing(layout.state), existing(layout.run)):
            if not _maps(directory, namespace):
                kind = _kind(directory)
                remedy = "put it on ext4, xfs or btrfs"
                if kind == "tmpfs":
                    remedy = "boot Linux 6.3 or newer, or p" + remedy[1:]
                return f"the {kind or 'unknown'} file system of {directory} has no id-mapped mounts", remedy
    finally:
        os.close(namespace)
    return "", ""


def _maps(directory: Path, namespace: int) -> bool:
    """Whether a mount of this directory can show other ids; also where that may not be tried."""
    tree = -1
    opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = mount.open_tree(opened)
        mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_IDMAP, userns=namespace)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        return error.errno == errno.EPERM
    finally:
        os.close(opened)
        if tree >= 0:
            os.close(tree)
    return True


def _kind(directory: Path) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file_system_type(Path(os.path.realpath(directory)), file.read())
