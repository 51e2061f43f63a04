"""doctor on what the device's own file names: each file read, each peer asked, and what is wrong said with its name."""

from pathlib import Path

import pytest

from reconciler.config import Device, Peers, Registries, TrustRule
from reconciler.engine.layout import Layout
from reconciler.engine.sources import checks
from reconciler.spec.registries import Certificates
from tests.accounts import packed
from tests.registry import FakeRegistry, certificate, free_port
from tests.signing import Signer

pytestmark = pytest.mark.kernel


def said(tmp_path: Path, device: Device) -> dict[str, tuple[bool | None, str]]:
    found = checks(Layout(tmp_path / "state", tmp_path / "run"), device)
    return {check.name: (check.ok, f"{check.detail}; {check.remedy}") for check in found}


def test_what_is_not_named_is_not_looked_at(tmp_path: Path) -> None:
    assert said(tmp_path, Device()) == {}


def test_what_is_right_is_told(tmp_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_text(f'{{"auths": {{"r.example": {{"auth": "{packed()}"}}}}}}')
    authfile.chmod(0o600)
    cert, key = certificate(tmp_path)[1], tmp_path / "key.pem"
    key.chmod(0o600)
    public = Signer().public(tmp_path / "ci.pub")
    with FakeRegistry() as peer:
        device = Device(
            registries=Registries(
                authfile=str(authfile), ca={"r.example": Certificates(str(cert), str(cert), str(key))}
            ),
            trust=(TrustRule("*", (str(public),)),),
            peers=Peers((peer.name,)),
        )
        found = said(tmp_path, device)
    assert found == {
        "credentials": (True, f"registries.authfile {authfile}: 1 kept; "),
        "certificates": (True, "registries.ca: r.example; "),
        "keys": (True, "trust: 1 that images may be signed by; "),
        "peers": (True, "1 of 1 answer; "),
    }


def test_what_is_wrong_is_named_with_a_remedy_and_is_a_warning(tmp_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_text('{"credsStore": "nobody-has-this"}')
    authfile.chmod(0o600)
    absent = str(tmp_path / "absent.pem")
    peer = f"127.0.0.1:{free_port()}"
    device = Device(
        registries=Registries(authfile=str(authfile), ca={"*": Certificates(absent)}),
        trust=(TrustRule("*", (absent,)),),
        peers=Peers((peer,)),
    )
    found = said(tmp_path, device)
    assert {ok for ok, _ in found.values()} == {None}
    assert "docker-credential-nobody-has-this: not in PATH; install what it names" in found["credentials"][1]
    assert absent in found["certificates"][1]
    assert absent in found["keys"][1]
    assert f"0 of 1 answer; {peer}: GET /v2/: " in found["peers"][1]

    authfile.chmod(0o644)
    assert f"chmod 600 {authfile}" in said(tmp_path, device)["credentials"][1]
    authfile.unlink()
    assert "no such file" in said(tmp_path, device)["credentials"][1]
