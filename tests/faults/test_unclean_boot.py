"""R3, R9: after a boot that did not end in order, what came in during it is read before it is used, and made good."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.durable import replace_json
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.layout import Layout
from reconciler.spec.reference import Digest
from tests.e2e.conftest import reference
from tests.e2e.device import Device, cgroups
from tests.e2e.world import SLEEPER
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

_OTHER = "0123456789abcdef"


def another_boot(layout: Layout) -> None:
    """Make this boot one that is over: as it looks after the device has been started again."""
    path = layout.session
    if path.exists():
        mark = json.loads(path.read_text())
        replace_json(path, {**mark, "boot": _OTHER})
    for record in layout.layers.glob("*.json"):
        found = LayerRecord.decode(record.read_bytes(), Digest("sha256", record.stem))
        replace_json(record, replace(found, boot=_OTHER).encode())
    layout.verified.unlink(missing_ok=True)


def power_cut(device: Device) -> None:
    """Everything that runs is gone, and what is in memory only."""
    if device.alive:
        device.stop(signal.SIGKILL)
    for group in cgroups(device.instance):
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    shutil.rmtree(device.run, ignore_errors=True)
    another_boot(Layout(device.state, device.run))


def layer_of(device: Device) -> Path:
    return next(path for path in (device.state / "layers").iterdir() if path.is_dir())


def _flipped(layer: Path) -> None:
    victim = layer / "etc/passwd"
    victim.write_bytes(victim.read_bytes().replace(b"root", b"rooT", 1))


def _torn(layer: Path) -> None:
    os.truncate(layer / "bin/busybox", 0)


def _lost(layer: Path) -> None:
    (layer / "etc/group").unlink()


def _cut_record(layer: Path) -> None:
    record = Path(f"{layer}.json")
    os.truncate(record, record.stat().st_size // 2)


def _cut_index(layer: Path) -> None:
    index = Path(f"{layer}.files")
    os.truncate(index, index.stat().st_size - 20)


_FAULTS = [_torn, _lost, _cut_record, _cut_index]


def events(device: Device, kind: str) -> list[dict[str, Any]]:
    lines = (device.state / "events.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["kind"] == kind]


def test_r3_what_the_last_boot_left_wrong_is_made_good_before_a_container_has_it(
    device: Device, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.logged("converged")
    whole = {
        str(path.relative_to(layer_of(device))): path.read_bytes()
        for path in layer_of(device).rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    wrong = 0
    for fault in _FAULTS:
        power_cut(device)
        fault(layer_of(device))
        device.start()
        pid = device.running("web/main")
        for name in ("etc/passwd", "etc/group"):
            assert Path(f"/proc/{pid}/root/{name}").read_bytes() == whole[name], fault.__name__
        layer = layer_of(device)
        assert {name: (layer / name).read_bytes() for name in whole} == whole
        assert device.reconciler("fsck").returncode == 0
        if fault is not _cut_record:  # that is no layer at all, and is pulled anew as ever
            wrong += 1
            device.until(lambda: len(events(device, "checked")) == wrong)  # noqa: B023
            assert events(device, "checked")[-1]["message"].endswith("1 wrong")
    mark = json.loads((device.state / "session.json").read_text())
    assert (mark["clean"], mark["doubted"]) == (False, [])


def test_r3_what_is_whole_needs_nobody_and_an_orderly_end_needs_no_look(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("web", SLEEPER.format(image=reference(box)))
    device.start()
    device.running("web/main")
    device.logged("converged")
    device.configure(bundles=[])  # and there is no registry of that name
    power_cut(device)
    device.start()
    device.running("web/main")
    (said,) = device.until(lambda: events(device, "checked"))
    assert said["message"].endswith("0 wrong")
    assert "1 layers" in said["message"]
    # A restart of the agent in the same boot looks at nothing again
    device.stop(signal.SIGKILL)
    device.start()
    device.until(
        lambda: device.output.count("metrics: ") == 3
    )  # the third to start hears signals from here on
    # Ended in order: the next boot has no doubts
    device.stop()
    assert json.loads((device.state / "session.json").read_text())["clean"] is True
    power_cut(device)
    layer = layer_of(device)
    _flipped(layer)
    device.start()
    pid = device.running("web/main")
    assert b"rooT" in Path(f"/proc/{pid}/root/etc/passwd").read_bytes()
    assert len(events(device, "checked")) == 1


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"boot": 1}', b"\xff" * 100])
def test_r3_a_mark_that_can_not_be_read_is_doubt(device: Device, box: Built, torn: bytes) -> None:
    layout = Layout(device.state, device.run)
    device.configure(bundles=[str(box.layout)])
    device.reconciler("pull", reference(box))
    another_boot(layout)
    layout.session.write_bytes(torn)
    _torn(layer_of(device))
    done = device.reconciler("pull", reference(box))
    assert "from bundle" in done.stderr
    assert (layer_of(device) / "bin/busybox").stat().st_size > 0
    another_boot(layout)
    layout.session.write_bytes(torn)
    assert "from bundle" not in device.reconciler("pull", reference(box)).stderr
