"""Opening a log directory for a new writer: what an earlier writer left is rotated as it is, and a new pair begins.

Apart from `shim.logfile`, because only the short-lived maker of a container runs it: code that a shim never runs costs
it no memory.
"""

import os

from reconciler.shim import logindex
from reconciler.shim.logfile import new_pair, rotated, unlink
from reconciler.shim.logindex import CURRENT_INDEX, CURRENT_LOG, SIZE


def open_log(path: str) -> tuple[int, int, int, int]:
    """Open directory, log, index and sequence number for a LogFile; finish a rotation that was cut off."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sequence = _settle(directory) + 1
        log, index = new_pair(directory, sequence)
        os.rename(logindex.NEW_INDEX, CURRENT_INDEX, src_dir_fd=directory, dst_dir_fd=directory)
        os.rename(logindex.NEW_LOG, CURRENT_LOG, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.close(directory)
        raise
    return directory, log, index, sequence


def _settle(directory: int) -> int:
    """Rotate what is left; give the highest sequence number that is used."""
    names = set(os.listdir(directory))
    numbers = rotated(directory, (".log", ".log.gz", ".idx"))
    highest = numbers[-1] if numbers else 0
    for name in sorted(names):
        if name.startswith(logindex.COMPRESSING):
            unlink(directory, name)
    if CURRENT_INDEX not in names and CURRENT_LOG not in names:
        return highest
    left = _header(directory) if CURRENT_INDEX in names else None
    highest = left if left is not None and left >= highest else highest + 1
    for name, target in (
        (CURRENT_LOG, logindex.rotated_log(highest)),
        (CURRENT_INDEX, logindex.rotated_index(highest)),
    ):
        if name in names and target not in names:
            os.rename(name, target, src_dir_fd=directory, dst_dir_fd=directory)
    return highest


def _header(directory: int) -> int | None:
    fd = os.open(CURRENT_INDEX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        return logindex.unpack_header(os.pread(fd, SIZE, 0))
    finally:
        os.close(fd)
