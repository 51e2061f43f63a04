"""The gate by itself: which rule counts, what is kept and for how long it holds, what is told, and what is loaded."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reconciler.config import TrustRule
from reconciler.engine.document import Object
from reconciler.engine.layout import Layout
from reconciler.engine.trust.carry import carried
from reconciler.engine.trust.claim import Form, Material
from reconciler.engine.trust.gate import Standing, Trust, UntrustedImageError, Verdict
from reconciler.engine.trust.record import Kept, Records, Voucher
from reconciler.engine.trust.shelf import Shelf
from reconciler.errors import NotFoundError
from reconciler.spec.reference import Digest, Reference
from tests.images import sha256
from tests.signing import Artifact, Signer, by_bundle, by_tag, payload

CONTENT = b'{"schemaVersion": 2}'
DIGEST = sha256(CONTENT)
WEB = Reference.parse(f"r.lan/web@{DIGEST}")


@dataclass
class Memory:
    """A shelf in memory."""

    found: Sequence[Artifact] = ()
    name: str = "a shelf"
    asked: list[str] = field(default_factory=list)

    def tagged(self, tag: str) -> Iterator[bytes]:
        self.asked.append(tag)
        return (one.manifest for one in self.found if one.tag == tag)

    def referring(self, digest: Digest) -> Iterator[Object]:
        return (Object("entry", one.entry) for one in self.found if one.about == digest)

    def manifest(self, digest: Digest) -> bytes:
        return next(one.manifest for one in self.found if sha256(one.manifest) == digest)

    def blob(self, digest: Digest, limit: int) -> bytes:
        for one in self.found:
            if str(digest) in one.blobs:
                return one.blobs[str(digest)]
        raise NotFoundError("gone")


@dataclass
class Gate:
    path: Path
    signer: Signer = field(default_factory=Signer)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout(self.path / "state", self.path / "run")
        self.layout.state.mkdir()
        self.key = self.signer.public(self.path / "ci.pub")
        self.rules = [TrustRule("r.lan", (str(self.key),), place="device.yaml:2:5")]

    def trust(self) -> Trust:
        made = Trust(self.rules, Records(self.layout))
        made.listener = lambda reference, text: self.told.append(text)
        return made


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def admit(trust: Trust, *shelves: Shelf, reference: Reference = WEB, keep: bool = True) -> Verdict:
    return trust.admit(reference, lambda: CONTENT, lambda: shelves, keep=keep)


def test_without_a_rule_about_it_nobody_is_asked(gate: Gate) -> None:
    shelf, trust = Memory(), gate.trust()
    other = Reference.parse(f"other.lan/web@{DIGEST}")
    assert trust.standing(other) is Standing.ADMITTED
    assert admit(trust, shelf, reference=other) == Verdict()
    assert shelf.asked == []
    assert Trust((), Records(gate.layout)).stamp() == ()


def test_the_first_rule_counts(gate: Gate) -> None:
    stranger = Signer().public(gate.path / "other.pub")
    gate.rules = [TrustRule("r.lan/*", (str(stranger),), required=False), *gate.rules]
    trust = gate.trust()
    assert "signed by another key" in admit(trust, Memory([by_tag(gate.signer, DIGEST)])).problem
    gate.rules.reverse()
    assert admit(gate.trust(), Memory([by_tag(gate.signer, DIGEST)])).key == str(gate.key)


def test_what_is_not_to_be_kept_is_known_to_this_process_alone(gate: Gate) -> None:
    trust, shelf = gate.trust(), Memory([by_tag(gate.signer, DIGEST)])
    assert trust.standing(WEB) is Standing.HELD
    admit(trust, shelf, keep=False)
    assert trust.standing(WEB) is Standing.ADMITTED
    assert gate.trust().standing(WEB) is Standing.HELD
    assert not gate.layout.signatures.exists()


def test_a_disk_that_takes_no_record_changes_no_answer(gate: Gate) -> None:
    gate.layout.signatures.write_text("in the way")
    trust = gate.trust()
    assert admit(trust, Memory([by_bundle(gate.signer, DIGEST)])).voucher is not None
    assert trust.standing(WEB) is Standing.ADMITTED


def test_the_same_answer_is_told_once(gate: Gate) -> None:
    trust = gate.trust()
    for _ in range(3):
        with pytest.raises(UntrustedImageError):
            admit(trust, Memory())
    admit(trust, Memory([by_tag(gate.signer, DIGEST)]))
    assert [text.partition(" ")[0] for text in gate.told] == ["image", "signed"]
    assert trust.results == {"missing": 3, "ok": 1}


def test_a_key_that_leaves_its_rule_no_longer_vouches(gate: Gate) -> None:
    admit(gate.trust(), Memory([by_tag(gate.signer, DIGEST)]))
    other = Signer().public(gate.path / "other.pub")
    gate.rules = [TrustRule("r.lan", (str(other),))]
    trust = gate.trust()
    assert trust.standing(WEB) is Standing.HELD
    with pytest.raises(UntrustedImageError, match="signed by another key"):
        admit(trust)
    assert trust.verdict(WEB).voucher is None


def test_the_stamp_tells_of_keys_and_of_what_is_kept(gate: Gate) -> None:
    trust = gate.trust()
    before = trust.stamp()
    assert trust.stamp() == before
    admit(trust, Memory([by_tag(gate.signer, DIGEST)]))
    after = trust.stamp()
    assert after != before
    gate.key.unlink()
    assert trust.stamp() != after


def test_what_came_with_an_image_is_kept_without_being_believed(gate: Gate) -> None:
    trust = gate.trust()
    other = by_tag(gate.signer, sha256(b"another"))
    trust.collect(DIGEST, lambda: CONTENT, lambda: [Memory([other, by_tag(gate.signer, DIGEST)])])
    assert len(Records(gate.layout).read(DIGEST).materials) == 1
    assert trust.standing(WEB) is Standing.HELD
    assert admit(trust).voucher is not None  # off the net


def test_what_is_carried_away_is_found_again(gate: Gate) -> None:
    found = Memory([by_tag(gate.signer, DIGEST), by_bundle(gate.signer, DIGEST)])
    from reconciler.engine.trust.gather import Search, gather

    materials = list(gather(found, DIGEST, Search()))
    assert [one.form for one in materials] == [Form.TAG, Form.BUNDLE]
    image = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(DIGEST), "size": 20}
    entries, blobs = carried(materials, DIGEST, image)
    again = [
        Artifact(
            blobs[Digest.parse(entry["digest"])],
            {str(digest): data for digest, data in blobs.items()},
            tag=entry.get("annotations", {}).get("org.opencontainers.image.ref.name", ""),
            about=DIGEST if "artifactType" in entry else None,
        )
        for entry in entries
    ]
    assert list(gather(Memory(again), DIGEST, Search())) == materials


def test_only_so_much_is_kept_and_the_voucher_first() -> None:
    large = [Material(Form.BUNDLE, bytes([n]) * (100 << 10)) for n in range(20)]
    kept = Kept().with_material(*large)
    assert sum(len(one.data) for one in kept.materials) <= 512 << 10
    good = Material(Form.TAG, payload(DIGEST), "YQ==")
    assert kept.with_material(good).materials[0] == good
    for n in range(100):
        kept = kept.with_voucher(Voucher(f"SHA256:{n % 40}", Form.TAG, "x", n))
    assert len(kept.vouchers) <= 17
    assert kept.vouchers[-1].key == "SHA256:19"


def test_an_agent_with_nothing_to_verify_loads_no_cryptography() -> None:
    script = (
        "import sys, reconciler.agent.loop, reconciler.agent.parts, reconciler.agent.telemetry\n"
        "import reconciler.engine.trust.verify, reconciler.agent.loading, reconciler.agent.verifying\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
