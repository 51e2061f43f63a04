"""The content of a config that `env_from` names: a line per variable. Pure.

The rules are the common part of what Docker's `env_file` and dotenv libraries take: `K=V`, blank lines, lines that
begin with `#`, a leading `export`, values in single quotes (as they are) or double quotes (with \\n, \\t, \\", \\\\ and
\\$). Outside of quotes a value ends at ` #`. Nothing is expanded: what runs can be told from the commit alone.
"""

import re
from typing import Final

from reconciler.spec.marks import quote

_LINE: Final = re.compile(r"(?:export[ \t]+)?([^=\s\"'#]+)[ \t]*=[ \t]*(.*)")
_SINGLE: Final = re.compile(r"'([^']*)'[ \t]*(?:#.*)?")
_DOUBLE: Final = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]*(?:#.*)?')
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def parse(content: bytes) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables, and a sentence for each line that is none."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return found, (f"not UTF-8 at byte {error.start}",)
    if "\0" in text:
        return found, (f"line {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL",)
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        value = _value(match[2]) if match is not None else None
        if match is None or value is None:
            why = "quotes that do not end, or text after them" if match is not None else "expected K=V"
            wrong.append(f"line {number}: {why}: {quote(line.partition('=')[0])}")
        elif match[1] in found:
            wrong.append(f"line {number}: sets {quote(match[1])} a second time")
        else:
            found[match[1]] = value
    return found, tuple(wrong)


def _value(text: str) -> str | None:
    if text.startswith("'"):
        match = _SINGLE.fullmatch(text)
        return match[1] if match is not None else None
    if text.startswith('"'):
        match = _DOUBLE.fullmatch(text)
        if match is None:
            return None
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), match[1])
    return re.split(r"(?:^|[ \t]+)#", text, maxsplit=1)[0]
