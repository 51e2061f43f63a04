"""Transfers that take long are kept on disk: the next agent goes on where the last one was, whatever was in between."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.config import Registries
from reconciler.engine.downloads import KEPT_FOR, Downloads, clear
from reconciler.engine.layout import Layout
from reconciler.engine.limits import Limits
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError, UnreachableRegistryError
from reconciler.engine.registry.patience import Patience
from reconciler.engine.room import Room
from reconciler.errors import BlockedError, VerificationError
from tests.hostile.test_registry_behaviour import QUICK, Device, broken_off, status
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, Request, Wire

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]

IMPATIENT = replace(QUICK, kept_after=0, retries=(0.01,), resumes=1)


@pytest.fixture
def device() -> Iterator[Device]:
    path = scratch("resume")
    with FakeRegistry() as fake:
        made = Device(path, fake)
        again(made)
        yield made
        made.images.close()
    remove(path)


def again(device: Device, patience: Patience = IMPATIENT) -> None:
    """Start anew, as an agent does: nothing but the disk is remembered."""
    device.images.close()
    device.store.recover()
    device.images = Images(
        device.store,
        device.layout,
        registry=Registry(Registries(insecure=(device.fake.name,)), patience=patience),
        platform=host_platform(),
        limits=Limits(reserve=0),
    )
    clear(device.layout, idle_for=KEPT_FOR)


def kept(device: Device) -> list[Path]:
    return sorted(device.layout.downloads.glob("*"))


def ranges(device: Device) -> list[str | None]:
    """What was asked of the blob since the last look."""
    found = [request.headers.get("range") for request in device.fake.asked(device.blob_path)]
    device.fake.requests.clear()
    return found


def interrupted(device: Device, at: int = 100_000) -> None:
    """A pull of which `at` bytes have come, and no more."""
    device.fake.scripts[device.blob_path] = broken_off(device, at)
    device.fake.ranges = False
    with pytest.raises(UnreachableRegistryError):
        device.pull()
    del device.fake.scripts[device.blob_path]
    device.fake.ranges = True
    ranges(device)
    (path,) = kept(device)
    assert path.read_bytes() == device.blob[:at]
    assert path.stat().st_mode & 0o777 == 0o600


def test_g7_the_next_agent_asks_only_for_the_rest(device: Device) -> None:
    interrupted(device)
    again(device)
    device.check_whole(device.pull())
    assert ranges(device) == ["bytes=100000-"]
    rest = len(device.blob) - 100_000
    assert device.images.received == {(device.fake.name, "origin", "resumed"): rest}
    assert kept(device) == []


def test_what_has_come_whole_is_not_asked_for_again(device: Device) -> None:
    interrupted(device)
    (path,) = kept(device)
    path.write_bytes(device.blob)
    again(device)
    device.check_whole(device.pull())
    assert ranges(device) == []
    assert kept(device) == []


def test_it_goes_on_as_often_as_it_takes(device: Device) -> None:
    for at in (50_000, 120_000, 200_000):

        def more(request: Request, wire: Wire, at: int = at) -> None:
            start = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
            place = {"Content-Range": f"bytes {start}-{len(device.blob) - 1}/{len(device.blob)}"}
            body = device.blob[start:at]
            wire.respond(206 if start else 200, body, place, length=len(device.blob) - start)
            raise ConnectionAbortedError

        device.fake.scripts[device.blob_path] = more
        with pytest.raises(RegistryError):
            device.pull()
        assert kept(device)[0].stat().st_size == at
        again(device)
    del device.fake.scripts[device.blob_path]
    ranges(device)
    device.check_whole(device.pull())
    assert ranges(device) == ["bytes=200000-"]


def test_g7_a_server_that_knows_no_ranges_is_read_from_its_start(device: Device) -> None:
    interrupted(device)
    device.fake.ranges = False
    again(device)
    device.check_whole(device.pull())
    assert ranges(device) == ["bytes=100000-"]


@pytest.mark.parametrize("answer", ["416", "later range", "other bytes"])
def test_g7_a_wrong_answer_to_the_rest_begins_the_layer_anew(device: Device, answer: str) -> None:
    interrupted(device)

    def wrong(request: Request, wire: Wire) -> None:
        if "range" not in request.headers:
            device.fake.answer(request, wire)
        elif answer == "416":
            wire.respond(416)
        elif answer == "later range":
            size = len(device.blob)
            wire.respond(206, device.blob[150_000:], {"Content-Range": f"bytes 150000-{size - 1}/{size}"})
        else:
            size = len(device.blob)
            wire.respond(206, b"\1" * (size - 100_000), {"Content-Range": f"bytes 100000-{size - 1}/{size}"})

    device.fake.scripts[device.blob_path] = wrong
    again(device)
    device.check_whole(device.pull())
    assert ranges(device) == ["bytes=100000-", None]
    assert kept(device) == []


@pytest.mark.parametrize("damage", ["flipped", "zeros", "too long", "empty", "other offset"])
def test_a_damaged_file_costs_the_transfer_and_nothing_else(device: Device, damage: str) -> None:
    interrupted(device)
    (path,) = kept(device)
    data = path.read_bytes()
    match damage:
        case "flipped":
            path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        case "zeros":
            path.write_bytes(bytes(len(data)))
        case "too long":
            path.write_bytes(device.blob + b"x")
        case "empty":
            path.write_bytes(b"")
        case "other offset":
            path.rename(path.with_name(path.name.rpartition("-")[0] + "-7"))
    again(device)
    device.check_whole(device.pull())
    assert kept(device) == []


def test_a_layer_that_is_not_what_it_should_be_is_not_kept(device: Device) -> None:
    device.fake.scripts[device.blob_path] = status(200, body=device.blob[:-1] + b"\x55")
    with pytest.raises(VerificationError):
        device.pull()
    assert kept(device) == []
    device.check_untouched()


def test_the_first_seconds_are_fetched_again_and_a_layer_that_comes_quickly_is_never_kept(
    device: Device,
) -> None:
    def slowly(request: Request, wire: Wire) -> None:
        start = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        wire.respond(200, device.blob[start:50_000], length=len(device.blob) - start)
        wire.pause(0.3)
        wire.send(device.blob[50_000:120_000])
        raise ConnectionAbortedError

    patience = replace(IMPATIENT, kept_after=0.15, idle=2)
    again(device, patience)
    device.fake.scripts[device.blob_path] = slowly
    device.fake.ranges = False
    with pytest.raises(RegistryError):
        device.pull()
    (path,) = kept(device)
    offset = int(path.name.rpartition("-")[2])
    assert 0 < offset <= 50_000
    assert path.read_bytes() == device.blob[offset:120_000]
    del device.fake.scripts[device.blob_path]
    for honoured in (True, False):
        device.fake.ranges = honoured
        saved = path.read_bytes()
        again(device, patience)
        ranges(device)
        image = device.pull()
        device.check_whole(image)
        assert ranges(device) == [f"bytes=0-{offset - 1}", "bytes=120000-"]
        device.store.discard(device.store.layer_path(image.layers[0].chain_id))
        device.layout.layer_record(image.layers[0].chain_id).unlink()
        path.write_bytes(saved)
    path.unlink()
    again(device, replace(IMPATIENT, kept_after=60))
    device.check_whole(device.pull())
    assert kept(device) == []


_PULL = """
import sys
from pathlib import Path
from reconciler.config import Registries
from reconciler.engine.layout import Layout
from reconciler.engine.platform import host_platform
from reconciler.engine.pull import Images
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.patience import Patience
from reconciler.engine.store import Store
from reconciler.spec.reference import Reference
layout = Layout(Path(sys.argv[1]), Path(sys.argv[2]))
reference = Reference.parse(sys.argv[3])
store = Store(layout)
store.prepare()
registry = Registry(Registries(insecure=(reference.registry,)), patience=Patience(kept_after=0))
images = Images(store, layout, registry=registry, platform=host_platform())
images.pull(images.resolve(reference), reference)
"""


def _pulling(device: Device, layout: Layout) -> "subprocess.Popen[bytes]":
    clone = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _PULL, str(layout.state), str(layout.run), str(device.reference)]
    return subprocess.Popen(command, cwd=clone)


def pulled(device: Device, layout: Layout) -> int:
    """Pull in a process of its own, and return its exit code."""
    return _pulling(device, layout).wait(60)


def killed_after(
    device: Device, layout: Layout, size: int, seconds: float = 0.0, first: Callable[[], None] | None = None
) -> None:
    """Pull in a process of its own; when `size` bytes are kept and `seconds` have gone do `first`, and kill it."""
    process = _pulling(device, layout)
    try:
        began = time.monotonic()
        while (
            sum(p.stat().st_size for p in layout.downloads.glob("*")) < size
            or time.monotonic() - began < seconds
        ):
            assert time.monotonic() - began < 30
            assert process.poll() is None
            time.sleep(0.01)
        if first is not None:
            first()
    finally:
        process.kill()
        process.wait()


def test_r1_a_pull_that_was_killed_goes_on_with_what_had_come(device: Device) -> None:
    def stalling(_: Request, wire: Wire) -> None:
        wire.respond(200, device.blob[:150_000], length=len(device.blob))
        wire.hang()

    device.fake.scripts[device.blob_path] = stalling
    killed_after(device, device.layout, 150_000)
    del device.fake.scripts[device.blob_path]
    ranges(device)
    again(device)
    device.check_whole(device.pull())
    assert ranges(device) == ["bytes=150000-"]


def test_two_transfers_of_one_layer_do_not_share_a_file(device: Device) -> None:
    """One has it, the other does without: from another registry, say."""
    interrupted(device)
    room = Room(device.layout, Limits(reserve=0))
    digest, size = device.built.digest, 100
    downloads = Downloads(device.layout, room, 0)
    with downloads.of(digest, size) as first, downloads.of(digest, size) as second:
        first.take(b"a" * 10, 0)
        second.take(b"b" * 10, 0)
        first.take(b"c" * 10, 10)
        second.take(b"d" * 5, 10)
    with downloads.of(digest, size) as third:
        assert b"".join(third.read()) == b"a" * 10 + b"c" * 10


def test_nothing_is_kept_where_there_is_little_room_and_what_is_kept_makes_room(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(device)
    monkeypatch.setattr(Room, "free", property(lambda _: len(device.blob)))
    again(device)
    device.fake.scripts[device.blob_path] = broken_off(device)
    device.fake.ranges = False
    with pytest.raises(RegistryError):
        device.pull()
    assert [path.stat().st_size for path in kept(device)] == [100_000]  # what was there stays, no byte more
    monkeypatch.setattr(Room, "free", property(lambda _: 10))
    with pytest.raises(BlockedError, match="disk full"):
        device.pull()
    assert kept(device) == []


def test_what_nobody_went_on_with_for_a_day_goes_and_a_clock_that_went_back_takes_nothing(
    device: Device,
) -> None:
    interrupted(device)
    (path,) = kept(device)
    for age, stays in ((0.0, True), (KEPT_FOR - 60, True), (-1e9, True), (KEPT_FOR + 60, False)):
        os.utime(path, (time.time() - age, time.time() - age))
        again(device)
        assert path.exists() is stays, age


def test_what_is_no_download_is_passed_over(device: Device) -> None:
    device.layout.downloads.mkdir(mode=0o700)
    stem = f"sha256-{device.blob_path.rpartition(':')[2]}"
    (device.layout.downloads / f"{stem}-0").symlink_to("/etc/hostname")
    (device.layout.downloads / f"{stem}-1").mkdir()
    os.mkfifo(device.layout.downloads / f"{stem}-x")
    again(device)
    device.check_whole(device.pull())
    assert Path("/etc/hostname").exists()


def test_pauses_are_left_to_chance_in_part_and_never_shorter_than_asked_for() -> None:
    patience = Patience()
    for attempt, delay in enumerate(patience.retries):
        pauses = {patience.pause(attempt, 0) for _ in range(100)}
        assert len(pauses) > 50
        assert delay <= min(pauses) <= max(pauses) <= delay * (1 + patience.jitter)
    assert min(patience.pause(0, 20.0) for _ in range(100)) >= 20.0
