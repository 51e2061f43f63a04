"""`--filter KEY=VALUE`: which items of a listing are meant. Pure.

Of one key any value may match, different keys must all match; of `label` (as with Docker) every one must match.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from reconciler.errors import UsageError
from reconciler.report.container import STATES

Item = Mapping[str, Any]
Match = Callable[[Item, str], bool]
_ALL: Final = ("label",)
# Docker's words for states, and ours for the same.
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "up": ("running",),
    "created": ("starting", "waiting"),
    "restarting": ("backoff",),
    "dead": ("exited",),
}


class Filters:
    """What `--filter` asks for; UsageError where a key is not one of `keys` or a value makes no sense."""

    def __init__(self, texts: Iterable[str], keys: Mapping[str, Match]) -> None:
        self._keys = keys
        self._wanted: dict[str, list[str]] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals or key not in keys:
                wrong = f"there is no key {key!r}" if equals else "expected KEY=VALUE"
                raise UsageError(f"--filter {text!r}: {wrong}", hint=f"keys: {', '.join(sorted(keys))}")
            self._wanted.setdefault(key, []).append(value)

    def __contains__(self, key: str) -> bool:
        return key in self._wanted

    def select(self, items: Iterable[Item]) -> list[Item]:
        """The items that match, in their order."""
        return [item for item in items if self.matches(item)]

    def matches(self, item: Item) -> bool:
        """Whether everything that was asked for is so of this item."""
        return all(
            (all if key in _ALL else any)(self._keys[key](item, value) for value in values)
            for key, values in self._wanted.items()
        )


# --- containers ----------------------------------------------------------------------------------------------------


def like(text: str, pattern: str) -> bool:
    """Whether `pattern` is part of `text`, or, with `*` or `?` in it, fits all of it."""
    if "*" in pattern or "?" in pattern:
        return fnmatch.fnmatchcase(text, pattern)
    return pattern in text


def truth(key: str, value: str) -> bool:
    """What `--filter KEY=VALUE` of a yes or no asks for: true or 1, false or 0; else UsageError."""
    if value not in ("true", "1", "false", "0"):
        raise UsageError(f"--filter {key}={value}: expected true or false")
    return value in ("true", "1")


def _status(item: Item, value: str) -> bool:
    if value not in STATES and value not in _WORDS:
        raise UsageError(
            f"--filter status={value}: no such state", hint=f"states: {', '.join([*STATES, *_WORDS])}"
        )
    return item["state"] in _WORDS.get(value, (value,))


def _label(item: Item, value: str) -> bool:
    key, equals, wanted = value.partition("=")
    labels = item.get("labels", {})
    return key in labels and (not equals or labels[key] == wanted)


def _exited(item: Item, value: str) -> bool:
    if not value.lstrip("-").isdigit():
        raise UsageError(f"--filter exited={value}: expected an exit code")
    return bool(item["exit_code"] == int(value))


def _publish(item: Item, value: str) -> bool:
    """`8080`, `8080/udp` or `8000-8100`: a port of the host."""
    numbers, _, protocol = value.partition("/")
    low, _, high = numbers.partition("-")
    if not (low.isdigit() and (high or low).isdigit()):
        raise UsageError(f"--filter publish={value}: expected PORT[-PORT][/PROTOCOL]")
    wanted = range(int(low), int(high or low) + 1)
    for port in item["ports"]:
        host, _, inside = port.partition("->")
        published = host.rpartition(":")[2]
        first, _, last = published.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            continue
        if protocol and inside.partition("/")[2] != protocol:
            continue
        if int(first) < wanted.stop and int(last or first) >= wanted.start:
            return True
    return False


def _volume(item: Item, value: str) -> bool:
    volumes: Sequence[str] = item.get("volumes", ())
    return value in volumes or any(name.partition("/")[2] == value for name in volumes)


CONTAINER_KEYS: Final[Mapping[str, Match]] = {
    "name": lambda item, value: like(str(item["name"]), value),
    "id": lambda item, value: bool(value) and str(item["id"]).startswith(value),
    "app": lambda item, value: bool(item["app"] == value),
    "status": _status,
    "image": lambda item, value: like(str(item["image"]), value) or str(item["digest"]).startswith(value),
    "label": _label,
    "health": lambda item, value: bool(item["health"] == value),
    "exited": _exited,
    "publish": _publish,
    "volume": _volume,
}
