"""The store on any directory: blobs verified, listings that stay true, locks, trash; and jobs that run once."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine import trash
from reconciler.engine.imagerecord import LayerRecord
from reconciler.engine.jobs import Job, Jobs
from reconciler.engine.layout import Layout
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, VerificationError
from reconciler.spec.reference import Digest
from reconciler.state.image import Image, Layer

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")


def digest(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def store(layout: Layout) -> Store:
    made = Store(layout)
    made.prepare()
    return made


def image(index: Digest = A) -> Image:
    return Image(
        index, B, C, (Layer(A, 5, "x", B, B),), "linux/amd64", labels=(("a", "ü"),), entrypoint=("x",)
    )


def add_layer(store: Store, layout: Layout, chain_id: Digest, content: bytes = b"content") -> LayerRecord:
    place = layout.partial / f"unpacked-{chain_id.short}"
    (place / "root").mkdir(parents=True)
    (place / "root" / "file").write_bytes(content)
    (place / "files").write_text(f"{hashlib.sha256(content).hexdigest()}  file\n")
    record = LayerRecord(chain_id, B, C, None, len(content), 1, 1000.0)
    with store.adding():
        store.commit_layer(record, place / "root", place / "files")
    place.rmdir()
    return record


# --- blobs ------------------------------------------------------------------------------------------------------------


def test_a_blob_is_stored_once_under_its_digest(store: Store, layout: Layout) -> None:
    for _ in range(2):
        path = store.ingest([b"con", b"tent"], digest(b"content"), 7)
        assert path == layout.blob(digest(b"content"))
    assert store.read_blob(digest(b"content")) == b"content"
    assert [(blob.digest, blob.size) for blob in store.blobs()] == [(digest(b"content"), 7)]
    assert os.listdir(layout.partial) == []


def test_a_blob_may_be_named_by_sha512(store: Store) -> None:
    name = Digest("sha512", hashlib.sha512(b"content").hexdigest())
    store.ingest([b"content"], name)
    assert store.read_blob(name) == b"content"
    assert store.blobs()[0].digest == name


@pytest.mark.parametrize(
    ("chunks", "size"),
    [([b"other"], None), ([b"content", b"x"], 7), ([b"conten"], 7), ([], 7), ([b"content"], 8)],
)
def test_a_blob_that_is_not_what_was_expected_leaves_the_store_untouched(
    store: Store, layout: Layout, chunks: list[bytes], size: int | None
) -> None:
    with pytest.raises(VerificationError):
        store.ingest(chunks, digest(b"content"), size)
    assert not store.has_blob(digest(b"content"))
    assert os.listdir(layout.partial) == []


def test_reading_stops_where_a_blob_gets_longer_than_it_should_be(store: Store) -> None:
    taken: list[int] = []

    def chunks() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield bytes(1000)

    with pytest.raises(VerificationError, match="longer than 2500"):
        store.ingest(chunks(), A, 2500)
    assert len(taken) == 3


def test_a_damaged_blob_is_discarded_when_it_is_read(store: Store, layout: Layout) -> None:
    store.ingest([b"content"], digest(b"content"))
    layout.blob(digest(b"content")).write_bytes(b"contend")
    with pytest.raises(VerificationError, match="damaged"):
        store.read_blob(digest(b"content"))
    with pytest.raises(FileNotFoundError):
        store.read_blob(digest(b"content"))


# --- layers and records -----------------------------------------------------------------------------------------------


def test_a_layer_is_there_once_its_record_is(store: Store, layout: Layout) -> None:
    record = add_layer(store, layout, A)
    assert store.has_layer(A)
    assert store.layers() == {A: record}
    assert list(store.damaged_files(A)) == []
    layout.layer_record(A).unlink()
    assert not store.has_layer(A)
    assert Store(layout).layers() == {}


def test_a_layer_that_is_there_is_not_replaced_by_the_same_one(store: Store, layout: Layout) -> None:
    """It may be in use: somebody else may have finished the same layer a moment earlier."""
    add_layer(store, layout, A)
    before = store.layer_path(A).stat().st_ino
    place = layout.partial / "second"
    (place / "root").mkdir(parents=True)
    (place / "files").touch()
    store.commit_layer(LayerRecord(A, B, C, None, 0, 0, 0.0), place / "root", place / "files")
    assert store.layer_path(A).stat().st_ino == before
    assert (store.layer_path(A) / "file").read_bytes() == b"content"


def test_what_an_interrupted_addition_left_is_dropped_at_the_next_start(store: Store, layout: Layout) -> None:
    add_layer(store, layout, A)
    (layout.partial / "half").mkdir()
    (layout.layers / B.hex).mkdir()
    (layout.layers / f"{B.hex}.files").touch()
    (layout.layers / f"{C.hex}.json").write_text("{}")
    with store.adding():
        Store(layout).recover()  # somebody is adding: nothing may be dropped
    assert len(os.listdir(layout.partial)) == 1
    again = Store(layout)
    again.recover()
    assert os.listdir(layout.partial) == []
    assert sorted(os.listdir(layout.layers)) == [A.hex, f"{A.hex}.files", f"{A.hex}.json"]
    assert again.has_layer(A)


def test_another_stores_changes_are_seen(store: Store, layout: Layout) -> None:
    other = Store(layout)
    assert store.layers() == {}
    add_layer(other, layout, A)
    assert set(store.layers()) == {A}
    with other.exclusive():
        other.remove_layer(A)
    assert store.layers() == {}
    assert store.observe().layers == frozenset()


def test_resolved_images_survive_and_a_damaged_record_is_forgotten(store: Store, layout: Layout) -> None:
    store.remember(image())
    assert Store(layout).resolved(A) == image()
    assert Store(layout).images() == (image(),)
    path = layout.resolved_image(A)
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64"))
    assert Store(layout).resolved(A) is None
    path.write_bytes(b"")
    assert Store(layout).images() == ()
    store.forget(A)
    assert store.resolved(A) is None


def test_a_resolved_image_under_another_name_is_not_believed(store: Store, layout: Layout) -> None:
    store.remember(image())
    layout.resolved_image(A).rename(layout.resolved_image(B))
    assert Store(layout).resolved(B) is None


def test_asking_for_an_image_counts_as_use(store: Store, layout: Layout) -> None:
    add_layer(store, layout, B)
    store.remember(image())
    for path in (layout.layer_record(B), layout.resolved_image(A)):
        os.utime(path, (1, 1))
    fresh = Store(layout)
    assert {item.last_used for item in fresh.observe().objects} == {1.0}
    fresh.touch(image())
    assert all(item.last_used > 1_000_000 for item in fresh.observe().objects)


def test_what_ran_before_is_listed_with_the_size_of_its_logs(store: Store, layout: Layout) -> None:
    log = layout.previous("web", "db") / "log"
    log.mkdir(parents=True)
    (log / "current").write_bytes(bytes(1000))
    (found,) = store.observe().objects
    assert (found.kind, found.name, found.size) == ("previous", "web/db", 1000)


def test_a_turn_that_finds_nothing_new_reads_no_directory_twice(
    store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_layer(store, layout, A)
    for path in (layout.layers, layout.resolved, layout.tags, layout.blobs / "sha256"):
        os.utime(path, (1, 1))
    first = store.observe()
    listed: list[object] = []
    scandir = os.scandir

    def counting(path: object) -> object:
        listed.append(path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", counting)
    assert store.observe().objects == first.objects
    assert listed == []


# --- locks and trash -------------------------------------------------------------------------------------------------


def test_sweeping_and_adding_exclude_each_other(store: Store, layout: Layout) -> None:
    other = Store(layout)
    with store.adding(), other.adding():
        with pytest.raises(BlockedError, match="garbage has to wait") as caught, other.exclusive():
            pass
        assert caught.value.transient
    with store.exclusive(), pytest.raises(BlockedError), other.exclusive():
        pass
    with other.exclusive():
        pass


def test_the_trash_is_emptied_of_anything_however_deep(store: Store, layout: Layout) -> None:
    victim = layout.state.parent / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    deep = layout.state / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(fd)
        fd = inner
    os.symlink(victim, "link", dir_fd=fd)
    os.close(fd)
    os.mkfifo(deep / "fifo")
    (layout.state / "file").write_bytes(bytes(10_000))
    for name in ("deep", "file", "missing"):
        store.discard(layout.state / name)
    assert store.empty_trash() >= 10_000
    assert os.listdir(layout.trash) == []
    assert (victim / "kept").read_text() == "kept"
    assert store.empty_trash() == 0


def test_two_may_empty_the_trash_at_once(store: Store, layout: Layout) -> None:
    for number in range(30):
        place = layout.trash / str(number) / "a" / "b"
        place.mkdir(parents=True)
        (place / "f").touch()
    threads = [threading.Thread(target=trash.empty, args=(layout.trash,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(layout.trash) == []


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_runs_once_however_many_want_it() -> None:
    jobs: Jobs[str] = Jobs(2)
    gate, runs = threading.Event(), list[str]()

    def work(job: Job[str]) -> None:
        gate.wait(10)
        runs.append(job.key)

    joined = [jobs.join("a", work) for _ in range(3)]
    assert [fresh for _, fresh in joined] == [True, False, False]
    gate.set()
    assert joined[0][0].done.wait(10)
    assert runs == ["a"]
    assert jobs.join("a", work)[1]


def test_a_job_that_everybody_left_is_told_to_stop_and_asked_anew_runs_anew() -> None:
    jobs: Jobs[str] = Jobs(1)
    first, _ = jobs.join("a", lambda job: (job.stop.wait(10), None)[1])
    jobs.join("a", lambda job: None)
    jobs.leave(first)
    assert not first.stop.is_set()
    jobs.leave(first)
    assert first.done.wait(10)
    second, fresh = jobs.join("a", lambda job: None)
    assert fresh
    assert second.done.wait(10)


def test_a_failure_is_kept_for_everybody_who_waits() -> None:
    jobs: Jobs[str] = Jobs(1)

    def work(job: Job[str]) -> None:
        raise BlockedError("no room")

    job, _ = jobs.join("a", work)
    assert job.done.wait(10)
    assert str(job.error) == "no room"


def test_jobs_may_wait_for_earlier_ones_on_any_number_of_threads() -> None:
    for threads in (1, 2, 3):
        jobs: Jobs[int] = Jobs(threads)
        order: list[int] = []
        known: list[Job[int]] = []

        def work(job: Job[int], known: list[Job[int]] = known, order: list[int] = order) -> None:
            if job.key:
                assert known[job.key - 1].done.wait(10)
            order.append(job.key)

        for number in range(50):
            known.append(jobs.join(number, work)[0])
        assert known[-1].done.wait(10)
        assert order == list(range(50))
