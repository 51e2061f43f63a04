"""The log driver journald: what a journal gets from a real shim, and what happens when there is none."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError
from tests.kernel.shims import Case, Host, eventually, host

pytestmark = [pytest.mark.kernel]
__all__ = ["host"]

Entry = dict[str, bytes]


class Journal:
    """A journal's end of the socket; entries are read as systemd-journald reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(20)

    def restart(self) -> None:
        self.close()
        self.open()

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()

    def entry(self) -> Entry:
        data = self.socket.recv(1 << 20)
        found: Entry = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack("<Q", data[:8])
                value, data = data[8 : 8 + size], data[9 + size :]
            found[name.decode()] = value
        return found


@pytest.fixture
def journal() -> Iterator[Journal]:
    directory = Path("/dev/shm") / f"reconciler-journal-{os.getpid()}"
    directory.mkdir()
    made = Journal(directory / "socket")
    yield made
    made.close()
    directory.rmdir()


def writing(host: Host, journal: Path, script: str) -> Case:
    case = host.shell(script, name="web/db")
    case.bundle.annotate("log", {"driver": "journald", "socket": str(journal)})
    return case.start()


def test_every_line_is_an_entry_with_the_containers_name_and_the_priority_of_its_stream(
    host: Host, journal: Journal
) -> None:
    case = writing(host, journal.path, "echo one; read _ </dev/null; echo two >&2; sleep 1000")
    entries = sorted((journal.entry() for _ in range(2)), key=lambda entry: entry["MESSAGE"])
    assert [(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries] == [(b"one", b"6"), (b"two", b"3")]
    full = case.bundle.directory.name.encode()
    for entry in entries:
        assert entry["CONTAINER_NAME"] == entry["SYSLOG_IDENTIFIER"] == b"web/db"
        assert (entry["CONTAINER_ID"], entry["CONTAINER_ID_FULL"]) == (full[:12], full)


def test_what_is_no_text_or_too_long_or_has_no_end_arrives_all_the_same(host: Host, journal: Journal) -> None:
    script = "printf 'a\\0=b\\377\\n'; head -c 40000 /dev/zero | tr '\\0' x; printf '\\nlast'"
    case = writing(host, journal.path, script)
    entries = [journal.entry()["MESSAGE"] for _ in range(5)]
    assert entries[0] == b"a\0=b\xff"
    assert b"".join(entries[1:4]) == b"x" * 40000
    assert max(map(len, entries)) == 16384
    assert entries[4] == b"last"
    case.ended()


def test_a_journal_that_was_started_anew_is_found_again(host: Host, journal: Journal) -> None:
    case = writing(
        host, journal.path, "echo before; while test ! -e /go; do sleep 0.1; done; echo after; sleep 1000"
    )
    assert journal.entry()["MESSAGE"] == b"before"
    journal.restart()
    case.exec("touch", "/go")
    assert journal.entry()["MESSAGE"] == b"after"


def test_a_container_outlives_its_journal_and_what_is_lost_is_counted(host: Host, journal: Journal) -> None:
    case = writing(
        host, journal.path, "while test ! -e /go; do sleep 0.1; done; echo lost; touch /told; sleep 1000"
    )
    journal.socket.close()
    case.exec("touch", "/go")
    eventually(lambda: case.exec_code("test", "-e", "/told")[0] == 0, 20 * host.patience)

    def dropped() -> bool:
        with case.control() as control:
            log = control.state()["log"]
            return isinstance(log, dict) and log["dropped"] == len("lost")

    eventually(dropped, 20 * host.patience)
    journal.path.unlink()
    journal.open()


def test_without_a_journal_the_container_is_not_made(host: Host) -> None:
    case = host.shell("true")
    case.bundle.annotate("log", {"driver": "journald", "socket": "/dev/shm/no-such-journal"})
    with pytest.raises(ReconcilerError, match=r"log: /dev/shm/no-such-journal: .*[Nn]o such file"):
        case.create()
