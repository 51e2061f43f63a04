"""How log lines are printed: both streams in one file keep the order in which they were read."""

import argparse
import sys
from pathlib import Path

import pytest

from reconciler.cli.logs import _Printer
from reconciler.engine.logs import Record


def test_two_streams_in_one_file_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    args = argparse.Namespace(output="table", timestamps=False, follow=False, color="never")
    with out.open("a") as first, out.open("a") as second:
        monkeypatch.setattr(sys, "stdout", first)
        monkeypatch.setattr(sys, "stderr", second)
        printer = _Printer(args, ["web/page", "w/b"])
        for number in range(100):
            stream = "stdout" if number % 3 else "stderr"
            printer.print(number % 2, Record(number, stream, b"line %d" % number, False))
    lines = out.read_text().splitlines()
    assert [int(line.rpartition(" ")[2]) for line in lines] == list(range(100))
    assert lines[0] == "web/page | line 0"
    assert lines[1] == "w/b      | line 1"
