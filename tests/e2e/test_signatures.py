"""Signed images, with a whole device around them: a real registry over TLS, bundles, the agent, and what people see.

The keys are the tests' own. cosign's two forms are written by tests/signing.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.world import SLEEPER, Registry
from tests.images import Built, busybox
from tests.registry import DockerRegistry, certificate, push
from tests.signing import Artifact, Signer, by_bundle, by_tag, into_layout
from tests.signing import push as push_signatures

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

NAME = "127.0.0.1:5000/acme/web"  # what a device may ask, to be told that it has nothing
INSECURE = {"insecure": ["127.0.0.1:5000"]}


@pytest.fixture(autouse=True)
def registry(device: Device) -> Registry:
    return Registry(device, device.root / "registry")


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return busybox(tmp_path / "layout", tag="1")


def trusting(device: Device, signer: Signer, **settings: Any) -> Path:
    """Write device.yaml with one rule, for all images; return the key's file."""
    key = signer.public(device.root / "ci.pub")
    mode = settings.pop("mode", "require")
    rules = [{"match": "*", "keys": [str(key)], "mode": mode}]
    device.configure(**{"trust": rules, "registries": INSECURE, **settings})
    return key


def events(device: Device) -> list[str]:
    lines = device.reconciler("events", "-o", "jsonl").stdout.splitlines()
    return [item["message"] for item in map(json.loads, lines) if item["kind"] == "trust"]


def app(device: Device, name: str = "web") -> dict[str, Any]:
    status = json.loads(device.reconciler("status", "-o", "json").stdout)
    return next((item for item in status["items"] if item["name"] == name), {"reason": "", "sync": ""})


def inspected(device: Device, name: str) -> dict[str, Any]:
    found = json.loads(device.reconciler("inspect", name).stdout)[0]["Reconciler"]
    return found if "Signature" not in found else dict(found["Signature"] or {})


def test_an_unsigned_image_is_held_by_name_and_starts_by_itself_once_it_is_signed(
    device: Device, signer: Signer, built: Built
) -> None:
    key = trusting(device, signer, bundles=[str(built.layout)])
    name = reference(built, NAME)
    device.spec("web", SLEEPER.format(image=name))
    device.start()
    device.until(lambda: "not signed" in app(device)["reason"])
    said = app(device)["reason"]
    assert name in said
    assert f"{device.device_yaml}:1:" in said
    assert str(key) in said
    assert "run: reconciler verify" in said
    done = device.reconciler("pull", name, check=False)
    assert done.returncode == 7
    assert "not signed" in done.stderr
    assert not list((device.state / "layers").iterdir())
    refused = device.reconciler("verify", name, check=False)
    assert refused.returncode == 7
    assert "not signed" in refused.stderr
    into_layout(built, by_tag(signer, built.digest))
    device.until(lambda: app(device)["sync"] == "synced")  # by its own next attempt
    assert inspected(device, "web/main")["Signed"] is True
    assert [text.partition(": ")[0] for text in events(device)][-1:] == [
        f"signed by {key} ({signer.fingerprint})"
    ]
    shown = device.reconciler("images", "-o", "wide").stdout.splitlines()
    assert shown[0].split("SIGNED")[0].split()[-1] == "BY"
    assert " yes " in shown[1]
    (image,) = json.loads(device.reconciler("image", "inspect", str(built.digest)).stdout)
    assert image["Reconciler"]["Signatures"][0]["Fingerprint"] == signer.fingerprint
    metrics = device.curl("http://127.0.0.1:9470/metrics")
    assert 'reconciler_image_verify_total{result="missing"}' in metrics
    good = device.reconciler("verify", name)
    assert f"signed by {key}" in good.stdout
    assert signer.fingerprint in good.stdout


def test_a_device_off_the_net_goes_on_and_a_key_that_went_holds_what_is_not_running(
    device: Device, signer: Signer, built: Built
) -> None:
    into_layout(built, by_bundle(signer, built.digest))
    key = trusting(device, signer, bundles=[str(built.layout)])
    device.spec("web", SLEEPER.format(image=reference(built, NAME)))
    device.start()
    device.until(lambda: app(device)["sync"] == "synced")
    pid = json.loads(device.reconciler("inspect", "web/main").stdout)[0]["State"]["Pid"]
    # The stick is pulled out, the agent restarts: the record that was kept is enough
    built.layout.rename(built.layout.with_name("elsewhere"))
    device.stop()
    device.start()
    device.logged("converged", timeout=60)
    assert app(device)["sync"] == "synced"
    # Another key in the file: what runs goes on, and is held from then on
    (device.root / "new").write_bytes(Signer().pem)
    (device.root / "new").rename(key)
    device.reconciler("apply", check=False)
    device.until(lambda: "another key" in app(device)["reason"])
    found = json.loads(device.reconciler("inspect", "web/main").stdout)[0]
    assert found["State"]["Pid"] == pid
    assert found["Reconciler"]["Signature"]["Signed"] is False
    device.reconciler("kill", "web/main", check=False)
    refused = device.reconciler("run", "--pull", "never", "-d", reference(built, NAME), "true", check=False)
    assert refused.returncode != 0
    assert "another key" in refused.stderr
    (device.root / "new").write_bytes(signer.pem)
    (device.root / "new").rename(key)
    device.reconciler("apply", check=False)
    device.until(lambda: app(device)["sync"] == "synced" and app(device)["health"] == "healthy")


def test_a_rule_that_warns_uses_the_image_and_says_so_once(
    device: Device, signer: Signer, built: Built
) -> None:
    trusting(device, signer, mode="warn", bundles=[str(built.layout)])
    path = device.spec("web", SLEEPER.format(image=reference(built, NAME)))
    planned = device.reconciler("plan", str(device.specs))
    assert "warning" in planned.stderr
    assert "not signed" in planned.stderr
    device.start()
    device.until(lambda: app(device)["sync"] == "synced")
    status = json.loads(device.reconciler("status", "-o", "json").stdout)
    (problem,) = [one for one in status["problems"] if "not signed" in one["message"]]
    assert (problem["severity"], problem["line"]) == ("warning", 7)
    assert problem["file"].endswith(path.name)
    device.reconciler("apply")
    device.until(lambda: app(device)["sync"] == "synced")
    assert len([text for text in events(device) if "not signed" in text]) == 1
    assert device.log.read_text().count("used all the same") == 1
    assert inspected(device, "web/main")["Signed"] is False
    by_hand = device.reconciler("run", "--rm", reference(built, NAME), "true")
    assert "not signed" in by_hand.stderr
    assert "used all the same" in by_hand.stderr


def test_a_bundle_carries_signatures_to_a_device_that_asks_for_them(
    device: Device, signer: Signer, built: Built
) -> None:
    name = reference(built, NAME)
    bare, signed = device.root / "bare.tar", device.root / "signed.tar"
    device.configure(bundles=[str(built.layout)])
    device.reconciler("bundle", "create", name, "-o", str(bare))
    into_layout(built, by_tag(signer, built.digest), by_bundle(signer, built.digest))
    told = device.reconciler("bundle", "create", name, "-o", str(signed))
    assert "1 image with 2 signatures" in told.stderr
    key = trusting(device, signer, gc={"keep_blobs": "used"})
    device.spec("web", SLEEPER.format(image=name))
    device.start()
    device.until(lambda: app(device)["reason"])
    for verb in (("bundle", "ingest", str(bare)), ("load", "-i", str(bare))):
        done = device.reconciler(*verb, check=False)
        assert done.returncode == 7, done.stderr
        assert "not signed" in done.stderr
        assert f"signature by {key}" in done.stderr
    assert not list((device.state / "layers").iterdir())
    device.reconciler("bundle", "ingest", str(signed))
    device.until(lambda: app(device)["sync"] == "synced")
    # And what is here, and signed, leaves with its signature
    saved = device.root / "saved.tar"
    done = device.reconciler("save", "-o", str(saved), name)
    assert "anew" not in done.stderr
    other = ("--state", str(device.root / "other"), "--run", str(device.root / "run2"))
    loaded = device.reconciler("load", "-i", str(saved), "-o", "json", *other)
    assert [item["digest"] for item in json.loads(loaded.stdout)["items"]] == [str(built.digest)]


def test_by_hand_with_a_key_outside_the_rules(device: Device, signer: Signer, built: Built) -> None:
    into_layout(built, by_tag(signer, built.digest))
    own, other = signer.public(device.root / "own.pub"), Signer().public(device.root / "other.pub")
    device.configure(bundles=[str(built.layout)])
    name = reference(built, NAME)
    none = device.reconciler("verify", name, check=False)
    assert none.returncode == 8
    assert "--key FILE" in none.stderr
    good = device.reconciler("verify", "-o", "json", "--key", str(other), "--key", str(own), name)
    document = json.loads(good.stdout)
    assert (document["signed"], document["key"], document["form"]) == (True, str(own), "tag")
    bad = device.reconciler("verify", "--key", str(other), name, check=False)
    assert (bad.returncode, bad.stdout) == (7, "")
    assert "signed by another key" in bad.stderr
    alone = device.reconciler("verify", "--key", str(own), "--bundle", str(built.layout), "1")
    assert f"found at {built.layout}" in alone.stdout
    broken = device.reconciler("verify", "--key", str(device.device_yaml), name, check=False)
    assert broken.returncode == 64
    assert "expected one: BEGIN PUBLIC KEY" in broken.stderr
    assert not (device.state / "signatures").exists()  # of an image that is not here nothing is kept


@pytest.mark.parametrize("make", [by_tag, by_bundle])
def test_a_real_registry_over_tls_has_the_signature(
    device: Device,
    signer: Signer,
    built: Built,
    tmp_path: Path,
    make: Callable[[Signer, Any], Artifact],
) -> None:
    (tmp_path / "tls").mkdir()
    _, authority = certificate(tmp_path / "tls")
    storage = tmp_path / "registry"
    with DockerRegistry(storage) as plain:
        push(plain.name, built, "acme/web")
    tls = f", tls: {{certificate: {authority}, key: {tmp_path}/tls/key.pem}}"
    name = f"127.0.0.1:5443/acme/web:1@{built.digest}"
    config = tmp_path / "secure.yml"
    config.write_text(
        (storage / f"config-{plain.name.rpartition(':')[2]}.yml")
        .read_text()
        .replace(f'addr: "{plain.name}"', f'addr: "127.0.0.1:5443"{tls}')
    )
    device.spawn(["docker-registry", "serve", str(config)])
    ca = {"127.0.0.1:5443": str(authority)}
    trusting(device, signer, registries={"ca": ca})
    device.until(lambda: "not signed" in device.reconciler("pull", name, check=False).stderr)
    with DockerRegistry(storage) as plain:
        push_signatures(plain.name, "acme/web", make(signer, built.digest))
    assert device.reconciler("pull", name).stdout.strip() == str(built.digest)
    document = json.loads(device.reconciler("verify", "-o", "json", name).stdout)
    assert document["signed"] is True
