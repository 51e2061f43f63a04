"""Strict JSON for documents that strangers wrote: image manifests, indexes, configs, token answers.

Python's own parser takes the last of two equal keys, NaN, UTF-16 and a hundred thousand levels of nesting; two parsers
that disagree about a signed document are how CVE-2021-41190 worked. Here such a document is refused. Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar

from reconciler.errors import VerificationError

_MAX_DEPTH: Final = 32
_MAX_MEMBERS: Final = 200_000  # 4 MiB of "[],[]," would be 200 MB of Python objects
_T = TypeVar("_T")


class InvalidDocumentError(VerificationError):
    """The document breaks JSON, its own schema or one of our limits."""


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object and where it is (`subject`), with getters that check types.

    null counts as absent, as Go writes it.
    """

    subject: str
    fields: Mapping[str, object]

    def fail(self, message: str) -> NoReturn:
        raise InvalidDocumentError(f"{self.subject}: {message}")

    def has(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def _get(self, key: str, kind: type[_T], name: str) -> _T | None:
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            self.fail(f"{key}: {type(value).__name__}, expected {name}")
        return value

    def text(self, key: str) -> str | None:
        return self._get(key, str, "a string")

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            self.fail(f"{key} is missing")
        return value

    def integer(self, key: str) -> int | None:
        return self._get(key, int, "an integer")

    def required_integer(self, key: str) -> int:
        value = self.integer(key)
        if value is None:
            self.fail(f"{key} is missing")
        return value

    def child(self, key: str) -> "Object | None":
        value = self._get(key, dict, "an object")
        return None if value is None else Object(f"{self.subject}: {key}", value)

    def required_child(self, key: str) -> "Object":
        value = self.child(key)
        if value is None:
            self.fail(f"{key} is missing")
        return value

    def array(self, key: str) -> list[object] | None:
        return self._get(key, list, "an array")

    def children(self, key: str) -> "list[Object] | None":
        items = self.array(key)
        if items is None:
            return None
        found = []
        for number, item in enumerate(items):
            if not isinstance(item, dict):
                self.fail(f"{key}[{number}]: {type(item).__name__}, expected an object")
            found.append(Object(f"{self.subject}: {key}[{number}]", item))
        return found

    def texts(self, key: str) -> tuple[str, ...] | None:
        items = self.array(key)
        if items is None:
            return None
        found = []
        for number, item in enumerate(items):
            if not isinstance(item, str):
                self.fail(f"{key}[{number}]: {type(item).__name__}, expected a string")
            found.append(item)
        return tuple(found)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} appears twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check(value: object) -> None:
    """Refuse deep nesting and text that can't be written as UTF-8 (lone surrogates from escapes)."""
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii():
                item.encode()
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def parse(data: bytes, *, subject: str, limit: int) -> Object:
    """Return the JSON object that `data` spells, or raise InvalidDocumentError naming `subject` and the broken rule."""
    value = _value(data, subject, limit)
    if not isinstance(value, dict):
        raise InvalidDocumentError(f"{subject}: {type(value).__name__}, expected an object")
    return Object(subject, value)


def parse_list(data: bytes, *, subject: str, limit: int) -> list[Object]:
    """The same for a document that is a list of objects."""
    return Object(subject, {"list": _value(data, subject, limit)}).children("list") or []


def _value(data: bytes, subject: str, limit: int) -> object:
    if len(data) > limit:
        raise InvalidDocumentError(f"{subject}: {len(data)} bytes, expected at most {limit}")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_MEMBERS:
        raise InvalidDocumentError(f"{subject}: more than {_MAX_MEMBERS} members")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
        _check(value)
    except RecursionError as error:
        raise InvalidDocumentError(f"{subject}: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeError and the limit on digits are ValueErrors
        raise InvalidDocumentError(f"{subject}: not a valid JSON document: {str(error)[:200]}") from error
    return value
