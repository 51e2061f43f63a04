"""What the two servers answer: WSGI applications over plain callables. They wait for nothing but those.

The metrics have no secrets and no verbs: GET only, whoever asks. The agent's interface is JSON both ways over the unix
socket; an error carries the exit code that the command line will end with.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from reconciler.errors import (
    BlockedError,
    InvalidSpecError,
    NotFoundError,
    ReconcilerError,
    TimedOutError,
    UsageError,
)
from reconciler.report.exposition import encode, negotiate
from reconciler.report.metrics import families
from reconciler.report.telemetry import Telemetry

Environ = Mapping[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]
Handler = Callable[[Mapping[str, Any]], dict[str, Any]]

MAX_BODY: Final = 1024 * 1024
_STATUS: Final[tuple[tuple[type[ReconcilerError], str], ...]] = (
    (UsageError, "400 Bad Request"),
    (InvalidSpecError, "422 Unprocessable Content"),
    (NotFoundError, "404 Not Found"),
    (BlockedError, "409 Conflict"),
    (TimedOutError, "504 Gateway Timeout"),
)


def metrics_application(
    telemetry: Callable[[], Telemetry], *, page: Callable[[], str], problem: Callable[[], str]
) -> Application:
    """Serve /metrics from `telemetry()`, / from `page()`, and /healthz: 200, or 503 with what `problem()` says."""

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path not in ("/", "/metrics", "/healthz"):
            return _text(environ, start, "404 Not Found", "not found; try /metrics\n")
        if method not in ("GET", "HEAD"):
            return _text(environ, start, "405 Method Not Allowed", "GET only\n", ("Allow", "GET, HEAD"))
        if path == "/":
            return _text(environ, start, "200 OK", page())
        if path == "/healthz":
            reason = problem()
            return _text(
                environ, start, "503 Service Unavailable" if reason else "200 OK", f"{reason or 'ok'}\n"
            )
        content_type, openmetrics = negotiate(environ.get("HTTP_ACCEPT", ""))
        body = encode(families(telemetry()), openmetrics=openmetrics)
        return _answer(environ, start, "200 OK", content_type, body, ("Vary", "Accept"))

    return application


def api_application(routes: Mapping[tuple[str, str], Handler]) -> Application:
    """Serve `routes` by (method, path): each takes a JSON object and returns one, or raises a ReconcilerError."""
    known: dict[str, list[str]] = {}
    for method, path in sorted(routes):
        known.setdefault(path, []).append(method)

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path not in known:
            return _json(environ, start, "404 Not Found", {"error": "no such path", "exit_code": 8})
        handler = routes.get((method, path))
        if handler is None:
            allowed = ", ".join(known[path])
            failure = {"error": f"{method}: expected {allowed}", "exit_code": 64}
            return _json(environ, start, "405 Method Not Allowed", failure, ("Allow", allowed))
        try:
            return _json(environ, start, "200 OK", handler(_body(environ)))
        except ReconcilerError as error:
            status = next(
                (text for kind, text in _STATUS if isinstance(error, kind)), "500 Internal Server Error"
            )
            failure = {
                "error": str(error),
                "hint": error.hint,
                "exit_code": error.exit_code,
                "transient": error.transient,
            }
            return _json(environ, start, status, failure)
        except OSError as error:
            failure = {"error": str(error), "exit_code": 1, "transient": True}
            return _json(environ, start, "500 Internal Server Error", failure)

    return application


def _body(environ: Environ) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object."""
    data = environ["wsgi.input"].read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        raise UsageError("body: larger than 1 MiB")
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError("body: not JSON") from error
    if not isinstance(value, dict):
        raise UsageError("body: expected a JSON object")
    return value


def _json(
    environ: Environ, start: Start, status: str, value: Mapping[str, Any], *headers: tuple[str, str]
) -> Iterable[bytes]:
    body = json.dumps(value, ensure_ascii=True).encode() + b"\n"
    return _answer(environ, start, status, "application/json", body, *headers)


def _text(
    environ: Environ, start: Start, status: str, text: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    return _answer(
        environ, start, status, "text/plain; charset=utf-8", text.encode("utf-8", "replace"), *headers
    )


def _answer(
    environ: Environ, start: Start, status: str, content_type: str, body: bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    start(
        status,
        [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            *headers,
        ],
    )
    return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [body]
