"""Sizes and times as Docker's command line has them, as bytes and as the spec's durations. Pure."""

import re
from typing import Final

from reconciler.errors import UsageError

_SIZE: Final = re.compile(r"(\d{1,19})([bkmgtBKMGT]?)", re.ASCII)
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str, option: str) -> int:
    """Bytes in Docker's units, where k, m and g are powers of 1024, or in the spec's Ki, Mi and Gi; UsageError."""
    plain = text[:-1] if re.fullmatch(r"\d+[kmgtKMGT](i|I)", text, re.ASCII) else text
    if len(plain) > 1 and plain[-1] in "bB" and plain[-2] in "kmgtKMGT":
        plain = plain[:-1]
    match = _SIZE.fullmatch(plain)
    if match is None:
        raise UsageError(f"{option}: {text!r} is not a size", hint="for example 64m, 1g, 512Mi")
    return int(match[1]) * _UNITS[match[2].lower()]


def seconds(text: str, option: str) -> str:
    """A duration of the spec from whole seconds, as Docker takes them, or from a duration; -1 is for ever."""
    if re.fullmatch(r"-1|\d{1,9}", text, re.ASCII) is None:
        return text
    return "365d" if text == "-1" else f"{int(text)}s"
