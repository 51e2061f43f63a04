"""libyaml's complaints in our own words.

It knows the sentences of libyaml 0.2's scanner and parser and what a tab looks like; it decides nothing. Pure.
"""

from typing import Final

import yaml

from reconciler.spec.marks import Problem, Source, Span, printable

MAX_DEPTH: Final = 32
TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep"

# What libyaml says, and what we say; what is not listed is passed on, it is short and names no one.
_SENTENCES: Final = {
    "mapping values are not allowed in this context": (
        "a ':' where no key can be; quote the text or check the indentation"
    ),
    "found character that cannot start any token": "this character cannot start a value; quote the text",
    "did not find expected key": "expected a key; check the indentation and the brackets above",
    "did not find expected '-' indicator": "expected '-', as the list that this stands in has",
    "did not find expected ',' or ']'": "the list that starts with '[' is not closed: expected ',' or ']'",
    "did not find expected ',' or '}'": "the map that starts with '{' is not closed: expected ',' or '}'",
    "did not find expected node content": "expected a value",
    "did not find expected <document start>": "text after the end of the document",
    "found unexpected end of stream": "the file ends inside quotes",
    "found unexpected document indicator": "the document ends inside quotes",
    "could not find expected ':'": "expected ':' after a key",
    "block sequence entries are not allowed in this context": "a list item where none can be; check the indentation",
    "found undefined tag handle": "tags are not allowed",
    "exceeded maximum nesting depth": TOO_DEEP,  # its own limit is 1000, and its scanner runs ahead of our reading
    "found a tab character that violates indentation": "a tab in the indentation; use spaces",
}


def syntax_problem(source: Source, error: yaml.MarkedYAMLError) -> Problem:
    """Return libyaml's complaint in our words, at the place where the reader should look."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return source.problem(Span(1, 1, 0), f"not YAML: {printable(str(error.problem))}")
    lines = source.text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    if "\t" in indent and mark.column <= len(indent):
        return source.problem(
            Span(mark.line + 1, indent.index("\t") + 1, 1), "a tab in the indentation; use spaces"
        )
    problem = error.problem or "not YAML"
    message = _SENTENCES.get(problem, f"not YAML: {printable(problem)}")
    start = error.context_mark
    if start is not None and start.line != mark.line:
        message += f" (opened in line {start.line + 1})"
    if mark.line >= len(lines) - 1 and not line.strip():
        # The end of the file shows nothing; where the unclosed thing starts does, or what comes last.
        if start is not None and start.line != mark.line:
            return source.problem(Span(start.line + 1, start.column + 1, 1), message.partition(" (opened")[0])
        last = len(source.text.rstrip().split("\n"))
        return source.problem(Span(last, max(1, len(lines[last - 1].rstrip())), 1), f"{message} after this")
    return source.problem(Span(mark.line + 1, mark.column + 1, 1), message)
