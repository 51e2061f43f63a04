"""Credentials: who gets them, from where they come, and that they are seen nowhere else (rows G3, G4, G12)."""

import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.config import Registries
from reconciler.engine.registry import keyring, program
from reconciler.engine.registry.credentials import Password
from reconciler.engine.registry.errors import CredentialsError, KeyringError, RefusedError, RegistryError
from reconciler.engine.registry.keyring import Keyring
from reconciler.engine.registry.session import Session
from reconciler.spec.registries import ANY, Certificates
from tests.accounts import IDENTITY, SECRET, USER, TokenServer, basic, packed, wants_password
from tests.hostile.test_registry_behaviour import Device, broken_off, once, redirect, status
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, certificate

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@pytest.fixture
def device() -> Iterator[Device]:
    path = scratch("credentials")
    with FakeRegistry() as fake:
        made = Device(path, fake)
        yield made
        made.images.close()
    remove(path)


def authfile(device: Device, document: object, *, mode: int = 0o600, **settings: object) -> None:
    """Write the file that device.yaml names, and start anew with it."""
    path = device.path / "auth.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    device.images.close()
    given = {"insecure": (device.fake.name,), "authfile": str(path), **settings}
    device.images = device.with_settings(Registries(**given))  # type: ignore[arg-type]


def account(device: Device, name: str = "", **entry: str) -> dict[str, object]:
    return {"auths": {name or device.fake.name: entry or {"auth": packed()}}}


def refusal(device: Device) -> RegistryError:
    """What a pull fails with; it never tells a secret, and nothing is left of it."""
    with pytest.raises(RegistryError) as caught:
        device.pull()
    told = f"{caught.value} {caught.value.hint}"
    for secret in (SECRET, packed(), IDENTITY):
        assert secret not in told
    device.check_untouched()
    return caught.value


# --- both ways of authentication --------------------------------------------------------------------------------------


def test_a_private_image_is_pulled_with_a_password(device: Device) -> None:
    wants_password(device.fake)
    authfile(device, account(device))
    device.check_whole(device.pull())
    first, *others = device.fake.requests
    assert "authorization" not in first.headers  # nobody is told before he asks
    assert {request.headers.get("authorization") for request in others} == {basic()}


def test_a_private_image_is_pulled_with_a_token(device: Device) -> None:
    server = TokenServer(device.fake)
    authfile(device, account(device))
    device.check_whole(device.pull())
    assert server.asked == [
        {"service": "registry.test", "scope": "repository:app:pull", "account": USER},
    ]
    for request in device.fake.asked("/v2/"):
        assert packed() not in request.headers.get("authorization", "")


def test_an_identity_token_is_exchanged_by_post(device: Device) -> None:
    server = TokenServer(device.fake)
    authfile(device, account(device, identitytoken=IDENTITY))
    device.check_whole(device.pull())
    assert [query["grant_type"] for query in server.asked] == ["refresh_token"]
    assert server.asked[0]["scope"] == "repository:app:pull"
    assert not any(IDENTITY in request.path for request in device.fake.requests)


def test_a_registry_token_is_sent_to_the_registry_itself(device: Device) -> None:
    wants_password(device.fake, "Bearer a-token-of-the-registry")
    authfile(device, account(device, registrytoken="a-token-of-the-registry"))
    device.check_whole(device.pull())


@pytest.mark.parametrize("uses", [1, 2])
def test_a_token_that_ends_in_the_middle_of_a_pull_is_renewed(device: Device, uses: int) -> None:
    server = TokenServer(device.fake, uses=uses)
    authfile(device, account(device))
    guarded = device.fake.scripts["/v2/*"]

    def breaking(request: object, wire: object) -> None:
        """Breaks off a transfer that is allowed, so that the rest of it needs a token again."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")  # type: ignore[attr-defined]
        if server.tokens.get(token, ("", 0))[1] > 0:
            server.tokens[token] = "", 0
            broken_off(device)(request, wire)  # type: ignore[arg-type]
        guarded(request, wire)  # type: ignore[arg-type]

    device.fake.scripts[device.blob_path] = once(guarded, once(breaking, guarded))
    device.check_whole(device.pull())
    assert len(server.asked) >= 2


def test_credentials_that_are_refused_are_sent_once(device: Device) -> None:
    wants_password(device.fake, basic("somebody", "else"))
    authfile(device, account(device))
    error = refusal(device)
    assert isinstance(error, CredentialsError)
    assert "registries.authfile" in f"{error} {error.hint}"
    assert len(device.fake.requests) == 2


def test_a_token_server_that_refuses_is_told_with_the_source_of_the_credentials(device: Device) -> None:
    server = TokenServer(device.fake)
    authfile(device, account(device, auth=packed(secret="wrong-Password")))
    error = refusal(device)
    assert "no token for the credentials of registries.authfile" in str(error)
    assert "wrong-Password" not in str(error)
    assert len(server.asked) == 1


def test_without_an_account_the_way_to_one_is_named(device: Device) -> None:
    for wants in (wants_password, TokenServer):
        wants(device.fake)
        assert f"reconciler login {device.fake.name}" in refusal(device).hint


# --- who gets them ----------------------------------------------------------------------------------------------------


def test_g3_a_password_is_not_sent_where_a_registry_redirects_to(device: Device) -> None:
    wants_password(device.fake)
    authfile(device, account(device))
    with FakeRegistry() as other:
        other.blobs.update(device.fake.blobs)
        device.fake.scripts[device.blob_path] = redirect(f"{other.url}{device.blob_path}")
        device.check_whole(device.pull())
        assert other.requests
        assert not any("authorization" in request.headers for request in other.requests)


def test_g3_who_was_redirected_to_gets_no_password_for_asking(device: Device) -> None:
    """go-containerregistry 2349: the second host challenges, and even says that it is the first."""
    wants_password(device.fake)
    with FakeRegistry() as other:
        other.scripts["/*"] = status(401, {"WWW-Authenticate": f'Basic realm="{device.fake.name}"'})
        device.fake.scripts[device.blob_path] = redirect(f"{other.url}/x")
        authfile(device, {"auths": {device.fake.name: {"auth": packed()}, other.name: {"auth": packed()}}})
        refusal(device)
        assert len(other.requests) == 1
        assert not any("authorization" in request.headers for request in other.requests)


@pytest.mark.parametrize("entry", [{"auth": packed()}, {"identitytoken": IDENTITY}])
def test_g4_a_token_server_elsewhere_gets_no_credentials_unless_it_is_named(
    device: Device, entry: dict[str, str]
) -> None:
    """CVE-2020-15157, go-containerregistry 2193."""
    with FakeRegistry() as other:
        server = TokenServer(device.fake, at=other)
        authfile(device, account(device, **entry))
        error = refusal(device)
        assert isinstance(error, RefusedError)
        assert "registries: {realms: {" in error.hint
        assert other.requests == []
        named = {device.fake.name: (other.name,)}
        authfile(device, account(device, **entry), realms=named)
        error = refusal(device)  # plain http, and not a host that is named insecure
        assert "not https" in str(error)
        assert other.requests == []
        insecure = (device.fake.name, other.name)
        authfile(device, account(device, **entry), realms=named, insecure=insecure)
        device.check_whole(device.pull())
        assert len(server.asked) == 1


def test_g4_a_token_server_that_redirects_is_not_followed(device: Device) -> None:
    with FakeRegistry() as other:
        TokenServer(device.fake)
        device.fake.scripts["/token"] = redirect(f"{other.url}/token")
        authfile(device, account(device))
        refusal(device)
        assert other.requests == []


def test_g4_credentials_never_leave_over_plain_http_unless_it_was_asked_for(device: Device) -> None:
    context, ca = certificate(device.path)
    with FakeRegistry(tls=context) as secure:
        secure.add(device.built)
        TokenServer(secure, at=device.fake)
        document = {"auths": {secure.name: {"auth": packed()}}}
        named = {secure.name: (device.fake.name,)}
        authfile(device, document, insecure=(), realms=named, ca={ANY: Certificates(ca=str(ca))})
        device.reference = type(device.reference).parse(f"{secure.name}/app@{device.built.digest}")
        assert "not https" in str(refusal(device))
        assert device.fake.requests == []


# --- where they come from ---------------------------------------------------------------------------------------------


def test_the_longest_name_of_a_repository_counts(device: Device) -> None:
    wants_password(device.fake)
    wrong = packed("x", "y")
    host = device.fake.name
    authfile(device, {"auths": {host: {"auth": wrong}, f"{host}/app": {"auth": packed()}}})
    device.check_whole(device.pull())
    found = keyring.Keyring(device.layout.auth, device.path / "auth.json").find(host, "application")
    assert found is not None
    assert found.credential == Password("x", "y")


def test_what_login_keeps_is_asked_after_the_authfile_and_is_used_at_once(device: Device) -> None:
    wants_password(device.fake)
    authfile(device, {"auths": {}, "HttpHeaders": {"X": "y"}, "psFormat": "table"})
    assert "reconciler login" in refusal(device).hint
    keyring.keep(device.layout.auth, device.fake.name, Password(USER, SECRET))
    device.check_whole(device.pull())  # by the same client: nothing was started anew
    assert stat.S_IMODE(device.layout.auth.stat().st_mode) == 0o600
    keyring.keep(device.layout.auth, "other.example/team", Password("a", "b"))
    assert keyring.forget(device.layout.auth, device.fake.name)
    assert not keyring.forget(device.layout.auth, device.fake.name)
    assert list(json.loads(device.layout.auth.read_text())["auths"]) == ["other.example/team"]
    with pytest.raises(RegistryError):
        device.images.digest(type(device.reference).parse(f"{device.fake.name}/app:latest"))
    assert keyring.forget_all(device.layout.auth) == ["other.example/team"]
    device.layout.auth.write_text("broken")
    assert keyring.forget_all(device.layout.auth) == [str(device.layout.auth)]
    assert keyring.forget_all(device.layout.auth) == []


def test_many_logins_at_once_lose_none(device: Device) -> None:
    def keep(number: int) -> None:
        keyring.keep(device.layout.auth, f"r{number}.example", Password("me", f"p{number}"))

    threads = [threading.Thread(target=keep, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = keyring.read(device.layout.auth, "x")
    assert found is not None
    assert len(found.auths) == 12


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_may_read_is_not_used(device: Device, mode: int) -> None:
    wants_password(device.fake)
    authfile(device, account(device), mode=mode)
    error = refusal(device)
    assert isinstance(error, KeyringError)
    assert f"others may read it (mode {mode:04o})" in str(error)
    assert error.hint == f"run: chmod 600 {device.path / 'auth.json'}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"HOST": {"auth": "%%%"}}}',
        '{"auths": {"HOST": {"auth": "bm9jb2xvbg=="}}}',
        '{"auths": {"HOST": {"auth": "/////w=="}}}',
        '{"auths": {"HOST": "hunter2-Secret"}}',
        '{"auths": {"HOST": {"identitytoken": "hunter2 Secret"}}}',
        '{"auths": {"HOST": {"password": ["hunter2-Secret"]}}}',
        '{"auths": {}, "auths": {}}',
        '{"credHelpers": {"HOST": "../../tmp/evil"}}',
        '{"credsStore": "-x"}',
        '{"credsStore": "a b"}',
        "[" * 100_000,
        "x" * (2 << 20),
    ],
)
def test_a_broken_file_is_named_and_not_quoted(device: Device, text: str) -> None:
    wants_password(device.fake)
    authfile(device, text.replace("HOST", device.fake.name))
    error = refusal(device)
    assert isinstance(error, KeyringError)
    assert str(error).startswith(f"registries.authfile {device.path / 'auth.json'}: ")
    assert not error.transient


def test_a_file_that_is_missing_or_none_is_named(device: Device) -> None:
    wants_password(device.fake)
    authfile(device, {})
    path = device.path / "auth.json"
    path.unlink()
    assert "no such file" in str(refusal(device))
    os.mkfifo(path, 0o600)
    assert "not a regular file" in str(refusal(device))
    path.unlink()
    path.mkdir(0o700)
    assert "not a regular file" in str(refusal(device))


# --- helper programs --------------------------------------------------------------------------------------------------


@pytest.fixture
def helper(device: Device, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install docker-credential-test, a shell script; returns where it is."""
    directory = device.path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def install(script: str) -> Path:
        path = directory / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return install


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_a_helper_is_asked_with_a_clean_environment(
    device: Device, helper: Callable[[str], Path], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    seen = device.path / "seen"
    answer = json.dumps({"ServerURL": "x", "Username": USER, "Secret": SECRET})
    helper(f"{{ echo \"$@\"; cat; env | sort; pwd; }} > {seen}; echo '{answer}'")
    wants_password(device.fake)
    authfile(device, {key: "test" if key == "credsStore" else {device.fake.name: "test"}})
    device.check_whole(device.pull())
    verb, server, *rest = seen.read_text().splitlines()
    assert (verb, server) == ("get", device.fake.name)
    names = {line.partition("=")[0] for line in rest if "=" in line}
    assert names <= {"PATH", "HOME", "LC_ALL", "PWD", "OLDPWD", "_", "SHLVL"} | set(program._PASSED)
    assert rest[-1] == "/"


def test_a_helper_may_have_an_identity_token(device: Device, helper: Callable[[str], Path]) -> None:
    helper(f"""echo '{{"Username": "<token>", "Secret": "{IDENTITY}"}}'""")
    server = TokenServer(device.fake)
    authfile(device, {"credsStore": "test"})
    device.check_whole(device.pull())
    assert server.asked[0]["grant_type"] == "refresh_token"


def test_a_helper_that_has_none_is_passed_over(device: Device, helper: Callable[[str], Path]) -> None:
    helper("echo 'credentials not found in native keychain'; exit 1")
    wants_password(device.fake)
    authfile(device, {"credsStore": "test", **account(device)})
    device.check_whole(device.pull())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"echo {SECRET}; exit 3", "exit status 3"),
        (f"echo {SECRET}", "its answer is not JSON"),
        ("echo '{}'", "its answer has no Secret"),
        (f"""echo '{{"Username": "u", "Secret": "{SECRET}", "Secret": "x"}}'""", "its answer is not JSON"),
        ("yes", "more than 65536 bytes"),
        ("exec sleep 100", "not finished after 0.5 s"),
        ("sleep 100 & exit 0", "not finished after 0.5 s"),
        ("exec >&-; sleep 100", "not finished after 0.5 s"),
        ("kill -9 $$", "exit status -9"),
    ],
)
def test_a_helper_that_misbehaves_is_named_and_ended(
    device: Device, helper: Callable[[str], Path], script: str, said: str
) -> None:
    helper(script)
    with pytest.raises(KeyringError, match=r"docker-credential-test: ") as caught:
        program.ask("test", "r.example", timeout=0.5)
    assert said in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    children = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    ).stdout
    assert "docker-credential" not in children


def test_a_helper_that_is_missing_or_no_program_is_named(
    device: Device, helper: Callable[[str], Path]
) -> None:
    wants_password(device.fake)
    authfile(device, {"credsStore": "none-such"})
    assert str(refusal(device)).startswith("docker-credential-none-such: not found in ")
    helper("").write_bytes(b"\x7fELF")
    authfile(device, {"credsStore": "test"})
    assert "can't be run" in str(refusal(device))


class _Tokens(Keyring):
    """Credentials for every registry, and a version that somebody changes meanwhile."""

    number = 0

    def version(self) -> int:
        return self.number


def test_what_was_had_by_credentials_stays_so_whatever_comes_in_between(tmp_path: Path) -> None:
    """Another thread renews the token of the same repository, or somebody logs in, before the answer is looked at."""
    own = tmp_path / "auth.json"
    own.write_text(json.dumps({"auths": {"r.example": {"auth": packed()}}}))
    own.chmod(0o600)
    keyring = _Tokens(own, None)
    numbers = iter(range(10))
    challenge = ['Bearer realm="https://r.example/token",service="x"']
    session = Session(
        "r.example", "https://r.example", keyring, lambda _, wanted: b'{"token": "t%d"}' % next(numbers)
    )
    first = session.answer("GET", "app", challenge, "")
    second = session.answer("GET", "app", challenge, "")
    keyring.number = 1
    assert session.grant("app").header == ""
    assert first.header != second.header
    assert first.named
    assert second.named
    keyring = _Tokens(tmp_path / "none.json", None)
    session = Session("r.example", "https://r.example", keyring, lambda _, wanted: b'{"token": "t"}')
    assert not session.answer("GET", "app", challenge, "").named
