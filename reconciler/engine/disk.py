"""Which disk a path is on: limits of I/O are those of a whole disk. Reads only."""

import os
import re
import stat
from pathlib import Path
from typing import Final

from reconciler.errors import UnsupportedError

_SCHEDULER: Final = re.compile(r"\[([\w-]+)\]")


def whole_disk(path: str | Path) -> tuple[int, int]:
    """Return the numbers of the disk that `path` is, is a partition of, or is on.

    UnsupportedError where that is none (tmpfs, overlay, network), or one of several (btrfs).
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnsupportedError(f"{path}: {error.strerror}", hint="name the disk: device: /dev/...") from error
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    found = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not found.exists():
        raise UnsupportedError(f"{path} is on no disk of its own", hint="name the disk: device: /dev/...")
    # The kernel refuses partitions (blkg_conf_open_bdev: ENODEV); their directory is inside that of their disk
    real = found.resolve()
    if (real / "partition").exists():
        real = real.parent
    major, _, minor = (real / "dev").read_text().strip().partition(":")
    return int(major), int(minor)


def scheduler(disk: tuple[int, int]) -> str:
    """Return the name of the disk's I/O scheduler, "" where it has none."""
    try:
        text = Path(f"/sys/dev/block/{disk[0]}:{disk[1]}/queue/scheduler").read_text()
    except OSError:
        return ""
    match = _SCHEDULER.search(text)
    return match[1] if match is not None else ""


def name(disk: tuple[int, int]) -> str:
    """Return what people call the disk: sda."""
    return Path(f"/sys/dev/block/{disk[0]}:{disk[1]}").resolve().name
