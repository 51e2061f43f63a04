"""Specs from git, against the real program and repositories on this disk: what is read, and what an attacker gets."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError, TimedOutError
from reconciler.source.git import Fetch, GitSource
from reconciler.source.program import GitError, environment, run
from reconciler.spec.load import ReadFailure

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


class Remote:
    """A repository with a work tree, as somebody else edits it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["git", "-C", str(self.root), "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.root), "GIT_CONFIG_NOSYSTEM": "1"},
        )
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        for name, content in files.items():
            path = self.root / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path / "remote")


@pytest.fixture
def source(remote: Remote, tmp_path: Path) -> GitSource:
    return GitSource(tmp_path / "state" / "specs.git", str(remote.root))


def names(repository: Path) -> set[str]:
    return {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}


def test_the_first_snapshot_fetches_and_later_ones_do_not(remote: Remote, source: GitSource) -> None:
    commit = remote.commit(
        a_yaml="name: a\n", sub__b_yml="name: b\n", _hidden_yaml="x", README_md="x", _x__c_yaml="x"
    )
    snapshot = source.snapshot()
    assert snapshot.revision == commit
    assert dict(snapshot.files) == {"a.yaml": b"name: a\n", "sub/b.yml": b"name: b\n"}
    assert (snapshot.problem, snapshot.stale) == ("", "")
    remote.commit(a_yaml="name: c\n")
    assert source.snapshot().revision == commit
    assert source.fetch().result == "success"
    changed = source.snapshot()
    assert changed.files["a.yaml"] == b"name: c\n"
    assert changed.files["sub/b.yml"] is snapshot.files["sub/b.yml"]
    assert source.fetch().result == "unchanged"


def test_an_unchanged_branch_writes_nothing(remote: Remote, source: GitSource, tmp_path: Path) -> None:
    remote.commit(a_yaml="x")
    source.fetch()
    repository = tmp_path / "state" / "specs.git"
    before = {name: (repository / name).stat().st_mtime_ns for name in names(repository)}
    assert source.fetch().result == "unchanged"
    assert {name: (repository / name).stat().st_mtime_ns for name in names(repository)} == before


def test_a_path_inside_the_repository_is_the_root_of_everything(remote: Remote, tmp_path: Path) -> None:
    remote.commit(devices__kiosk__a_yaml="a", other_yaml="x", devices__kiosk__conf__app_toml="k = 1")
    source = GitSource(tmp_path / "g", str(remote.root), path="devices/kiosk")
    snapshot = source.snapshot()
    assert list(snapshot.files) == ["a.yaml"]
    assert snapshot.read_config("conf/app.toml") == b"k = 1"
    for bad in ("other.yaml", "../../other.yaml", "conf", "/etc/hostname"):
        with pytest.raises(ReconcilerError, match="no such file"):
            snapshot.read_config(bad)
    missing = GitSource(tmp_path / "g", str(remote.root), path="nowhere").snapshot()
    assert "has no directory nowhere" in missing.problem
    assert dict(missing.files) == {}


def test_a_failed_fetch_keeps_the_last_commit_also_across_a_restart(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    commit = remote.commit(a_yaml="a")
    source.fetch()
    remote.root.rename(tmp_path / "away")
    failed = source.fetch()
    assert (failed.result, bool(failed.error)) == ("error", True)
    snapshot = source.snapshot()
    assert (snapshot.revision, dict(snapshot.files), snapshot.problem) == (commit, {"a.yaml": b"a"}, "")
    assert f"using commit {commit[:12]}" in snapshot.stale
    again = GitSource(tmp_path / "state" / "specs.git", str(remote.root))
    assert again.snapshot().files == {"a.yaml": b"a"}
    assert again.snapshot().stale
    (tmp_path / "away").rename(remote.root)
    assert again.fetch().result == "unchanged"
    assert again.snapshot().stale == ""


def test_a_deleted_branch_and_a_rewritten_one(remote: Remote, source: GitSource) -> None:
    first = remote.commit(a_yaml="a")
    source.fetch()
    remote.git("branch", "-m", "other")
    assert "no branch main" in source.fetch().error
    assert source.snapshot().revision == first
    remote.git("checkout", "--quiet", "--orphan", "main")
    second = remote.commit(a_yaml="b")
    assert source.fetch().result == "success"
    assert source.snapshot().revision == second


def test_t3_a_branch_that_is_set_back_is_followed_and_told_until_it_goes_on(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    first = remote.commit(a_yaml="old and vulnerable")
    second = remote.commit(a_yaml="mended")
    assert source.fetch().result == "success"
    remote.git("reset", "--quiet", "--hard", first)
    assert source.fetch().result == "rewound"
    found = source.snapshot()
    assert (found.revision, found.files["a.yaml"]) == (first, b"old and vulnerable")
    assert f"branch main was set back from commit {second[:12]} of 2" in found.stale
    assert f" to the older {first[:12]} of 2" in found.stale
    assert source.fetch().result == "unchanged"
    assert "set back" in source.snapshot().stale
    remote.commit(a_yaml="mended again")
    assert source.fetch().result == "success"
    assert source.snapshot().stale == ""


def test_t3_so_is_one_that_is_replayed_far_back_also_while_nobody_looked(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    remote.git("commit", "--quiet", "--allow-empty", "-m", "x", "--date=2001-01-01T00:00:00Z")
    old = "GIT_COMMITTER_DATE=2001-01-01T00:00:00Z"
    subprocess.run(
        [
            "env",
            old,
            "git",
            "-C",
            str(remote.root),
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
            "commit",
            "--quiet",
            "--amend",
            "--no-edit",
            "--allow-empty",
        ],
        check=True,
    )
    first = remote.git("rev-parse", "HEAD")
    for number in range(3):
        remote.commit(a_yaml=str(number))
    source.fetch()
    remote.git("reset", "--quiet", "--hard", first)
    again = GitSource(tmp_path / "state" / "specs.git", str(remote.root))
    assert again.fetch().result == "rewound"
    assert "2001-01-01" in again.snapshot().stale


def test_an_unreachable_repository_without_a_last_commit_is_a_problem(tmp_path: Path) -> None:
    snapshot = GitSource(tmp_path / "g", str(tmp_path / "missing")).snapshot()
    assert snapshot.problem
    assert dict(snapshot.files) == {}


def test_another_url_in_the_same_repository_is_not_taken_for_this_one(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    remote.commit(a_yaml="a")
    source.fetch()
    other = GitSource(tmp_path / "state" / "specs.git", str(tmp_path / "missing"))
    assert other.snapshot().problem
    assert dict(other.snapshot().files) == {}


def test_t1_links_and_submodules_and_large_files_fail_by_name(remote: Remote, source: GitSource) -> None:
    (remote.root / "link.yaml").symlink_to("/etc/shadow")
    commit = remote.commit(a_yaml="a", large_yaml="x" * (1024 * 1024 + 1), script_yaml="s")
    remote.git("update-index", "--add", "--cacheinfo", f"160000,{commit},module.yaml")
    remote.git("update-index", "--chmod=+x", "script.yaml")
    remote.git("commit", "--quiet", "-m", "x")
    snapshot = source.snapshot()
    assert snapshot.files["a.yaml"] == b"a"
    assert snapshot.files["script.yaml"] == b"s"
    assert snapshot.files["link.yaml"] == ReadFailure("a symbolic link, not a regular file")
    assert snapshot.files["module.yaml"] == ReadFailure("a submodule, not a regular file")
    assert snapshot.files["large.yaml"] == ReadFailure("larger than 1 MiB")
    with pytest.raises(ReconcilerError, match="symbolic link"):
        snapshot.read_config("link.yaml")


def test_t1_nothing_that_a_repository_brings_along_is_run(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    remote.commit(a_yaml="a", _gitattributes="*.yaml filter=evil diff=evil\n")
    remote.git("config", "uploadpack.packObjectsHook", str(program))
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f"[core]\n\tfsmonitor = {program}\n\tsshCommand = {program}\n\thooksPath = {program.parent}\n"
    )
    saved = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    try:
        assert source.snapshot().files["a.yaml"] == b"a"
        remote.commit(a_yaml="b")
        hooks = tmp_path / "state" / "specs.git" / "hooks"
        hooks.mkdir()
        for hook in ("post-checkout", "reference-transaction", "post-merge", "fsmonitor-watchman"):
            shutil.copy(program, hooks / hook)
        source.fetch()
        assert source.snapshot().files["a.yaml"] == b"b"
    finally:
        os.environ["HOME"] = saved
    assert not canary.exists()


def test_t1_a_gitmodules_file_that_attacks_git_is_refused(remote: Remote, source: GitSource) -> None:
    remote.commit(a_yaml="a", _gitmodules='[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    done = source.fetch()
    assert done.result == "error"
    assert "gitmodules" in done.error


def test_t1_only_the_urls_own_protocol_is_allowed(remote: Remote, tmp_path: Path) -> None:
    remote.commit(a_yaml="a")
    repository = tmp_path / "bare"
    repository.mkdir()
    run(repository, ["init", "--quiet", "--bare", "--template="], timeout=10)
    for url in (f"ext::git-upload-pack {remote.root}", str(remote.root)):
        with pytest.raises(GitError, match="not allowed"):
            run(repository, ["ls-remote", "--", url], protocol="https", timeout=10)
    assert b"refs/heads/main" in run(
        repository, ["ls-remote", "--", str(remote.root)], protocol="file", timeout=10
    )


def test_g12_neither_tokens_nor_other_variables_reach_git() -> None:
    found = environment(
        "https",
        {"PATH": "/bin", "SECRET": "x", "GIT_DIR": "/evil", "GIT_SSH_COMMAND": "evil", "LD_PRELOAD": "x"},
    )
    assert not {"SECRET", "GIT_DIR", "LD_PRELOAD"} & found.keys()
    assert found["GIT_SSH_COMMAND"].startswith("ssh -oBatchMode=yes")
    assert environment("", {})["GIT_ALLOW_PROTOCOL"] == "none"


def test_t5_what_a_killed_git_left_behind_is_cleared_away(
    remote: Remote, source: GitSource, tmp_path: Path
) -> None:
    remote.commit(a_yaml="a")
    source.fetch()
    repository = tmp_path / "state" / "specs.git"
    for name in (
        "shallow.lock",
        "packed-refs.lock",
        "config.lock",
        "objects/pack/tmp_pack_x",
        f"{source._ref}.lock",
    ):
        (repository / name).write_text("")
    commit = remote.commit(a_yaml="b")
    assert source.fetch().result == "success"
    assert source.snapshot().revision == commit
    assert not [name for name in names(repository) if name.endswith(".lock") or "tmp_" in name]


def test_r9_a_damaged_repository_is_fetched_again(remote: Remote, source: GitSource, tmp_path: Path) -> None:
    commit = remote.commit(a_yaml="a")
    source.fetch()
    repository = tmp_path / "state" / "specs.git"
    for pack in (repository / "objects" / "pack").iterdir():
        pack.chmod(0o600)
        pack.write_bytes(b"rubbish")
    again = GitSource(repository, str(remote.root))
    assert again.snapshot().revision == commit
    assert again.snapshot().files == {"a.yaml": b"a"}
    (repository / "HEAD").write_text("")
    assert GitSource(repository, str(remote.root)).snapshot().files == {"a.yaml": b"a"}


def test_old_commits_are_thrown_away(remote: Remote, source: GitSource, tmp_path: Path) -> None:
    for number in range(24):
        remote.commit(a_yaml=str(number))
        assert source.fetch().result == "success"
    packs = list((tmp_path / "state" / "specs.git" / "objects" / "pack").glob("*.pack"))
    assert len(packs) <= 21
    assert source.snapshot().files == {"a.yaml": b"23"}


def test_a_poller_wakes_for_news_only(remote: Remote, tmp_path: Path) -> None:
    remote.commit(a_yaml="a")
    fetches: list[Fetch] = []
    fetched = threading.Semaphore(0)

    def listen(fetch: Fetch) -> None:
        fetches.append(fetch)
        fetched.release()

    source = GitSource(tmp_path / "g", str(remote.root), listener=listen)
    woken = threading.Semaphore(0)
    stop = threading.Event()
    thread = source.poll(0.02, woken.release, stop)
    assert woken.acquire(timeout=20)
    assert source.snapshot().files == {"a.yaml": b"a"}
    remote.commit(a_yaml="b")
    assert woken.acquire(timeout=20)
    assert source.snapshot().files == {"a.yaml": b"b"}
    for _ in range(3):
        assert fetched.acquire(timeout=20)
    stop.set()
    thread.join(20)
    assert [fetch.result for fetch in fetches].count("success") == 2
    assert {fetch.result for fetch in fetches} <= {"success", "unchanged"}


def test_t4_a_git_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\nsleep 1000 & echo $! > "$HOME/child"; wait\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TimedOutError):
        run(tmp_path, ["fetch"], timeout=3)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while _alive(child):  # a signal is sent at once, and takes effect when the process is next on a processor
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
