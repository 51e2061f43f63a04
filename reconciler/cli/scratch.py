"""A directory for the time of one verb that may leave nothing behind: it goes with the verb, whatever ends that."""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TRIES: Final = 200
_PAUSE: Final = 0.05


@contextmanager
def scratch_directory(beside: Path | None = None) -> Iterator[Path]:
    """A new directory below TMPDIR, or in `beside`; it goes afterwards, also after Ctrl-C, SIGTERM and SIGHUP.

    Not after SIGKILL. Only for the main thread. The two signals that end a program without a word end it here by
    SystemExit with 128 + n, so that everything on the way out is done.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    path: Path | None = None
    try:
        # Held back until the name is known: a signal between the two would leave a directory that nobody knows.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if before[number] is not signal.SIG_IGN:  # nohup(1)
                    signal.signal(number, end)
            path = Path(tempfile.mkdtemp(prefix=".reconciler-" if beside else "reconciler-", dir=beside))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        yield path
    finally:
        for number in _ENDING:  # an impatient second one
            signal.signal(number, signal.SIG_IGN)
        if path is not None:
            _remove(path)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _remove(path: Path) -> None:
    """Remove it for good: a thread that was told to stop may make another file in it meanwhile."""
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(_PAUSE)
