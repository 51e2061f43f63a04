"""A listing that is shown again and again: over itself on a terminal, one after the other everywhere else."""

import shutil
import sys
import time
from typing import Final, Self

_CLEAR: Final = "\x1b[2J"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_HIDE: Final = "\x1b[?25l"
_SHOW: Final = "\x1b[?25h"


class Screen:
    """Standard output, drawn to in turns. On a terminal what does not fit below is left out, and the cursor is hidden
    until the screen is left; anywhere else no control character is written.
    """

    def __init__(self, *, again: bool) -> None:
        """`again`: off a terminal, a text that is the same as the last one is printed all the same."""
        self._terminal = sys.stdout.isatty()
        self._again = again
        self._last: str | None = None

    def __enter__(self) -> Self:
        if self._terminal:
            sys.stdout.write(_HIDE + _CLEAR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            sys.stdout.write(_SHOW)
            sys.stdout.flush()

    def draw(self, text: str) -> None:
        """Show `text` in place of what was there."""
        if self._terminal:
            rows = max(1, shutil.get_terminal_size().lines - 1)
            lines = text.splitlines()[:rows]
            sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST_OF_SCREEN)
        elif self._again or text != self._last:
            sys.stdout.write(text)
        self._last = text
        sys.stdout.flush()


def pause(seconds: float) -> None:
    """Wait before the next turn."""
    time.sleep(seconds)
