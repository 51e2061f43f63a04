"""Peers that are down, empty, slow or lie, and what ours are asked: digests count, and only what is public is given."""

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pytest

from reconciler.config import Registries
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.keyring import Keyring
from reconciler.engine.registry.places import ANYTHING, ORIGIN, PEER, Place, Places
from reconciler.engine.shared import DOCUMENT, Shared, mark, media_type
from reconciler.engine.store import Store
from reconciler.errors import VerificationError
from reconciler.report.peer import PeerApplication
from reconciler.report.server import serve_tcp
from reconciler.spec.reference import Digest, Reference
from tests.accounts import packed, wants_password
from tests.hostile.test_registry_behaviour import QUICK, Device, broken_off, once, redirect, status
from tests.kernel.shims import eventually
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Request, Script, Wire, free_port

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@dataclass
class Peered:
    """A device with a registry, and one peer that has everything by its digest."""

    device: Device
    peer: FakeRegistry

    def use(self, *peers: str, keep: bool = False) -> None:
        """Start anew with these peers."""
        device = self.device
        device.images.close()
        keyring = Keyring(device.layout.auth, None)
        settings = Registries(insecure=(device.fake.name,))
        device.images = Images(
            device.store,
            device.layout,
            registry=Registry(settings, credentials=keyring, patience=QUICK, peers=peers),
            platform=host_platform(),
            limits=Limits(reserve=0),
            keep_blobs=keep,
        )

    @property
    def blob(self) -> str:
        """Where the peer has the layer."""
        return self.device.blob_path.replace("/app/", f"/{ANYTHING}/")

    def arrived(self) -> dict[tuple[str, str], int]:
        received = self.device.images.received
        return {(source, kind): count for (_, source, kind), count in received.items() if count}


@pytest.fixture
def peered() -> Iterator[Peered]:
    path = scratch("peers")
    with FakeRegistry() as fake, FakeRegistry() as peer:
        device = Device(path, fake)
        peer.add(device.built)
        made = Peered(device, peer)
        made.use(peer.name)
        yield made
        device.images.close()
    remove(path)


def log_in(device: Device, name: str) -> None:
    """Keep credentials for a host as `login` does."""
    device.layout.auth.write_text(json.dumps({"auths": {name: {"auth": packed()}}}))
    device.layout.auth.chmod(0o600)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_peer_is_asked_first_by_digest_alone_and_nobody_else(peered: Peered) -> None:
    device = peered.device
    device.check_whole(device.pull())
    assert device.fake.requests == []
    assert {request.path.split("/")[2] for request in peered.peer.requests} == {ANYTHING}
    assert "app" not in str([request.path for request in peered.peer.requests])
    assert peered.arrived() == {("peer", "full"): len(device.blob)}


def test_a_tag_is_not_asked_of_a_peer(peered: Peered) -> None:
    tag = Reference.parse(f"{peered.device.fake.name}/app:{peered.device.built.tag}")
    assert peered.device.images.digest(tag) == peered.device.built.digest
    assert peered.peer.requests == []


@pytest.mark.parametrize(
    "script",
    [
        status(404),
        status(401, {"WWW-Authenticate": 'Basic realm="x"'}),
        status(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token",service="x"'}),
        status(403),
        status(429, {"Retry-After": "86400"}),
        status(500),
        status(200, body=b"{}"),
        status(200, body=b"[" * 100_000),
        lambda _, wire: wire.send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000),
        lambda _, wire: wire.send(b"\x00\xff\r\n\r\n"),
    ],
    ids=["404", "basic", "bearer", "403", "429", "500", "lies", "nested", "header", "garbage"],
)
def test_where_a_peer_fails_the_registry_goes_on(peered: Peered, script: Script) -> None:
    peered.peer.scripts["/v2/*"] = script
    device = peered.device
    device.check_whole(device.pull())
    assert peered.arrived() == {("origin", "full"): len(device.blob)}


def test_a_peer_leads_nowhere(peered: Peered) -> None:
    """Whom it redirects to would be asked from here, on a network where a device may know more hosts than a peer."""
    with FakeRegistry() as elsewhere:
        elsewhere.add(peered.device.built)
        peered.peer.scripts["/v2/*"] = redirect(f"http://{elsewhere.name}/v2/app/manifests/x")
        peered.device.check_whole(peered.device.pull())
        assert elsewhere.requests == []


def test_a_peer_is_shown_no_credentials_also_where_there_are_some_for_its_address(peered: Peered) -> None:
    device = peered.device
    log_in(device, peered.peer.name)
    wants_password(peered.peer)
    device.check_whole(device.pull())
    assert [request for request in peered.peer.requests if "authorization" in request.headers] == []
    assert peered.arrived() == {("origin", "full"): len(device.blob)}


def test_one_that_is_not_there_is_asked_once(peered: Peered) -> None:
    peered.use(f"127.0.0.1:{free_port()}", peered.peer.name)
    peered.device.check_whole(peered.device.pull())
    assert peered.device.fake.requests == []


def test_where_a_peer_ends_for_good_the_registry_goes_on_from_there(peered: Peered) -> None:
    device = peered.device
    peered.peer.scripts[peered.blob] = once(broken_off(device), status(500))
    device.check_whole(device.pull())
    assert device.fake.asked(device.blob_path)[0].headers["range"] == "bytes=100000-"
    rest = len(device.blob) - 100_000
    assert peered.arrived() == {("peer", "full"): 100_000, ("origin", "resumed"): rest}


@pytest.mark.parametrize("part", [100_000, None])
def test_a_peer_that_lies_is_found_out_and_left_out(peered: Peered, part: int | None) -> None:
    device = peered.device
    bad = bytearray(device.blob)
    bad[5000] ^= 1

    def lie(_: Request, wire: Wire) -> None:
        wire.respond(200, bytes(bad[:part]), length=len(bad))
        if part is not None:
            raise ConnectionAbortedError

    peered.peer.scripts[peered.blob] = once(lie, status(503))
    device.check_whole(device.pull())
    assert device.fake.asked(device.blob_path)
    before = len(peered.peer.requests)
    device.images.documents(device.reference)  # it rests
    assert len(peered.peer.requests) == before


def test_where_all_lie_nothing_is_believed(peered: Peered) -> None:
    device = peered.device
    bad = device.blob[:-1] + b"\x55"
    peered.peer.scripts[peered.blob] = status(200, body=bad)
    device.fake.scripts[device.blob_path] = status(200, body=bad)
    with pytest.raises(VerificationError, match="digest is"):
        device.pull()
    device.check_untouched()


def test_peers_come_before_mirrors_and_not_for_what_has_no_digest() -> None:
    places = Places({"r.example": ("m.example",)}, ("p.example:5080", "r.example"))
    peer, mirror = Place("p.example:5080", ANYTHING, PEER), Place("m.example", "a/b", "mirror")
    origin = Place("r.example", "a/b", ORIGIN)
    assert places.of("r.example", "a/b", 0.0) == [peer, mirror, origin]
    assert places.of("r.example", "a/b", 0.0, by_digest=False) == [mirror, origin]
    places.failed(peer, VerificationError("lies"), 0.0)
    assert places.of("r.example", "a/b", 1.0) == [mirror, origin]
    assert peer in places.of("r.example", "a/b", 31.0)
    # The same host in two parts: what it fails at as one of them says nothing of the other.
    both = Places({"r.example": ("p.example",)}, ("p.example",))
    both.failed(Place("p.example", ANYTHING, PEER), VerificationError("lies"), 0.0)
    assert [place.source for place in both.of("r.example", "a", 1.0)] == ["mirror", ORIGIN]


def test_one_that_sends_a_byte_at_a_time_has_a_few_tries_and_rests(peered: Peered) -> None:
    device = peered.device

    def drip(request: Request, wire: Wire) -> None:
        at = int(request.headers.get("range", "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {at}-{len(device.blob) - 1}/{len(device.blob)}"} if at else {}
        wire.respond(206 if at else 200, device.blob[at : at + 1], headers, length=len(device.blob) - at)
        raise ConnectionAbortedError

    peered.peer.scripts[peered.blob] = drip
    device.check_whole(device.pull())
    assert len(peered.peer.asked(peered.blob)) <= 1 + len(QUICK.retries)
    before = len(peered.peer.requests)
    device.images.digest(device.reference)  # by digest, but of a peer that rests
    assert len(peered.peer.requests) == before


# --- what is public ---------------------------------------------------------------------------------------------------


def shared(device: Device) -> set[Digest]:
    """The digests of all blobs that are given away."""
    given = set()
    for blob in device.store.blobs():
        file = Shared(device.layout).open(blob.digest)
        if file is not None:
            file.close()
            given.add(blob.digest)
    return given


def test_what_a_registry_gives_to_anybody_is_given_on(peered: Peered) -> None:
    peered.use(keep=True)
    device = peered.device
    device.pull()
    assert shared(device) == {blob.digest for blob in device.store.blobs()}
    assert len(shared(device)) == 3  # manifest, config, layer


def test_what_a_peer_gives_is_given_on(peered: Peered) -> None:
    peered.use(peered.peer.name, keep=True)
    peered.device.pull()
    assert len(shared(peered.device)) == 3


def test_what_was_had_by_credentials_or_a_bundle_is_not_given_on(peered: Peered) -> None:
    device = peered.device
    log_in(device, device.fake.name)
    wants_password(device.fake)
    peered.use(keep=True)
    device.check_whole(device.pull())
    assert len(device.store.blobs()) == 3
    assert shared(device) == set()
    everything = Shared(device.layout, everything=True).open(device.built.digest)
    assert everything is not None
    everything.close()


def test_a_peer_that_knows_how_a_blob_begins_makes_nothing_public(peered: Peered) -> None:
    """It sends the first bytes, which are the same in any gzip file; the rest is had by credentials."""
    device = peered.device
    log_in(device, device.fake.name)
    wants_password(device.fake)
    for path in (peered.blob, *(request.path for request in peered.peer.requests)):
        peered.peer.scripts[path] = once(broken_off(device), status(404))
    for name in ("manifests", "blobs"):
        for digest in (device.built.digest, device.images.resolve_without_storing(device.reference).config):
            peered.peer.scripts[f"/v2/{ANYTHING}/{name}/{digest}"] = status(404)
    peered.use(peered.peer.name, keep=True)
    device.check_whole(device.pull())
    assert device.fake.asked(device.blob_path)[-1].headers["range"] == "bytes=100000-"
    assert len(device.store.blobs()) == 3
    assert shared(device) == set()


def test_a_bundle_says_nothing_of_who_may_have_it(peered: Peered) -> None:
    device = peered.device
    device.images.close()
    device.images = Images(
        device.store,
        device.layout,
        bundles=[device.built.layout],
        offline=True,
        platform=host_platform(),
        limits=Limits(reserve=0),
        keep_blobs=True,
    )
    device.check_whole(device.pull())
    assert len(device.store.blobs()) == 3
    assert shared(device) == set()


# --- answering --------------------------------------------------------------------------------------------------------


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
    opened: list[IO[bytes]] = []
    shelf = Shared(layout)

    def find(digest: Digest) -> IO[bytes] | None:
        file = shelf.open(digest)
        if file is not None:
            opened.append(file)
        return file

    application = PeerApplication(find, media_type, DOCUMENT)
    with serve_tcp("127.0.0.1", 0, application, name="peers", connections=8, keep_alive=False) as server:
        host, _, port = server.address.rpartition(":")
        made = Served((host, int(port)), digests["public"], digests["private"], application)
        yield made
        # What a client has left unread goes when the server hears that it has gone
        eventually(lambda: all(file.closed for file in opened))
    remove(path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_only_what_is_public_is_given(served: Served) -> None:
    status, headers, body = served.get(f"/v2/any/name/blobs/{served.public}")
    assert status == 200
    assert _sha256(body) == served.public.hex
    assert headers["docker-content-digest"] == str(served.public)
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
