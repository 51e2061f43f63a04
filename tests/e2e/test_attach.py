"""Terminals of containers, as people have them: a real one on this side, one of the container's own on the other."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.device import PATIENCE, PROGRAM, REPOSITORY
from tests.e2e.test_byhand import Hand, hand, spec

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

__all__ = ["hand"]


class Screen:
    """Somebody at a terminal of `rows` and `columns`, with one verb on it."""

    def __init__(self, hand: Hand, *words: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [
                "nsenter",
                f"--net=/run/netns/{hand.device.namespace}",
                "--",
                *PROGRAM,
                words[0],
                *hand.device.places,
                *words[1:],
            ],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=REPOSITORY,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> None:
        """Read until `text` has come, after what was waited for before."""
        deadline = time.monotonic() + 20 * PATIENCE
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen[-2000:]!r}"
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text.encode())[2]

    def shows(self, text: str) -> bool:
        """Whether `text` has come, or comes within half a second."""
        while text.encode() not in self.seen and select.select([self.master], [], [], 0.5)[0]:
            self.seen += os.read(self.master, 65536)
        return text.encode() in self.seen

    def ended(self) -> int:
        """The exit code; the terminal is as it was found."""
        code = self.process.wait(20 * PATIENCE)
        assert termios.tcgetattr(self._slave) == self.modes
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@contextmanager
def screen(hand: Hand, *words: str, rows: int = 24, columns: int = 80) -> Iterator[Screen]:
    made = Screen(hand, *words, rows=rows, columns=columns)
    try:
        yield made
    finally:
        made.close()


def test_a_shell_on_a_terminal_is_left_found_again_and_ended(hand: Hand) -> None:
    with screen(hand, "run", "-it", "--rm", "--name", "box", hand.image, "sh", rows=31, columns=91) as first:
        first.until("# ")
        first.type("stty size; tty; echo $((40 + 2))\n")
        first.until("31 91")
        first.until("/dev/")
        first.until("42")
        first.resize(20, 70)
        first.type("stty size\n")
        first.until("20 70")
        first.type("printf '\\033[31mred\\033[0m\\n'\n")  # a program on a terminal may use it
        first.until("\x1b[31mred")
        first.until("# ")
        first.type("sh -c 'echo n$((1 + 1))w; exec cat'\n")
        first.until("n2w")
        first.type("\x03")  # the terminal inside makes SIGINT of it, for the program that runs there
        first.until("# ")
        first.type("\x10\x11")
        first.until("left: ")
        assert first.ended() == 0
    assert hand.state("box") == "running"
    hand.device.stop(signal.SIGKILL)  # the agent is not needed for any of it
    with (
        screen(hand, "attach", "box", rows=25, columns=75) as second,
        screen(hand, "attach", "--no-stdin", "box") as third,
    ):
        second.type("stty size\n")
        second.until("25 75")
        hand.device.start()
        hand.device.logged("converged")
        third.type("echo not passed on\n")
        deadline = time.monotonic() + 20 * PATIENCE
        while not third.shows("to 2 of us"):  # what comes once it is attached, which nothing else tells
            assert time.monotonic() < deadline
            second.type("echo to $((1 + 1)) of us\n")
            second.until("to 2 of us")
        assert b"\nnot passed on" not in second.seen
        second.type("exit 9\n")
        assert second.ended() == 9
        assert third.process.wait(20 * PATIENCE) == 9
    hand.device.until(lambda: hand.state("box") == "none")


def test_standard_input_ends_where_it_ends_here(hand: Hand) -> None:
    def piped(*words: str, given: bytes, code: int = 0) -> bytes:
        done = subprocess.run(
            [
                "nsenter",
                f"--net=/run/netns/{hand.device.namespace}",
                "--",
                *PROGRAM,
                words[0],
                *hand.device.places,
                *words[1:],
            ],
            input=given,
            capture_output=True,
            cwd=REPOSITORY,
            timeout=30 * PATIENCE,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    large = os.urandom(1 << 20)
    assert piped("run", "--rm", "-i", hand.image, "cat", given=large) == large
    assert piped("run", "--rm", hand.image, "cat", given=b"not passed on") == b""
    assert b"not a terminal" in piped("run", "-it", hand.image, "sh", given=b"", code=125)
    assert b"--log-driver" in piped(
        "run", "-t", "--log-driver", "none", hand.image, "sh", given=b"", code=125
    )
    # A container that waits for who starts it, and one that keeps its input open
    hand("create", "-i", "--name", "later", hand.image, "sh", "-c", "cat; exit 3")
    assert piped("start", "-ai", "later", given=b"in\n", code=3) == b""
    assert hand("logs", "later") == "in"
    assert piped("start", "-ai", "later", given=b"again\n", code=3) == b""
    assert hand("logs", "later") == "in\nagain"
    assert '"StdinOnce": true' in hand("inspect", "later")
    hand.detached(
        "open",
        "sh",
        "-c",
        "while read line; do echo got $line; [ $line = end ] && exit 4; done",
        options=("-i",),
    )
    assert hand.device.reconciler("attach", "--detach-keys", "a,,", "open", check=False).returncode == 64
    feed = "attach", *hand.device.places, "open"
    process = hand.device.spawn(
        [*PROGRAM, *feed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got one\n"
    process.stdin.close()
    assert hand.state("open") == "running"
    assert hand("logs", "open") == "got one"
    assert piped("attach", "open", given=b"end\n", code=4) == b""
    assert process.wait(20 * PATIENCE) == 4
    process.stdout.close()
    assert b"does not run" in piped("attach", "open", given=b"", code=5)
    assert b"not found" in piped("attach", "nobody", given=b"", code=8)


def test_who_is_slow_or_stopped_holds_up_nobody(hand: Hand) -> None:
    """A declared one that writes without end: one who looks on stands still, another sees what comes."""
    device = hand.device
    text = spec(hand.image).replace(
        "exec sleep 100000", "i=0; while :; do echo tick $i; i=$((i+1)); usleep 1000; done"
    )
    device.spec("web", text)
    device.until(lambda: hand.state("web/main") == "running")
    where = ["attach", *device.places]
    slow = device.spawn(
        [*PROGRAM, *where, "web/main"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    slow.send_signal(signal.SIGSTOP)
    other = device.spawn(
        [*PROGRAM, *where, "--sig-proxy", "false", "web/main"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert other.stdout is not None
    assert other.stderr is not None
    first = int(other.stdout.readline().split()[1])
    assert first > 0  # from now on
    assert int(other.stdout.readline().split()[1]) == first + 1
    before = device.pid("web/main")
    other.send_signal(signal.SIGINT)
    other.stdout.read()
    assert b"left: " in other.stderr.read()
    assert other.wait(20 * PATIENCE) == 130
    assert device.pid("web/main") == before
    hand("pause", "web/main")
    assert "unpause" in hand("attach", "web/main", code=125)
    hand("unpause", "web/main")
    slow.send_signal(signal.SIGCONT)
    assert slow.stdout is not None
    assert slow.stdout.readline().startswith(b"tick ")
    slow.kill()
    slow.stdout.close()
    for stream in (other.stdout, other.stderr):
        stream.close()
