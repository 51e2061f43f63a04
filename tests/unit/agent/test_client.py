"""What a verb makes of what the agent answers, or of whoever is at the other end of its socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.agent import client
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError, UnreachableError


@contextmanager
def answering(run: Path, answer: bytes, *, read: bool = True) -> Iterator[Layout]:
    """A socket that gives everybody `answer`, with or without having read what is asked."""
    layout = Layout(run / "state", run)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(layout.agent_socket))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if read:
                connection.recv(1 << 16)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield layout
    thread.join(5)
    listener.close()


def test_an_object_is_returned(tmp_path: Path) -> None:
    with answering(tmp_path, b'HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}') as layout:
        assert client.request(layout, "GET", "/v1/status") == {"a": 1}


@pytest.mark.parametrize("body", [{}, {"text": "x" * (3 << 20)}])
def test_who_is_turned_away_unread_hears_why(tmp_path: Path, body: dict[str, str]) -> None:
    """The other end closes with bytes unread, which the kernel makes a reset of: what came before it counts."""
    said = b'{"error": "body: too large", "exit_code": 64}'
    answer = b"HTTP/1.0 413 X\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said)
    with answering(tmp_path, answer, read=False) as layout, pytest.raises(ReconcilerError) as caught:
        client.request(layout, "POST", "/v1/x", body, timeout=5)
    assert str(caught.value) == "body: too large"
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\xff",
        b"HTTP/1.0 200",
        b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b"HTTP/1.0 200 OK\r\n\r\n{",
        b"HTTP/1.0 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_an_error_of_one_line(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, answer) as layout, pytest.raises(UnreachableError) as caught:
        client.request(layout, "GET", "/v1/status", timeout=5)
    assert str(caught.value).startswith("agent: ")
    assert "\n" not in str(caught.value)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="agent: not running"):
        client.request(Layout(tmp_path / "state", tmp_path), "GET", "/v1/status")
