"""A pipe that feeds a log writer, as a container's stdout does."""

import os
from pathlib import Path

from reconciler.shim.logfile import PIPE_SIZE, LogFile
from reconciler.shim.logindex import STDERR, STDOUT
from reconciler.shim.logopen import open_log


class Feed:
    """A LogFile with a pipe per stream: `write` puts bytes in and lets the log take them."""

    def __init__(
        self, directory: Path, *, max_size: int = 1 << 20, max_files: int = 100, compress: bool = False
    ) -> None:
        self.asked: list[list[int]] = []
        hook = self.asked.append if compress else None
        self.log = LogFile(open_log(str(directory)), max_size=max_size, max_files=max_files, compress=hook)
        self.pipes = {STDOUT: os.pipe2(os.O_NONBLOCK), STDERR: os.pipe2(os.O_NONBLOCK)}

    def write(self, data: bytes, stream: int = STDOUT) -> None:
        reader, writer = self.pipes[stream]
        for start in range(0, len(data), 32768):
            os.write(writer, data[start : start + 32768])
            self.take(reader, stream)

    def take(self, reader: int, stream: int) -> None:
        while True:
            try:
                assert 0 < self.log.take(reader, stream) <= PIPE_SIZE
            except BlockingIOError:
                return

    def close(self) -> None:
        self.log.close()
        for pair in self.pipes.values():
            for fd in pair:
                os.close(fd)
