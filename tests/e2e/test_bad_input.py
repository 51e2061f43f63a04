"""Bad input: each kind is said in its own words, touches nothing that runs, and never ends in a traceback.

That no agent ever prints one is asserted by every device at its end.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.e2e.world import upon
from tests.images import ARCHITECTURE as MACHINE
from tests.images import Built, OciLayout, busybox, busybox_layer, file

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
    "later": ("    healthcheck: {}\n", "'healthcheck' is not supported yet"),
    "privileged": ("    privileged: true\n", "the device does not allow privileged containers"),
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


def test_an_image_for_another_platform_is_refused_by_name(ready: Device, tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "layout")
    other = {"amd64": "arm64"}.get(MACHINE, "amd64")
    single = layout.image([busybox_layer()], architecture=other, tag="single")
    index = layout.index({f"linux/{other}": single}, tag="index")
    ready.stop()
    ready.configure(bundles=[*json.loads(ready.device_yaml.read_text())["bundles"], str(layout.path)])
    ready.start()
    pid = ready.running("good/main")
    ready.spec("single", app("single", f"box.example/other@{single}"))
    ready.spec("index", app("index", f"box.example/other@{index}"))
    all_said(
        ready,
        {
            "single": f"{single.hex[:12]}: no image for linux/{MACHINE}, available: linux/{other} (pin the digest of",
            "index": f"other@{index}: no image for linux/{MACHINE}, available: linux/{other} (pin the digest of",
        },
    )
    assert ready.pid("good/main") == pid


# --- what is wrong on the device -------------------------------------------------------------------------------------


def test_what_a_container_can_not_start_with_is_named_and_harms_nobody(
    ready: Device, box: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = upon(
        box, tmp_path_factory.mktemp("plain") / "layout", [file("./etc/notes", "no program\n", 0o644)]
    )
    ready.stop()
    ready.configure(bundles=[str(box.layout), str(plain.layout)], allowed_binds=[str(ready.root)])
    ready.start()
    pid = ready.running("good/main")
    image = reference(box)
    ready.spec("absent", app("absent", image, command="[no-such-program]"))
    ready.spec("path", app("path", image, command="[/no/such/program]"))
    ready.spec("notes", app("notes", reference(plain), command="[/etc/notes]"))
    ready.spec("directory", app("directory", image, command="[/etc]"))
    ready.spec("user", app("user", image, extra="    user: nosuchuser\n"))
    ready.spec("group", app("group", image, extra="    user: app:nosuchgroup\n"))
    ready.spec("bind", app("bind", image, extra=f'    volumes: ["{ready.root}/missing:/data"]\n'))
    all_said(
        ready,
        {
            "absent": "exec: no-such-program: no such program in PATH",
            "path": "/no/such/program: no such file or directory",
            "notes": "/etc/notes: permission denied",
            "directory": "/etc: ",
            "user": "nosuchuser",
            "group": "nosuchgroup",
            "bind": f"{ready.root}/missing",
        },
    )
    assert ready.pid("good/main") == pid
    assert ready.ps()["good/main"]["restarts"] == 0


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 16 MiB. Asked for before `device`, so that it goes after it."""
    path = Path(tempfile.mkdtemp(prefix="rct-disk-", dir="/dev/shm"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", path.name, str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)
    path.rmdir()


def test_a_full_disk_is_named_and_touches_nothing_that_runs(
    small_disk: Path, device: Device, box: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    large = upon(
        box, tmp_path_factory.mktemp("large") / "layout", [file("./etc/large", os.urandom(32 << 20))]
    )
    device.state = small_disk / "state"
    device.configure(bundles=[str(box.layout), str(large.layout)], gc={"min_free": "1Mi"})
    device.spec("good", app("good", reference(box)))
    device.spec("changing", app("changing", reference(box)))
    device.start()
    device.logged("converged")
    before = device.ps()
    # An image that does not fit is known not to before it is fetched.
    device.spec("large", app("large", reference(large)))
    all_said(device, {"large": f"{device.state}: disk full: image {reference(large)} needs more than "})
    assert "make room, or run: reconciler gc" in device.reason("large")

    # Not a block is left: what runs, runs; what would have to be written is refused before anything stops.
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 16))
    device.spec("new", app("new", reference(box)))
    device.spec("changing", app("changing", reference(box), extra="    environment: {A: b}\n"))
    full = "disk full: less than 1 MiB is free for the state directory; make room, or run: reconciler gc"
    all_said(device, {"new": full, "changing": full})
    now = device.ps()
    assert now["good/main"]["pid"] == before["good/main"]["pid"]
    assert now["changing/main"]["pid"] == before["changing/main"]["pid"]

    # Room again, by hand: everything goes on by itself.
    filler.unlink()
    (device.specs / "large.yaml").unlink()
    device.running("new/main", timeout=40)
    device.until(lambda: device.ps()["changing/main"]["id"] != before["changing/main"]["id"])
    assert device.running("changing/main")
    assert device.pid("good/main") == before["good/main"]["pid"]


# --- sources that can't be read --------------------------------------------------------------------------------------


def _file(path: Path) -> None:
    path.write_text("not a directory\n")


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _nothing(path: Path) -> None:
    assert not path.exists()


SOURCES = {
    "missing": (_nothing, "no such"),
    "file": (_file, "not a directory"),
    "fifo": (os.mkfifo, "not a directory"),
    "dangling": (_dangling, "no such"),
}


def test_a_source_that_can_not_be_read_is_named_and_stops_nothing(ready: Device, box: Built) -> None:
    pid = ready.pid("good/main")
    aside = ready.root / "aside"
    ready.specs.rename(aside)
    for name, (make, message) in SOURCES.items():
        make(ready.specs)
        done = ready.reconciler("plan", str(ready.specs), check=False)
        assert done.returncode == 5, (name, done)
        assert f"source: {ready.specs}: {message}" in done.stderr.lower(), (name, done.stderr)
        assert "remove" not in done.stdout, (name, done.stdout)
        asked = ready.reconciler("apply", check=False)
        assert asked.returncode == 5, (name, asked)
        assert message in asked.stderr.lower(), (name, asked.stderr)
        if os.path.lexists(ready.specs):
            ready.specs.unlink()
    assert ready.pid("good/main") == pid
    # A fresh agent on nothing waits for something, and removes nothing.
    ready.stop()
    ready.log.unlink()
    ready.start()
    ready.logged(rf"source: {ready.specs}: ")
    assert ready.pid("good/main") == pid
    ready.specs.mkdir()  # empty: what the guard is for
    ready.logged("refusing: the source removes 1 of 1 app")
    shutil.copy(aside / "good.yaml", ready.specs)
    ready.logged("source: readable again(.|\n)*converged")
    assert ready.pid("good/main") == pid


# --- hosts that lack something ---------------------------------------------------------------------------------------

# Each takes something away from the agent alone: in a mount namespace, or by privileges, that end with it.
HIDE_NFT = """
for library in $(ldconfig -p | sed -n 's/.*libnftables.so.1.* => //p'); do
    mount --bind /dev/null "$(readlink -f "$library")"
done
exec "$@"
"""
NO_CGROUPS = 'umount -R /sys/fs/cgroup && exec "$@"'
EMPTY_CGROUPS = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
HOSTS = {
    "nftables": (
        ["unshare", "-m", "sh", "-ec", HIDE_NFT, "sh"],
        "nftables: ",
        "apt-get install libnftables1",
    ),
    "cgroups": (["unshare", "-m", "sh", "-ec", NO_CGROUPS, "sh"], "cgroup", "mount -t cgroup2"),
    "hidden": (["unshare", "-m", "sh", "-ec", EMPTY_CGROUPS, "sh"], "cgroup", ""),
    "root": (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        "root: running as uid 65534",
        "run it as root, for example with sudo",
    ),
    "privileges": (
        ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin"],
        "capabilities: missing: NET_ADMIN, SYS_ADMIN",
        "run it on the host, or in a container with --privileged",
    ),
}


@pytest.mark.parametrize("lack", HOSTS)
def test_a_host_that_lacks_something_is_told_what_and_what_to_do(
    device: Device, box: Built, lack: str
) -> None:
    under, message, remedy = HOSTS[lack]
    device.root.chmod(0o755)
    device.configure(bundles=[str(box.layout)])
    device.spec("good", app("good", reference(box)))
    device.start(under=under)
    assert device.ended(timeout=5) == 1
    assert message in device.output
    assert remedy in device.output
    assert "run: reconciler doctor" in device.output
    assert not device.state.exists()
    doctor = device.inside([*under, *PROGRAM, "doctor", *device.places], check=False)
    assert doctor.returncode == 1
    assert message in doctor.stdout
    assert "Traceback" not in doctor.stderr


def test_a_run_directory_whose_path_is_too_long_for_sockets_is_refused_at_once(
    device: Device, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("good", app("good", reference(box)))
    device.run = device.root / ("long-" * 20)
    device.start()
    assert device.ended(timeout=5) != 0
    assert f"{device.run}" in device.output
    assert "too long" in device.output
    assert "--run" in device.output


# --- state that was damaged ------------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{garbage")


def _replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _other(path: Path) -> None:
    path.write_text('["not", {"what": "was written"}]')


DAMAGE = {"garbage": _garbage, "directory": _replaced, "other": _other}
STAYS = (
    "lastgood/good.json",
    "network/leases.json",
    "generations/1.json",
    "index.json",
    "network/sysctls.json",
)
CONTAINERS = ("STATE/identity.json", "STATE/config.json", "RUN/shim.json", "RUN/exit.json", "STATE/hosts")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_file_is_made_again_and_touches_nothing_that_runs(
    ready: Device, box: Built, damage: str
) -> None:
    pid = ready.pid("good/main")
    layers = sorted((ready.state / "layers").glob("*.json"))
    resolved = sorted((ready.state / "resolved").glob("*.json"))
    files = [ready.state / name for name in STAYS] + layers + resolved + [ready.run / "failures.json"]
    ready.stop()
    for path in filter(Path.exists, files):
        DAMAGE[damage](path)
        ready.log.unlink()
        ready.start()
        ready.logged("converged")
        assert ready.pid("good/main") == pid, path
        ready.stop()
    # Once more from nothing: what was repaired is good enough for a new container.
    ready.start()
    ready.spec("new", app("new", reference(box)))
    ready.running("new/main")
    assert ready.pid("good/main") == pid


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_damaged_file_of_a_container_costs_that_container_at_most(
    ready: Device, box: Built, name: str
) -> None:
    ready.spec("other", app("other", reference(box)))
    other = ready.running("other/main")
    before = ready.ps()["good/main"]
    roots = {"STATE": ready.state, "RUN": ready.run}
    root, _, file_name = name.partition("/")
    path = roots[root] / "containers" / before["id"] / file_name
    for damage in DAMAGE.values():
        ready.stop()
        if path.is_dir():
            path.rmdir()
        path.touch()
        damage(path)
        ready.log.unlink()
        ready.start()
        ready.logged("converged")
        now = ready.ps()["good/main"]
        assert now["state"] == "running"
        assert now["pid"] == before["pid"] or not Path(f"/proc/{before['pid']}").exists(), "never two at once"
        if now["id"] != before["id"]:
            before = now
            path = roots[root] / "containers" / before["id"] / file_name
    assert ready.pid("other/main") == other


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_identity_of_the_device_is_never_guessed(ready: Device, box: Built, damage: str) -> None:
    """Every name in the kernel comes from it: with another one, all that runs would be somebody else's."""
    pid = ready.pid("good/main")
    ready.stop()
    path = ready.state / "instance"
    kept = path.read_bytes()
    DAMAGE[damage](path)
    ready.log.unlink()
    ready.start()
    assert ready.ended() == 1
    assert f"{path}: " in ready.output
    assert Path(f"/proc/{pid}").exists()
    if path.is_dir():
        path.rmdir()
    path.write_bytes(kept)  # as the hint says
    ready.start()
    ready.logged("converged")
    assert ready.pid("good/main") == pid


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_key_is_made_again_or_named(ready: Device, box: Built, damage: str) -> None:
    config = "    configs: [{source: one, target: /one}]\nconfigs: {one: {content: text}}"
    ready.spec("good", app("good", reference(box), extra=config))
    ready.until(lambda: ready.ps()["good/main"]["up_to_date"] and ready.pid("good/main"))
    ready.stop()
    DAMAGE[damage](ready.state / "key")
    ready.log.unlink()
    ready.start()
    ready.until(lambda: "converged" in ready.output or f"{ready.state / 'key'}" in ready.output)
    assert ready.running("good/main")
