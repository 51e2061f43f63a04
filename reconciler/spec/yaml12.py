"""YAML text to a tree of nodes with positions, by the strict half of YAML 1.2.

libyaml (through PyYAML's CSafeLoader) finds the tokens; nothing is ever constructed by PyYAML, whose scalars are YAML
1.1 (`22:22` is 1342 there, `no` is false, 0755 is 493). The tree is built here from events, without recursion, because
PyYAML's own composer recurses in C: a megabyte of `[` is a segmentation fault, not an exception. Depth, number of nodes
(aliases count as often as they are used) and size are limited while reading, so that refusing is cheap. Pure.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import yaml

from reconciler.spec.marks import Problem, Source, Span, printable, quote
from reconciler.spec.syntax import MAX_DEPTH, TOO_DEEP, syntax_problem

MAX_BYTES: Final = 1 << 20
MAX_NODES: Final = 10_000
EMPTY: Final = "the file is empty"
_MAX_FORBIDDEN: Final = 10
_MAX_PROBLEMS: Final = 100

# Controls but TAB, LF and CR before LF; NEL, LS and PS, which YAML 1.1 takes for line breaks; the marks that reorder
# text on a screen (CVE-2021-42574); the byte order mark; non-characters.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]|\r(?!\n)"
)
_BOMS: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark"),
)  # fmt: skip

_INT: Final = re.compile(r"[-+]?[0-9]+", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_MAX_DIGITS: Final = 40  # int() of 10^5 digits raises ValueError and costs quadratic time


class WrittenInt(int):
    """A whole number that remembers how it was written: 0755 is 755, and "0755" to an environment."""

    text: str


class WrittenFloat(float):
    """A number with a fraction or an exponent, or too long for `WrittenInt`, that remembers how it was written."""

    text: str


Value = str | WrittenInt | WrittenFloat | bool | None | tuple["Value", ...] | dict[str, "Value"]


class Node:
    """A place in the tree. `size` counts its nodes with aliases expanded, `height` the levels below it."""

    __slots__ = ("column", "line", "width")
    size: int
    height: int

    def __init__(self, line: int, column: int, width: int) -> None:
        self.line = line
        self.column = column
        self.width = width

    @property
    def span(self) -> Span:
        """Where the node is written."""
        return Span(self.line, self.column, self.width)


class Scalar(Node):
    """Text; `plain` where it stands without quotes and may be a number, a boolean or null."""

    __slots__ = ("plain", "text")
    size = 1
    height = 0

    def __init__(self, line: int, column: int, width: int, text: str, plain: bool) -> None:
        self.line = line
        self.column = column
        self.width = width
        self.text = text
        self.plain = plain


class Sequence(Node):
    """A list."""

    __slots__ = ("height", "items", "size")

    def __init__(self, line: int, column: int, width: int) -> None:
        super().__init__(line, column, width)
        self.size = 1
        self.height = 0
        self.items: list[Node] = []


class Mapping(Node):
    """A map; keys are text, as written. Entries that came through `<<` follow the map's own."""

    __slots__ = ("entries", "height", "size")

    def __init__(self, line: int, column: int, width: int) -> None:
        super().__init__(line, column, width)
        self.size = 1
        self.height = 0
        self.entries: dict[str, tuple[Node, Node]] = {}


def resolve(text: str) -> str | WrittenInt | WrittenFloat | bool | None:
    """Return what a plain scalar means: null, true, false, a decimal number, else text."""
    if not text or text in ("null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if text[0] in "+-.0123456789":
        if _INT.fullmatch(text) and len(text) <= _MAX_DIGITS:
            whole = WrittenInt(text)
            whole.text = text
            return whole
        if _FLOAT.fullmatch(text):
            number = WrittenFloat(text)
            number.text = text
            return number
    return text


def plain(node: Node) -> Value:
    """Return the tree as values: dicts, tuples and scalars. The depth limit bounds the recursion."""
    if isinstance(node, Scalar):
        return resolve(node.text) if node.plain else node.text
    if isinstance(node, Mapping):
        return {key: plain(value) for key, (_, value) in node.entries.items()}
    assert isinstance(node, Sequence)
    return tuple([plain(item) for item in node.items])


def compose(path: str, data: bytes) -> tuple[Node | None, Source, list[Problem]]:
    """Return the tree of the one document in `data`, its text, and everything that is wrong with it as YAML.

    The tree is None where reading could not go on; problems may be there with a tree too (a duplicate key).
    """
    source = Source(path, "")
    if len(data) > MAX_BYTES:
        return None, source, [source.problem(Span(1, 1, 0), f"the file is larger than {MAX_BYTES >> 20} MiB")]
    for bom, name in _BOMS:
        if data.startswith(bom):
            return None, source, [source.problem(Span(1, 1, 0), f"the file is {name}; save it as UTF-8")]
    try:
        source = Source(path, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        source = Source(path, data.decode("utf-8", "replace"))
        before = data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")
        span = Span(data.count(b"\n", 0, error.start) + 1, len(before) + 1, 1)
        return None, source, [source.problem(span, f"the file is not UTF-8: byte 0x{data[error.start]:02x}")]
    if problems := _forbidden(source):
        return None, source, problems
    composer = _Composer(source)
    return composer.run(data), source, composer.problems


def _forbidden(source: Source) -> list[Problem]:
    problems = []
    for match in _FORBIDDEN.finditer(source.text):
        start = source.text.rfind("\n", 0, match.start()) + 1
        span = Span(source.text.count("\n", 0, match.start()) + 1, match.start() - start + 1, 1)
        message = f"the character U+{ord(match[0][0]):04X} is not allowed in a spec"
        hint = 'inside double quotes it can be written as "\\r"' if match[0] == "\r" else ""
        problems.append(source.problem(span, message, hint=hint))
        if len(problems) == _MAX_FORBIDDEN:
            break
    return problems


class _Stop(Exception):
    """Reading cannot go on; the problem is recorded."""


class _Composer:
    """Builds the tree from events; `stack` holds the open collections and the key that waits for its value."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.stack: list[Mapping | Sequence] = []
        self.keys: list[Node | None] = []
        self.anchors: dict[str, Node] = {}
        self.closed: dict[str, bool] = {}
        self.opened: list[str | None] = []
        self.merges: list[list[Node]] = []
        self.count = 0
        self.root: Node | None = None

    def run(self, data: bytes) -> Node | None:
        loader = yaml.CSafeLoader(data)
        try:
            self.read(loader)
        except yaml.MarkedYAMLError as error:
            self.problems.append(syntax_problem(self.source, error))
            return None
        except yaml.YAMLError as error:  # a ReaderError has no mark; what it refuses was refused before
            self.problem(Span(1, 1, 0), f"not YAML: {printable(str(error))}")
            return None
        except _Stop:
            return None
        finally:
            loader.dispose()
        empty = isinstance(self.root, Scalar) and self.root.plain and not self.root.text
        if (self.root is None or empty) and not self.problems:
            self.problem(Span(1, 1, 0), EMPTY)
            return None
        return self.root

    def problem(self, span: Span, message: str, hint: str = "") -> None:
        self.problems.append(self.source.problem(span, message, hint=hint))
        if len(self.problems) >= _MAX_PROBLEMS:
            self.problems.append(self.source.problem(span, "there may be more; reading stops here"))
            raise _Stop

    def stop(self, span: Span, message: str) -> _Stop:
        self.problem(span, message)
        return _Stop()

    def read(self, loader: yaml.CSafeLoader) -> None:
        documents = 0
        next_event: Callable[[], Any] = loader.get_event
        while (event := next_event()) is not None:
            # By exact type, the most frequent first: this loop is most of what reading a thousand specs costs.
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self.scalar(event)
            elif kind is yaml.MappingStartEvent:
                self.open(event, Mapping(*_place(event)))
            elif kind is yaml.SequenceStartEvent:
                self.open(event, Sequence(*_place(event)))
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self.close(event)
            elif kind is yaml.AliasEvent:
                self.alias(event)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                span = Span(*_place(event))
                if documents > 1:
                    raise self.stop(span, "one file holds one document; this starts a second one")
                if event.version is not None or event.tags:
                    raise self.stop(span, "directives are not allowed: a spec is YAML 1.2 already")

    def scalar(self, event: yaml.ScalarEvent) -> None:
        text = event.value
        node = Scalar(*_place(event), text, event.implicit[0])
        # Escapes in double quotes can spell what the text itself may not hold; NUL ends every string of the kernel's.
        if "\0" in text:
            self.problem(node.span, "a NUL character is not allowed")
        if event.tag:
            self.tag(node, event.tag)
        self.count += 1
        if self.count > MAX_NODES:
            self.grow(0, node)
        if event.anchor is not None:
            self.anchor(event.anchor, node, closed=True)
        if self.keys and self.keys[-1] is None and type(self.stack[-1]) is Mapping:
            self.keys[-1] = node
            self.stack[-1].size += 1
        else:
            self.add(node)

    def open(self, event: yaml.CollectionStartEvent, node: Mapping | Sequence) -> None:
        if not event.flow_style:
            node.width = 0
        if event.tag:
            self.tag(node, event.tag)
        self.grow(1, node)
        if len(self.stack) >= MAX_DEPTH:
            raise self.stop(node.span, TOO_DEEP)
        if event.anchor is not None:
            self.anchor(event.anchor, node, closed=False)
        self.stack.append(node)
        self.keys.append(None)
        self.opened.append(event.anchor)
        self.merges.append([])

    def close(self, event: yaml.CollectionEndEvent) -> None:
        node = self.stack.pop()
        self.keys.pop()
        anchor = self.opened.pop()
        merges = self.merges.pop()
        if node.width:
            end = event.end_mark
            assert end is not None
            node.width = end.column + 1 - node.column if node.line == end.line + 1 else 0
        if isinstance(node, Mapping):
            for value in merges:
                self.merge(node, value)
        if anchor is not None:
            self.closed[anchor] = True
        self.add(node)

    def alias(self, event: yaml.AliasEvent) -> None:
        here = Node(*_place(event))
        span = here.span
        name = event.anchor or ""
        target = self.anchors.get(name)
        if target is None:
            raise self.stop(span, f"no anchor &{printable(name)} comes before this alias")
        if not self.closed[name]:
            raise self.stop(span, f"*{printable(name)} stands inside what it refers to")
        self.grow(target.size, here)
        if len(self.stack) + target.height > MAX_DEPTH:
            raise self.stop(span, TOO_DEEP)
        self.add(target, span)

    def tag(self, node: Node, tag: str) -> None:
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        self.problem(node.span, f"the tag {quote(shown)} is not allowed", "remove it; quotes make a string")

    def grow(self, nodes: int, node: Node) -> None:
        self.count += nodes
        if self.count > MAX_NODES:
            raise self.stop(
                node.span, f"more than {MAX_NODES} nodes, counting aliases as often as they are used"
            )

    def anchor(self, name: str, node: Node, *, closed: bool) -> None:
        if name in self.anchors:
            first = self.anchors[name]
            self.problem(node.span, f"the anchor &{printable(name)} is already used in line {first.line}")
        self.anchors[name] = node
        self.closed[name] = closed

    def add(self, node: Node, span: Span | None = None) -> None:
        """Put a finished node where it belongs: as the root, an item, a key or a value."""
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.size += node.size
        if parent.height <= node.height:
            parent.height = node.height + 1
        if isinstance(parent, Sequence):
            parent.items.append(node)
            return
        key = self.keys[-1]
        if key is None:
            self.keys[-1] = node
            return
        self.keys[-1] = None
        if not isinstance(key, Scalar):
            self.problem(key.span, "a key must be a plain word, not a list or a map")
        elif key.plain and key.text == "<<":
            self.merges[-1].append(node)
            if len(self.merges[-1]) > 1:
                self.problem(key.span, "duplicate key '<<'", "merge several maps as <<: [*a, *b]")
        elif key.text in parent.entries:
            first = parent.entries[key.text][0]
            self.problem(key.span, f"duplicate key {quote(key.text)}, first set in line {first.line}")
        elif key.plain and not key.text:
            self.problem(span or node.span, "a key is missing before ':'")
        else:
            parent.entries[key.text] = (key, node)

    def merge(self, node: Mapping, value: Node) -> None:
        """Add the entries of `<<: value` that `node` does not set itself; of several maps the first one wins."""
        for item in value.items if isinstance(value, Sequence) else [value]:
            if not isinstance(item, Mapping):
                self.problem(item.span, "'<<' needs a map or a list of maps")
                continue
            for key, entry in item.entries.items():
                node.entries.setdefault(key, entry)


def _place(event: Any) -> tuple[int, int, int]:
    """Return line and column, from 1, and the width, 0 where the event spans lines."""
    start, end = event.start_mark, event.end_mark
    line, column = start.line, start.column
    return line + 1, column + 1, end.column - column if end.line == line else 0
