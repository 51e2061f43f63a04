"""The two servers: what they answer, whom they let in, and what they leave behind."""

import http.client
import io
import json
import os
import socket
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, TimedOutError, UsageError
from reconciler.report.exposition import OPENMETRICS, TEXT
from reconciler.report.server import serve_unix
from reconciler.report.wsgi import Application, api_application, metrics_application
from tests.unit.report.test_metrics import full


def call(
    application: Application, method: str, path: str, body: bytes = b"", accept: str = ""
) -> tuple[int, dict[str, str], bytes]:
    answer: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        answer.extend((status, dict(headers)))

    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "HTTP_ACCEPT": accept,
        "wsgi.input": io.BytesIO(body),
    }
    chunks: Iterable[bytes] = application(environ, start)
    return int(answer[0].split()[0]), answer[1], b"".join(chunks)


METRICS = metrics_application(full, page=lambda: "reconciler\n", problem=lambda: "")


def test_metrics_come_in_the_format_that_is_asked_for() -> None:
    status, headers, body = call(METRICS, "GET", "/metrics")
    assert (status, headers["Content-Type"]) == (200, TEXT)
    assert b"reconciler_build_info" in body
    assert int(headers["Content-Length"]) == len(body)
    status, headers, body = call(
        METRICS, "GET", "/metrics", accept="application/openmetrics-text;version=1.0.0"
    )
    assert (status, headers["Content-Type"]) == (200, OPENMETRICS)
    assert body.endswith(b"# EOF\n")


def test_head_has_the_headers_and_no_body() -> None:
    status, headers, body = call(METRICS, "HEAD", "/metrics")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_a2_metrics_know_get_only() -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, headers, _ = call(METRICS, method, "/metrics")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert call(METRICS, "GET", "/etc/passwd")[0] == 404
    assert call(METRICS, "GET", "/metrics/../etc")[0] == 404


def test_health_is_a_status_and_a_sentence() -> None:
    assert call(METRICS, "GET", "/healthz")[::2] == (200, b"ok\n")
    ill = metrics_application(full, page=lambda: "", problem=lambda: "no turn for 90 s")
    assert call(ill, "GET", "/healthz")[::2] == (503, b"no turn for 90 s\n")
    assert call(METRICS, "GET", "/")[2] == b"reconciler\n"


def failing(error: ReconcilerError) -> Application:
    def handler(_: Mapping[str, Any]) -> dict[str, Any]:
        raise error

    return api_application({("POST", "/v1/x"): handler})


def test_the_api_takes_and_gives_json() -> None:
    api = api_application({("POST", "/v1/echo"): dict, ("GET", "/v1/echo"): lambda _: {"name": "\x1b"}})
    assert json.loads(call(api, "POST", "/v1/echo", b'{"a": [1]}')[2]) == {"a": [1]}
    assert json.loads(call(api, "POST", "/v1/echo")[2]) == {}
    status, _, body = call(api, "GET", "/v1/echo")
    assert (status, json.loads(body)) == (200, {"name": "\x1b"})
    assert b"\x1b" not in body
    assert call(api, "GET", "/v1/other")[0] == 404
    status, headers, _ = call(api, "DELETE", "/v1/echo")
    assert (status, headers["Allow"]) == (405, "GET, POST")


@pytest.mark.parametrize("body", [b"[]", b"{", b"nope", b"[" * 100_000, b"\xff", b"1"])
def test_a1_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    api = api_application({("POST", "/v1/echo"): dict})
    status, _, answer = call(api, "POST", "/v1/echo", body)
    assert status == 400
    assert json.loads(answer)["exit_code"] == 64


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("u"), 400),
        (NotFoundError("n"), 404),
        (BlockedError("b", hint="wait"), 409),
        (TimedOutError("t"), 504),
        (ReconcilerError("r"), 500),
    ],
)
def test_an_error_keeps_its_exit_code_and_hint(error: ReconcilerError, status: int) -> None:
    found, _, body = call(failing(error), "POST", "/v1/x")
    assert found == status
    assert json.loads(body) == {
        "error": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
        "transient": error.transient,
    }


# --- the unix socket -----------------------------------------------------------------------------------------------


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(
    path: Path, method: str = "GET", target: str = "/v1/status", body: str = ""
) -> tuple[int, dict[str, Any]]:
    connection = Connection(path)
    try:
        connection.request(method, target, body or None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


API = api_application({("GET", "/v1/status"): lambda _: {"ok": True}, ("POST", "/v1/echo"): dict})


def test_a_unix_socket_serves_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with serve_unix(path, API, group="no-such-group") as server:
        assert server.address == str(path)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert ask(path) == (200, {"ok": True})
        assert ask(path, "POST", "/v1/echo", '{"a": 1}') == (200, {"a": 1})
        assert os.listdir(tmp_path) == ["agent.sock"]
    assert os.listdir(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "socket"]


def test_a1_the_group_may_talk_to_it(tmp_path: Path) -> None:
    import grp

    name = grp.getgrgid(os.getegid()).gr_name
    with serve_unix(tmp_path / "s", API, group=name):
        status = (tmp_path / "s").lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())
        assert ask(tmp_path / "s")[0] == 200


def test_a1_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serve_unix(path, API):
        assert ask(path)[0] == 200
        with pytest.raises(BlockedError, match="another agent"):
            serve_unix(path, API)
        assert ask(path)[0] == 200


def test_a1_a_link_or_file_in_its_place_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "agent.sock"
    path.symlink_to(target)
    with pytest.raises(ReconcilerError, match="in the way"):
        serve_unix(path, API)
    assert path.is_symlink()
    assert target.read_text() == "precious"
    with pytest.raises(ReconcilerError, match="in the way"):
        serve_unix(target, API)


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReconcilerError, match="too long"):
        serve_unix(tmp_path / ("x" * 120), API)


def test_closing_does_not_take_away_the_socket_of_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first = serve_unix(path, API)
    path.unlink()
    with serve_unix(path, API):
        first.close()
        assert ask(path)[0] == 200
