"""The address for peers, asked by strangers: blobs that are public, by digest, and nothing else of this device."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.engine.layout import Layout
from reconciler.engine.registry.client import PUBLIC
from reconciler.engine.shared import DOCUMENT, Given, Shared, can_mark, mark, media_type
from reconciler.engine.store import Store
from reconciler.report.peer import PeerApplication
from reconciler.report.server import serve_strangers
from reconciler.spec.reference import Digest
from tests.kernel.shims import eventually
from tests.kernel.workshop import remove, scratch

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@dataclass
class Served:
    """A store with an address where others ask; one blob is public, one is not."""

    address: tuple[str, int]
    public: Digest
    private: Digest
    application: PeerApplication

    def ask(self, data: bytes) -> bytes:
        """Send bytes and return all that comes back until the other side closes, or has been quiet."""
        with socket.create_connection(self.address, 5) as connection:
            connection.sendall(data)
            connection.settimeout(1)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while chunk := connection.recv(1 << 16):
                    found += chunk
            return found

    def get(self, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
        head, _, body = self.ask("\r\n".join(lines).encode()).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in rest), body


@pytest.fixture
def served() -> Iterator[Served]:
    path = scratch("peer")
    layout = Layout(path / "state", path / "run")
    store = Store(layout)
    store.prepare()
    content = {name: os.urandom(200_000) for name in ("public", "private")}
    digests = {name: Digest("sha256", _sha256(data)) for name, data in content.items()}
    for name, data in content.items():
        found = store.ingest([data], digests[name], len(data))
        if name == "public":
            mark(found)
    opened: list[Given] = []
    shelf = Shared(layout)

    def find(digest: Digest) -> Given | None:
        given = shelf.open(digest)
        if given is not None:
            opened.append(given)
        return given

    application = PeerApplication(find, media_type, DOCUMENT, PUBLIC)
    with serve_strangers("127.0.0.1", 0, application) as server:
        host, _, port = server.address.rpartition(":")
        made = Served((host, int(port)), digests["public"], digests["private"], application)
        yield made
        # What a client has left unread goes when the server hears that it has gone
        eventually(lambda: all(given.file.closed for given in opened))
    remove(path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_only_what_is_public_is_given(served: Served) -> None:
    status, headers, body = served.get(f"/v2/any/name/blobs/{served.public}")
    assert status == 200
    assert _sha256(body) == served.public.hex
    assert headers["docker-content-digest"] == str(served.public)
    assert headers[PUBLIC.lower()] == "1"
    for digest in (served.private, Digest("sha256", "0" * 64)):
        status, _, body = served.get(f"/v2/any/name/blobs/{digest}")
        assert (status, b"BLOB_UNKNOWN" in body) == (404, True)
    assert served.application.sent == 200_000
    status, headers, body = served.get(f"/v2/x/blobs/{served.public}", method="HEAD")
    assert (status, headers["content-length"], body) == (200, "200000", b"")
    assert served.get("/v2/")[0] == 200


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-", (0, 200_000, 200)),
        ("bytes=100-199", (100, 200, 206)),
        ("bytes=199999-", (199_999, 200_000, 206)),
        ("bytes=-10", (199_990, 200_000, 206)),
        ("bytes=-999999", (0, 200_000, 200)),
        ("bytes=5-999999999999", (5, 200_000, 206)),
        ("bytes=200000-", (0, 0, 416)),
        ("bytes=9999999999999999999-", (0, 0, 416)),
        ("bytes=9-5", (0, 200_000, 200)),
        ("bytes=0-1,5-6", (0, 200_000, 200)),
        ("bytes=-", (0, 200_000, 200)),
        ("lines=1-2", (0, 200_000, 200)),
        ("bytes=1-2\u0660", (0, 200_000, 200)),
    ],
)
def test_ranges(served: Served, wanted: str, expected: tuple[int, int, int]) -> None:
    _, _, whole = served.get(f"/v2/x/blobs/{served.public}")
    begin, end, code = expected
    status, headers, body = served.get(f"/v2/x/blobs/{served.public}", f"Range: {wanted}")
    assert status == code
    if code == 416:
        assert headers["content-range"] == "bytes */200000"
        return
    assert body == whole[begin:end]
    if code == 206:
        assert headers["content-range"] == f"bytes {begin}-{end - 1}/200000"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/v2/x/tags/list",
        "/v2/_catalog",
        "/v2/x/manifests/latest",
        "/v2/x/blobs/uploads/",
        "/v2/x/blobs/sha256:../../../key",
        "/v2/x/blobs/sha256:%2e%2e%2f%2e%2e%2fkey",
        "/v2/../../etc/passwd",
        "/v2//blobs/sha256:" + "a" * 64,
        "/v2/x/blobs/sha256:" + "A" * 64,
        "/v2/x/blobs/md5:" + "a" * 32,
        "/v2/x/blobs/" + "a" * 5000,
        "/v2/" + "x/" * 3000 + "blobs/sha256:" + "a" * 64,
        "http://169.254.169.254/v2/x/blobs/sha256:" + "a" * 64,
    ],
)
def test_nothing_else_is_there(served: Served, path: str) -> None:
    assert served.get(path)[0] == 404
    assert served.application.sent == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    status, headers, _ = served.get(f"/v2/x/blobs/{served.public}", method=method)
    assert (status, headers.get("allow")) == (405, "get, head")


def test_a_dozen_requests_at_once_have_one_answer(served: Served) -> None:
    """Who asks for much and reads nothing holds one file of ours, and no thread."""
    request = f"GET /v2/x/blobs/{served.public} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert served.ask(request * 12).count(b"HTTP/1.1 200 OK") == 1
    assert served.application.sent == 200_000


def test_a_body_is_not_waited_for(served: Served) -> None:
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    assert served.ask(request).startswith(b"HTTP/1.1 413 ")


def test_a_device_knows_whether_it_can_note_what_is_public() -> None:
    path = scratch("mark")
    assert can_mark(path)
    assert list(path.iterdir()) == []
    assert not can_mark(path / "absent")
    remove(path)


def test_a_blob_is_no_manifest(served: Served) -> None:
    assert served.get(f"/v2/x/manifests/{served.public}")[0] == 404


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000,
        b"GET /v2/ HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"GET /v2/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x",
    ],
)
def test_who_speaks_no_http_gets_nothing_and_others_are_served(served: Served, data: bytes) -> None:
    assert b" 200 " not in served.ask(data).split(b"\r\n")[0] or data.startswith(b"GET /v2/")
    assert served.get(f"/v2/x/blobs/{served.public}")[0] == 200


def test_who_does_not_read_holds_up_nobody(served: Served) -> None:
    """Four that ask for everything and take nothing; a fifth gets it all."""
    idle = [socket.create_connection(served.address, 5) for _ in range(4)]
    for connection in idle:
        connection.sendall(f"GET /v2/x/blobs/{served.public} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)
    assert _sha256(served.get(f"/v2/x/blobs/{served.public}")[2]) == served.public.hex
    for connection in idle:
        connection.close()
