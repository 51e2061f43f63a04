"""Sizes, times, numbers and policies as Docker's command line has them, in the forms of a spec. Pure."""

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


def ulimit(text: str) -> tuple[str, object]:
    """Docker's `NAME=SOFT[:HARD]`; one number is both."""
    name, _, numbers = text.partition("=")
    soft, colon, hard = numbers.partition(":")
    option = f"--ulimit {text}"
    return name, {"soft": whole(soft, option), "hard": whole(hard if colon else soft, option)}


def whole(text: str, option: str) -> int:
    if re.fullmatch(r"-?\d{1,19}", text, re.ASCII) is None:
        raise UsageError(f"{option}: {text!r} is not a whole number")
    return int(text)


def restart_policy(text: str) -> object:
    """Docker's policies; `always` is what Docker calls unless-stopped: what is stopped by hand stays stopped."""
    if text == "unless-stopped":
        return {"policy": "always"}
    policy, colon, attempts = text.partition(":")
    if colon and policy == "on-failure":
        if re.fullmatch(r"\d{1,6}", attempts, re.ASCII) is None:
            raise UsageError(f"--restart {text}: expected on-failure:N with a whole number")
        return {"policy": policy, "max_attempts": int(attempts)}
    if text not in ("no", "on-failure", "always"):
        raise UsageError(f"--restart {text}: expected no, on-failure[:N], always or unless-stopped")
    return {"policy": policy}
