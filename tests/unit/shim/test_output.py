"""The pump: whatever comes out of pipes or a terminal is in the log, and a compressor works beside it."""

import os
import pty
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.engine import logs
from reconciler.shim.logfile import pipe
from reconciler.shim.logopen import open_log
from reconciler.shim.output import Output


class Loop:
    """The event loop of a shim, one round at a time."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        del self.handlers[fd]

    def turn(self, seconds: float = 5.0) -> None:
        ready = select.select(list(self.handlers), [], [], seconds)[0]
        assert ready
        for fd in ready:
            if fd in self.handlers:
                self.handlers[fd]()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def output(loop: Loop, directory: Path, max_size: int = 4096, terminal: int = -1) -> tuple[Output, int, int]:
    """An Output with the write ends of its pipes."""
    stdout, stdout_write = pipe() if terminal < 0 else (-1, -1)
    stderr, stderr_write = pipe() if terminal < 0 else (-1, -1)
    *opened, sequence = open_log(str(directory))
    log = (str(directory), sequence, max_size, 100, True)
    return (
        Output(loop.watch, loop.unwatch, log, [terminal, stdout, stderr, *opened]),
        stdout_write,
        stderr_write,
    )


def test_both_streams_are_pumped_to_their_ends(loop: Loop, tmp_path: Path) -> None:
    pump, stdout, stderr = output(loop, tmp_path)
    os.write(stdout, b"out\n")
    os.write(stderr, b"err\n")
    os.close(stdout)
    os.close(stderr)
    while loop.handlers:
        loop.turn()
    assert pump.counts() == (4, 4, 0, 0)
    pump.finish()
    assert sorted((r.stream, r.data) for r in logs.read(tmp_path)) == [("stderr", b"err"), ("stdout", b"out")]


def test_what_is_left_at_the_end_is_taken_without_waiting_for_other_holders(
    loop: Loop, tmp_path: Path
) -> None:
    pump, stdout, stderr = output(loop, tmp_path, max_size=1 << 20)
    os.write(stdout, b"x" * 200_000 + b"\n")
    pump.finish()
    assert [len(r.data) for r in logs.read(tmp_path)] == [200_000]
    os.close(stdout)
    os.close(stderr)


def test_a_terminals_output_is_pumped_until_nobody_has_it_open(loop: Loop, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    pump, _, _ = output(loop, tmp_path, terminal=master)
    os.write(slave, b"typed\n")
    loop.turn()
    os.write(slave, b"last\n")
    os.close(slave)
    pump.finish()
    assert [r.data for r in logs.read(tmp_path)] == [b"typed\r", b"last\r"]


def test_a_compressor_works_beside_the_pump_and_is_reaped(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, stdout, stderr = output(loop, tmp_path)
    began = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: began + 60)
    os.write(stdout, b"a" * 3000 + b"\n")
    loop.turn()
    monkeypatch.setattr("time.monotonic", lambda: began + 120)
    os.write(stdout, b"b" * 3000 + b"\n")
    loop.turn()  # fills what room there was
    loop.turn()  # rotates
    while len(loop.handlers) > 2:
        loop.turn()
    assert (tmp_path / "00000001.log.gz").exists()
    assert not (tmp_path / "00000001.log").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    pump.finish()
    assert [r.data for r in logs.read(tmp_path)] == [b"a" * 3000, b"b" * 3000]
    os.close(stdout)
    os.close(stderr)


def test_a_compressor_under_way_at_the_end_leaves_the_plain_file(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, stdout, stderr = output(loop, tmp_path, max_size=3 << 20)
    began = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: began + 60)
    for _ in range(10):
        os.write(stdout, os.urandom(499_999) + b"\n")
        loop.turn()
    assert len(loop.handlers) == 3
    pump.finish()
    assert sum(len(r.data) + (not r.partial) for r in logs.read(tmp_path)) == 5_000_000
    os.close(stdout)
    os.close(stderr)
