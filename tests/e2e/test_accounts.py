"""Accounts at real registries: docker-registry under TLS with htpasswd, login and logout as people type them.

What is secret is looked for everywhere where this program says or writes anything.
"""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounts import HTPASSWD, SECRET, USER, TokenServer, packed
from tests.e2e.device import PATIENCE, PROGRAM, Device
from tests.e2e.test_verbs import on_terminal
from tests.e2e.world import Registry
from tests.images import Built
from tests.registry import FakeRegistry, certificate

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

NAME = "127.0.0.1:5000"
SPEC = """
apiVersion: reconciler/v1
kind: App
name: secretive
containers:
  main:
    image: {image}
    command: [sleep, "100000"]
    init: true
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
"""


class PrivateRegistry(Registry):
    """docker-registry with TLS and one account."""

    def __init__(self, device: Device, storage: Path) -> None:
        storage.mkdir()
        _, self.ca = certificate(storage)
        (storage / "htpasswd").write_text(HTPASSWD)
        super().__init__(device, storage, name=NAME)

    def start(self) -> None:
        text = self._config.read_text()
        if "htpasswd" not in text:
            tls = f"tls: {{certificate: {self.ca}, key: {self.ca.with_name('key.pem')}}}"
            text = text.replace(f'"{self.name}"}}', f'"{self.name}", {tls}}}')
            text += f"auth: {{htpasswd: {{realm: private, path: {self.storage / 'htpasswd'}}}}}\n"
            self._config.write_text(text)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = self._device.spawn(["docker-registry", "serve", str(self._config)], **quiet)
        url = f"https://{self.name}/v2/"
        self._device.until(lambda: "UNAUTHORIZED" in self._device.curl(url, "-k", "--no-fail"))

    def push(self, built: Built, repository: str) -> str:
        options = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        options += ["--dest-creds", f"{USER}:{SECRET}"]
        target = f"docker://{self.name}/{repository}:{built.tag}"
        self._device.inside(["skopeo", *options, f"oci:{built.layout}:{built.tag}", target])
        return f"{self.name}/{repository}:{built.tag}@{built.digest}"


@pytest.fixture
def registry(device: Device) -> PrivateRegistry:
    made = PrivateRegistry(device, device.root / "registry")
    device.configure(registries={"ca": str(made.ca)}, interval="1s")
    return made


def login(
    device: Device, *args: str, secret: str = SECRET, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    words = args or ("-u", USER, "--password-stdin", NAME)
    return device.reconciler("login", *words, input=f"{secret}\n".encode(), check=check)


def told(device: Device) -> Iterator[tuple[str, bytes]]:
    """Everything that this program says or writes, but for the file of credentials."""
    for verb in (["status"], ["events", "-n", "1000"], ["plan"], ["images"], ["ps", "-a"]):
        for output in ([], ["-o", "json"]):
            done = device.reconciler(
                *verb, *(output if verb != ["events", "-n", "1000"] else []), check=False
            )
            yield " ".join(verb + output), (done.stdout + done.stderr).encode()
    yield "metrics", device.curl("http://127.0.0.1:9470/metrics").encode()
    yield "page", device.curl("http://127.0.0.1:9470/").encode()
    yield "log", device.log.read_bytes()
    for root in (device.state, device.run):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path != device.state / "auth.json":
                yield str(path), path.read_bytes() if path.stat().st_size < 1 << 20 else b""


def test_g12_p18_a_private_image_runs_after_login_and_the_password_is_seen_nowhere(
    device: Device, registry: PrivateRegistry, box: Built
) -> None:
    image = registry.push(box, "team/box")
    device.spec("secretive", SPEC.format(image=image))
    device.start()
    device.until(lambda: f"reconciler login {NAME}" in device.reason("secretive"))
    done = login(device)
    assert "login succeeded" in done.stdout
    assert stat.S_IMODE((device.state / "auth.json").stat().st_mode) == 0o600
    pid = device.running("secretive/main")
    wrong = login(
        device, "-u", USER, "--password-stdin", f"{NAME}/other", secret="wr0ng-Passw0rd", check=False
    )
    assert wrong.returncode == 1
    secrets = [
        SECRET.encode(),
        packed().encode(),
        b"wr0ng-Passw0rd",
        packed(secret="wr0ng-Passw0rd").encode(),
    ]
    for where, text in [*told(device), ("login", (wrong.stdout + wrong.stderr + done.stdout).encode())]:
        assert not any(secret in text for secret in secrets), where
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            ours = b"reconciler" in command or int(process.name) == pid
            environment = (process / "environ").read_bytes() if ours else b""
        except OSError:
            continue
        assert not ours or not any(secret in command + environment for secret in secrets), command
    assert stat.S_IMODE(Path(f"/proc/{device.agent_pid}/environ").stat().st_mode) == 0o400
    # A pull by hand uses it; after logout nothing does, and what runs goes on.
    again = registry.push(box, "team/again")
    assert device.reconciler("pull", again).returncode == 0
    assert "credentials removed" in device.reconciler("logout", NAME).stdout
    gone = device.reconciler("digest", f"{NAME}/team/box:{box.tag}", check=False)
    assert gone.returncode == 1
    assert f"reconciler login {NAME}" in gone.stderr
    assert device.pid("secretive/main") == pid


def test_login_keeps_only_what_the_registry_takes(device: Device, registry: PrivateRegistry) -> None:
    wrong = login(device, secret="wrong", check=False)
    assert wrong.returncode == 1
    assert "does not take the credentials" in wrong.stderr
    assert not (device.state / "auth.json").exists()
    device.configure()
    untrusted = login(device, check=False)
    assert "registries.ca" in untrusted.stderr
    device.configure(registries={"ca": str(registry.ca)})
    by_option = device.reconciler("login", "-u", USER, "-p", SECRET, f"{NAME}/team")
    assert "--password-stdin" in by_option.stderr
    assert SECRET not in by_option.stdout + by_option.stderr
    assert list(json.loads((device.state / "auth.json").read_text())["auths"]) == [f"{NAME}/team"]
    missing = device.reconciler("logout", NAME, check=False)
    assert (missing.returncode, "not logged in" in missing.stderr) == (8, True)
    assert device.reconciler("logout", "--all").stdout == f"{NAME}/team: credentials removed\n"


def test_login_asks_on_a_terminal_and_shows_no_password(device: Device, registry: PrivateRegistry) -> None:
    with on_terminal(device, [*PROGRAM, "login", *device.places, NAME]) as screen:
        screen.expect("User name for")
        screen.type(f"{USER}\n")
        screen.expect("Password for")
        screen.type(f"{SECRET}\n")
        shown = screen.expect(r"(?s)\A.*login succeeded")
        assert screen.process.wait(20 * PATIENCE) == 0
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "me", NAME], "nobody to ask for the password"),
        ([NAME], "no user name"),
        (["-u", "me", "-p", "x", "--password-stdin", NAME], "exclude each other"),
        (["-u", "me", "--password-stdin", "http://h.example"], "not HOST[:PORT]"),
        (["-u", "me", "--password-stdin", "quay"], "not HOST[:PORT]"),
        (["-u", "a:b", "--password-stdin", NAME], "no ':'"),
        (["-u", "me", "--password-stdin", f"{NAME}/../x"], "not HOST[:PORT]"),
    ],
)
def test_login_that_can_be_no_login_is_a_usage_error(device: Device, words: list[str], said: str) -> None:
    done = device.reconciler("login", *words, input=b"secret-word\n", check=False)
    assert (done.returncode, said in done.stderr, "secret-word" in done.stderr) == (64, True, False)
    for args in ([], ["--all", NAME]):
        assert device.reconciler("logout", *args, check=False).returncode == 64


def test_dockers_own_file_is_used_and_stays_as_it_is(
    device: Device, registry: PrivateRegistry, box: Built
) -> None:
    config = device.root / "config.json"
    config.write_text(json.dumps({"auths": {NAME: {"auth": packed()}}, "detachKeys": "ctrl-q"}))
    config.chmod(0o600)
    before = config.read_bytes()
    device.configure(registries={"ca": str(registry.ca), "authfile": str(config)})
    assert device.reconciler("pull", registry.push(box, "box")).returncode == 0
    gone = device.reconciler("logout", NAME, check=False)
    assert gone.returncode == 8
    assert "registries.authfile" in gone.stderr
    assert config.read_bytes() == before
    config.chmod(0o644)
    refused = device.reconciler("digest", f"{NAME}/box:{box.tag}", check=False)
    assert f"registries.authfile {config}: others may read it" in refused.stderr
    assert f"chmod 600 {config}" in refused.stderr


def test_the_files_that_skopeo_and_login_write_can_be_read_by_the_other(
    device: Device, registry: PrivateRegistry, box: Built
) -> None:
    reference = registry.push(box, "team/box")
    theirs = device.root / "theirs.json"
    command = ["skopeo", "login", "--authfile", str(theirs), "--tls-verify=false", "-u", USER]
    device.inside([*command, "--password-stdin", NAME], input=SECRET.encode())
    device.configure(registries={"ca": str(registry.ca), "authfile": str(theirs)})
    assert device.reconciler("pull", reference).returncode == 0
    device.configure(registries={"ca": str(registry.ca)})
    login(device, "-u", USER, "--password-stdin", f"{NAME}/team")
    ours = ["skopeo", "inspect", "--authfile", str(device.state / "auth.json"), "--tls-verify=false"]
    shown = device.inside([*ours, f"docker://{NAME}/team/box:{box.tag}"])
    assert json.loads(shown.stdout)["Digest"] == str(box.digest)
    assert device.inside([*ours, f"docker://{NAME}/other/box:{box.tag}"], check=False).returncode != 0


def test_the_registry_of_the_tests_is_one_that_skopeo_pulls_from(box: Built, tmp_path: Path) -> None:
    """So that what this program is tested with asks no more of it than a registry may."""
    with FakeRegistry() as fake:
        reference = fake.add(box)
        server = TokenServer(fake)
        source = f"docker://{fake.name}/app:{box.tag}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
        environment = {**os.environ, "HOME": str(tmp_path)}
        subprocess.run(
            [*command, "--src-creds", f"{USER}:{SECRET}", source, f"oci:{tmp_path / 'copy'}:x"],
            check=True,
            env=environment,
        )
        index = json.loads((tmp_path / "copy" / "index.json").read_text())
        assert index["manifests"][0]["digest"] == reference.partition("@")[2]
        assert server.asked[0]["scope"] == "repository:app:pull"
        refused = subprocess.run(
            [*command, "--src-creds", f"{USER}:wrong", source, f"oci:{tmp_path / 'other'}:x"],
            check=False,
            capture_output=True,
            env=environment,
        )
        assert refused.returncode != 0
