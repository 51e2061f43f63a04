"""Peers that are down, empty, slow or lie: only digests count, and only what is public is given on."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.config import Registries
from reconciler.engine.estimate import Estimate
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.oci_layout import Bundles
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import PUBLIC, Registry
from reconciler.engine.registry.keyring import Keyring
from reconciler.engine.registry.places import ANYTHING, ORIGIN, PEER, Place, Places
from reconciler.engine.shared import DOCUMENT, Shared, media_type
from reconciler.engine.store import Store
from reconciler.errors import VerificationError
from reconciler.report.peer import PeerApplication
from reconciler.report.server import serve_strangers
from reconciler.spec.reference import Digest, Reference
from tests.accounts import packed, wants_password
from tests.hostile.test_registry_behaviour import QUICK, Device, broken_off, once, redirect, status, wrong
from tests.images import file, layer
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Request, Script, Wire, free_port

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@dataclass
class Peered:
    """A device with a registry, and one peer that has everything by its digest."""

    device: Device
    peer: FakeRegistry

    def use(self, *peers: str, keep: bool = False, mirror: str = "") -> None:
        """Start anew with these peers, and perhaps a mirror."""
        device = self.device
        device.images.close()
        keyring = Keyring(device.layout.auth, None)
        mirrors = {device.fake.name: (mirror,)} if mirror else {}
        settings = Registries(insecure=(device.fake.name, mirror), mirrors=mirrors)
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


def test_a_challenge_of_a_peer_leads_nowhere_either(peered: Peered) -> None:
    """A realm on another host would be asked, and what it says would be sent to the peer."""
    with FakeRegistry() as elsewhere:
        elsewhere.scripts["*"] = status(200, body=b'{"token": "of-the-house"}')
        challenge = f'Bearer realm="http://{elsewhere.name}/reboot?now=1",service="x"'
        peered.peer.scripts["/v2/*"] = status(401, {"WWW-Authenticate": challenge})
        peered.device.check_whole(peered.device.pull())
        assert elsewhere.requests == []
    assert [request for request in peered.peer.requests if "authorization" in request.headers] == []
    assert len(peered.peer.requests) == 1  # it rests


def test_what_a_peer_says_of_a_type_is_not_believed(peered: Peered) -> None:
    manifest = peered.peer.blobs[str(peered.device.built.digest)]
    kind = {"Content-Type": "application/vnd.oci.image.index.v1+json", "Docker-Content-Digest": "sha256:no"}
    path = f"/v2/{ANYTHING}/manifests/{peered.device.built.digest}"
    peered.peer.scripts[path] = status(200, kind, manifest)
    peered.device.check_whole(peered.device.pull())
    assert peered.device.fake.requests == []


def test_a_peer_is_not_asked_what_nobody_can_verify(peered: Peered) -> None:
    device = peered.device
    image = device.images.resolve(device.reference)
    peered.peer.requests.clear()
    settings = Registries(insecure=(device.fake.name,))
    registry = Registry(settings, patience=QUICK, peers=(peered.peer.name,))
    estimate = Estimate(device.store, Bundles(()), registry)
    assert estimate.unpacked(image.layers[0], device.reference) >= len(device.content)
    registry.close()
    assert peered.peer.requests == []


def test_a_lie_that_fills_the_disk_is_the_peers_and_not_the_disks() -> None:
    """Zeros that fit the layer's packed size, and no disk: the digest would be wrong, had there been room to see it."""
    path = scratch("peers")
    state = path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", path.name, str(state)], check=True)
    try:
        with FakeRegistry() as fake, FakeRegistry() as peer:
            peered = Peered(Device(path, fake), peer)
            device = peered.device
            peer.add(device.built)
            peered.use(peer.name)
            bomb = layer([file("data", bytes(64 << 20))], level=9).data
            assert len(bomb) < len(device.blob)
            peer.scripts[peered.blob] = status(200, body=bomb)
            device.check_whole(device.pull())
            assert device.fake.asked(device.blob_path)
            device.images.close()
    finally:
        subprocess.run(["umount", str(state)], check=True)
        remove(path)


def test_an_honest_mirror_is_not_blamed_for_a_peers_byte(peered: Peered) -> None:
    device = peered.device
    with FakeRegistry() as mirror:
        mirror.add(device.built)
        peered.use(peered.peer.name, mirror=mirror.name)
        peered.peer.scripts[peered.blob] = once(wrong(device, 100_000), status(404))
        device.check_whole(device.pull())
        assert device.fake.asked(device.blob_path) == []
        assert len(mirror.asked(device.blob_path)) == 2


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
    peered.peer.scripts[peered.blob] = once(wrong(device, part), status(503))
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


def given(store: Store, layout: Layout) -> set[Digest]:
    """The digests of all blobs that are given away."""
    found = set()
    for blob in store.blobs():
        one = Shared(layout).open(blob.digest)
        if one is not None:
            one.file.close()
            found.add(blob.digest)
    return found


def shared(device: Device) -> set[Digest]:
    return given(device.store, device.layout)


def test_what_a_registry_gives_to_anybody_is_given_on(peered: Peered) -> None:
    peered.use(keep=True)
    device = peered.device
    device.pull()
    assert shared(device) == {blob.digest for blob in device.store.blobs()}
    assert len(shared(device)) == 3  # manifest, config, layer


@pytest.mark.parametrize("everything", [False, True])
def test_what_a_peer_gives_as_public_is_given_on_and_what_it_gives_to_its_house_is_not(
    peered: Peered, everything: bool
) -> None:
    """Another device has it publicly, or by credentials, and gives all that it has to its own network."""
    device = peered.device
    if everything:
        log_in(device, device.fake.name)
        wants_password(device.fake)
    peered.use(keep=True)
    device.pull()
    shelf = Shared(device.layout, everything=everything)
    with serve_strangers("127.0.0.1", 0, PeerApplication(shelf.open, media_type, DOCUMENT, PUBLIC)) as server:
        next_door = Layout(device.path / "next" / "state", device.path / "next" / "run")
        store = Store(next_door)
        store.prepare()
        images = Images(
            store,
            next_door,
            registry=Registry(
                Registries(insecure=(device.fake.name,)), patience=QUICK, peers=(server.address,)
            ),
            platform=host_platform(),
            limits=Limits(reserve=0),
            keep_blobs=True,
        )
        images.pull(images.resolve(device.reference), device.reference)
        assert {source for _, source, _ in images.received} == {"peer"}
        images.close()
    assert len(given(store, next_door)) == (0 if everything else 3)


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
    everything.file.close()
    assert not everything.public


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
