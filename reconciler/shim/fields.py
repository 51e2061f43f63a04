"""JSON read with types: the fields of a config.json, each checked where it is read.

Pure. A wrong type is a ConfigError that names the field; nothing is converted or guessed.
"""

import json
import os
import posixpath

from reconciler.errors import ReconcilerError

PREFIX = "dev.reconciler."
_LAST_ID = 0xFFFFFFFE  # 2^32-1 means "no id" to the kernel


class ConfigError(ReconcilerError):
    """config.json asks for something impossible or unsupported; the message names the field."""


def clean(path: str) -> str:
    """Make `path` absolute in the container and free of `.`, `..` and doubled slashes; raise ConfigError on a NUL."""
    if "\0" in path:
        raise ConfigError(f"{path!r}: a path can't hold a NUL")
    return posixpath.normpath("/" + path.lstrip("/"))


class Section:
    """A JSON object read with types: a value of the wrong type is a ConfigError that names it."""

    __slots__ = ("name", "values")

    def __init__(self, parent: dict[str, object], key: str, name: str = "") -> None:
        value = parent.get(key) if key else parent
        self.name = name or key
        self.values: dict[str, object] = {}
        if isinstance(value, dict):
            self.values = value
        elif value is not None:
            raise ConfigError(f"{self.name}: expected an object")

    def _where(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def raw(self, key: str) -> object:
        return self.values.get(key)

    def section(self, key: str) -> "Section":
        return Section(self.values, key, self._where(key))

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise ConfigError(f"{self._where(key)}: expected a string")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where(key)}: expected true or false")
        return value

    def number(self, key: str) -> int:
        return self._number(self.values.get(key, 0), key)

    def numbers(self, key: str) -> list[int]:
        return [self._number(value, key) for value in self._list(key)]

    def strings(self, key: str) -> list[str]:
        result = []
        for value in self._list(key):
            if not isinstance(value, str):
                raise ConfigError(f"{self._where(key)}: expected strings")
            result.append(value)
        return result

    def sections(self, key: str) -> list["Section"]:
        return [self._entry(value, key, i) for i, value in enumerate(self._list(key))]

    def _entry(self, value: object, key: str, index: int) -> "Section":
        name = f"{self._where(key)}[{index}]"
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected an object")
        return Section(value, "", name)

    def _list(self, key: str) -> list[object]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ConfigError(f"{self._where(key)}: expected a list")
        return value

    def _number(self, value: object, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{self._where(key)}: expected a whole number")
        return value


def annotation(annotations: Section, key: str) -> object:
    text = annotations.text(PREFIX + key)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"annotations: {PREFIX}{key}: {cause}") from cause


def json_strings(annotations: Section, key: str) -> list[str]:
    return Section({key: annotation(annotations, key)}, "", "annotations").strings(key)


def json_sections(annotations: Section, key: str) -> list[Section]:
    return Section({key: annotation(annotations, key)}, "", "annotations").sections(key)


def checked_id(value: int, where: str) -> int:
    if not 0 <= value <= _LAST_ID:
        raise ConfigError(f"{where}: {value}: expected 0 to {_LAST_ID}")
    return value


def encode(value: str, where: str) -> bytes:
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError as cause:
        raise ConfigError(f"{where}: {value!r}: not a valid string") from cause
    if b"\0" in data:
        raise ConfigError(f"{where}: {value!r}: holds a NUL")
    return data
