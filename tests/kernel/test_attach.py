"""A container's own terminal and its standard input: what the shim hands out, and what ends when somebody leaves."""

import fcntl
import os
import select
import struct
import termios

import pytest

from reconciler.engine import logs
from reconciler.engine.process import StepError
from tests.kernel.shims import Case, Host, eventually

pytestmark = pytest.mark.kernel


def terminal(case: Case) -> Case:
    case.bundle.config["process"]["terminal"] = True
    return case


def written(case: Case) -> bytes:
    return b"".join(record.data + (b"" if record.partial else b"\n") for record in logs.read(case.log))


def typed(fd: int, text: bytes) -> None:
    """The shim's end does not block, and this is the same."""
    while text:
        select.select([], [fd], [], 10)
        text = text[os.write(fd, text) :]


# A signal with a trap ends a `read` that waits just as the end of what is typed does.
SHELL = """
stty -echo; trap 'seen=1; echo size; stty size' WINCH; tty
while read line || [ "$seen" ]; do seen=; echo got $line; done; exit 7
"""


def test_p17_a_terminal_is_typed_into_by_all_who_attach_and_outlives_them(host: Host) -> None:
    case = terminal(host.shell(SHELL))
    case.create()
    with case.control() as first:
        fd = first.attach()
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
        case.start()
        eventually(lambda: b"/dev/pts/0" in written(case) or b"/dev/console" in written(case))
        typed(fd, b"one\n")
        eventually(lambda: b"got one" in written(case))
        assert os.get_terminal_size(fd) == (22, 11)
        with case.control() as second:
            other = second.attach()
            fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 44, 0, 0))
            typed(other, b"two\n")
            eventually(lambda: b"got two" in written(case))
            eventually(lambda: b"33 44" in written(case))
            os.close(other)
        os.close(fd)
    # Nobody is attached: it goes on, and its log too
    with case.control() as again:
        assert again.state()["phase"] == "running"
        case.exec("/bin/sh", "-c", "test -c /dev/console")
    with case.control() as again:
        fd = again.attach()
        typed(fd, b"three\n")
        eventually(lambda: b"got three" in written(case))
        typed(fd, b"\x04")
        assert case.ended().code == 7
        os.close(fd)
    assert host.complaints() == ""


def test_standard_input_is_a_pipe_whose_end_is_its_end(host: Host) -> None:
    case = host.shell("cat; echo over; exit 5")
    case.bundle.annotate("stdin", "once")
    case.create()
    with case.control() as control:
        fd = control.attach()
        case.start()
        with case.control() as busy:  # a fork that serves somebody else keeps nothing open
            busy.state()
            os.write(fd, b"hello\n")
            eventually(lambda: written(case) == b"hello\n")
            os.close(fd)
            control.close()
            assert case.ended().code == 5
    assert written(case) == b"hello\nover\n"


def test_standard_input_that_is_open_survives_who_attached(host: Host) -> None:
    case = host.shell("while read line; do echo got $line; done; exit 6")
    case.bundle.annotate("stdin", "open")
    case.start()
    for text in (b"one", b"two"):
        with case.control() as control:
            fd = control.attach()
            os.write(fd, text + b"\n")
            os.close(fd)
    eventually(lambda: b"got one" in written(case) and b"got two" in written(case))
    with case.control() as control:
        assert control.state()["phase"] == "running"


def test_without_either_there_is_nothing_to_attach_to(host: Host) -> None:
    case = host.shell("readlink /proc/self/fd/0; exec sleep 1000").start()
    eventually(lambda: written(case) == b"/dev/null\n")
    with case.control() as control, pytest.raises(StepError, match="no terminal"):
        control.attach()


def test_a_writer_who_waits_holds_up_neither_the_container_nor_its_log(host: Host) -> None:
    """Nothing is read of what is typed; the program writes on, and its log takes it."""
    case = terminal(
        host.shell("stty raw -echo; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 0")
    )
    case.create()
    with case.control() as control:
        fd = control.attach()
        case.start()
        try:
            for _ in range(64):
                os.write(fd, b"x" * 4096)
        except BlockingIOError:
            pass
        assert case.ended().code == 0
        os.close(fd)
    assert b"line 19999" in written(case)
