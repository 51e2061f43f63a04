"""Signatures of strangers: class V1. Whatever a registry says, nothing is unpacked that no key of the rule has signed.

Both forms, at registries, mirrors and in layouts; the keys are made here. After a refusal no layer was asked for.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from reconciler.config import Registries, TrustRule
from reconciler.engine.image import OCI_INDEX, OCI_MANIFEST
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.trust.gate import Standing, UntrustedImageError
from reconciler.spec.reference import Digest, Reference
from tests.hostile.test_registry_behaviour import QUICK, Device, redirect, status
from tests.images import ARCHITECTURE, Built, sha256
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry
from tests.signing import (
    SIMPLE_SIGNING,
    Artifact,
    Signer,
    b64,
    bundle,
    by_bundle,
    by_tag,
    envelope,
    into_layout,
    message,
    payload,
    referrers,
    referring,
    serve,
    statement,
    tagged,
)

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

OTHER = sha256(b"another image")


class Guarded(Device):
    """A device with a rule about its registry, and the key that the rule names."""

    def __init__(self, path: Path, fake: FakeRegistry) -> None:
        self.signer, self.required, self.offline = Signer(), True, False
        self.bundles: tuple[Path, ...] = ()
        self.mirrors: dict[str, tuple[str, ...]] = {}
        self.keys = [self.signer.public(path / "ci.pub")]
        super().__init__(path, fake)

    def client(self, *, insecure: bool = True, ca: Path | None = None) -> Images:
        rule = TrustRule(
            self.fake.name, tuple(map(str, self.keys)), required=self.required, place="device.yaml:2:5"
        )
        names = (self.fake.name, *(name for names in self.mirrors.values() for name in names))
        return Images(
            self.store,
            self.layout,
            registry=Registry(Registries(insecure=names, mirrors=self.mirrors), patience=QUICK),
            bundles=self.bundles,
            offline=self.offline,
            platform=host_platform(),
            limits=Limits(reserve=0),
            trust=[rule],
        )

    def again(self, **change: Any) -> None:
        """Start anew, with other settings."""
        self.images.close()
        for name, value in change.items():
            setattr(self, name, value)
        self.images = self.client()

    @property
    def digest(self) -> Digest:
        return self.built.digest

    def serve(self, *found: Artifact, api: bool = True) -> None:
        serve(self.fake, "app", *found, api=api)

    def refused(self, said: str) -> UntrustedImageError:
        """Assert that a pull is refused, with these words, and that nothing of the image came here."""
        with pytest.raises(UntrustedImageError, match=said) as error:
            self.pull()
        text = str(error.value)
        assert str(self.reference) in text
        assert "device.yaml:2:5 asks for a signature by" in text
        assert str(self.keys[0]) in text
        assert error.value.hint == f"run: reconciler verify {self.reference}"
        self.check_untouched()
        assert os.listdir(self.layout.resolved) == []
        assert self.fake.asked(self.blob_path) == []
        return error.value


@pytest.fixture
def device() -> Iterator[Guarded]:
    path = scratch("signatures")
    with FakeRegistry() as fake:
        made = Guarded(path, fake)
        yield made
        made.images.close()
    remove(path)


# --- good ones ------------------------------------------------------------------------------------------------------


def test_v1_a_signature_under_its_tag_lets_the_image_in_and_stays_with_it(device: Guarded) -> None:
    device.serve(by_tag(device.signer, device.digest))
    device.check_whole(device.pull())
    verdict = device.images.trust.verdict(device.reference).document()
    assert verdict["fingerprint"] == device.signer.fingerprint
    assert (verdict["signed"], verdict["form"], verdict["key"]) == (True, "tag", str(device.keys[0]))
    assert verdict["source"] == f"{device.fake.name}/app"
    # Off the net, and after a restart: what was verified is known, without anybody being asked
    asked = len(device.fake.requests)
    device.again(offline=True)
    assert device.images.trust.standing(device.reference) is Standing.ADMITTED
    device.check_whole(device.pull())
    assert len(device.fake.requests) == asked


@pytest.mark.parametrize("how", ["listed", "under the tag for that", "under that tag, without annotations"])
def test_v1_a_bundle_that_refers_to_the_image_lets_it_in(device: Guarded, how: str) -> None:
    found = by_bundle(device.signer, device.digest)
    if how.endswith("annotations"):
        found = replace(found, annotations={})
    device.serve(found, api=how == "listed")
    device.check_whole(device.pull())
    assert device.images.trust.verdict(device.reference).document()["form"] == "bundle"


def test_v1_a_message_signature_over_the_images_manifest_counts(device: Guarded) -> None:
    content = device.fake.manifests[str(device.digest)][1]
    device.serve(referring(device.digest, bundle(messageSignature=message(device.signer, content))))
    device.check_whole(device.pull())


def test_v1_among_signatures_of_others_one_is_found_and_the_newest_are_looked_at_first(
    device: Guarded,
) -> None:
    data = payload(device.digest)
    others = [(data, b64(Signer().sign(data))) for _ in range(4)] + [(b"{", "!!"), (payload(OTHER), "YQ==")]
    device.serve(tagged(device.digest, [*others, (data, b64(device.signer.sign(data)))]))
    device.check_whole(device.pull())


def test_v1_any_key_of_the_rule_will_do(device: Guarded) -> None:
    second = Signer(rsa.generate_private_key(65537, 2048))
    device.again(keys=[*device.keys, second.public(device.path / "release.pub")])
    device.serve(by_bundle(second, device.digest))
    device.check_whole(device.pull())
    assert device.images.trust.verdict(device.reference).key == str(device.keys[1])


@pytest.mark.parametrize("make", [by_tag, by_bundle])
def test_v1_a_signature_on_the_pinned_index_is_what_counts(
    device: Guarded, make: Callable[[Signer, Digest], Artifact]
) -> None:
    """cosign signs the digest that it is given: of an index, unless it is told to go on to what is in it."""
    inner = device.fake.manifests[str(device.digest)][1]
    described = {"mediaType": OCI_MANIFEST, "digest": str(device.digest), "size": len(inner)}
    platform = {"os": "linux", "architecture": ARCHITECTURE}
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**described, "platform": platform}]}
    ).encode()
    device.fake.manifests[str(sha256(index))] = OCI_INDEX, index
    of_manifest = device.reference
    device.reference = Reference.parse(f"{device.fake.name}/app@{sha256(index)}")
    device.serve(make(device.signer, device.digest))
    device.refused("not signed")  # a signature on the manifest alone says nothing about the index
    device.serve(make(device.signer, sha256(index)))
    device.check_whole(device.pull())
    # The manifest by its own digest is another question; its own signature answers it
    device.images.resolve(of_manifest)


# --- refused --------------------------------------------------------------------------------------------------------


def _signed(device: Guarded, data: bytes) -> Artifact:
    return tagged(device.digest, [(data, b64(device.signer.sign(data)))])


def _envelope(device: Guarded, data: bytes, **change: Any) -> Artifact:
    return referring(device.digest, bundle(dsseEnvelope=envelope(device.signer, data) | change))


def _moved(device: Guarded) -> Artifact:
    """A good signature of another image, under this one's tag."""
    return replace(by_tag(device.signer, OTHER), tag=by_tag(device.signer, device.digest).tag)


def _rsa(device: Guarded) -> Artifact:
    other = Signer(rsa.generate_private_key(65537, 2048), pss=True)
    other.public(device.keys[0])
    return by_tag(other, device.digest)


REFUSED: dict[str, tuple[Callable[[Guarded], Artifact | None], str]] = {
    "nothing": (lambda d: None, "not signed"),
    "another key": (lambda d: by_tag(Signer(), d.digest), "signed by another key"),
    "another key's bundle": (lambda d: by_bundle(Signer(), d.digest), "signed by another key"),
    "another image": (_moved, "signs 'sha256:"),
    "another image's bundle": (
        lambda d: referring(d.digest, bundle(dsseEnvelope=envelope(d.signer, statement(OTHER)))),
        "signs '",
    ),
    "a bundle about another image": (
        lambda d: referring(
            d.digest, bundle(dsseEnvelope=envelope(d.signer, statement(d.digest))), subject=OTHER
        ),
        "not signed",
    ),
    "a signature cut off": (
        lambda d: tagged(d.digest, [(payload(d.digest), b64(d.signer.sign(payload(d.digest)))[:-5])]),
        "not base64",
    ),
    "a key twice": (
        lambda d: _signed(d, payload(d.digest)[:-1] + b',"optional":1}'),
        "appears twice",
    ),
    "a certificate": (
        lambda d: tagged(
            d.digest,
            [(payload(d.digest), b64(d.signer.sign(payload(d.digest))))],
            **{"dev.sigstore.cosign/certificate": "x"},
        ),
        "keyless",
    ),
    "an SBOM by the right key": (
        lambda d: _envelope(d, statement(d.digest, predicateType="https://spdx.dev/Document")),
        "predicateType is",
    ),
    "a payload signed as it is, not as an envelope": (
        lambda d: _envelope(
            d, statement(d.digest), signatures=[{"sig": b64(d.signer.sign(statement(d.digest)))}]
        ),
        "signed by another key",
    ),
    "RSA with PSS": (_rsa, "signed by another key"),
    "a payload of 100 kB": (lambda d: _signed(d, payload(d.digest) + b" " * 100_000), "more than 65536"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("api", [True, False], ids=["api", "tag"])
def test_v1_what_does_not_sign_the_image_is_refused_and_named(device: Guarded, name: str, api: bool) -> None:
    make, said = REFUSED[name]
    made = make(device)
    if made is not None:
        device.serve(made, api=api)
    error = device.refused(said)
    assert not error.transient
    counted = dict(device.images.trust.results)
    assert counted in ({"missing": 1}, {"bad": 1})
    assert ("missing" in counted) is (said == "not signed")


def tag_path(device: Guarded) -> str:
    return f"/v2/app/manifests/{by_tag(device.signer, device.digest).tag}"


LIES: dict[str, tuple[Callable[[Guarded], Any], str, bool]] = {
    "500": (lambda d: status(500), "500", True),
    "429": (lambda d: status(429), "429", True),
    "403": (lambda d: status(403), "403", False),
    "no JSON": (lambda d: status(200, body=b"<html>"), "not a valid JSON", False),
    "5 MiB": (lambda d: status(200, body=b" " * (5 << 20)), "longer than", False),
    "a redirect inwards": (lambda d: redirect("http://10.0.0.1/"), "10.0.0.1", False),
    "a redirect to another scheme": (lambda d: redirect("file:///etc/passwd"), "refused", False),
    "10^5 signatures": (lambda d: status(200, body=_many(100_000)), "members|longer than", False),
}


def _many(count: int) -> bytes:
    layer = {
        "mediaType": SIMPLE_SIGNING,
        "digest": str(OTHER),
        "size": 3,
        "annotations": {"dev.cosignproject.cosign/signature": "YQ=="},
    }
    one = json.dumps(layer)
    return b'{"schemaVersion": 2, "layers": [' + ",".join([one] * count).encode() + b"]}"


@pytest.mark.parametrize("name", LIES)
def test_v1_a_registry_that_does_not_answer_as_it_should_is_no_reason_to_let_the_image_in(
    device: Guarded, name: str
) -> None:
    script, said, transient = LIES[name]
    device.fake.scripts[tag_path(device)] = script(device)
    assert device.refused(said).transient is transient
    # What the other form says counts all the same
    device.serve(by_bundle(device.signer, device.digest))
    device.check_whole(device.pull())


def test_v1_of_many_signatures_the_last_are_looked_at_and_no_more(device: Guarded) -> None:
    data = payload(device.digest)
    found = tagged(device.digest, [(data, b64(device.signer.sign(data)))] + [(b"{}", "YQ==")] * 500)
    device.serve(found)
    device.refused("501 signatures, of which the last 32 were looked at")
    assert len(device.fake.asked("/blobs/")) <= 34


def test_v1_blobs_and_manifests_of_signatures_are_what_their_digests_say(device: Guarded) -> None:
    good = by_tag(device.signer, device.digest)
    name = str(sha256(payload(device.digest)))
    device.serve(good)
    device.fake.blobs[name] = payload(device.digest) + b" "
    device.refused("digest is")
    refers = by_bundle(device.signer, device.digest)
    device.fake.manifests.clear()
    device.fake.add(device.built)
    device.serve(refers)
    device.fake.manifests[str(sha256(refers.manifest))] = OCI_MANIFEST, refers.manifest + b" "
    device.again()
    device.refused("digest is")


def test_v1_pages_of_a_list_are_followed_in_the_repository_only_and_not_for_ever(device: Guarded) -> None:
    good = by_bundle(device.signer, device.digest)
    device.serve(good)
    path = f"/v2/app/referrers/{device.digest}"
    asked: list[str] = []

    def page(request: Any, wire: Any) -> None:
        asked.append(request.path)
        where = f'<{path}?last={len(asked)}>; rel="next"'
        wire.respond(200, referrers([]), {"Content-Type": OCI_INDEX, "Link": where})

    device.fake.scripts[path] = page
    device.refused("not signed")
    assert len(asked) == 4
    device.fake.scripts[path] = status(
        200,
        {"Content-Type": OCI_INDEX, "Link": "<http://evil.example/v2/x/referrers/y?z>; rel=next"},
        referrers([]),
    )
    device.again()
    device.refused("not signed")
    last = [(referrers([]), f'<{path}?last=1>; rel="next"'), (referrers([good]), "")]

    def two(request: Any, wire: Any) -> None:
        data, link = last["last=" in request.path]
        wire.respond(200, data, {"Content-Type": OCI_INDEX, **({"Link": link} if link else {})})

    device.fake.scripts[path] = two
    device.check_whole(device.pull())


# --- keys -----------------------------------------------------------------------------------------------------------


def test_v1_a_key_that_was_taken_away_no_longer_vouches_and_another_is_found_offline(device: Guarded) -> None:
    """Both signatures are kept with the image, so that the second key can vouch without a registry."""
    second = Signer()
    data = payload(device.digest)
    device.serve(tagged(device.digest, [(data, b64(one.sign(data))) for one in (second, device.signer)]))
    path = device.keys[0]
    device.pull()
    second.public(device.path / "next")
    (device.path / "next").rename(path)
    assert device.images.trust.standing(device.reference) is Standing.HELD
    device.pull()  # asks the registry, and finds the other one
    assert device.images.trust.standing(device.reference) is Standing.ADMITTED
    device.again(offline=True)
    device.signer.public(device.path / "next")
    (device.path / "next").rename(path)
    device.pull()
    assert (
        device.images.trust.verdict(device.reference).document()["fingerprint"] == device.signer.fingerprint
    )
    path.unlink()
    with pytest.raises(UntrustedImageError, match="no such file"):
        device.pull()
    Signer().public(path)
    with pytest.raises(UntrustedImageError, match="this device: signed by another key"):
        device.pull()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 10_000, None])
def test_v1_a_damaged_record_is_no_voucher(device: Guarded, damage: bytes | None) -> None:
    device.serve(by_tag(device.signer, device.digest))
    device.pull()
    path = device.layout.signature(device.digest)
    if damage is None:  # somebody else's, whole
        data = json.loads(path.read_bytes())
        data["digest"] = str(OTHER)
        damage = json.dumps(data).encode()
    path.write_bytes(damage)
    device.again(offline=True)
    assert device.images.trust.standing(device.reference) is Standing.HELD
    with pytest.raises(UntrustedImageError, match="not signed"):
        device.pull()
    device.again(offline=False)
    device.pull()
    assert device.images.trust.standing(device.reference) is Standing.ADMITTED


# --- warn, mirrors, layouts -----------------------------------------------------------------------------------------


def test_v1_where_a_rule_only_warns_the_image_is_used_and_nobody_is_asked_again(device: Guarded) -> None:
    device.again(required=False)
    device.fake.scripts[tag_path(device)] = status(500)
    device.check_whole(device.pull())
    verdict = device.images.trust.verdict(device.reference)
    assert "500" in verdict.problem
    asked = len(device.fake.asked("referrers"))
    device.pull()
    assert len(device.fake.asked("referrers")) == asked
    del device.fake.scripts[tag_path(device)]
    device.serve(by_tag(device.signer, device.digest))
    device.images.trust.forget()
    device.pull()
    assert device.images.trust.verdict(device.reference).problem == ""


def test_v1_a_mirror_without_the_signature_or_with_a_wrong_one_does_not_stand_in_its_way(
    device: Guarded,
) -> None:
    with FakeRegistry() as mirror:
        mirror.add(device.built)
        serve(mirror, "app", by_tag(Signer(), device.digest))
        device.again(mirrors={device.fake.name: (mirror.name,)})
        device.refused(f"{mirror.name}/app: signed by another key")
        device.serve(by_tag(device.signer, device.digest))
        device.check_whole(device.pull())
        assert device.images.trust.verdict(device.reference).document()["source"] == f"{device.fake.name}/app"
        serve(mirror, "app", by_tag(device.signer, device.digest))


def test_v1_a_signature_at_a_mirror_alone_counts(device: Guarded) -> None:
    with FakeRegistry() as mirror:
        mirror.add(device.built)
        serve(mirror, "app", by_bundle(device.signer, device.digest), api=False)
        device.again(mirrors={device.fake.name: (mirror.name,)})
        device.check_whole(device.pull())


@pytest.mark.parametrize("make", [by_tag, by_bundle])
def test_v1_a_layout_carries_its_signatures(
    device: Guarded, make: Callable[[Signer, Digest], Artifact]
) -> None:
    layout: Built = device.built
    device.again(offline=True, bundles=(layout.layout,))
    with pytest.raises(UntrustedImageError, match="not signed"):
        device.pull()
    into_layout(layout, make(Signer(), OTHER), make(device.signer, device.digest))
    device.check_whole(device.pull())
    assert device.images.trust.verdict(device.reference).document()["source"] == str(layout.layout)
    assert device.fake.requests == []


def test_v1_a_layout_that_lies_about_its_signature_is_refused(device: Guarded) -> None:
    found = by_tag(device.signer, device.digest)
    into_layout(device.built, found)
    name = sha256(payload(device.digest)).hex
    (device.built.layout / "blobs" / "sha256" / name).write_bytes(payload(device.digest) + b" ")
    device.again(offline=True, bundles=(device.built.layout,))
    with pytest.raises(UntrustedImageError, match="digest is"):
        device.pull()
    device.check_untouched()
