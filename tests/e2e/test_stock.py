"""Images and volumes by hand: names and digests, what is refused, and what each prune takes and leaves."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, PROGRAM, REPOSITORY, Device
from tests.e2e.world import Registry, upon
from tests.images import Built, busybox, file

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

APP = """
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sleep, "100000"]
    stop_grace_period: 0s
    volumes: ["data:/data"]
volumes: {{data: {{}}}}
"""
LABELLED = {"Labels": {"kind": "extra"}}


@pytest.fixture(scope="session")
def extra(box: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An image that has a layer of its own on top of `box`."""
    base = busybox(tmp_path_factory.mktemp("labelled") / "layout", config=LABELLED)
    return upon(base, tmp_path_factory.mktemp("extra") / "layout", [file("./etc/extra", "x" * 100_000)])


@pytest.fixture(params=["agent", "alone"])
def ready(request: pytest.FixtureRequest, device: Device, box: Built) -> Device:
    """A device on which `web/main` runs, with the agent beside it or gone."""
    device.configure(bundles=[str(box.layout)], gc={"keep_generations": 1})
    device.spec("web", APP.format(image=reference(box)))
    device.start()
    device.logged("converged", timeout=60)
    if request.param == "alone":
        device.stop()
    return device


def items(device: Device, *verb: str) -> list[dict[str, Any]]:
    return list(json.loads(device.reconciler(*verb, "-o", "json").stdout)["items"])


def images(device: Device, *args: str) -> dict[str, dict[str, Any]]:
    return {item["digest"]: item for item in items(device, "images", *args)}


def pull(device: Device, built: Built, name: str = "latest") -> dict[str, Any]:
    done = device.reconciler("pull", "--bundle", str(built.layout), name, "-o", "json")
    return dict(json.loads(done.stdout))


def test_an_image_is_pulled_from_a_layout_named_listed_and_removed(ready: Device, extra: Built) -> None:
    digest = str(extra.digest)
    first = ready.reconciler("pull", "--bundle", str(extra.layout), extra.tag)
    assert first.stdout == f"{digest}\n"
    missing = ready.reconciler("pull", "--bundle", str(extra.layout), "nothing", check=False)
    assert missing.returncode == 8
    assert extra.tag in missing.stderr
    name = f"localhost/{extra.layout.name}:{extra.tag}"
    found = images(ready)[digest]
    assert found["names"] == [name]
    assert found["wanted_by"] == [{"kind": "tag", "name": name}]
    assert 90_000 < found["unique_size"] < found["size"]
    # Another name, which is as good as the first
    assert ready.reconciler("image", "tag", digest[7:19], "mine:2").stdout == "localhost/mine:2\n"
    assert images(ready, "--filter", "reference=localhost/mine*").keys() == {digest}
    assert images(ready, "--filter", "label=kind=extra").keys() == {digest}
    assert images(ready, "--filter", "label=kind=other").keys() == set()
    assert digest not in images(ready, "--filter", "dangling=true")
    several = ready.reconciler("rmi", digest, check=False)
    assert several.returncode == 5
    assert "several names" in several.stderr
    assert ready.reconciler("rmi", "mine:2").stdout == "untagged localhost/mine:2\n"
    assert images(ready)[digest]["names"] == [name]
    gone = ready.reconciler("image", "rm", name).stdout
    assert f"untagged {name}\ndeleted {digest}" in gone
    assert digest not in images(ready, "-a")
    assert ready.reconciler("rmi", digest, check=False).returncode == 8
    assert ready.reconciler("rmi", "-f", digest).returncode == 0
    # The layer that both have is still there
    assert all(item["complete"] for item in images(ready).values())
    assert ready.reconciler("exec", "web/main", "true").returncode == 0


def test_what_a_spec_wants_is_not_removed_and_its_name_not_given_away(
    ready: Device, box: Built, extra: Built
) -> None:
    pinned = reference(box).partition("@")[0]
    for name in (str(box.digest), pinned, box.digest.hex[:12]):
        for force in ((), ("-f",)):
            done = ready.reconciler("rmi", *force, name, check=False)
            assert done.returncode == 5
            assert "web/main" in done.stderr
    ready.reconciler("tag", pinned, "keep")
    refused = ready.reconciler("rmi", "keep", check=False)
    assert refused.returncode == 5
    assert "-f takes only its names away" in refused.stderr
    assert ready.reconciler("rmi", "-f", "keep").stdout == "untagged localhost/keep:latest\n"
    # A name that a spec pins stays what the spec says, whatever a layout calls its images
    pull(ready, extra, extra.tag)
    stolen = ready.reconciler("tag", extra.digest.hex[:12], pinned, check=False)
    assert stolen.returncode == 5
    assert "the spec of web/main pins it" in stolen.stderr
    assert str(box.digest) in images(ready)
    assert ready.pid("web/main")


def test_s11_a_layouts_name_for_an_image_overrules_no_spec(
    ready: Device, box: Built, extra: Built, tmp_path: Path
) -> None:
    pinned = reference(box).partition("@")[0]
    hostile = upon(extra, tmp_path / "hostile", [file("./etc/hostile", "x")], tag=pinned)
    before = ready.pid("web/main")
    done = json.loads(ready.reconciler("pull", "--bundle", str(hostile.layout), pinned, "-o", "json").stdout)
    assert done["name"] == ""
    assert "the spec of web/main pins it" in done["warning"]
    assert images(ready)[str(hostile.digest)]["names"] == []
    assert images(ready, "--filter", "dangling=true").keys() == {str(hostile.digest)}
    assert ready.pid("web/main") == before


def test_a_tag_is_looked_up_when_it_is_pulled(device: Device, extra: Built, tmp_path: Path) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    registry = Registry(device, tmp_path / "registry")
    pinned = registry.push(extra, "app")
    name = pinned.partition("@")[0]
    assert device.reconciler("pull", name).stdout == f"{extra.digest}\n"
    assert images(device)[str(extra.digest)]["names"] == [name]
    foreign = device.reconciler("pull", "--platform", "linux/s390x", name, check=False)
    assert foreign.returncode == 1
    assert "s390x" in foreign.stderr
    unknown = device.reconciler("pull", f"{registry.name}/app:none", check=False)
    assert unknown.returncode == 8

    # `run` and `create` take what is called so here, and ask for what is not, unless they are told otherwise
    newer = upon(extra, tmp_path / "newer", [file("./etc/newer", "x")], tag=extra.tag)
    registry.push(newer, "app")

    def create(image: str, *options: str, code: int = 0) -> str:
        done = device.reconciler("create", *options, image, "true", check=False)
        assert done.returncode == code, done.stderr
        return done.stderr

    for options in ((), ("--pull", "missing"), ("--pull=never",)):
        assert str(extra.digest) in create(name, *options)
    assert str(newer.digest) in create(name, "--pull", "always")
    assert str(newer.digest) in create(name)
    absent = f"{registry.name}/app:none"
    refused = create(absent, "--pull=never", code=125)
    assert f"image {absent}: is not here, and --pull is never" in refused
    assert f"run: reconciler pull {absent}" in refused
    assert "none" in create(absent, code=125)  # the registry says so
    registry.stop()
    assert str(newer.digest) in create(name)
    assert "Connection refused" in create(name, "--pull=always", code=125)
    create(pinned, "--pull=always")
    create(pinned, "--pull=never")
    create(f"{name}@sha256:{64 * '0'}", "--pull=never", code=125)
    layout = ("--bundle", str(newer.layout))
    assert str(newer.digest) in create(newer.tag, *layout, "--pull=never")
    other = upon(extra, tmp_path / "other", [file("./etc/other", "x")], tag=extra.tag)
    layout = ("--bundle", str(other.layout))
    assert f"reconciler pull --bundle {other.layout}" in create(other.tag, *layout, "--pull=never", code=125)
    assert str(other.digest) in create(other.tag, *layout, "--pull=always")


def test_prune_takes_what_nothing_needs_and_says_so(ready: Device, box: Built, extra: Built) -> None:
    pull(ready, extra, extra.tag)
    name = f"localhost/{extra.layout.name}:{extra.tag}"
    gentle = ready.reconciler("image", "prune", "--dry-run", "-o", "json").stdout
    assert not [item for item in json.loads(gentle)["items"] if item["kind"] == "image"]
    nobody = ready.reconciler("image", "prune", "-a", check=False)
    assert nobody.returncode == 64
    assert "--force" in nobody.stderr
    assert name in nobody.stdout
    young = ready.reconciler("image", "prune", "-a", "-f", "--filter", "until=1h").stdout
    assert name not in young
    other = ready.reconciler("image", "prune", "-a", "-f", "--filter", "label!=kind=extra").stdout
    assert name not in other
    assert str(extra.digest) in images(ready)
    # Asked on a terminal: no is no, yes is yes
    assert ask(ready, b"n\n", "image", "prune", "-a") == 1
    assert str(extra.digest) in images(ready)
    assert ask(ready, b"y\n", "image", "prune", "-a") == 0
    assert str(extra.digest) not in images(ready, "-a")
    assert str(box.digest) in images(ready)
    assert ready.reconciler("system", "prune", "-a", "--volumes", "-f").stdout == "nothing to remove\n"
    assert ready.reconciler("exec", "web/main", "ls", "/data").returncode == 0


def test_a_container_that_has_ended_goes_and_one_that_runs_or_waits_stays(
    ready: Device, extra: Built
) -> None:
    image = f"any.example/x@{extra.digest}"
    ready.reconciler("pull", "--bundle", str(extra.layout), image)
    run = ("run", "-d", "--stop-timeout", "0")
    for name, label, command in (
        ("ended", "a=1", ["sh", "-c", "exit 3"]),
        ("runs", "a=1", ["sleep", "1000"]),
    ):
        ready.reconciler(*run, "--name", name, "--label", label, image, *command)
    ready.reconciler(*run, "--name", "again", "--restart", "on-failure", image, "sh", "-c", "exit 1")
    ready.reconciler("create", "--name", "made", image, "true")
    ready.until(lambda: ready.ps()["ended"]["state"] == "exited" or None)

    def listed(*options: str) -> dict[str, str]:
        said = ready.reconciler("container", "prune", "--dry-run", "-o", "json", *options).stdout
        return {item["name"]: item["reason"] for item in json.loads(said)["items"]}

    assert listed() == {"ended": "it ended with 3", "made": "it was never started"}
    assert listed("--filter", "label=a=1").keys() == {"ended"}
    assert listed("--filter", "until=1h") == {}
    assert ready.reconciler("container", "prune", check=False).returncode == 64
    assert "2 removed" in ready.reconciler("system", "prune", "-f").stdout
    assert ready.ps().keys() == {"web/main", "runs", "again"}
    ready.reconciler("stop", "runs", "again")
    # With what only they had needed
    done = json.loads(ready.reconciler("system", "prune", "-a", "-f", "-o", "json").stdout)
    assert {item["name"] for item in done["items"] if item["kind"] == "container"} == {"runs", "again"}
    assert "image" in {item["kind"] for item in done["items"]}
    assert ready.ps().keys() == {"web/main"}


def test_an_image_without_a_name_goes_gently(ready: Device, extra: Built) -> None:
    pull(ready, extra, extra.tag)
    ready.reconciler("pull", "--bundle", str(extra.layout), f"any.example/x@{extra.digest}")
    for path in (ready.state / "tags").iterdir():
        path.unlink()
    assert images(ready)[str(extra.digest)]["dangling"]
    done = json.loads(ready.reconciler("system", "prune", "-f", "-o", "json").stdout)
    assert ("image", str(extra.digest)) in {(item["kind"], item["name"]) for item in done["items"]}
    assert done["bytes"] > 90_000


def test_volumes_are_made_described_and_kept_while_something_needs_them(ready: Device) -> None:
    assert ready.reconciler("volume", "create", "--label", "for=tests", "scratch").stdout == "adhoc/scratch\n"
    assert ready.reconciler("volume", "create", "old-app/data").stdout == "old-app/data\n"
    bad = ready.reconciler("volume", "create", "../../x", check=False)
    assert bad.returncode == 64
    found = {item["name"]: item for item in items(ready, "volume", "ls")}
    assert found["adhoc/scratch"]["labels"] == {"for": "tests"}
    assert found["web/data"]["users"] == ["web/main"]
    assert Path(found["adhoc/scratch"]["mountpoint"]).is_dir()
    quiet = ready.reconciler("volume", "ls", "-q", "--filter", "dangling=true").stdout
    assert quiet == "adhoc/scratch\nold-app/data\n"
    assert ready.reconciler("volume", "ls", "-q", "--filter", "label=for").stdout == "adhoc/scratch\n"
    [described] = json.loads(ready.reconciler("volume", "inspect", "adhoc/scratch").stdout)
    assert described["Labels"] == {"for": "tests"}
    assert described["Reconciler"]["Orphaned"]
    used = ready.reconciler("volume", "rm", "web/data", check=False)
    assert used.returncode == 5
    assert "web/main" in used.stderr
    assert ready.reconciler("volume", "rm", "-f", "never/there").returncode == 0
    assert ready.reconciler("volume", "rm", "never/there", check=False).returncode == 8
    # Gentle takes none that somebody named
    assert ready.reconciler("volume", "prune", "-f").stdout == "nothing to remove\n"
    assert ready.reconciler("system", "prune", "-a", "-f").returncode == 0
    assert len(items(ready, "volume", "ls")) == 3
    pruned = ready.reconciler("volume", "prune", "-a", "-f", "--filter", "label=for=tests").stdout
    assert "adhoc/scratch" in pruned
    assert "old-app/data" not in pruned
    assert ready.reconciler("volume", "rm", "old-app/data").stdout == "old-app/data\n"
    assert [item["name"] for item in items(ready, "volume", "ls")] == ["web/data"]


def test_df_says_where_the_room_went(ready: Device, extra: Built) -> None:
    pull(ready, extra, extra.tag)
    summary = {item["name"]: item for item in items(ready, "df")}
    assert (summary["images"]["total"], summary["images"]["active"]) == (2, 1)
    assert summary["images"]["reclaimable"] > 90_000
    assert summary["containers"]["total"] == summary["volumes"]["total"] == 1
    each = items(ready, "system", "df", "-v")
    assert {item["kind"] for item in each} >= {"image", "container", "volume"}
    assert ready.reconciler("system", "df").stdout.startswith("TYPE")
    # Every byte is in one of the lines, and in one only: what du says, which counts a file with two names once
    (ready.state / "partial/left").write_bytes(bytes(100_000))
    (ready.state / "trash/gone").mkdir()
    (ready.state / "trash/gone/file").write_bytes(bytes(50_000))
    os.link(ready.state / "trash/gone/file", ready.state / "trash/gone/again")
    summary = {item["name"]: item for item in items(ready, "df")}
    assert 100_000 <= summary["transfers"]["size"] < 120_000
    assert 50_000 <= summary["discarded"]["size"] < 80_000
    whole = int(ready.inside(["du", "-s", "--block-size=1", str(ready.state)]).stdout.split()[0])
    assert abs(sum(item["size"] for item in summary.values()) - whole) <= 65_536


def ask(device: Device, answer: bytes, *verb: str) -> int:
    """Run a verb on a terminal and answer its question."""
    master, slave = pty.openpty()
    command = [*PROGRAM, *verb, *device.places]
    inside = ["nsenter", f"--net=/run/netns/{device.namespace}", "--", *command]
    process = subprocess.Popen(inside, stdin=slave, stdout=slave, stderr=slave, cwd=REPOSITORY)
    os.close(slave)
    seen = b""
    try:
        while b"[y/N]" not in seen:
            seen += os.read(master, 1000)
        os.write(master, answer)
        return process.wait(60 * PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(master)
