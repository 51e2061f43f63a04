"""The log driver `journald`: each line of output is an entry of the device's journal, in its native protocol.

A datagram is a list of fields: KEY=value and a line break, or for a value that has line breaks or is no text KEY, a
line break, its length as 8 bytes, itself and a line break (systemd, "Native Journal Protocol"). The journal is another
program's: where it does not take an entry in time the entry is dropped and counted, and the container goes on.
"""

import os
import select
import socket

from reconciler.shim.logindex import STDERR, STDOUT

SOCKET = "/run/systemd/journal/socket"
_CHUNK = 65536
_LONGEST = 16384  # of a line; a longer one becomes several entries, as Docker's do
_PATIENCE = 100  # milliseconds
_PRIORITIES = {STDOUT: b"6", STDERR: b"3"}  # informational, and error


class Journal:
    """Takes what pipes hold, and sends it on. `fd` is a connected socket; `name` and `id` are the container's."""

    def __init__(self, fd: int, path: str, name: str, id: str) -> None:
        self.bytes = {STDOUT: 0, STDERR: 0}
        self.dropped = 0
        self.error = 0
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._path = path
        self._rest = {STDOUT: b"", STDERR: b""}
        who = os.fsencode(name)
        self._fields = b"CONTAINER_NAME=%s\nSYSLOG_IDENTIFIER=%s\nCONTAINER_ID=%s\nCONTAINER_ID_FULL=%s\n" % (
            *(who, who, os.fsencode(id[:12]), os.fsencode(id)),
        )

    def take(self, pipe: int, stream: int) -> int:
        """Send the lines that `pipe` holds: bytes taken, 0 at its end; BlockingIOError where it holds nothing."""
        data = os.read(pipe, _CHUNK)
        self.bytes[stream] += len(data)
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        while len(rest) >= _LONGEST:
            lines.append(rest[:_LONGEST])
            rest = rest[_LONGEST:]
        if not data and rest:
            lines.append(rest)
            rest = b""
        self._rest[stream] = rest
        for line in lines:
            self._send(line, stream)
        return len(data)

    def _send(self, line: bytes, stream: int) -> None:
        for start in range(0, max(1, len(line)), _LONGEST):
            part = line[start : start + _LONGEST]
            message = b"MESSAGE\n%s%s\n" % (len(part).to_bytes(8, "little"), part)
            self._deliver(b"%sPRIORITY=%s\n%s" % (self._fields, _PRIORITIES[stream], message), len(part))

    def _deliver(self, entry: bytes, size: int) -> None:
        """Send, once more where the journal is busy, or was started anew and has another socket."""
        for last in (False, True):
            try:
                self._socket.send(entry)
                return
            except BlockingIOError as error:
                self.error = error.errno or 0
                poll = select.poll()
                poll.register(self._socket, select.POLLOUT)
                poll.poll(_PATIENCE)
            except OSError as error:
                self.error = error.errno or 0
                try:
                    self._socket.connect(self._path)
                except OSError:
                    break
            if last:
                break
        self.dropped += size

    def configure(self, max_size: int, max_files: int, compress: bool) -> None:
        """What the journal keeps is its own matter."""

    def close(self) -> None:
        """Send what is left without a line break."""
        for stream, rest in self._rest.items():
            if rest:
                self._send(rest, stream)
        self._socket.close()
