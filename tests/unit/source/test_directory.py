"""Specs from a directory: whatever lies in it, nothing blocks, nothing raises, nothing outside of it is read."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError
from reconciler.source.directory import DirectorySource
from reconciler.source.snapshot import MAX_DEPTH, MAX_FILES, Snapshot, is_spec
from reconciler.source.watch import early, watch
from reconciler.spec.load import ReadFailure


def write(path: Path, content: str = "name: x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def age(path: Path) -> None:
    """Wait until the change of `path` is old enough to be told from a later one by its times."""
    while path.stat().st_ctime_ns > time.time_ns() - 30_000_000:
        os.sched_yield()


def reason(snapshot: Snapshot, path: str) -> str:
    failure = snapshot.files[path]
    assert isinstance(failure, ReadFailure)
    return failure.reason


def test_specs_are_read_recursively_and_everything_else_is_left(tmp_path: Path) -> None:
    for name in (
        "a.yaml",
        "b.yml",
        "sub/deep/c.yaml",
        ".hidden.yaml",
        ".git/d.yaml",
        "e.yaml-bak",
        ".e.yaml.swp",
        "f.json",
    ):
        write(tmp_path / name)
    (tmp_path / "dir.yaml").mkdir()
    write(tmp_path / "dir.yaml" / "g.yaml", "g")
    snapshot = DirectorySource(tmp_path).snapshot()
    assert sorted(snapshot.files) == ["a.yaml", "b.yml", "dir.yaml/g.yaml", "sub/deep/c.yaml"]
    assert snapshot.files["dir.yaml/g.yaml"] == b"g"
    assert snapshot.problem == ""
    assert list(snapshot.files) == sorted(snapshot.files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.yaml", True),
        ("a.yml", True),
        (".a.yaml", False),
        ("a.yaml~", False),
        (".yaml", False),
        ("a.YAML", False),
    ],
)
def test_only_yaml_names_that_are_not_hidden_are_specs(name: str, expected: bool) -> None:
    assert is_spec(name) is expected


def test_where_no_file_changed_it_is_the_same_mapping_of_files(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    age(write(tmp_path / "a.yaml"))
    age(write(tmp_path / "sub/b.yaml"))
    source.snapshot()
    before = source.snapshot()
    assert source.snapshot().files is before.files
    (tmp_path / "sub").rename(tmp_path / "other")
    moved = source.snapshot()
    assert list(moved.files) == ["a.yaml", "other/b.yaml"]
    assert moved.revision != before.revision
    (tmp_path / "a.yaml").unlink()
    assert list(source.snapshot().files) == ["other/b.yaml"]
    (tmp_path / "link.yaml").symlink_to("nowhere")
    assert [*source.snapshot().files] == [*source.snapshot().files] == ["link.yaml", "other/b.yaml"]


def test_a_directory_that_is_too_deep_is_a_problem_although_the_files_are_the_same(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    age(write(tmp_path / "a.yaml"))
    files = [source.snapshot().files for _ in range(2)][-1]
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    found = source.snapshot()
    assert "directories deep" in found.problem
    assert found.files is files
    deep.rmdir()
    deep.parent.rmdir()
    assert source.snapshot().problem == ""


def test_the_revision_names_the_content(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    write(tmp_path / "a.yaml", "1")
    first = source.snapshot().revision
    assert source.snapshot().revision == first == DirectorySource(tmp_path).snapshot().revision
    write(tmp_path / "a.yaml", "2")
    second = source.snapshot().revision
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    third = source.snapshot().revision
    write(tmp_path / "b.yaml", "1")
    (tmp_path / "b.yaml").rename(tmp_path / "a.yaml")
    assert len({first, second, third}) == 3
    assert source.snapshot().revision == first


def test_an_unchanged_file_is_the_same_object_and_a_changed_one_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "1111")
    source = DirectorySource(tmp_path)
    first = source.snapshot().files["a.yaml"]
    assert source.snapshot().files["a.yaml"] is first
    age(path)
    assert source.snapshot().files["a.yaml"] is first
    assert source.snapshot().files["a.yaml"] is first
    # The same size, at once: only a look at the content, or the time, tells.
    path.write_text("2222")
    assert source.snapshot().files["a.yaml"] == b"2222"
    path.write_text("3333")
    assert source.snapshot().files["a.yaml"] == b"3333"


def test_a_file_replaced_with_its_old_times_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "1111")
    age(path)
    source = DirectorySource(tmp_path)
    source.snapshot()
    before = path.stat()
    path.write_text("2222")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.snapshot().files["a.yaml"] == b"2222"


def test_y9_what_is_no_regular_file_fails_by_name_and_never_blocks(tmp_path: Path) -> None:
    root = tmp_path / "specs"
    write(root / "good.yaml")
    os.mkfifo(root / "fifo.yaml")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket.yaml"))
    write(root / "large.yaml", "x" * (1024 * 1024 + 1))
    write(root / "limit.yaml", "x" * (1024 * 1024))
    (root / "out.yaml").symlink_to("/etc/hostname")
    (root / "up.yaml").symlink_to("../secret.yaml")
    write(tmp_path / "secret.yaml", "secret")
    (root / "nowhere.yaml").symlink_to("missing.yaml")
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "proc.yaml").symlink_to("/proc/self/environ")
    snapshot = DirectorySource(root).snapshot()
    assert snapshot.files["good.yaml"] == b"name: x\n"
    assert snapshot.files["limit.yaml"] == b"x" * (1024 * 1024)
    assert reason(snapshot, "fifo.yaml") == "a FIFO, not a regular file"
    assert reason(snapshot, "socket.yaml") == "a socket, not a regular file"
    assert reason(snapshot, "large.yaml") == "larger than 1 MiB"
    for name in ("out.yaml", "up.yaml", "proc.yaml"):
        assert "leads out of the directory" in reason(snapshot, name)
    for name in ("nowhere.yaml", "loop.yaml"):
        assert "leads nowhere" in reason(snapshot, name)
    assert snapshot.problem == ""


def test_a_configmap_as_kubernetes_mounts_it_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "..2026_01" / "app.yaml", "one")
    write(tmp_path / "..2026_01" / "sub" / "deep.yaml", "deep")
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "app.yaml").symlink_to("..data/app.yaml")
    (tmp_path / "sub").symlink_to("..data/sub")
    source = DirectorySource(tmp_path)
    assert dict(source.snapshot().files) == {"app.yaml": b"one", "sub/deep.yaml": b"deep"}
    write(tmp_path / "..2026_02" / "app.yaml", "two")
    (tmp_path / "..tmp").symlink_to("..2026_02")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert dict(source.snapshot().files) == {"app.yaml": b"two"}


def test_links_to_directories_neither_loop_nor_read_twice_nor_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "specs"
    write(root / "v2" / "a.yaml")
    write(tmp_path / "outside" / "b.yaml")
    (root / "current").symlink_to("v2")
    (root / "v2" / "again").symlink_to("..")
    (root / "outside").symlink_to("../outside")
    (root / "abs").symlink_to(str(tmp_path / "outside"))
    snapshot = DirectorySource(root).snapshot()
    assert sorted(snapshot.files) == ["v2/a.yaml"]
    assert snapshot.problem == ""


def test_a_missing_root_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    root = tmp_path / "specs"
    source = DirectorySource(root)
    assert source.snapshot().problem == f"{root}: no such directory"
    write(root / "a.yaml")
    assert source.snapshot().problem == ""
    (root / "a.yaml").unlink()
    assert source.snapshot() == Snapshot(source.snapshot().revision, {})
    root.rmdir()
    write(root)
    assert source.snapshot().problem == f"{root}: not a directory"
    with pytest.raises(ReconcilerError, match="not a directory"):
        source.snapshot().read_config("x")


def test_too_deep_and_too_many_are_problems_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path.joinpath(*["d"] * 20) / "deep.yaml")
    write(tmp_path / "a.yaml")
    snapshot = DirectorySource(tmp_path).snapshot()
    assert "16 directories deep" in snapshot.problem
    assert sorted(snapshot.files) == ["a.yaml"]
    many = tmp_path / "many"
    many.mkdir()
    original = many / "0.yaml"
    original.write_text("x")
    for number in range(1, MAX_FILES + 1):
        os.link(original, many / f"{number}.yaml")
    snapshot = DirectorySource(many).snapshot()
    assert snapshot.problem == f"{many}: more than {MAX_FILES} spec files"
    assert len(snapshot.files) == MAX_FILES


def test_y5_a_name_that_is_not_utf8_is_quoted_and_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.yaml")).write_text("x")
    snapshot = DirectorySource(tmp_path).snapshot()
    assert reason(snapshot, r"bad\xff.yaml") == "its name is not UTF-8"


def test_configs_are_read_from_inside_only(tmp_path: Path) -> None:
    root = tmp_path / "specs"
    path = write(root / "conf" / "app.toml", "key = 1")
    write(tmp_path / "secret", "secret")
    (root / "link").symlink_to("../secret")
    snapshot = DirectorySource(root).snapshot()
    assert snapshot.read_config("conf/app.toml") == b"key = 1"
    age(path)
    kept = snapshot.read_config("conf/app.toml")
    assert snapshot.read_config("conf/app.toml") is kept
    path.write_text("key = 2")
    assert snapshot.read_config("conf/app.toml") == b"key = 2"
    for bad in ("../secret", "link", "/etc/hostname", "conf", "missing", "conf/app.toml/x"):
        with pytest.raises(ReconcilerError):
            snapshot.read_config(bad)


def test_y9_a_thousand_unchanged_files_cost_a_few_milliseconds(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"name: app-{number}\n")
    age(tmp_path / "999.yaml")
    source = DirectorySource(tmp_path)
    first = source.snapshot()
    source.snapshot()
    costs = []
    for _ in range(5):
        began = time.thread_time()
        assert source.snapshot().revision == first.revision
        costs.append(time.thread_time() - began)
    assert min(costs) < 0.015  # about 4 ms on a quiet machine


class Watched:
    """A watch and the wake-ups it gave."""

    def __init__(self, root: Path) -> None:
        self.wakes = threading.Semaphore(0)
        self.stop = threading.Event()
        self.warnings: list[str] = []
        self.thread = watch(root, self.wakes.release, self.stop, warn=self.warnings.append)

    def woken(self, seconds: float = 10.0) -> bool:
        """Whether a wake-up came in time; takes all that are there, and those which belong to the same burst."""
        came = self.wakes.acquire(timeout=seconds)
        while self.wakes.acquire(timeout=0.25):
            pass
        return came


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "specs" / "sub").mkdir(parents=True)
    found = Watched(tmp_path / "specs")
    assert found.woken()
    yield found
    found.stop.set()
    found.thread.join(10)
    assert not found.thread.is_alive()


def test_a_change_wakes_also_in_a_new_subdirectory(watched: Watched, tmp_path: Path) -> None:
    write(tmp_path / "specs" / "a.yaml")
    assert watched.woken()
    write(tmp_path / "specs" / "sub" / "b.yaml")
    assert watched.woken()
    (tmp_path / "specs" / "new").mkdir()
    assert watched.woken()
    write(tmp_path / "specs" / "new" / "c.yaml")
    assert watched.woken()
    (tmp_path / "specs" / "a.yaml").unlink()
    assert watched.woken()
    assert watched.warnings == []


def test_a_watch_survives_its_directory(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "specs").rename(tmp_path / "old")
    assert watched.woken()
    (tmp_path / "specs").mkdir()
    assert watched.woken()
    write(tmp_path / "specs" / "a.yaml")
    assert watched.woken()


def test_a_completed_file_is_heard_of_early_and_one_that_goes_away_is_not(tmp_path: Path) -> None:
    write(tmp_path / "specs" / "a.yaml")
    write(tmp_path / "new.yaml")
    wakes = threading.Semaphore(0)
    with early(tmp_path / "specs", wakes.release):
        with (tmp_path / "specs" / "b.yaml").open("w") as file:
            file.write("name: b\n")
            file.flush()
            assert not wakes.acquire(timeout=0.1), "not finished"
        assert wakes.acquire(timeout=10)
        (tmp_path / "new.yaml").rename(tmp_path / "specs" / "a.yaml")
        assert wakes.acquire(timeout=10)
        (tmp_path / "specs" / "a.yaml").unlink()
        assert not wakes.acquire(timeout=0.1)
        (tmp_path / "specs" / "b.yaml").rename(tmp_path / "b.yaml")
        assert not wakes.acquire(timeout=0.1)
    write(tmp_path / "specs" / "c.yaml")
    assert not wakes.acquire(timeout=0.1)


def test_nothing_is_heard_early_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with early(tmp_path / "none", lambda: None):
        write(tmp_path / "none" / "a.yaml")
