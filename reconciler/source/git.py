"""Specs from a branch of a git repository, followed by polling. There is no work tree: blobs are read from the object
store, so that nothing a commit holds (links, attributes, submodules, a `.git` of its own) ever becomes a file.

Fetching happens in `fetch` (the poller's thread, or the first snapshot where nobody polls); `snapshot` only reads. A
fetch that fails keeps what the last one brought, also across a restart without a network, and says how old it is. A
repository that can't be read any more is thrown away and fetched again: it is a cache.
"""

import fcntl
import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.errors import ReconcilerError
from reconciler.source.address import check_branch, check_path, hide_credentials, protocol
from reconciler.source.program import GitError, end, run, spawn
from reconciler.source.snapshot import MAX_BYTES, MAX_DEPTH, MAX_FILES, Files, Snapshot, is_hidden, is_spec
from reconciler.spec.load import ReadFailure

_LOOK_TIMEOUT: Final = 30.0
_FETCH_TIMEOUT: Final = 300.0
_LOCAL_TIMEOUT: Final = 60.0
_MAX_LISTING: Final = 32 * 1024 * 1024
_MAX_PACKS: Final = 20  # fetches of depth 1 until what nothing refers to any more is thrown away
_JITTER: Final = 0.1
_REGULAR: Final = ("100644", "100755")
_KINDS: Final = {"120000": "a symbolic link", "160000": "a submodule", "040000": "a directory"}


@dataclass(frozen=True, slots=True)
class Fetch:
    """One look at the remote: `result` is success (a new commit), rewound (an older one), unchanged or error.

    `at` is wall seconds.
    """

    result: str
    seconds: float
    at: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class _Tree:
    """The files of one commit below the path, and the specs among them, read."""

    commit: str
    entries: dict[str, _Entry]
    files: Files
    problem: str


class GitSource:
    """A branch of a repository, kept in the bare repository `repository`, which is made if it is missing.

    Raises UsageError for a URL, branch or path that is none. Thread-safe; `listener` hears of every fetch. What the
    repository `known` has is not fetched again; it is only read.
    """

    def __init__(
        self,
        repository: Path,
        url: str,
        *,
        branch: str = "main",
        path: str = "",
        listener: Callable[[Fetch], None] = lambda _: None,
        known: Path | None = None,
    ) -> None:
        self._protocol = protocol(url)
        self.branch = check_branch(branch)
        self._path = check_path(path)
        self._url = url
        self.name = hide_credentials(url)
        self._repository = repository
        self._listener = listener
        self._known = known
        # Another URL or branch in the same state directory must not be taken for this one.
        identity = hashlib.sha256("\0".join((url, branch)).encode()).hexdigest()
        self._ref = f"refs/reconciler/{identity[:20]}"
        self._lock = threading.Lock()
        self._tree: _Tree | None = None
        self._blobs: dict[str, bytes] = {}
        self._tried = False
        self._dirty = True
        self._error = ""
        self._rewound = ""
        self._fetched_at = 0.0

    # --- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the last commit that was fetched, at once; fetch first where that has never been tried."""
        if not self._tried:
            self.fetch()
        with self._lock:
            try:
                if self._dirty:
                    commit = self._commit()
                    if commit and (self._tree is None or self._tree.commit != commit):
                        self._tree = self._read_tree(commit)
                    self._dirty = False
            except ReconcilerError as error:
                if self._tree is None:
                    return Snapshot("", {}, problem=f"{self.name}: {error}")
                self._error = self._error or str(error)
            tree = self._tree
            if tree is None:
                return Snapshot("", {}, problem=f"{self.name}: {self._error or 'not fetched yet'}")
            stale = f"{self.name}: {self._rewound}" if self._rewound else ""
            if self._error:
                stale = f"{self.name}: {self._error}; using commit {tree.commit[:12]}"
                if self._fetched_at:
                    stale += f", fetched {_date(self._fetched_at)}"
            problem = f"{self.name}: {tree.problem}" if tree.problem else ""
            return Snapshot(
                tree.commit,
                tree.files,
                problem=problem,
                stale=stale,
                read=lambda name: self._config(tree, name),
            )

    def _config(self, tree: _Tree, name: str) -> bytes:
        entry = tree.entries.get(name)
        if entry is None:
            raise ReconcilerError(f"{name}: no such file in commit {tree.commit[:12]}")
        reason = _unfit(entry)
        if reason:
            raise ReconcilerError(f"{name}: {reason}")
        with self._lock:
            if entry.blob not in self._blobs:
                if len(self._blobs) > MAX_FILES:
                    self._blobs.clear()
                self._blobs |= self._read_blobs([entry.blob])
            return self._blobs[entry.blob]

    def _commit(self) -> str:
        """The commit of the last fetch, or "" before the first one."""
        if not (self._repository / "HEAD").exists():
            return ""
        arguments = ["for-each-ref", "--format=%(objectname)", "--", self._ref]
        return run(self._repository, arguments, timeout=_LOCAL_TIMEOUT).decode().strip()

    def _read_tree(self, commit: str) -> _Tree:
        """List the commit and read its specs; what is the same as in the last commit is not read again."""
        arguments = ["ls-tree", "-r", "-z", "-l", "--full-tree", f"{commit}:{self._path}"]
        try:
            listing = run(self._repository, arguments, timeout=_LOCAL_TIMEOUT, limit=_MAX_LISTING)
        except GitError as error:
            if self._path and ("Not a valid object name" in str(error) or "not a tree object" in str(error)):
                return _Tree(commit, {}, {}, f"commit {commit[:12]} has no directory {self._path}")
            raise
        entries: dict[str, _Entry] = {}
        problem = ""
        for line in listing.split(b"\0")[:-1]:
            meta, _, name = line.partition(b"\t")
            mode, _, blob, size = meta.decode().split()
            path = name.decode("utf-8", "backslashreplace")
            entries[path] = _Entry(mode, blob, int(size) if size != "-" else 0)
        specs = [path for path in sorted(entries) if _is_spec_path(path)]
        if len(specs) > MAX_FILES:
            problem = f"more than {MAX_FILES} spec files"
            specs = specs[:MAX_FILES]
        known = self._known_blobs()
        wanted = {entries[path].blob for path in specs if not _unfit(entries[path])}
        known |= self._read_blobs(sorted(wanted - known.keys()))
        files = {path: _content(entries[path], known) for path in specs}
        return _Tree(commit, entries, files, problem)

    def _known_blobs(self) -> dict[str, bytes]:
        if self._tree is None:
            return {}
        return {
            self._tree.entries[path].blob: content
            for path, content in self._tree.files.items()
            if isinstance(content, bytes)
        }

    def _read_blobs(self, blobs: list[str]) -> dict[str, bytes]:
        """Read blobs whose size was checked; GitError where the repository does not have one."""
        if not blobs:
            return {}
        found: dict[str, bytes] = {}
        process = spawn(self._repository, ["cat-file", "--batch"], stdin=True)
        assert process.stdin is not None
        assert process.stdout is not None
        # Local and without a network, but a damaged disk can hang it all the same.
        timer = threading.Timer(_LOCAL_TIMEOUT, process.kill)
        timer.start()
        try:
            for blob in blobs:
                process.stdin.write(blob.encode() + b"\n")
                process.stdin.flush()
                header = process.stdout.readline().split()
                if len(header) != 3 or header[1] != b"blob" or int(header[2]) > MAX_BYTES:
                    raise GitError(f"git cat-file: {blob}: missing or damaged")
                size = int(header[2])
                content = process.stdout.read(size + 1)
                if len(content) != size + 1:
                    raise GitError(f"git cat-file: {blob}: cut short")
                found[blob] = content[:-1]
        except BrokenPipeError as error:
            raise GitError("git cat-file: ended early") from error
        finally:
            timer.cancel()
            end(process)
        return found

    # --- fetching --------------------------------------------------------------------------------------------------

    def fetch(self) -> Fetch:
        """Look at the branch and fetch it if it has another commit; a failure is in the result, never raised."""
        began = time.monotonic()
        error = ""
        result = "error"
        try:
            with self._exclusive() as lock:
                result = self._fetch(lock)
        except ReconcilerError as failure:
            error = hide_credentials(str(failure))
        except OSError as failure:
            error = f"{self._repository}: {failure.strerror or failure}"
        done = Fetch(result, time.monotonic() - began, time.time(), error)
        with self._lock:
            self._tried = True
            self._error = error
            self._dirty = self._dirty or result in ("success", "rewound")
            if not error:
                self._fetched_at = done.at
        self._listener(done)
        return done

    def _fetch(self, lock: int) -> str:
        self._prepare(lock)
        try:
            have = self._commit()
            if have:
                run(self._repository, ["cat-file", "-e", f"{have}^{{tree}}"], timeout=_LOCAL_TIMEOUT)
        except GitError:
            shutil.rmtree(self._repository)  # damaged: what we have in memory stays, the rest comes again
            self._prepare(lock)
            have = ""
        there = self._look(lock)
        if there == have:
            return "unchanged"
        arguments = [
            "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
            "--no-auto-maintenance", "--force", "--", self._url, f"+refs/heads/{self.branch}:{self._ref}",
        ]  # fmt: skip
        run(self._repository, arguments, protocol=self._protocol, timeout=_FETCH_TIMEOUT, lock=lock)
        rewound = self._set_back(have, there) if have else ""
        packs = self._repository / "objects" / "pack"
        if sum(1 for name in os.listdir(packs) if name.endswith(".pack")) > _MAX_PACKS:
            run(self._repository, ["gc", "--quiet", "--prune=now"], timeout=_FETCH_TIMEOUT, lock=lock)
        self._rewound = rewound
        return "rewound" if rewound else "success"

    def _set_back(self, have: str, there: str) -> str:
        """Say so where the branch went from `have` to a commit before it: its parent, or one that was made earlier.

        Only the two commits are here (depth 1), so this is what they say of themselves. A branch that is set back is
        followed all the same: that is how people take back a change (T3).
        """
        old, new = self._told(have), self._told(there)
        if have in new[1] or (there not in old[1] and new[0] >= old[0]):
            return ""
        return (
            f"branch {self.branch} was set back from commit {have[:12]} of {_date(old[0])}"
            f" to the older {there[:12]} of {_date(new[0])}"
        )

    def _told(self, commit: str) -> tuple[int, frozenset[str]]:
        """When the commit says that it was made, and its parents; raises GitError where it is missing."""
        text = run(self._repository, ["cat-file", "commit", commit], timeout=_LOCAL_TIMEOUT)
        head = text.partition(b"\n\n")[0].decode("utf-8", "replace").splitlines()
        made = [line.split()[-2] for line in head if line.startswith("committer ")]
        parents = frozenset(line.removeprefix("parent ") for line in head if line.startswith("parent "))
        return int(made[0]) if made and made[0].isdigit() and len(made[0]) < 12 else 0, parents

    def _look(self, lock: int) -> str:
        """The commit that the branch has at the remote: one request, and nothing is written."""
        reference = f"refs/heads/{self.branch}"
        arguments = ["ls-remote", "--quiet", "--", self._url, reference]
        output = run(
            self._repository, arguments, protocol=self._protocol, timeout=_LOOK_TIMEOUT, lock=lock
        ).decode("utf-8", "replace")
        for line in output.splitlines():
            commit, _, name = line.partition("\t")
            if name == reference:
                return commit
        raise GitError(f"no branch {self.branch} there", transient=True)

    def _prepare(self, lock: int) -> None:
        """Make the bare repository, or clear away what an interrupted git left in it (T5)."""
        if not (self._repository / "HEAD").exists():
            shutil.rmtree(self._repository, ignore_errors=True)
            self._repository.mkdir(mode=0o700, parents=True)
            run(
                self._repository,
                ["init", "--quiet", "--bare", "--template="],
                timeout=_LOCAL_TIMEOUT,
                lock=lock,
            )
            if self._known is not None:
                self._borrow(self._known)
            return
        # We hold the lock, and every git of ours holds it for as long as it lives: nobody is using these.
        for directory, _, names in os.walk(self._repository):
            for name in names:
                if name.endswith(".lock") or name.startswith(
                    ("tmp_pack_", "tmp_idx_", "tmp_rev_", "tmp_obj_")
                ):
                    os.unlink(os.path.join(directory, name))

    def _borrow(self, known: Path) -> None:
        """Begin with the commits of another repository: its objects by reference, its refs as they are now."""
        try:
            for name in ("packed-refs", "shallow"):
                if (known / name).exists():
                    shutil.copyfile(known / name, self._repository / name)
            refs = Path("refs") / "reconciler"
            if (known / refs).is_dir():
                shutil.copytree(known / refs, self._repository / refs)
        except (OSError, shutil.Error):
            return  # it is being made, or changed, at this moment: then everything is fetched
        alternates = self._repository / "objects" / "info" / "alternates"
        alternates.parent.mkdir(exist_ok=True)
        alternates.write_text(f"{known / 'objects'}\n")

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """Hold the repository's lock; the file lies beside it, because the repository itself may be made anew."""
        self._repository.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._repository.with_name(f"{self._repository.name}.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            deadline = time.monotonic() + _LOOK_TIMEOUT
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ReconcilerError("another fetch is running", transient=True) from error
                    time.sleep(0.1)
            yield fd
        finally:
            os.close(fd)

    def poll(self, interval: float, wake: Callable[[], None], stop: threading.Event) -> threading.Thread:
        """Start a thread that fetches now and every `interval` seconds (plus or minus 10 %) until `stop` is set.

        `wake` is called where there is something new to see: a commit, the first error, the end of errors.
        """
        self._tried = True  # from now on no snapshot has to wait for the network
        thread = threading.Thread(target=self._poll, args=(interval, wake, stop), name="git", daemon=True)
        thread.start()
        return thread

    def _poll(self, interval: float, wake: Callable[[], None], stop: threading.Event) -> None:
        last_error: str | None = None
        while not stop.is_set():
            done = self.fetch()
            if done.result in ("success", "rewound") or done.error != last_error:
                wake()
            last_error = done.error
            # Many devices that start together must not ask together for ever (not a secret: any randomness does).
            stop.wait(interval * random.uniform(1 - _JITTER, 1 + _JITTER))


def _date(wall: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


def _is_spec_path(path: str) -> bool:
    *directories, name = path.split("/")
    return is_spec(name) and len(directories) < MAX_DEPTH and not any(is_hidden(part) for part in directories)


def _unfit(entry: _Entry) -> str:
    """Why a file of the tree can't be read, or "" if it can."""
    if entry.mode not in _REGULAR:
        return f"{_KINDS.get(entry.mode, 'something unknown')}, not a regular file"
    return "larger than 1 MiB" if entry.size > MAX_BYTES else ""


def _content(entry: _Entry, blobs: dict[str, bytes]) -> bytes | ReadFailure:
    reason = _unfit(entry)
    return ReadFailure(reason) if reason else blobs[entry.blob]
