"""Paths of the device that containers mount: made where the spec says so, and fit for the propagation that it asks for.

No link is followed, neither here nor when the path is mounted: the device has allowed this very path.
"""

import errno
import os
import re
from pathlib import Path
from typing import Final

from reconciler.errors import ReconcilerError
from reconciler.state.desired import BindMount, Identity

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare(identity: Identity) -> None:
    """Make the missing sources that are to be made; raise ReconcilerError for what can't be mounted as asked."""
    for mount in identity.mounts:
        if not isinstance(mount, BindMount):
            continue
        if mount.create_host_path and not os.path.lexists(mount.source):
            _make(mount.source)
        if mount.propagation != "rprivate":
            _demand(mount)


def _make(path: str) -> None:
    """Make the directory and those above it that are missing, 0755 and root's."""
    current = os.open("/", _DIRECTORY)
    try:
        for part in path.strip("/").split("/"):
            try:
                os.mkdir(part, 0o755, dir_fd=current)
            except FileExistsError:
                pass
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
    except OSError as error:
        why = "a part of it is a link" if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
        raise ReconcilerError(f"bind source {path}: can't be made: {why}") from error
    finally:
        os.close(current)


def _demand(mount: BindMount) -> None:
    """Nothing would pass, silently, through a mount that is connected with no other."""
    point, fields = _mount_of(mount.source, Path("/proc/self/mountinfo").read_bytes())
    shared = any(field.startswith("shared:") for field in fields)
    slave = any(field.startswith("master:") for field in fields)
    if shared or (slave and mount.propagation == "rslave"):
        return
    raise ReconcilerError(
        f"bind of {mount.source}: propagation {mount.propagation}: {point} is not a shared mount",
        hint=f"mount --make-rshared {point}",
    )


def _mount_of(path: str, mountinfo: bytes) -> tuple[str, list[str]]:
    """Return the mount point that `path` is on, and its optional fields; the last mounted of several in one place."""
    found, fields = "/", [""]
    for line in mountinfo.decode("utf-8", "surrogateescape").splitlines():
        words = line.partition(" - ")[0].split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):
            found, fields = point, words[6:]
    return found, fields
