"""Where something is written, and what is wrong there: `Mark`, `Problem`, and the `Source` text they point into.

Every later error (validation, plan, runtime) cites a `Mark`. Text that came from a file is quoted here and only here,
so that no control or bidirectional character of a hostile spec reaches a terminal. Pure.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_EXCERPT: Final = 160  # characters of a long line that are shown
_LEAD: Final = 40  # characters of a long line shown before the place meant
_QUOTED: Final = 60

ERROR: Final = "error"
WARNING: Final = "warning"


def printable(text: str) -> str:
    """Return `text` with everything that could move a cursor or reorder a line replaced by U+FFFD, tabs by a space."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c == "\t" else "�" for c in text)


def quote(text: str) -> str:
    """Return `text` in quotes, escaped and shortened, fit for one line of a message."""
    if len(text) <= _QUOTED:
        return repr(text)
    return f"{text[:_QUOTED]!r}..."


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file, counted from 1, in characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{printable(self.file)}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong at `mark`. `severity` is error or warning.

    `excerpt` is the line, shortened where it is long; `width` characters of it, from index `caret` on, are meant. An
    empty excerpt means that there is nothing to show. `hint` is what to do, often a command.
    """

    mark: Mark
    message: str
    severity: str = ERROR
    excerpt: str = ""
    width: int = 0
    hint: str = ""
    caret: int = 0

    def __str__(self) -> str:
        return self.render()

    def render(self, *, color: bool = False) -> str:
        """Return the block that people read: the sentence, the line it is about, carets under the place."""
        bold, paint, reset = ("\x1b[1m", _PAINT[self.severity], "\x1b[0m") if color else ("", "", "")
        lines = [f"{bold}{printable(str(self.mark))}:{reset} {paint}{self.severity}:{reset} {self.message}"]
        hint = f"  {self.hint}" if self.hint else ""
        if self.excerpt:
            before, meant = self.excerpt[: self.caret], self.excerpt[self.caret : self.caret + self.width]
            carets = "^" * max(1, _columns(meant))
            lines.append(f"{self.mark.line:>5} | {self.excerpt}".rstrip())
            lines.append(f"      | {' ' * _columns(before)}{paint}{carets}{reset}{hint}")
        elif hint:
            lines.append(f"      |{hint}")
        return "\n".join(lines)


_PAINT: Final = {ERROR: "\x1b[1;31m", WARNING: "\x1b[1;33m"}


def _columns(text: str) -> int:
    """Count the terminal columns of `text`: wide East Asian characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A place of `width` characters; width 0 means up to the end of the line."""

    line: int
    column: int
    width: int


class Source:
    """The text of one file, for the excerpts of its problems."""

    __slots__ = ("_lines", "path", "text")

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._lines: list[str] | None = None

    def problem(self, span: Span, message: str, *, severity: str = ERROR, hint: str = "") -> Problem:
        """Return a problem at `span` with its excerpt."""
        if self._lines is None:
            # Not splitlines(): that splits at characters which YAML and editors do not count as line breaks.
            self._lines = self.text.split("\n")
        line = self._lines[span.line - 1].rstrip("\r") if span.line <= len(self._lines) else ""
        start = span.column - 1
        width = min(span.width or len(line.rstrip()) - start, max(0, len(line) - start))
        first = 0 if start + min(width, _LEAD) < _EXCERPT else start - _LEAD
        excerpt = line[first : first + _EXCERPT]
        return Problem(
            Mark(self.path, span.line, span.column),
            message,
            severity,
            printable(excerpt),
            max(1, min(width, _EXCERPT - (start - first))),
            hint,
            start - first,
        )


def summary(problems: Iterable[Problem]) -> str:
    """Return `2 errors and 1 warning in 1 file`, or an empty string where there is no problem."""
    found = list(problems)
    parts = []
    for severity in (ERROR, WARNING):
        if count := sum(1 for problem in found if problem.severity == severity):
            parts.append(f"{count} {severity}{'s' if count > 1 else ''}")
    files = len({problem.mark.file for problem in found})
    return f"{' and '.join(parts)} in {files} file{'s' if files > 1 else ''}" if parts else ""
