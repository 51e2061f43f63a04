"""Wakes the loop when something in a directory tree changes. It reads no file and decides nothing.

inotify by watchfiles, tuned for few wake-ups at rest (a step of 50 ms costs 0.15 % of a core, 1 ms 2.7 %). A watch ends
silently when its directory is deleted, renamed or mounted over, so the identity of the root is checked once a second
and the watch is made again. Where inotify has no more watches, the tree is looked at every two seconds instead.

Somebody waits for an edit, and those steps are half of the way to its container. So a file that has been completed in
the root itself, where most specs are, is heard of by a watch of our own, which costs nothing at rest. What goes away is
left to the other: between a file that is deleted and the one that replaces it there may be a moment.
"""

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from watchfiles import Change
from watchfiles import watch as watch_files

from reconciler.linux.inotify import (
    IN_CLOSE_WRITE,
    IN_MOVED_TO,
    IN_ONLYDIR,
    inotify_add_watch,
    inotify_init,
)
from reconciler.source.snapshot import MAX_DEPTH, MAX_FILES, is_hidden

_DEBOUNCE: Final = 100  # milliseconds that changes which belong together may take
_STEP: Final = 50  # milliseconds of quiet that end a burst
_PAUSE: Final = 15  # milliseconds of quiet after files that were completed one after the other
_IDENTITY: Final = 1000  # milliseconds between looks at the root itself
_POLL: Final = 2.0  # seconds
_RETRY_INOTIFY: Final = 150  # polls, that is five minutes

_Identity = tuple[int, int]


def watch(
    root: Path,
    wake: Callable[[], None],
    stop: threading.Event,
    *,
    warn: Callable[[str], None] = lambda _: None,
) -> threading.Thread:
    """Start a thread that calls `wake` after every change below `root`, until `stop` is set; return it.

    The root need not exist yet and may come and go. `warn` hears, once, why changes are found later than they could.
    """
    thread = threading.Thread(target=_run, args=(root, wake, stop, warn), name="watch", daemon=True)
    thread.start()
    return thread


def _run(root: Path, wake: Callable[[], None], stop: threading.Event, warn: Callable[[str], None]) -> None:
    warned = False
    while not stop.is_set():
        identity = _identity(root)
        if identity is None:
            while not stop.wait(_IDENTITY / 1000):
                if _identity(root) is not None:
                    wake()
                    break
            continue
        try:
            _watch_one(root, identity, wake, stop)
        except (FileNotFoundError, NotADirectoryError):
            stop.wait(_STEP / 1000)  # it went away meanwhile: the next round waits for it
        except OSError as error:
            if not warned:
                warned = True
                remedy = (
                    "; raise fs.inotify.max_user_watches and max_user_instances" if _exhausted(error) else ""
                )
                warn(f"{root}: can't watch for changes, looking every {_POLL:g} s instead: {error}{remedy}")
            _poll(root, wake, stop)
        if not stop.is_set():
            wake()  # what happened between two watches was seen by neither


def _watch_one(root: Path, identity: _Identity, wake: Callable[[], None], stop: threading.Event) -> None:
    """Wake for changes until the root is another directory than at the beginning."""
    changes = watch_files(
        root,
        watch_filter=_relevant,
        debounce=_DEBOUNCE,
        step=_STEP,
        stop_event=stop,
        rust_timeout=_IDENTITY,
        yield_on_timeout=True,
        raise_interrupt=False,
        force_polling=False,
        ignore_permission_denied=True,
    )
    first = True
    with early(root, wake):
        for change in changes:
            if change or first:
                wake()
            first = False
            if _identity(root) != identity:
                return


@contextmanager
def early(root: Path, wake: Callable[[], None]) -> Iterator[None]:
    """Call `wake`, from a thread, soon after files in `root` itself were written or renamed into it.

    Where that can't be watched nothing happens: it is only ever earlier than `watch`.
    """
    try:
        events = inotify_init()
    except OSError:
        yield
        return
    end, ended = os.pipe2(os.O_CLOEXEC)
    thread = threading.Thread(target=_hear, args=(events, end, wake), name="watch-early", daemon=True)
    try:
        try:
            inotify_add_watch(events, str(root), IN_CLOSE_WRITE | IN_MOVED_TO | IN_ONLYDIR)
        except OSError:
            os.close(ended)
            ended = -1
        thread.start()
        yield
    finally:
        if ended >= 0:
            os.close(ended)
        thread.join()
        os.close(events)
        os.close(end)


def _hear(events: int, end: int, wake: Callable[[], None]) -> None:
    poll = select.poll()
    for fd in (events, end):
        poll.register(fd, select.POLLIN)
    while True:
        if end in dict(poll.poll()):
            return
        last = time.monotonic() + _DEBOUNCE / 1000
        while time.monotonic() < last and any(fd == events for fd, _ in poll.poll(_PAUSE)):
            os.read(events, 65536)
        wake()


def _relevant(_: Change, path: str) -> bool:
    """A git checkout writes into .git all the time; nothing else is left out, as a config may have any name."""
    return "/.git/" not in path


def _poll(root: Path, wake: Callable[[], None], stop: threading.Event) -> None:
    """Compare the tree with itself for five minutes; then inotify gets another chance."""
    before = _shape(root)
    for _ in range(_RETRY_INOTIFY):
        if stop.wait(_POLL):
            return
        after = _shape(root)
        if after != before:
            before = after
            wake()


def _shape(root: Path) -> int:
    """Hash names, sizes and times of everything below `root`, hidden directories left out."""
    found: list[tuple[str, int, int, int]] = []
    pending: list[tuple[str, int]] = [(str(root), 0)]
    while pending and len(found) <= 2 * MAX_FILES:
        directory, depth = pending.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.path, status.st_ino, status.st_size, status.st_mtime_ns))
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and not is_hidden(entry.name)
                        and depth < MAX_DEPTH
                    ):
                        pending.append((entry.path, depth + 1))
        except OSError as error:
            found.append((directory, 0, 0, error.errno or 0))
    return hash(tuple(sorted(found)))


def _identity(root: Path) -> _Identity | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _exhausted(error: OSError) -> bool:
    # watchfiles passes the number on as text only, in some versions
    return error.errno in (errno.ENOSPC, errno.EMFILE) or "limit" in str(error) or "No space" in str(error)
