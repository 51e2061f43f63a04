"""What people read: aligned tables, sizes, ages, and the machine-readable forms of the same values.

Whatever a container, an image or a spec may have chosen (names, labels, log text) passes `quoted` before it reaches a
terminal: an escape sequence in a name must not move anybody's cursor. Nothing here decides what is shown.
"""

import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from reconciler.errors import UsageError

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_GAP: Final = "   "
GREEN: Final = "32"  # SGR numbers, ECMA-48 8.3.117
YELLOW: Final = "33"
RED: Final = "31"


def size(count: int) -> str:
    """Return bytes in IEC units with three significant digits, `164MiB`; exact below 1 KiB."""
    if abs(count) < 1024:
        return f"{count}B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    raise AssertionError("the last unit takes everything")


def short_digest(text: str) -> str:
    """Return the first 12 hexadecimal digits of a digest with or without its algorithm; other text unchanged."""
    algorithm, colon, rest = text.partition(":")
    value = rest if colon else algorithm
    hexadecimal = len(value) >= 32 and all(digit in "0123456789abcdef" for digit in value)
    return value[:12] if hexadecimal else text


def short_reference(text: str) -> str:
    """Return an image reference whose digest is shortened to 12 digits; without a digest unchanged."""
    name, at, digest = text.partition("@")
    return f"{name}@{short_digest(digest)}" if at else text


def duration(seconds: float) -> str:
    """Return how long, in Docker's words: `3 minutes`, `About an hour`, `2 weeks`. Negative times count as none."""
    whole = int(max(0.0, seconds))
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < _MINUTE:
        return f"{whole} seconds"
    if whole < 2 * _MINUTE:
        return "About a minute"
    if whole < _HOUR:
        return f"{whole // _MINUTE} minutes"
    if whole < 2 * _HOUR:
        return "About an hour"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR} hours"
    if whole < 14 * _DAY:
        return f"{whole // _DAY} days"
    if whole < 60 * _DAY:
        return f"{whole // (7 * _DAY)} weeks"
    if whole < 730 * _DAY:
        return f"{whole // (30 * _DAY)} months"
    return f"{whole // (365 * _DAY)} years"


def age(then: float, now: float | None = None) -> str:
    """Return how long ago the wall time `then` was: `3 minutes ago`; `-` for a time that is not known (0)."""
    if not then:
        return "-"
    return f"{duration((time.time() if now is None else now) - then)} ago"


def quoted(text: str) -> str:
    """Return `text` on one line, with every character that could control a terminal as an escape like `\\x1b`.

    That is: control, format (bidirectional, zero-width), surrogate, private and unassigned characters and line
    separators; a backslash stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def printable(text: str) -> str:
    """Return text of several lines (a log) fit for a terminal: as `quoted`, but line breaks and tabs stay."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(character if character in "\n\t" else _visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def width(text: str) -> int:
    """Count the terminal columns of printable text: wide East Asian characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    with_headers: bool = True,
    paints: Sequence[Sequence[str]] = (),
) -> str:
    """Return an aligned table whose lines end in a newline; empty cells become `-`. Cells are quoted here.

    `paints` has for each row the SGR number of each cell, "" for none.
    """
    cells = [[quoted(cell) if cell.strip() else "-" for cell in row] for row in rows]
    lines = [list(headers), *cells] if with_headers else cells
    widths = [max((width(line[column]) for line in lines), default=0) for column in range(len(headers))]
    out = []
    for number, line in enumerate(lines, start=-1 if with_headers else 0):
        padded = [cell + " " * (widths[column] - width(cell)) for column, cell in enumerate(line)]
        padded[-1:] = [padded[-1].rstrip()] if padded else []
        if paints and number >= 0:
            padded = [
                f"\x1b[{paint}m{cell}\x1b[0m" if paint else cell
                for cell, paint in zip(padded, paints[number], strict=True)
            ]
        out.append(_GAP.join(padded).rstrip() + "\n")
    return "".join(out)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a listing: `value` takes an item as in `-o json`. Wide ones are shown by `-o wide` only.

    `paint` gives the colour of the cell, one of GREEN, YELLOW, RED or "" for none.
    """

    title: str
    value: Callable[[Mapping[str, Any]], str]
    wide: bool = False
    paint: Callable[[Mapping[str, Any]], str] = lambda item: ""


def listing(
    kind: str,
    items: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    output: str = "",
    with_headers: bool = True,
    color: bool = False,
) -> str:
    """Return `items` as `output` says: "" for a table, wide, json, yaml, jsonl or name; raise UsageError for others.

    json and yaml are one document of kubectl's shape; every form shows the same items. An item's `name` is its name.
    Only tables are coloured.
    """
    match output:
        case "" | "wide":
            shown = [column for column in columns if output == "wide" or not column.wide]
            rows = ([column.value(item) for column in shown] for item in items)
            paints = [[column.paint(item) for column in shown] for item in items] if color else ()
            return table([column.title for column in shown], rows, with_headers=with_headers, paints=paints)
        case "name":
            return "".join(f"{quoted(str(item['name']))}\n" for item in items)
        case "json":
            return dump_json({"apiVersion": "reconciler/v1", "kind": kind, "items": list(items)})
        case "jsonl":
            return "".join(json_line(item) for item in items)
        case "yaml":
            return dump_yaml({"apiVersion": "reconciler/v1", "kind": kind, "items": list(items)})
        case _:
            raise UsageError(f"-o {output}: expected wide, json, yaml, jsonl or name")


def dump_json(value: object) -> str:
    """Return one indented JSON document, safe for a terminal; valid whatever text is in it."""
    return _escaped(json.dumps(value, indent=2, ensure_ascii=False)) + "\n"


def json_line(value: object) -> str:
    """Return one JSON value on one line, safe for a terminal."""
    return _escaped(json.dumps(value, separators=(",", ":"), ensure_ascii=False)) + "\n"


def dump_yaml(value: object) -> str:
    """Return one YAML document with the same content as `dump_json` of `value`."""
    import yaml  # only this form needs it: the command line starts in tens of milliseconds

    # A round trip through JSON leaves plain types only, so no tag of Python's can appear.
    plain = json.loads(json.dumps(value))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=False, width=1_000_000)
    return text


def _escaped(text: str) -> str:
    """JSON escapes only what is below space: DEL, C1 and bidirectional controls become \\u escapes, as JSON allows.

    Outside of strings JSON is plain ASCII, so that every such character stands in a string.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else json.dumps(character)[1:-1].replace("\x7f", "\\u007f")
        for character in text
    )


def use_color(stream: TextIO, mode: str, environment: Mapping[str, str]) -> bool:
    """Whether to color what goes to `stream`: `mode` is auto, always or never (--color).

    In auto: only on a terminal that is not dumb, and not where NO_COLOR is set to anything (no-color.org).
    """
    if mode != "auto":
        return mode == "always"
    return stream.isatty() and environment.get("TERM") != "dumb" and not environment.get("NO_COLOR")
