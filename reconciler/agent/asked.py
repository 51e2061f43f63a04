"""What a request asks for: the fields of its body, each with its type, or a UsageError that names it."""

from collections.abc import Mapping
from typing import Any

from reconciler.errors import UsageError
from reconciler.linux.process import signal_number
from reconciler.spec.quantity import parse_duration
from reconciler.spec.reference import InvalidReferenceError, Reference


def reference_of(text: str) -> Reference:
    """A reference; without a tag and a digest the tag is `latest`, as people expect of `run`."""
    name = text.rpartition("/")[2]
    try:
        return Reference.parse(text if ":" in name or "@" in text or "/" not in text else f"{text}:latest")
    except InvalidReferenceError as error:
        raise UsageError(str(error), hint=error.hint) from error


def signal_of(text: str) -> int:
    try:
        return signal_number(text)
    except ValueError as error:
        raise UsageError(
            f"--signal {text[:40]!r}: not a signal", hint="for example HUP, SIGTERM or 9"
        ) from error


def grace_of(body: Mapping[str, Any]) -> float | None:
    """Seconds, as Docker's -t has them, or a duration; None for the container's own."""
    text = text_of(body, "timeout")
    if not text:
        return None
    try:
        return (
            365 * 86400.0 if text == "-1" else float(int(text)) if text.isdecimal() else parse_duration(text)
        )
    except ValueError as error:
        raise UsageError(f"--time {text[:40]!r}: {error}") from error


def text_of(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key}: expected a string")
    return value


def flag_of(body: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{key}: expected true or false")
    return value


def map_of(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{key}: expected an object")
    return value


def stdin_of(body: Mapping[str, Any]) -> str:
    """What becomes of standard input: "" for none, open, or once."""
    text = text_of(body, "stdin")
    if text not in ("", "open", "once"):
        raise UsageError(f"stdin: {text[:40]!r} is not open or once")
    return text
