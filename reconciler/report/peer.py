"""What other devices may ask of this one: blobs and manifests by digest, in the registry protocol, read-only.

A part of the distribution specification 1.1: `GET /v2/`, and GET or HEAD of `/v2/NAME/manifests/DIGEST` and
`/v2/NAME/blobs/DIGEST`, whatever the name. Nothing is listed, nothing is found by a tag, and who asks learns nothing
but whether this device gives away what has that digest.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import IO, Any, Final

from reconciler.report.wsgi import Start
from reconciler.spec.reference import Digest, InvalidReferenceError

_PATH: Final = re.compile(r"/v2/[a-zA-Z0-9._/-]{1,255}/(manifests|blobs)/([a-zA-Z0-9._+:-]{1,140})", re.ASCII)
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.ASCII)
_BLOCK: Final = 1 << 16
_API: Final = ("Docker-Distribution-API-Version", "registry/2.0")


class PeerApplication:
    """The application. Counts what it sends in `sent`, bytes, whether or not they arrive.

    `find` opens what may be given away and tells whether anybody may have it, which the header `public` passes on;
    `media_type` tells what a manifest is, "" for what is none.
    """

    def __init__(
        self,
        find: Callable[[Digest], tuple[IO[bytes], bool] | None],
        media_type: Callable[[bytes], str],
        limit: int,
        public: str,
    ) -> None:
        self.sent = 0
        self._find = find
        self._media_type = media_type
        self._limit = limit
        self._public = public
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in ("GET", "HEAD"):
            return _refuse(environ, start, "405 Method Not Allowed", "UNSUPPORTED", ("Allow", "GET, HEAD"))
        if path in ("/v2/", "/v2"):
            return _answer(environ, start, "200 OK", "application/json", b"{}")
        match = _PATH.fullmatch(path)
        if match is None:
            return _refuse(environ, start, "404 Not Found", "NAME_UNKNOWN")
        unknown = "MANIFEST_UNKNOWN" if match[1] == "manifests" else "BLOB_UNKNOWN"
        try:
            digest = Digest.parse(match[2])
        except InvalidReferenceError:
            return _refuse(environ, start, "404 Not Found", unknown)
        found = self._find(digest)
        if found is None:
            return _refuse(environ, start, "404 Not Found", unknown)
        file, public = found
        told = (("Docker-Content-Digest", str(digest)), (self._public, str(int(public))))
        if match[1] == "blobs":
            return self._blob(environ, start, file, *told)
        with file:
            data = file.read(self._limit + 1)
        kind = self._media_type(data) if len(data) <= self._limit else ""
        if not kind:
            return _refuse(environ, start, "404 Not Found", unknown)
        if method == "GET":
            self._count(len(data))
        return _answer(environ, start, "200 OK", kind, data, *told)

    def _count(self, size: int) -> None:
        with self._lock:
            self.sent += size

    def _blob(
        self, environ: dict[str, Any], start: Start, file: IO[bytes], *told: tuple[str, str]
    ) -> Iterable[bytes]:
        size = file.seek(0, 2)
        begin, end = _range(environ.get("HTTP_RANGE", ""), size)
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("Accept-Ranges", "bytes"),
            *told,
        ]
        if begin >= end and size:
            file.close()
            whole = ("Content-Range", f"bytes */{size}")
            return _refuse(environ, start, "416 Range Not Satisfiable", "RANGE_INVALID", whole)
        part = (begin, end) != (0, size)
        if part:
            headers.append(("Content-Range", f"bytes {begin}-{end - 1}/{size}"))
        headers.append(("Content-Length", str(end - begin)))
        start("206 Partial Content" if part else "200 OK", [*headers, _API])
        if environ["REQUEST_METHOD"] == "HEAD" or not size:
            file.close()
            return [b""]
        file.seek(begin)
        self._count(end - begin)
        # The server reads it as fast as the other side takes it, and closes it; no thread waits.
        found: Iterable[bytes] = environ["wsgi.file_wrapper"](file, _BLOCK)
        return found


def _range(header: str, size: int) -> tuple[int, int]:
    """The part, from and to before which byte, that a Range header asks for (RFC 9110, 14.2); all where it asks none.

    Empty where it can't be had. Of several ranges none is given, as the rule allows, but all.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return 0, size
    first, last = match[1], match[2]
    if not first:
        return max(0, size - int(last)), size
    end = min(size, int(last) + 1) if last else size
    return (0, size) if last and int(last) < int(first) else (int(first), end)


def _refuse(
    environ: dict[str, Any], start: Start, status: str, code: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    message = status.partition(" ")[2].lower()
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return _answer(environ, start, status, "application/json", body, *headers)


def _answer(
    environ: dict[str, Any], start: Start, status: str, kind: str, body: bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), _API, *headers])
    return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [body]
