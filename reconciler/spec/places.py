"""From a path of keys and indexes to a place in a file: `Locator` while checking, `Marks` for all later. Pure."""

import re
from collections.abc import Iterator
from collections.abc import Mapping as MappingType
from typing import Final

from reconciler.spec.marks import ERROR, Mark, Problem, Source, Span, quote
from reconciler.spec.yaml12 import Mapping, Node, Scalar, Sequence

Path = tuple[str | int, ...]

MAX_PROBLEMS: Final = 100  # of one file that are shown

_SIMPLE: Final = re.compile(r"[-\w]{1,63}")


class Locator:
    """Finds places: from a path of keys and indexes in the model to a span in the file."""

    def __init__(self, source: Source, root: Node) -> None:
        self.source = source
        self.root = root
        self.shifted: dict[Path, list[int]] = {}

    def original(self, path: Path) -> Path:
        """Translate indexes of the repaired lists to those of the file."""
        found: list[str | int] = []
        for part in path:
            indexes = self.shifted.get(tuple(found))
            found.append(indexes[part] if indexes is not None and isinstance(part, int) else part)
        return tuple(found)

    def span(self, path: Path, *, at_key: bool = False) -> Span:
        """Return the span of the value at `path`, of its key if asked or the value is empty, else of a parent."""
        return find(self.root, path, at_key=at_key)

    def problem(
        self, path: Path, message: str, *, at_key: bool = False, severity: str = ERROR, hint: str = ""
    ) -> Problem:
        """Return a problem at `path`."""
        return self.source.problem(self.span(path, at_key=at_key), message, severity=severity, hint=hint)

    def overflow(self, count: int, severity: str = ERROR) -> Problem:
        """Return the problem that stands for `count` others which are not shown."""
        return self.problem((), f"{count} more problems in this file are not shown", severity=severity)


def find(root: Node, path: Path, *, at_key: bool = False) -> Span:
    """Return the span of `path` in the tree, or of its nearest parent that is there."""
    node, key = root, None
    for depth, part in enumerate(path):
        if isinstance(node, Mapping) and part in node.entries:
            key, node = node.entries[str(part)]
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            key, node = None, node.items[part]
        elif isinstance(node, Sequence) and isinstance(part, str):
            # A list in place of a map: `depends_on: [db]`, `environment: [K=V]`.
            for item in node.items:
                if isinstance(item, Scalar) and item.text.partition("=")[0] == part:
                    return item.span
            break
        else:
            # What was asked for isn't there: a block has no place of its own but its key.
            at_key = at_key or depth < len(path)
            break
    if key is not None and (at_key or (isinstance(node, Scalar) and not node.text and node.plain)):
        return key.span
    if key is not None and isinstance(node, Mapping | Sequence) and node.width == 0:
        return key.span
    return node.span


class Marks(MappingType[Path, Mark]):
    """The places of a file by path; `mark` falls back to the nearest parent that is there."""

    __slots__ = ("_file", "_root")

    def __init__(self, file: str, root: Node) -> None:
        self._file = file
        self._root = root

    def mark(self, *path: str | int) -> Mark:
        """Return where `path` is written, or the nearest parent of it that is."""
        span = find(self._root, path)
        return Mark(self._file, span.line, span.column)

    def __getitem__(self, path: Path) -> Mark:
        node = self._root
        for part in path:
            if isinstance(node, Mapping) and part in node.entries:
                node = node.entries[str(part)][1]
            elif isinstance(node, Sequence) and isinstance(part, int) and 0 <= part < len(node.items):
                node = node.items[part]
            else:
                raise KeyError(path)
        return self.mark(*path)

    def __iter__(self) -> Iterator[Path]:
        return _paths(self._root, ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _paths(node: Node, path: Path) -> Iterator[Path]:
    yield path
    if isinstance(node, Mapping):
        for key, (_, value) in node.entries.items():
            yield from _paths(value, (*path, key))
    elif isinstance(node, Sequence):
        for index, value in enumerate(node.items):
            yield from _paths(value, (*path, index))


def place(path: Path) -> str:
    """Return `containers.web.ports[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            simple = _SIMPLE.fullmatch(part) is not None
            text += (f".{part}" if text else part) if simple else f"[{quote(part)}]"
    return text


def subject(path: Path) -> str:
    """Return the path as a sentence names it: within a container without `containers.NAME`, which the line shows."""
    inner = path[2:] if len(path) > 2 and path[0] == "containers" else path
    return place(inner) or "the spec"
