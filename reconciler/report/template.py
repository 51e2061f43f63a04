"""`--format`: the part of Go's templates that people use with Docker, over plain JSON values. Pure and total.

`{{.State.Status}}`, `{{json .Config}}`, `{{index .Config.Labels "k"}}`, `{{range .Mounts}}{{.Source}} {{end}}`,
`{{if .State.Running}}yes{{else}}no{{end}}`, `{{.Name | upper}}`, `{{(index .Args 0)}}`. Nothing in it reaches anything
but the value it is given, and it always ends: there are no variables, loops but over data, or definitions.
A field is found by its exact name, else without regard to case and underscores: `.ExitCode` finds `exit_code`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, assert_never

from reconciler.errors import UsageError

_TAG: Final = re.compile(
    r"\{\{(?P<left>- )?\s*(?P<inside>(?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|[^}\"`])*?)\s*(?P<right> -)?\}\}", re.S
)
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>(?:\.[\w-]*)+)|(?P<word>\w+)|(?P<sign>[|()]))"""
)
_ESCAPES: Final = {r"\t": "\t", r"\n": "\n"}
_DEEPEST: Final = 32


@dataclass(frozen=True, slots=True)
class Text:
    """What stands between the tags."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A string or a number that the template spells."""

    value: str | int


@dataclass(frozen=True, slots=True)
class Field:
    """`.a.b` of the current value, or of what `of` comes to."""

    names: tuple[str, ...]
    of: "Expression | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    function: str
    arguments: "tuple[Expression, ...]"


Expression = Literal | Field | Call


@dataclass(frozen=True, slots=True)
class Show:
    """`{{ expression }}`."""

    expression: Expression


@dataclass(frozen=True, slots=True)
class Block:
    """`{{range expression}} body {{else}} otherwise {{end}}`, or the same with `if`."""

    word: str
    expression: Expression
    body: "tuple[Node, ...]"
    otherwise: "tuple[Node, ...]"


Node = Text | Show | Block


class Template:
    """A parsed template; `table` says that it began with that word. UsageError where it can't be parsed."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"\\[tn]", lambda match: _ESCAPES[match[0]], text)
        self.table = text.startswith("table ") or text.startswith("table\t")
        self._nodes = _Parser(text[6:].lstrip() if self.table else text).parse()

    def render(self, value: Any) -> str:
        """The text for one value; UsageError for a field that the value does not have."""
        return "".join(_render(self._nodes, value))

    def heading(self) -> str:
        """The line that names what `render` shows: the last name of each field, in capitals."""
        return "".join(
            node.text if isinstance(node, Text) else _title(node.expression).upper() for node in self._nodes
        )


# --- parsing -------------------------------------------------------------------------------------------------------


def _refuse(what: str) -> NoReturn:
    raise UsageError(f"--format: {what}", hint="for example: --format '{{.name}} {{json .}}'")


class _Parser:
    def __init__(self, text: str) -> None:
        self._parts = list(_parts(text))
        self._at = 0

    def parse(self) -> tuple[Node, ...]:
        nodes, end = self._nodes(0)
        if end:
            _refuse(f"{{{{{end}}}}} without a beginning")
        return nodes

    def _nodes(self, depth: int) -> tuple[tuple[Node, ...], str]:
        """The nodes up to the next `else` or `end` of this level, and which of them it was."""
        if depth > _DEEPEST:
            _refuse("nested too deeply")
        found: list[Node] = []
        while self._at < len(self._parts):
            text, inside = self._parts[self._at]
            self._at += 1
            if text:
                found.append(Text(text))
            if inside is None:
                continue
            word, _, rest = inside.partition(" ")
            if word in ("end", "else"):
                return tuple(found), word
            if word in ("range", "if"):
                found.append(self._block(word, rest, depth))
            elif not inside.startswith("/*"):
                found.append(Show(_expression(inside)))
        return tuple(found), ""

    def _block(self, word: str, rest: str, depth: int) -> Block:
        expression = _expression(rest)
        body, end = self._nodes(depth + 1)
        otherwise: tuple[Node, ...] = ()
        if end == "else":
            otherwise, end = self._nodes(depth + 1)
        if end != "end":
            _refuse(f"{{{{{word}}}}} without its {{{{end}}}}")
        return Block(word, expression, body, otherwise)


def _parts(text: str) -> Iterator[tuple[str, str | None]]:
    """Pieces of text, each with the tag that follows it."""
    at, trim = 0, False
    for tag in _TAG.finditer(text):
        before = text[at : tag.start()]
        before = before.lstrip() if trim else before
        yield before.rstrip() if tag["left"] else before, tag["inside"]
        at, trim = tag.end(), bool(tag["right"])
    rest = text[at:].lstrip() if trim else text[at:]
    if "{{" in rest:
        _refuse(f"{rest[rest.index('{{') :][:40]!r} is not closed")
    yield rest, None


def _expression(text: str) -> Expression:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            if not text[at:].strip():
                break
            _refuse(f"{text[at:].strip()[:40]!r} is not understood")
        assert token.lastgroup is not None
        tokens.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    found = _pipeline(tokens, 0)
    if tokens:
        _refuse(f"{tokens[0][1]!r} was not expected")
    return found


def _pipeline(tokens: list[tuple[str, str]], depth: int) -> Expression:
    """Take `a | b | c` off the front of `tokens`: each is the last argument of the next."""
    if depth > _DEEPEST:
        _refuse("nested too deeply")
    found = _command(tokens, None, depth)
    while tokens and tokens[0] == ("sign", "|"):
        del tokens[0]
        found = _command(tokens, found, depth)
    return found


def _command(tokens: list[tuple[str, str]], piped: Expression | None, depth: int) -> Expression:
    if not tokens:
        _refuse("something is missing")
    kind, text = tokens[0]
    last = () if piped is None else (piped,)
    if kind != "word":
        operand = _operand(tokens, depth)
        if last:
            _refuse("a pipe leads to a function")
        return operand
    if text not in _FUNCTIONS:
        _refuse(f"no function {text!r}, expected one of {', '.join(sorted(_FUNCTIONS))}")
    del tokens[0]
    arguments: list[Expression] = []
    while tokens and tokens[0] not in (("sign", "|"), ("sign", ")")):
        arguments.append(_operand(tokens, depth))
    return Call(text, (*arguments, *last))


def _operand(tokens: list[tuple[str, str]], depth: int) -> Expression:
    kind, text = tokens.pop(0)
    match kind:
        case "string":
            return Literal(text[1:-1] if text[0] == "`" else re.sub(r"\\(.)", r"\1", text[1:-1]))
        case "number":
            return Literal(int(text[:19]))
        case "path":
            return Field(tuple(name for name in text.split(".") if name))
        case "sign" if text == "(":
            inner = _pipeline(tokens, depth + 1)
            if not tokens or tokens.pop(0) != ("sign", ")"):
                _refuse("a ( is not closed")
            if tokens and tokens[0][0] == "path":
                return Field(tuple(name for name in tokens.pop(0)[1].split(".") if name), inner)
            return inner
        case _:
            _refuse(f"{text!r} was not expected")


# --- values --------------------------------------------------------------------------------------------------------


def _render(nodes: Sequence[Node], value: Any) -> Iterator[str]:
    for node in nodes:
        match node:
            case Text(text):
                yield text
            case Show(expression):
                yield _shown(_value(expression, value))
            case Block(word, expression, body, otherwise):
                found = _value(expression, value)
                if word == "if":
                    yield from _render(body if found else otherwise, value)
                    continue
                items = _items(found)
                for item in items:
                    yield from _render(body, item)
                if not items:
                    yield from _render(otherwise, value)
            case _:
                assert_never(node)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return list(value)
    if value is None:
        return []
    _refuse(f"range over {_shown(value)[:40]!r}, expected a list or an object")


def _value(expression: Expression, value: Any) -> Any:
    match expression:
        case Literal(literal):
            return literal
        case Field(names, of):
            found = value if of is None else _value(of, value)
            for name in names:
                found = _field(found, name)
            return found
        case Call(function, arguments):
            values = [_value(argument, value) for argument in arguments]
            try:
                return _FUNCTIONS[function](*values)
            except (TypeError, IndexError, ValueError) as error:
                raise UsageError(f"--format: {function}: {error}") from error
        case _:
            assert_never(expression)


def _field(value: Any, name: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        _refuse(f".{name}: {_shown(value)[:40]!r} has no fields")
    if name in value:
        return value[name]
    wanted = _plain(name)
    for key in value:
        if _plain(str(key)) == wanted:
            return value[key]
    known = ", ".join(str(key) for key in list(value)[:40])
    raise UsageError(f"--format: no field .{name}", hint=f"there are: {known}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case _:
            return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and isinstance(key, int):
            value = value[key]
        else:
            raise TypeError(f"{_shown(value)[:40]!r} has no element {key!r}")
    return value


def _join(value: Any, separator: Any) -> str:
    return str(separator).join(_shown(item) for item in _items(value))


_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "json": _json,
    "index": _index,
    "len": lambda value: 0 if value is None else len(value),
    "join": _join,
    "upper": lambda value: _shown(value).upper(),
    "lower": lambda value: _shown(value).lower(),
    "not": lambda value: not value,
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
}


def _title(expression: Expression) -> str:
    match expression:
        case Literal():
            return ""
        case Field(names, of):
            return names[-1].replace("_", " ") if names else _title(of) if of is not None else ""
        case Call(_, arguments):
            return next((title for item in arguments if (title := _title(item))), "")
        case _:
            assert_never(expression)
