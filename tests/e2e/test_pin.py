"""`pin`: digests of a real registry come into spec files, and nothing else of them changes."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.device import Device
from tests.e2e.world import Registry
from tests.images import Built, busybox

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

SPEC = """\
# who wrote this: nobody
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:   # the one
    image: "127.0.0.1:5000/{name}:latest"      # the tag
    command: [sleep,   "100000"]
  other: {{image: 127.0.0.1:5000/{name}:latest, command: [sleep, "1"]}}
"""


@pytest.fixture
def registry(device: Device, tmp_path: Path) -> Registry:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    return Registry(device, tmp_path / "registry")


def pin(device: Device, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = device.reconciler("pin", *args, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_tags_become_digests_in_place_and_the_check_is_for_ci(
    device: Device, registry: Registry, box: Built, box2: Built
) -> None:
    registry.push(box, "web")
    registry.push(box, "db")
    paths = [device.spec(name, SPEC.format(name=name)) for name in ("web", "db")]
    paths[0].chmod(0o640)
    os.chown(paths[0], 7, 8)
    before = [path.read_text() for path in paths]
    checked = pin(device, "--check", str(device.specs), code=2)
    assert "4 images to pin" in checked.stderr
    assert [path.read_text() for path in paths] == before
    done = pin(device, str(device.specs))
    assert done.stdout == checked.stdout
    for path, text in zip(paths, before, strict=True):
        assert path.read_text() == text.replace(":latest", f":latest@{box.digest}")
    found = paths[0].stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 7, 8)
    assert sorted(os.listdir(device.specs)) == ["db.yaml", "web.yaml"]
    assert device.reconciler("validate", str(device.specs)).returncode == 0
    # Pinned is pinned: no registry is asked, and nothing is written
    registry.stop()
    kept = paths[0].stat().st_ino
    assert pin(device, "--check", str(paths[0])).stdout == ""
    pin(device, str(device.specs))
    assert paths[0].stat().st_ino == kept
    registry.start()
    # The tag moves: only --update follows it
    registry.push(Built(box2.layout, box2.digest, "latest"), "web")
    pin(device, "--check", str(device.specs))
    items = json.loads(pin(device, "--check", "--update", "-o", "json", str(device.specs), code=2).stdout)[
        "items"
    ]
    assert [(item["container"], item["line"]) for item in items] == [("web/main", 7), ("web/other", 9)]
    assert items[0]["after"] == f"127.0.0.1:5000/web:latest@{box2.digest}"
    done = pin(device, "--update", str(paths[0]))
    assert f'-    image: "127.0.0.1:5000/web:latest@{box.digest}"      # the tag' in done.stdout
    assert f'+    image: "127.0.0.1:5000/web:latest@{box2.digest}"      # the tag' in done.stdout
    assert paths[0].read_text() == before[0].replace(":latest", f":latest@{box2.digest}")
    pin(device, "--check", "--update", str(device.specs))


def test_all_or_nothing_is_written_and_every_place_is_said(
    device: Device, registry: Registry, box: Built
) -> None:
    registry.push(box, "web")
    good = device.spec("web", SPEC.format(name="web"))
    bad = device.spec("bad", "name: bad\ncontainers:\n  a: {image: nginx}\n  b: {image: 'R.example/x y:1'}\n")
    texts = good.read_text(), bad.read_text()
    done = pin(device, str(device.specs), code=3)
    assert "bad.yaml:3:14: error: image 'nginx': the registry host is missing" in done.stderr
    assert "bad.yaml:4:14:" in done.stderr
    bad.write_text("name: bad\ncontainers:\n  a: {image: 127.0.0.1:5000/none:1}\n")
    done = pin(device, str(device.specs), code=8)
    assert "127.0.0.1:5000" in done.stderr
    bad.write_text('name: bad\ncontainers:\n  a: {image: "127.0.0.1:5000/\\x77eb:latest"}\n')
    done = pin(device, str(device.specs), code=3)
    assert "with escapes" in done.stderr
    assert good.read_text() == texts[0]
    bad.write_text("a: [\n")
    assert "bad.yaml:" in pin(device, str(device.specs), code=3).stderr
    assert "no such file" in pin(device, "/nonexistent.yaml", code=8).stderr
    (device.root / "x.txt").write_text("")
    assert "not a spec file" in pin(device, str(device.root / "x.txt"), code=3).stderr
    assert good.read_text() == texts[0]
    assert not device.state.exists()


def test_a_link_to_a_file_stays_a_link_and_a_digest_alone_is_left(
    device: Device, registry: Registry, box: Built, tmp_path: Path
) -> None:
    registry.push(box, "web")
    busybox(tmp_path / "unused")
    inner = device.specs / "real" / "web.yaml"
    inner.parent.mkdir()
    inner.write_text(SPEC.format(name="web").replace(":latest, command", f"@{box.digest}, command"))
    link = device.root / "linked"
    link.mkdir()
    (link / "real.yaml").write_text(inner.read_text())
    (link / "web.yaml").symlink_to("real.yaml")
    pin(device, str(link / "web.yaml"))
    assert (link / "web.yaml").is_symlink()
    text = (link / "real.yaml").read_text()
    assert text.count(f":latest@{box.digest}") == 1
    assert f"web@{box.digest}, command" in text
