"""Where a container's writable layer lives: beside the container, or on a tmpfs where overlayfs can't stack.

overlayfs refuses an upper directory that is itself on overlayfs (a state directory inside another container),
so there uppers go to the run directory: they are lost at a reboot, as a container's writable layer is at
every restart anyway.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.engine.layout import Layout
from reconciler.errors import BlockedError


@contextmanager
def held(directory: Path, name: str) -> Iterator[None]:
    """Hold the writable layer of the container in `directory`, or raise BlockedError naming it.

    Whoever mounts a container's overlay, or has it mounted, holds it meanwhile: mounted twice, it would be damaged.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BlockedError(
            f"container {name}: somebody is about to start it, or copies files",
            hint="try again",
            transient=True,
        ) from error
    try:
        yield
    finally:
        os.close(fd)


def file_system_type(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/self/mountinfo; "" if unknown."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        try:
            point = fields[4].encode().decode("unicode_escape")
            separator = fields.index("-", 6)
        except (IndexError, ValueError):
            continue
        inside = point == "/" or str(path) == point or str(path).startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[separator + 1]
    return kind


class Uppers:
    """Chooses and makes the upper and work directories of containers."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            kind = file_system_type(Path(os.path.realpath(layout.state)), file.read())
        self.on_tmpfs = kind == "overlay"

    def paths(self, container_id: str) -> tuple[Path, Path]:
        """The absolute paths of upper and work; both on one file system, as overlayfs demands."""
        if self.on_tmpfs:
            run = self._layout.run_container(container_id)
            return run / "upper", run / "work"
        return self._layout.upper(container_id), self._layout.work(container_id)

    def make(self, container_id: str, root: Path | None) -> None:
        """Make both, empty. The upper directory is what a container sees as its root directory, so it gets the owner,
        mode, times and attributes of `root`, the topmost layer's (None for an image without layers: 0755, root's).
        """
        upper, work = self.paths(container_id)
        upper.mkdir(mode=0o755)
        work.mkdir(mode=0o700)
        if root is None:
            return
        status = root.stat()
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(status.st_mode & 0o7777)
        for name in os.listxattr(root):
            if not name.startswith("trusted.overlay."):
                os.setxattr(upper, name, os.getxattr(root, name))
        os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))
