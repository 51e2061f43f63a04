"""The pump: whatever comes out of pipes or a terminal is in the log, and a compressor works beside it."""

import os
import pty
import select
import time
from pathlib import Path

import pytest

from reconciler.engine import logs
from reconciler.shim.logfile import pipe
from reconciler.shim.logopen import open_log
from reconciler.shim.output import Output


class Loop:
    """The event loop of a shim, one round at a time."""

    def __init__(self, directory: Path, max_size: int = 4096, terminal: int = -1) -> None:
        stdout, self.stdout = pipe() if terminal < 0 else (-1, -1)
        stderr, self.stderr = pipe() if terminal < 0 else (-1, -1)
        *opened, sequence = open_log(str(directory))
        self.epoll = select.epoll()
        for fd in (terminal, stdout, stderr):
            if fd >= 0:
                self.epoll.register(fd, select.EPOLLIN)
        log = (str(directory), sequence, max_size, 100, True)
        self.output = Output(self.epoll, log, [terminal, stdout, stderr, *opened])

    def turn(self, seconds: float = 5.0) -> int:
        ready = self.epoll.poll(seconds)
        for fd, _ in ready:
            self.output.ready(fd)
        return len(ready)

    def close(self) -> None:
        for fd in (self.stdout, self.stderr):
            os.close(fd)


def test_both_streams_are_pumped_to_their_ends(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    os.write(loop.stdout, b"out\n")
    os.write(loop.stderr, b"err\n")
    loop.close()
    while loop.output.counts() != (4, 4, 0, 0):
        loop.turn()
    while loop.turn(0):
        pass
    assert loop.turn(0) == 0  # a pipe at its end is not asked again
    assert loop.output.counts() == (4, 4, 0, 0)
    loop.output.finish()
    assert sorted((r.stream, r.data) for r in logs.read(tmp_path)) == [("stderr", b"err"), ("stdout", b"out")]


def test_what_is_left_at_the_end_is_taken_without_waiting_for_other_holders(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_size=1 << 20)
    os.write(loop.stdout, b"x" * 200_000 + b"\n")
    loop.output.finish()
    assert [len(r.data) for r in logs.read(tmp_path)] == [200_000]
    loop.close()


def test_a_terminals_output_is_pumped_until_nobody_has_it_open(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    loop = Loop(tmp_path, terminal=master)
    os.write(slave, b"typed\n")
    loop.turn()
    os.write(slave, b"last\n")
    os.close(slave)
    loop.output.finish()
    assert [r.data for r in logs.read(tmp_path)] == [b"typed\r", b"last\r"]


def test_a_compressor_works_beside_the_pump_and_is_reaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    began = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: began + 60)
    os.write(loop.stdout, b"a" * 3000 + b"\n")
    loop.turn()
    monkeypatch.setattr("time.monotonic", lambda: began + 120)
    os.write(loop.stdout, b"b" * 3000 + b"\n")
    loop.turn()  # fills what room there was
    loop.turn()  # rotates
    while loop.output._compressor[0]:
        loop.turn()
    assert (tmp_path / "00000001.log.gz").exists()
    assert not (tmp_path / "00000001.log").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    loop.output.finish()
    assert [r.data for r in logs.read(tmp_path)] == [b"a" * 3000, b"b" * 3000]
    loop.close()


def test_a_compressor_under_way_at_the_end_leaves_the_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, max_size=3 << 20)
    began = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: began + 60)
    for _ in range(25):
        os.write(loop.stdout, os.urandom(199_999) + b"\n")
        while loop.turn(0):
            pass
    loop.output.finish()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert sum(len(r.data) + (not r.partial) for r in logs.read(tmp_path)) == 5_000_000
    loop.close()
