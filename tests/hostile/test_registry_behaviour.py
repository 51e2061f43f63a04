"""Registries that misbehave, each on loopback and in this process: rows G1 to G12.

After every case the store holds no layer, no blob under a digest that it doesn't have, and no partial download.
"""

import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from reconciler.config import Registries
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import (
    CertificateError,
    CredentialsError,
    RefusedError,
    RegistryError,
    UnreachableRegistryError,
)
from reconciler.engine.registry.keyring import Keyring
from reconciler.engine.registry.patience import Patience
from reconciler.engine.registry.proxy import Proxies
from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError, VerificationError
from reconciler.spec.reference import Reference
from reconciler.spec.registries import ANY, Certificates
from reconciler.state.image import Image
from tests.images import Built, OciLayout, file, layer
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Request, Script, Wire, certificate, free_port

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

QUICK = Patience(
    connect=2,
    headers=0.6,
    document=0.8,
    idle=0.5,
    window=0.4,
    rate=1024,
    retries=(0.01, 0.02),
    retry_after=0.2,
    resumes=5,
)


class Device:
    """A device with a store, and one fake registry that it speaks http with."""

    def __init__(self, path: Path, fake: FakeRegistry) -> None:
        self.path = path
        self.fake = fake
        self.layout = Layout(path / "state", path / "run")
        self.store = Store(self.layout)
        self.store.prepare()
        self.images = self.client()
        noise = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(8000))
        self.content = noise
        self.layers = [layer([file("data", noise)], level=1)]
        made = OciLayout(path / "layout")
        self.built = Built(path / "layout", made.image(self.layers))
        self.reference = Reference.parse(fake.add(self.built))
        self.blob = self.layers[0].data
        self.blob_path = f"/v2/app/blobs/sha256:{hashlib.sha256(self.blob).hexdigest()}"
        self.manifest_path = f"/v2/app/manifests/{self.built.digest}"

    def client(self, *, insecure: bool = True, ca: Path | None = None) -> Images:
        names = (self.fake.name,) if insecure else ()
        files = {ANY: Certificates(ca=str(ca))} if ca is not None else {}
        return self.with_settings(Registries(insecure=names, ca=files))

    def with_settings(self, settings: Registries, **environment: str) -> Images:
        authfile = Path(settings.authfile) if settings.authfile else None
        keyring = Keyring(self.layout.auth, authfile)
        return Images(
            self.store,
            self.layout,
            registry=Registry(
                settings,
                credentials=keyring,
                proxies=Proxies.of_environment(environment),
                patience=QUICK,
            ),
            platform=host_platform(),
            limits=Limits(reserve=0),
        )

    def pull(self) -> Image:
        image = self.images.resolve(self.reference)
        self.images.pull(image, self.reference)
        return image

    def check_untouched(self) -> None:
        """Assert that nothing is believed that was not verified, and nothing is left lying about."""
        assert self.store.layers() == {}
        assert os.listdir(self.layout.partial) == []
        for path in (self.layout.blobs / "sha256").iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name

    def check_whole(self, image: Image) -> None:
        assert self.images.missing(image) == ()
        root = self.store.layer_path(image.layers[-1].chain_id)
        assert (root / "data").read_bytes() == self.content
        assert os.listdir(self.layout.partial) == []


@pytest.fixture
def device() -> Iterator[Device]:
    path = scratch("registry")
    with FakeRegistry() as fake:
        made = Device(path, fake)
        yield made
        made.images.close()
    remove(path)


def once(script: Script, then: Script) -> Script:
    """A script that misbehaves on its first call only."""
    calls: list[int] = []

    def run(request: Request, wire: Wire) -> None:
        calls.append(1)
        (script if len(calls) == 1 else then)(request, wire)

    return run


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Script:
    return lambda _, wire: wire.respond(code, body, headers)


def redirect(location: str) -> Script:
    return lambda _, wire: wire.respond(307, b"", {"Location": location})


# --- G1: blobs that are not what they should be ---------------------------------------------------------------------


def chunked(body: bytes) -> Script:
    def run(_: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 5000):
            part = body[at : at + 5000]
            wire.send(b"%x\r\n%s\r\n" % (len(part), part))
        wire.send(b"0\r\n\r\n")

    return run


@pytest.mark.parametrize("position", [0, 5, 1000, -9, -1])
def test_g1_a_blob_with_one_wrong_byte_is_refused(device: Device, position: int) -> None:
    bad = bytearray(device.blob)
    bad[position] ^= 1
    device.fake.scripts[device.blob_path] = status(200, body=bytes(bad))
    with pytest.raises(VerificationError, match="digest is"):
        device.pull()
    device.check_untouched()
    assert len(device.fake.asked(device.blob_path)) == 1


@pytest.mark.parametrize(
    "send", [lambda data: data + b"x", lambda data: data * 3, lambda data: data[:-1], lambda data: b""]
)
@pytest.mark.parametrize("how", ["length", "chunked"])
def test_g1_a_blob_of_another_size_is_refused(
    device: Device, send: Callable[[bytes], bytes], how: str
) -> None:
    body = send(device.blob)
    device.fake.scripts[device.blob_path] = status(200, body=body) if how == "length" else chunked(body)
    with pytest.raises(VerificationError, match="bytes"):
        device.pull()
    device.check_untouched()
    assert len(device.fake.asked(device.blob_path)) <= 4


def test_g1_a_chunked_blob_without_a_length_is_taken_when_it_is_right(device: Device) -> None:
    device.fake.scripts[device.blob_path] = chunked(device.blob)
    device.check_whole(device.pull())


def test_g1_a_config_that_is_not_the_pinned_one_is_refused(device: Device) -> None:
    image = device.images.resolve_without_storing(device.reference)
    device.images = device.client()
    device.fake.blobs[str(image.config)] = device.fake.blobs[str(image.config)].replace(b"linux", b"minix")
    with pytest.raises(VerificationError, match="config"):
        device.pull()
    device.check_untouched()


# --- G2: manifests --------------------------------------------------------------------------------------------------


def test_g2_a_manifest_other_than_the_pinned_one_is_refused_whatever_the_header_says(device: Device) -> None:
    body = device.fake.manifests[str(device.built.digest)][1] + b" "
    device.fake.scripts[device.manifest_path] = status(
        200, {"Docker-Content-Digest": str(device.built.digest)}, body
    )
    with pytest.raises(VerificationError, match=f"expected {device.built.digest}"):
        device.pull()
    device.check_untouched()


def test_g2_a_tag_whose_header_claims_another_digest_is_refused(device: Device) -> None:
    kind, body = device.fake.manifests["latest"]
    for claim in (f"sha256:{'0' * 64}", "sha256:short", "md5:d41d8cd98f00b204e9800998ecf8427e"):
        headers = {"Content-Type": kind, "Docker-Content-Digest": claim}
        device.fake.scripts["/v2/app/manifests/latest"] = status(200, headers, body)
        with pytest.raises(VerificationError, match="Docker-Content-Digest"):
            device.images.digest(Reference.parse(f"{device.fake.name}/app:latest"))


# --- G3: redirects --------------------------------------------------------------------------------------------------


def authenticating(device: Device, token: str = "T0ken-of-the-registry") -> None:
    """Make the registry ask for a token, and give one."""
    challenge = {"WWW-Authenticate": f'Bearer realm="{device.fake.url}/token",service="s"'}

    def guarded(request: Request, wire: Wire) -> None:
        if request.headers.get("authorization") == f"Bearer {token}":
            device.fake.answer(request, wire)
        else:
            wire.respond(401, b"", challenge)

    device.fake.scripts["/v2/*"] = guarded
    device.fake.scripts["/token"] = status(200, body=json.dumps({"token": token}).encode())


def test_g3_a_token_is_not_sent_to_another_host(device: Device) -> None:
    authenticating(device)
    with FakeRegistry() as other:
        other.blobs.update(device.fake.blobs)
        device.fake.scripts[device.blob_path] = redirect(f"{other.url}{device.blob_path}")
        device.check_whole(device.pull())
        assert other.requests
        assert not any("authorization" in request.headers for request in other.requests)


def test_g3_a_second_host_that_asks_for_credentials_gets_none(device: Device) -> None:
    """go-containerregistry 2349: a registry redirects, and the host it redirects to challenges."""
    authenticating(device)
    with FakeRegistry() as other:
        other.scripts["/*"] = status(
            401, {"WWW-Authenticate": f'Bearer realm="{other.url}/steal",service="x"'}
        )
        device.fake.scripts[device.blob_path] = redirect(f"{other.url}/x")
        with pytest.raises(RegistryError, match="401"):
            device.pull()
        assert not any("authorization" in request.headers for request in other.requests)
        assert other.asked("/steal") == []
    device.check_untouched()


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "unix:///run/x.sock", "ftp://x/", "javascript:0", "http://u:p@127.0.0.1/x", "", "http://",
     "http://[::1", "//", "http://127.0.0.1:99999/"],
)  # fmt: skip
def test_g3_a_redirect_to_anything_but_an_address_is_refused(device: Device, location: str) -> None:
    device.fake.scripts[device.blob_path] = redirect(location)
    with pytest.raises(RegistryError):
        device.pull()
    device.check_untouched()


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "0.0.0.0",
        "10.1.2.3",
        "[fe80::1]",
        "224.0.0.1",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
    ],
)
def test_g3_a_redirect_to_another_kind_of_private_address_is_refused(device: Device, host: str) -> None:
    """The registry is on loopback, so loopback is what it may point to; the metadata service of a cloud is not."""
    device.fake.scripts[device.blob_path] = redirect(f"http://{host}/latest/meta-data/")
    with pytest.raises(RefusedError, match="refused"):
        device.pull()
    device.check_untouched()


def test_g3_redirects_without_end_are_refused(device: Device) -> None:
    device.fake.scripts[device.blob_path] = redirect(device.blob_path)
    with pytest.raises(RefusedError, match="more than 5 redirects"):
        device.pull()
    assert len(device.fake.asked(device.blob_path)) == 6


def test_g3_https_is_never_left_for_http(device: Device) -> None:
    context, ca = certificate(device.path)
    with FakeRegistry(tls=context) as secure:
        reference = Reference.parse(secure.add(device.built))
        secure.scripts[device.blob_path] = redirect(f"{device.fake.url}{device.blob_path}")
        images = device.client(insecure=False, ca=ca)
        image = images.resolve(reference)
        with pytest.raises(RefusedError, match="from https"):
            images.pull(image, reference)
        images.close()
    assert device.fake.asked(device.blob_path) == []
    device.check_untouched()


# --- G4: tokens -----------------------------------------------------------------------------------------------------


def test_g4_an_anonymous_token_is_fetched_once_and_used(device: Device) -> None:
    authenticating(device)
    device.check_whole(device.pull())
    asked = device.fake.asked("/token")
    assert len(asked) == 1
    assert "scope=repository%3Aapp%3Apull" in asked[0].path
    assert "service=s" in asked[0].path
    assert "authorization" not in asked[0].headers


def test_g4_a_token_that_expired_is_renewed(device: Device) -> None:
    authenticating(device)
    device.images.resolve(device.reference)
    authenticating(device, "another-token")
    device.check_whole(device.pull())
    assert len(device.fake.asked("/token")) == 2


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="x"',
        "",
        'Bearer service="s"',
        'Bearer realm=""',
        'Bearer realm="ftp://127.0.0.1/t"',
        'Bearer realm="http://user:secret@127.0.0.1/t"',
        'Bearer realm="http://169.254.169.254/t"',
        'Bearer realm="http://10.0.0.1/t"',
        'Bearer realm="http://127.0.0.1:1/t',
        'Bearer realm="http://a\x0bb/"',
        "Bearer realm=" + "a" * 9000,
        "Negotiate",
        'Bearer realm="/relative"',
    ],
)
def test_g4_a_challenge_that_must_not_be_answered_is_not(device: Device, challenge: str) -> None:
    device.fake.scripts["/v2/*"] = status(401, {"WWW-Authenticate": challenge} if challenge else {})
    with pytest.raises(RegistryError) as caught:
        device.pull()
    assert "secret" not in str(caught.value)
    assert caught.value.transient is isinstance(caught.value, UnreachableRegistryError)
    device.check_untouched()


def test_g4_basic_authentication_is_told_as_what_it_is(device: Device) -> None:
    device.fake.scripts["/v2/*"] = status(401, {"WWW-Authenticate": 'Basic realm="x"'})
    with pytest.raises(CredentialsError, match="needs credentials"):
        device.pull()


def test_g4_a_header_of_a_mebibyte_and_a_thousand_challenges_are_survived(device: Device) -> None:
    for headers in ({"WWW-Authenticate": "Bearer " + 'a="b",' * 150_000}, {f"X-{n}": "y" for n in range(3)}):
        device.fake.scripts["/v2/*"] = status(401, headers)
        with pytest.raises(RegistryError):
            device.pull()

    def many(_: Request, wire: Wire) -> None:
        wire.send(
            b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n" + b"WWW-Authenticate: Digest x\r\n" * 1000 + b"\r\n"
        )

    device.fake.scripts["/v2/*"] = many
    with pytest.raises(RegistryError):
        device.pull()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"token": 5}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": ""}',
        b"{" * 100_000,
        b"x" * (1 << 19),
    ],
)
def test_g4_a_token_answer_that_is_none_is_refused(device: Device, answer: bytes) -> None:
    authenticating(device)
    device.fake.scripts["/token"] = status(200, body=answer)
    with pytest.raises(RegistryError):
        device.pull()


def test_g4_a_registry_that_never_accepts_its_own_token_is_given_up(device: Device) -> None:
    authenticating(device)
    device.fake.scripts["/token"] = status(200, body=b'{"token": "wrong"}')
    with pytest.raises(CredentialsError, match="401"):
        device.pull()
    assert len(device.fake.asked("/v2/")) == 2


# --- G5: foreign layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"urls": ["http://{other}/blob"]},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
    ],
)
def test_g5_the_addresses_of_a_foreign_layer_are_never_dialled(
    device: Device, change: dict[str, object]
) -> None:
    with FakeRegistry() as other:
        made = OciLayout(device.built.layout)
        manifest = json.loads(made.blob_path(device.built.digest).read_bytes())
        manifest["layers"][0] |= json.loads(json.dumps(change).replace("{other}", other.name))
        digest, size = made.json(manifest)
        made.name(digest, size, manifest["mediaType"], "foreign")
        reference = Reference.parse(device.fake.add(Built(made.path, digest, "foreign")))
        with pytest.raises(VerificationError, match="foreign layer"):
            device.images.resolve(reference)
        assert other.requests == []


# --- G6: time -------------------------------------------------------------------------------------------------------


def slow_headers(_: Request, wire: Wire) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 1000:
        wire.send(bytes([byte]))
        wire.pause(0.05)


def endless_informational(_: Request, wire: Wire) -> None:
    while True:
        wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        wire.pause(0.01)


def endless_header(_: Request, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        wire.send(b"X-Filler: " + b"y" * 4000 + b"\r\n")


def silent(_: Request, wire: Wire) -> None:
    wire.hang()


def endless_document(_: Request, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        wire.send(b" " * 65536)


def slow_document(_: Request, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        wire.send(b" ")
        wire.pause(0.05)


@pytest.mark.parametrize(
    "script", [slow_headers, endless_informational, endless_header, silent, endless_document, slow_document]
)
@pytest.mark.parametrize("what", ["manifest", "blob"])
def test_g6_no_stage_takes_longer_than_its_time(device: Device, script: Script, what: str) -> None:
    path = device.manifest_path if what == "manifest" else device.blob_path
    device.fake.scripts[path] = script
    started = time.monotonic()
    with pytest.raises(ReconcilerError):
        device.pull()
    assert time.monotonic() - started < 3 * (QUICK.headers + QUICK.document) + 5
    device.check_untouched()


def test_g6_a_body_that_stalls_is_given_up_and_taken_up_again(device: Device) -> None:
    def stall(_: Request, wire: Wire) -> None:
        wire.respond(200, device.blob[: len(device.blob) // 2], length=len(device.blob))
        wire.hang()

    device.fake.scripts[device.blob_path] = once(stall, device.fake.answer)
    device.check_whole(device.pull())


def test_g6_a_trickle_below_the_minimum_rate_is_given_up(device: Device) -> None:
    def trickle(_: Request, wire: Wire) -> None:
        wire.respond(200, b"", length=len(device.blob))
        for byte in device.blob:
            wire.send(bytes([byte]))
            wire.pause(0.02)

    device.fake.scripts[device.blob_path] = trickle
    started = time.monotonic()
    with pytest.raises(UnreachableRegistryError, match="slower than 1024 bytes per second"):
        device.pull()
    assert time.monotonic() - started < 15
    device.check_untouched()


def stick(images: Images, reference: Reference) -> None:
    with pytest.raises(ReconcilerError):
        images.resolve(reference)


def test_g6_one_stuck_registry_does_not_hold_up_another(device: Device) -> None:
    device.fake.scripts[device.manifest_path] = silent
    with FakeRegistry() as other:
        images = device.with_settings(Registries(insecure=(device.fake.name, other.name)))
        stuck = threading.Thread(target=stick, args=(images, device.reference))
        stuck.start()
        reference = Reference.parse(other.add(device.built))
        image = images.resolve(reference)
        images.pull(image, reference)
        assert images.missing(image) == ()
        stuck.join()
        images.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b" " * (4 << 20), "answer longer than 4194304 bytes"),
        (b'{"a":' * 50 + b"1" + b"}" * 50, "nested"),
        (b"[" * 1_000_000, "more than 200000 members"),
    ],
    ids=["4 MiB and more", "50 levels", "a million members"],
)
def test_g6_a_manifest_is_bounded_in_size_and_depth(device: Device, body: bytes, said: str) -> None:
    kind, found = device.fake.manifests[device.built.tag]
    body = found + body if body.isspace() else body
    device.fake.scripts["/v2/app/manifests/latest"] = status(200, {"Content-Type": kind}, body)
    with pytest.raises(ReconcilerError, match=said):
        device.images.digest(Reference.parse(f"{device.fake.name}/app:latest"))


# --- G7: ranges -----------------------------------------------------------------------------------------------------


def broken_off(device: Device, at: int = 100_000) -> Script:
    """Break the connection after `at` bytes, claiming the whole length."""

    def run(_: Request, wire: Wire) -> None:
        wire.respond(200, device.blob[:at], length=len(device.blob))
        raise ConnectionAbortedError

    return run


def wrong(device: Device, part: int | None) -> Script:
    """Send the blob with one wrong byte: whole, or so much of it, claiming the whole length."""
    bad = bytearray(device.blob)
    bad[5000] ^= 1

    def run(_: Request, wire: Wire) -> None:
        wire.respond(200, bytes(bad[:part]), length=len(bad))
        if part is not None:
            raise ConnectionAbortedError

    return run


def test_g6_a_chunk_header_that_never_ends_holds_nobody(device: Device) -> None:
    """Each read of it is answered in time, and none of them is a piece of the blob."""

    def drip(_: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        while True:
            wire.pause(0.1)
            wire.send(b"x")

    device.fake.scripts[device.blob_path] = drip
    began = time.monotonic()
    with pytest.raises(UnreachableRegistryError):
        device.pull()
    assert time.monotonic() - began < 20
    device.check_untouched()


def test_g7_a_broken_transfer_goes_on_where_it_was(device: Device) -> None:
    device.fake.scripts[device.blob_path] = once(broken_off(device), device.fake.answer)
    device.check_whole(device.pull())
    again = device.fake.asked(device.blob_path)
    assert [request.headers.get("range") for request in again] == [None, "bytes=100000-"]
    assert device.images.received[device.fake.name, "origin", "resumed"] == len(device.blob) - 100_000
    assert device.images.received[device.fake.name, "origin", "full"] == 100_000


def test_g7_a_transfer_that_breaks_off_often_arrives_all_the_same(device: Device) -> None:
    def flaky(request: Request, wire: Wire) -> None:
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        rest = device.blob[start:]
        place = {"Content-Range": f"bytes {start}-{len(device.blob) - 1}/{len(device.blob)}"}
        wire.respond(206 if start else 200, rest[:60_000], place if start else {}, length=len(rest))
        if len(rest) > 60_000:
            raise ConnectionAbortedError

    device.fake.scripts[device.blob_path] = flaky
    device.check_whole(device.pull())


def test_g7_a_server_that_ignores_ranges_is_read_from_its_start(device: Device) -> None:
    device.fake.ranges = False
    device.fake.scripts[device.blob_path] = once(broken_off(device), device.fake.answer)
    device.check_whole(device.pull())


@pytest.mark.parametrize("answer", ["other range", "416", "no content-range", "earlier range"])
def test_g7_a_wrong_answer_to_a_range_starts_the_layer_again(device: Device, answer: str) -> None:
    def wrong(request: Request, wire: Wire) -> None:
        if "range" not in request.headers:
            device.fake.answer(request, wire)
        elif answer == "other range":
            wire.respond(
                206, device.blob[150_000:], {"Content-Range": f"bytes 150000-{len(device.blob) - 1}/*"}
            )
        elif answer == "earlier range":
            wire.respond(
                206, device.blob[50_000:], {"Content-Range": f"bytes 50000-{len(device.blob) - 1}/*"}
            )
        elif answer == "416":
            wire.respond(416)
        else:
            wire.respond(206, device.blob[100_000:])

    device.fake.scripts[device.blob_path] = once(broken_off(device), wrong)
    device.check_whole(device.pull())


def test_g7_a_blob_that_changes_between_two_transfers_is_fetched_again_whole_once(device: Device) -> None:
    def changed(request: Request, wire: Wire) -> None:
        if "range" in request.headers:
            place = {"Content-Range": f"bytes 100000-{len(device.blob) - 1}/{len(device.blob)}"}
            wire.respond(206, b"\0" * (len(device.blob) - 100_000), place)
        else:
            device.fake.answer(request, wire)

    device.fake.scripts[device.blob_path] = once(broken_off(device), changed)
    device.check_whole(device.pull())
    assert len(device.fake.asked(device.blob_path)) == 3


# --- G8, G9: encodings and types ------------------------------------------------------------------------------------


def test_g8_a_content_encoding_is_not_undone(device: Device) -> None:
    device.fake.scripts[device.blob_path] = status(200, {"Content-Encoding": "gzip"}, device.blob)
    device.check_whole(device.pull())
    assert device.fake.asked(device.blob_path)[0].headers["accept-encoding"] == "identity"


def test_g8_a_blob_that_was_packed_once_more_is_refused(device: Device) -> None:
    device.fake.scripts[device.blob_path] = status(
        200, {"Content-Encoding": "gzip"}, gzip.compress(device.blob)
    )
    with pytest.raises(VerificationError):
        device.pull()
    device.check_untouched()


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "text/html",
    ],
)
def test_g9_a_content_type_that_contradicts_the_document_is_refused(device: Device, kind: str) -> None:
    """CVE-2021-41190."""
    body = device.fake.manifests[str(device.built.digest)][1]
    device.fake.scripts[device.manifest_path] = status(200, {"Content-Type": kind}, body)
    with pytest.raises(VerificationError, match="declared as"):
        device.pull()
    device.check_untouched()


# --- G10: refusals, waits, certificates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    ["0", "-5", "315360000", "9" * 400, "soon", "", "Sat, 01 Jan 2050 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"],
)  # fmt: skip
def test_g10_a_retry_after_is_heeded_within_reason(device: Device, wait: str) -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}'
    device.fake.scripts[device.manifest_path] = status(429, {"Retry-After": wait}, body)
    started = time.monotonic()
    with pytest.raises(RegistryError, match="429 slow down") as caught:
        device.pull()
    assert time.monotonic() - started < 5
    assert caught.value.transient
    assert 0 <= caught.value.retry_after <= QUICK.retry_after
    assert len(device.fake.asked(device.manifest_path)) == 1 + len(QUICK.retries)
    assert device.images.requests[device.fake.name, "429"] == 1 + len(QUICK.retries)


@pytest.mark.parametrize("code", [500, 502, 503, 504, 408, 429])
@pytest.mark.parametrize("path", ["manifest_path", "blob_path"])
def test_g10_what_may_pass_is_tried_again_a_few_times(device: Device, code: int, path: str) -> None:
    device.fake.scripts[getattr(device, path)] = once(status(code), device.fake.answer)
    device.check_whole(device.pull())


@pytest.mark.parametrize("path", ["manifest_path", "blob_path"])
@pytest.mark.parametrize("part", [0, 20])
def test_g10_a_connection_that_is_reset_is_made_again(device: Device, path: str, part: int) -> None:
    def reset(_: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"[:part])
        wire.reset()

    device.fake.scripts[getattr(device, path)] = once(reset, device.fake.answer)
    device.check_whole(device.pull())


@pytest.mark.parametrize("wait", ["1", formatdate(time.time() + 86_400, usegmt=True)])
def test_g10_a_retry_after_in_seconds_or_as_a_date_is_waited_for(device: Device, wait: str) -> None:
    device.fake.scripts[device.manifest_path] = once(status(429, {"Retry-After": wait}), device.fake.answer)
    started = time.monotonic()
    device.check_whole(device.pull())
    assert time.monotonic() - started >= QUICK.retry_after


@pytest.mark.parametrize(
    ("code", "transient"),
    [(400, False), (403, False), (404, False), (410, False), (451, False), (500, True), (599, True)],
)
@pytest.mark.parametrize("path", ["manifest_path", "blob_path"])
def test_g10_a_refusal_is_told_with_what_the_registry_says(
    device: Device, code: int, transient: bool, path: str
) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "because I say so"}]}).encode()
    device.fake.scripts[getattr(device, path)] = status(code, body=body)
    with pytest.raises(RegistryError, match=f"{code} because I say so") as caught:
        device.pull()
    assert caught.value.transient is transient
    assert device.fake.name in str(caught.value)
    device.check_untouched()


def test_g10_a_registry_that_is_down_is_a_transient_failure(device: Device) -> None:
    port = free_port()
    images = device.with_settings(Registries(insecure=(f"127.0.0.1:{port}",)))
    reference = Reference.parse(f"127.0.0.1:{port}/app@{device.built.digest}")
    with pytest.raises(UnreachableRegistryError, match=rf"127\.0\.0\.1:{port}: GET .*refused") as caught:
        images.resolve(reference)
    assert caught.value.transient
    with pytest.raises(UnreachableRegistryError, match=r"name registry\.invalid"):
        images.resolve(Reference.parse(f"registry.invalid/app@{device.built.digest}"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/9.9 999\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
def test_g10_an_answer_that_is_not_http_is_a_failure_not_a_crash(device: Device, answer: bytes) -> None:
    def run(_: Request, wire: Wire) -> None:
        wire.send(answer)
        raise ConnectionAbortedError

    device.fake.scripts["/v2/*"] = run
    with pytest.raises(RegistryError):
        device.pull()


def test_g10_certificates_are_checked_and_the_remedy_is_named(device: Device) -> None:
    context, ca = certificate(device.path)
    with FakeRegistry(tls=context) as secure:
        reference = Reference.parse(secure.add(device.built))
        stranger = device.client(insecure=False)
        with pytest.raises(CertificateError, match="self-signed") as caught:
            stranger.resolve(reference)
        assert "registries.ca" in caught.value.hint
        assert not caught.value.transient
        assert len(secure.requests) == 0
        trusting = device.client(insecure=False, ca=ca)
        trusting.pull(trusting.resolve(reference), reference)
        named = Reference.parse(f"localhost:{secure.port}/app@{device.built.digest}")
        device.store.forget(device.built.digest)
        for blob in device.store.blobs():
            device.store.remove_blob(blob.digest)
        with pytest.raises(CertificateError, match=r"not valid for 'localhost'|mismatch"):
            trusting.resolve(named)
        stranger.close()
        trusting.close()


def test_g10_an_expired_certificate_points_to_the_clock(device: Device) -> None:
    context, ca = certificate(device.path, expired=True)
    with FakeRegistry(tls=context) as secure:
        reference = Reference.parse(secure.add(device.built))
        images = device.client(insecure=False, ca=ca)
        with pytest.raises(CertificateError, match="expired") as caught:
            images.resolve(reference)
        assert "clock" in caught.value.hint
        images.close()


def test_g10_plain_http_where_https_was_expected_names_the_setting(device: Device) -> None:
    images = device.client(insecure=False)
    with pytest.raises(RegistryError) as caught:
        images.resolve(device.reference)
    assert "registries.insecure" in caught.value.hint


# --- G12: what is told ----------------------------------------------------------------------------------------------


def test_g12_no_error_carries_a_token_a_query_or_control_characters(device: Device) -> None:
    secret = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzZWNyZXQifQ.c2lnbmF0dXJl"
    authenticating(device, secret)
    message = f"denied for \x1b[31m{secret}\x07 at https://user:pass@host/x?token={secret}\n\u202eevil"
    body = json.dumps({"errors": [{"message": message}]}).encode()
    with FakeRegistry() as other:
        other.scripts["/*"] = status(500, body=body)
        device.fake.scripts[device.blob_path] = redirect(f"{other.url}/blob?X-Amz-Signature={secret}")
        with pytest.raises(RegistryError) as caught:
            device.pull()
    text = f"{caught.value} {caught.value.hint}"
    assert text.isprintable()
    for part in (secret, "X-Amz", "pass", "eyJ"):
        assert part not in text
    assert other.name in text


def test_descriptors_do_not_pile_up_over_failures(device: Device) -> None:
    device.fake.scripts[device.blob_path] = broken_off(device, 10)
    for _ in range(2):
        with pytest.raises(ReconcilerError):
            device.pull()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ReconcilerError):
            device.pull()
    # Connections of the in-process registry count too: each broken one is closed on both sides.
    assert len(os.listdir("/proc/self/fd")) <= before + 3
