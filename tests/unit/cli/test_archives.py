"""Where an archive goes."""

import os
import stat
from pathlib import Path

import pytest

from reconciler.cli.archives import output_file
from reconciler.errors import UsageError


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(fifo)
    for target in (fifo, Path(os.path.realpath(link)), Path("/dev/full")):
        with pytest.raises(UsageError, match="is there and no regular file"), output_file(target, tmp_path):
            pass
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    for target in (tmp_path, tmp_path / "none/archive"):
        with pytest.raises(UsageError, match="is a directory, or in none"), output_file(target, tmp_path):
            pass


def test_a_file_is_replaced_once_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "archive.tar"
    target.write_text("old")
    with pytest.raises(ValueError, match="negative count"), output_file(target, tmp_path) as (out, _):
        out.write(b"half" + bytes(-1))
    assert target.read_text() == "old"
    with output_file(target, tmp_path) as (out, _):
        out.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["archive.tar"]
