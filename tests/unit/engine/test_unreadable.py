"""What is there and can't be read is neither gone nor lost: nothing is made a second time, or swept away, for it."""

import argparse
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.cli.common import layout_of
from reconciler.engine import record
from reconciler.engine.layout import Layout
from reconciler.engine.process import ProcessId, boot_id, identify, open_pidfd, read_exit, read_shim

ID = "0" * 32


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Call it, and this process can open nothing more until the end of the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_that_can_not_be_held_is_not_said_to_be_gone(no_descriptors: Callable[[], None]) -> None:
    me = identify(os.getpid())
    assert me is not None
    no_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        open_pidfd(me)


def test_a_process_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    assert open_pidfd(ProcessId(2**22 - 1, 1, boot_id())) is None
    assert open_pidfd(ProcessId(os.getpid(), 1, boot_id())) is None  # the number is somebody else's by now
    assert open_pidfd(ProcessId(os.getpid(), 1, "another boot")) is None


@pytest.mark.parametrize("read", [read_shim, read_exit])
def test_a_record_is_none_only_if_it_is_missing_or_damaged(
    tmp_path: Path, read: Callable[[Path], object], no_descriptors: Callable[[], None]
) -> None:
    path = tmp_path / "record"
    assert read(path) is None
    for damage in (b"", b"[]", b"[" * 100_000, b'{"boot": 1, "shim": {"pid": 1e999}}', b"\xff"):
        path.write_bytes(damage)
        assert read(path) is None
    assert read(tmp_path) is None
    no_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        read(path)


def test_a_container_whose_identity_can_not_be_read_is_no_leftover(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.container(ID).mkdir(parents=True)
    assert list(record.records(layout)) == []  # none: what a crash left before there was an identity
    layout.identity(ID).write_text("{}")
    assert list(record.records(layout)) == []
    layout.identity(ID).unlink()
    layout.identity(ID).symlink_to(layout.identity(ID))  # as good as EIO: it is there, and can't be opened
    with pytest.raises(OSError, match="symbolic links"):
        list(record.records(layout))


def test_links_in_the_paths_of_an_instance_are_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "var").symlink_to(tmp_path / "disk")
    layout = layout_of(
        argparse.Namespace(state=str(tmp_path / "var" / "state"), run=str(tmp_path / "var" / "run"))
    )
    assert layout == Layout(tmp_path / "disk" / "state", tmp_path / "disk" / "run")
