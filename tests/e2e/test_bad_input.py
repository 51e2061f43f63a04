"""Bad input: each kind is said in its own words, touches nothing that runs, and never ends in a traceback.

That no agent ever prints one is asserted by every device at its end.
"""

import json
import re
import sys
from collections.abc import Mapping

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import REPOSITORY, Device
from tests.e2e.world import upon
from tests.images import Built, busybox, file

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def app(name: str, image: str, *, command: str = '[sleep, "100000"]', extra: str = "") -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: {command}
    init: true
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
{extra}
"""


@pytest.fixture
def ready(device: Device, box: Built) -> Device:
    """A device whose agent runs the app `good`."""
    device.configure(bundles=[str(box.layout)])
    device.spec("good", app("good", reference(box)))
    device.start()
    device.logged("converged")
    return device


def all_said(device: Device, expected: Mapping[str, str], *, timeout: float = 20.0) -> None:
    """Wait until `status` says of each app what is expected; on failure show what it says of the others."""

    def missing() -> dict[str, str]:
        said = {name: device_reason(item) for name, item in device.status().items()}
        return {name: said.get(name, "") for name, text in expected.items() if text not in said.get(name, "")}

    try:
        device.until(lambda: not missing(), timeout=timeout)
    except AssertionError as error:
        wrong = "\n".join(
            f"{name}: {text!r}\n  expected {expected[name]!r}" for name, text in missing().items()
        )
        raise AssertionError(f"{wrong}\n{error}") from error


def device_reason(item: Mapping[str, object]) -> str:
    failure = item["failure"]
    more = f" | {failure['error']} | {failure['hint']}" if isinstance(failure, dict) else ""
    return f"{item['reason']}{more}"


# --- what people write -----------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "1" * 64
SPECS = {
    "unknown": ("    prots: []\n", "unknown key 'prots' in containers.main (did you mean 'ports'?)"),
    "duplicate": ("    init: false\n", "duplicate key 'init'"),
    "later": ("    privileged: true\n", "'privileged' is not supported yet"),
    "dialect": ("    mem_limit: 1Gi\n", "unknown key 'mem_limit' in containers.main: write 'limits.memory'"),
    "bind": ('    volumes: ["/etc:/host"]\n', "the device does not allow /etc to be mounted"),
    "undeclared": ('    volumes: ["data:/data"]\n', "the volume 'data' is not declared"),
}


def test_a_spec_that_breaks_a_rule_is_refused_with_its_place_and_changes_nothing(
    ready: Device, box: Built
) -> None:
    pid = ready.pid("good/main")
    for name, (lines, _) in SPECS.items():
        ready.spec(name, app(name, reference(box), extra=lines))
    ready.spec("tag", app("tag", "box.example/box:1"))
    ready.spec("good", app("good", reference(box), extra="    prots: []\n"))  # an app that runs, broken
    messages = {
        **{name: message for name, (_, message) in SPECS.items()},
        "tag": "image must be pinned by digest",
    }
    checked = ready.reconciler("validate", str(ready.specs), check=False)
    assert checked.returncode == 3
    for name, message in messages.items():
        place = [line for line in checked.stderr.splitlines() if line.startswith(f"{name}.yaml:")]
        assert any(message in line and ": error: " in line for line in place), (name, place, checked.stderr)
        assert place[0] in ready.output or ready.logged(re.escape(place[0]))
    assert "run: reconciler digest box.example/box:1" in checked.stderr
    ready.logged("good: keeps running its last good spec: good.yaml:12:5: unknown key 'prots'")
    assert ready.pid("good/main") == pid
    assert set(ready.ps()) == {"good/main"}


# --- what registries send --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Built]:
    """Images that share only their lowest layer, one for each fault: what is here would not be fetched."""
    base = busybox(tmp_path_factory.mktemp("base") / "layout")
    names = ("content", "longer", "shorter", "stalling", "good")
    return {
        name: upon(base, tmp_path_factory.mktemp(name) / "layout", [file("./etc/which", name)])
        for name in names
    }


@pytest.fixture
def registries(ready: Device, images: Mapping[str, Built]) -> Mapping[str, str]:
    """host:port of each registry that misbehaves."""
    layouts = [str(built.layout) for built in images.values()]
    places = ready.root / "registries.json"
    with places.open("wb") as out:
        ready.spawn([sys.executable, "-m", "tests.e2e.misbehave", *layouts], stdout=out, cwd=REPOSITORY)
    found: dict[str, str] = ready.until(lambda: json.loads(places.read_text()))
    ready.stop()
    bundle = json.loads(ready.device_yaml.read_text())["bundles"]
    ready.configure(bundles=bundle, registries={"insecure": [*found.values(), "127.0.0.1:9"]})
    ready.start()
    return found


def test_a_registry_that_misbehaves_holds_up_its_own_apps_and_is_told_by_what_it_did(
    ready: Device, registries: Mapping[str, str], images: Mapping[str, Built]
) -> None:
    pid = ready.running("good/main")

    unknown = ("401", "429", "500", "slow", "down")

    def image(name: str, built: str = "good", digest: str = "") -> str:
        return f"{registries.get(name, '127.0.0.1:9')}/app@{digest or images[built].digest}"

    for number, name in enumerate(unknown):
        ready.spec(f"r{name}", app(f"r{name}", image(name, digest=f"sha256:{str(number) * 64}")))
    # This one asks a broken registry for what another one has: it is helped, and does no harm.
    ready.spec("mirror", app("mirror", image("500")))
    ready.spec("r404", app("r404", image("good", digest=DIGEST)))
    for name in ("content", "longer", "shorter", "stalling"):
        ready.spec(f"r{name}", app(f"r{name}", image(name, built=name)))
    ready.spec("zz", app("zz", image("good")))  # the last in every queue

    assert ready.running("zz/main", timeout=15)
    newest = {name: f"layer {_newest(built)[:12]}: " for name, built in images.items()}
    asked = {name: f"{host}: GET /v2/app/manifests/" for name, host in registries.items()}
    assert ready.running("mirror/main")
    all_said(
        ready,
        {
            "r401": f"{asked['401']}sha256:{'0' * 64}: 401 the registry needs credentials",
            "r404": f"{asked['good']}{DIGEST}: 404 manifest unknown",
            "r429": f"{asked['429']}sha256:{'1' * 64}: 429 too many requests",
            "r500": f"{asked['500']}sha256:{'2' * 64}: 500 on fire",
            "rdown": f"127.0.0.1:9: GET /v2/app/manifests/sha256:{'4' * 64}: ",
            "rslow": "looking it up",
            "rcontent": f"{newest['content']}digest is sha256:",
            "rlonger": f"{newest['longer']}longer than the ",
            "rshorter": f"{newest['shorter']}113 bytes, expected 118",
        },
        timeout=40,
    )
    assert ready.pid("good/main") == pid
    assert ready.status()["rstalling"]["busy"]
    assert "onnection refused" in ready.reason("rdown")
    assert ready.stop(timeout=5) == 0, "an agent does not wait for a registry that hangs"


def _newest(built: Built) -> str:
    """The hex digest of the topmost layer."""
    manifest = json.loads((built.layout / "blobs/sha256" / built.digest.hex).read_bytes())
    return str(manifest["layers"][-1]["digest"]).removeprefix("sha256:")
