"""Mirrors that are down, empty, slow, stale or lie: the registry itself is asked in the end, and only digests count."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.config import Registries
from reconciler.engine.registry.errors import CredentialsError, RegistryError, UnreachableRegistryError
from reconciler.engine.registry.places import ORIGIN, Place, Places
from reconciler.errors import VerificationError
from reconciler.spec.reference import Reference
from tests.accounts import packed, wants_password
from tests.hostile.test_registry_behaviour import Device, broken_off, once, status, wrong
from tests.hostile.test_registry_credentials import authfile
from tests.images import Built, OciLayout
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Script, free_port

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@dataclass
class Mirrored:
    """A device whose registry has two mirrors: the first has everything under hub/, the second at its root."""

    device: Device
    first: FakeRegistry
    second: FakeRegistry

    def use(self, *mirrors: str) -> None:
        """Start anew with these mirrors."""
        fake = self.device.fake
        self.device.images.close()
        names = (fake.name, self.first.name, self.second.name)
        settings = Registries(insecure=names, mirrors={fake.name: mirrors})
        self.device.images = self.device.with_settings(settings)

    @property
    def blob(self) -> str:
        """Where the first mirror has the layer."""
        return self.device.blob_path.replace("/v2/", "/v2/hub/")

    @property
    def manifest(self) -> str:
        return self.device.manifest_path.replace("/v2/", "/v2/hub/")

    def arrived(self) -> dict[tuple[str, str], int]:
        """Packed bytes by source and kind; all of them are the registry's, wherever they came from."""
        received = self.device.images.received
        assert {registry for registry, _, _ in received} <= {self.device.fake.name}
        return {(source, kind): count for (_, source, kind), count in received.items() if count}


@pytest.fixture
def mirrored() -> Iterator[Mirrored]:
    path = scratch("mirrors")
    with FakeRegistry() as fake, FakeRegistry() as first, FakeRegistry() as second:
        device = Device(path, fake)
        first.add(device.built)
        second.add(device.built)
        made = Mirrored(device, first, second)
        made.use(f"{first.name}/hub", second.name)
        yield made
        device.images.close()
    remove(path)


def test_the_first_mirror_is_asked_and_nobody_else(mirrored: Mirrored) -> None:
    device = mirrored.device
    device.check_whole(device.pull())
    assert device.fake.requests == mirrored.second.requests == []
    assert {request.path.partition("/app/")[0] for request in mirrored.first.requests} == {"/v2/hub"}
    assert mirrored.arrived() == {("mirror", "full"): len(device.blob)}


@pytest.mark.parametrize(
    "script",
    [status(404), status(401), status(403), status(429), status(500), status(200, body=b"{}")],
    ids=["404", "401", "403", "429", "500", "lies"],
)
def test_where_a_mirror_fails_the_next_one_goes_on(mirrored: Mirrored, script: Script) -> None:
    mirrored.first.scripts["/v2/*"] = script
    device = mirrored.device
    device.check_whole(device.pull())
    assert device.fake.requests == []
    assert mirrored.second.requests


def test_in_the_end_the_registry_itself_is_asked(mirrored: Mirrored) -> None:
    mirrored.first.scripts["/v2/*"] = status(404)
    mirrored.use(f"{mirrored.first.name}/hub", f"127.0.0.1:{free_port()}", "mirror.invalid")
    device = mirrored.device
    device.check_whole(device.pull())
    assert mirrored.arrived() == {("origin", "full"): len(device.blob)}


def test_the_failure_that_is_told_is_the_registrys_with_what_mirrors_said(mirrored: Mirrored) -> None:
    for fake in (mirrored.first, mirrored.second, mirrored.device.fake):
        fake.scripts["/v2/*"] = status(404, body=b'{"errors":[{"message":"no such thing"}]}')
    with pytest.raises(RegistryError) as caught:
        mirrored.device.pull()
    assert str(caught.value).startswith(f"{mirrored.device.fake.name}: ")
    assert f"mirror {mirrored.first.name}: " in caught.value.hint
    assert not caught.value.transient
    mirrored.device.check_untouched()


def test_a_mirror_that_hangs_costs_its_time_once(mirrored: Mirrored) -> None:
    mirrored.first.scripts["/v2/*"] = lambda _, wire: wire.hang()
    device = mirrored.device
    device.check_whole(device.pull())
    assert len(mirrored.first.requests) == 1  # the config and the layer were not asked of it any more


def test_a_mirror_that_breaks_off_is_asked_for_the_rest(mirrored: Mirrored) -> None:
    device = mirrored.device
    script = broken_off(device)
    mirrored.first.scripts[mirrored.blob] = once(script, mirrored.first.answer)
    device.check_whole(device.pull())
    assert [request.headers.get("range") for request in mirrored.first.asked(mirrored.blob)] == [
        None,
        "bytes=100000-",
    ]
    assert device.fake.requests == []


def test_where_a_mirror_ends_for_good_the_next_one_goes_on_from_there(mirrored: Mirrored) -> None:
    device = mirrored.device
    mirrored.first.scripts[mirrored.blob] = once(broken_off(device), status(500))
    device.check_whole(device.pull())
    assert mirrored.second.asked(device.blob_path)[0].headers["range"] == "bytes=100000-"
    mirror = {("mirror", "full"): 100_000, ("mirror", "resumed"): len(device.blob) - 100_000}
    assert mirrored.arrived() == mirror


@pytest.mark.parametrize("part", [100_000, None])
def test_a_mirror_that_lies_is_found_out_and_left_out(mirrored: Mirrored, part: int | None) -> None:
    """Whole, or only for a part that another place completes: the digest of the whole shows it."""
    device = mirrored.device
    mirrored.first.scripts[mirrored.blob] = once(wrong(device, part), status(503))
    device.check_whole(device.pull())
    assert mirrored.second.requests
    # Where both had a part in it nobody can tell who lied, so that neither is asked again.
    assert bool(device.fake.requests) is (part is not None)


def test_where_all_lie_nothing_is_believed(mirrored: Mirrored) -> None:
    device = mirrored.device
    bad = device.blob[:-1] + b"\x55"
    mirrored.first.scripts[mirrored.blob] = status(200, body=bad)
    for fake in (mirrored.second, device.fake):
        fake.scripts[device.blob_path] = status(200, body=bad)
    with pytest.raises(VerificationError, match="digest is"):
        device.pull()
    device.check_untouched()
    for fake in (mirrored.first, mirrored.second, device.fake):
        assert len(fake.asked("/blobs/sha256:" + device.blob_path.rpartition(":")[2])) == 1


def test_a_tag_is_asked_of_mirrors_first_as_with_podman_and_containerd(mirrored: Mirrored) -> None:
    device = mirrored.device
    other = OciLayout(device.path / "other")
    newer = Built(other.path, other.image(device.layers, config={"Env": ["NEWER=1"]}))
    device.fake.add(newer)
    tag = Reference.parse(f"{device.fake.name}/app:{device.built.tag}")
    assert device.images.digest(tag) == device.built.digest
    assert device.fake.requests == []
    for fake in (mirrored.first, mirrored.second):
        fake.scripts["/v2/*"] = status(404)
    assert device.images.digest(tag) == newer.digest


def test_each_mirror_has_credentials_of_its_own(mirrored: Mirrored) -> None:
    device = mirrored.device
    wants_password(mirrored.first)
    document = {
        "auths": {mirrored.first.name: {"auth": packed()}, device.fake.name: {"auth": packed("x", "y")}}
    }
    names = (device.fake.name, mirrored.first.name)
    mirrors = {device.fake.name: (f"{mirrored.first.name}/hub",)}
    authfile(device, document, insecure=names, mirrors=mirrors)
    device.check_whole(device.pull())
    assert device.fake.requests == []
    assert packed("x", "y") not in str(mirrored.first.requests)


# --- when a mirror is left alone --------------------------------------------------------------------------------------


def test_a_mirror_that_fails_rests_longer_each_time_and_one_that_only_lacks_something_does_not() -> None:
    places = Places({"r.example": ("a.example/x", "b.example")})
    a, b, origin = places.of("r.example", "team/app", 0.0)
    assert a == Place("a.example", "x/team/app", "mirror")
    assert b == Place("b.example", "team/app", "mirror")
    assert origin == Place("r.example", "team/app", ORIGIN)
    assert places.of("other.example", "team/app", 0.0) == [Place("other.example", "team/app", ORIGIN)]
    for harmless in (
        RegistryError("r", 404, ""),
        CredentialsError("r", 401, ""),
        RegistryError("r", 403, ""),
    ):
        places.failed(a, harmless, 0.0)
    assert places.of("r.example", "team/app", 0.0) == [a, b, origin]
    now, rests = 0.0, []
    for _ in range(7):
        places.failed(a, UnreachableRegistryError("r", "down"), now)
        rest = next(n for n in range(1, 2000) if a in places.of("r.example", "team/app", now + n))
        assert places.of("r.example", "team/app", now + rest - 1) == [b, origin]
        rests.append(rest)
        now += rest
    assert rests == [30, 60, 120, 240, 480, 600, 600]
    places.worked(a)
    places.failed(a, RegistryError("r", 429, "", retry_after=20), now)
    assert a in places.of("r.example", "team/app", now + 30)
    places.failed(origin, UnreachableRegistryError("r", "down"), now)
    assert places.of("r.example", "team/app", now)[-1] == origin
