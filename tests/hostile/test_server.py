"""Hostile clients of the two servers: idle by the thousand, slow, half, huge, or the wrong user."""

import http.client
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reconciler.errors import BlockedError
from reconciler.report.server import serve_tcp, serve_unix
from reconciler.report.wsgi import api_application, metrics_application
from tests.unit.report.test_metrics import full
from tests.unit.report.test_server import API, ask

METRICS = metrics_application(full, page=lambda: "x" * 50_000_000, problem=lambda: "")


def get(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.hostile
def test_a2_a_slow_reader_and_half_requests_block_nobody() -> None:
    with serve_tcp("127.0.0.1", 0, METRICS) as server:
        clients = [dial(server.address) for _ in range(20)]
        for client in clients[:10]:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients[10:]:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHo")
        began = time.monotonic()
        assert get(server.address, "/metrics") == 200
        assert time.monotonic() - began < 5
        for client in clients:
            client.close()


@pytest.mark.hostile
def test_a1_a_thousand_idle_clients_leave_room_for_one_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with serve_unix(tmp_path / "s", API) as server:
            clients = []
            for _ in range(1000):
                client = socket.socket(socket.AF_UNIX)
                client.connect(server.address)
                clients.append(client)
            assert ask(Path(server.address))[0] == 200
            for client in clients:
                client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.hostile
def test_a1_a_huge_body_and_header_are_refused_without_being_kept(tmp_path: Path) -> None:
    with serve_unix(tmp_path / "s", API):
        for head, expected in (
            (b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n", b" 413 "),
            (b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b" 431 "),
            (b"\x00\x01 nonsense\r\n\r\n", b" 400 "),
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "s"))
                try:
                    client.sendall(head)
                except BrokenPipeError:
                    pass  # refused while it was still talking
                assert expected in client.recv(200)
        assert ask(tmp_path / "s")[0] == 200


@pytest.mark.hostile
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a1_another_user_is_turned_away_even_if_the_file_lets_him(tmp_path: Path) -> None:
    path = Path("/tmp") / f"rc-{os.getpid()}.sock"
    with serve_unix(path, API, group="no-such-group"):
        path.chmod(0o777)
        program = (
            "import socket,sys\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
            "print(s.recv(100))\n"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, str(path)],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ok" not in done.stdout
        assert "403" in done.stdout or "Error" in done.stderr
        assert ask(path)[0] == 200


@pytest.mark.hostile
def test_a1_a_slow_handler_holds_up_nobody_else(tmp_path: Path) -> None:
    release = threading.Event()
    api = api_application(
        {("POST", "/v1/wait"): lambda _: {"done": release.wait(20)}, ("GET", "/v1/status"): lambda _: {}}
    )
    with serve_unix(tmp_path / "s", api):
        answers: list[int] = []
        waiters = [
            threading.Thread(target=lambda: answers.append(ask(tmp_path / "s", "POST", "/v1/wait")[0]))
            for _ in range(4)
        ]
        for waiter in waiters:
            waiter.start()
        assert ask(tmp_path / "s")[0] == 200
        release.set()
        for waiter in waiters:
            waiter.join(20)
        assert answers == [200] * 4


@pytest.mark.hostile
def test_a_taken_address_is_told_with_the_setting() -> None:
    with serve_tcp("127.0.0.1", 0, METRICS) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(BlockedError, match=f"127.0.0.1:{port}") as failure:
            serve_tcp("127.0.0.1", port, METRICS)
        assert "metrics.listen" in failure.value.hint


@pytest.mark.hostile
@pytest.mark.parametrize("body", ["ä".encode(), b"\t{}", b"\xff\x00"])
def test_a1_a_body_may_come_later_and_begin_with_anything(tmp_path: Path, body: bytes) -> None:
    """Only what a connection begins with tells whether it is HTTP."""
    with serve_unix(tmp_path / "s", API), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(tmp_path / "s"))
        head = f"POST /v1/none HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode())
        time.sleep(0.1)
        client.sendall(body)
        assert client.recv(4096).startswith(b"HTTP/1.0 404")
    with serve_unix(tmp_path / "s", API), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        assert b"400 Bad Request" in client.recv(4096)
