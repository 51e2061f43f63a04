"""What is written out early is checked all the same: an error that came up in the middle is one at the end."""

import os
import threading
import time
from pathlib import Path

import pytest

from reconciler.engine.writeback import Writeback
from tests.faults.test_powerloss import Disk

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]


class Written:
    """A file that grows, as a layer does."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path

    def grow(self, size: int) -> None:
        with self._path.open("ab") as file:
            file.write(os.urandom(size))
        self.size += size


def wait_for(condition: object, patience: float) -> None:
    deadline = time.monotonic() + 10 * patience
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_disk_that_failed_while_it_was_written_to_fails_the_end(tmp_path: Path, patience: float) -> None:
    disk = Disk(tmp_path)
    root = os.open(disk.mount_point, os.O_RDONLY)
    try:
        written = Written(disk.mount_point / "file")
        with Writeback(root, lambda: written.size, threading.Lock()) as writeback:
            written.grow(16 << 20)
            disk.cut()
            wait_for(lambda: not writeback.alive, patience)
            with pytest.raises(OSError, match="Input/output error"):
                writeback.finish()
    finally:
        os.close(root)
        disk.unmount()


def test_one_works_for_all_and_little_is_left_to_the_end(tmp_path: Path) -> None:
    turn = threading.Lock()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        written = Written(tmp_path / "file")
        with Writeback(root, lambda: written.size, turn) as one, Writeback(root, lambda: 0, turn) as other:
            written.grow(16 << 20)
            one.finish()
            other.finish()
            assert not one.alive
            assert not other.alive
        assert not turn.locked()
        assert not [thread for thread in threading.enumerate() if thread.name == "writeback"]
    finally:
        os.close(root)
