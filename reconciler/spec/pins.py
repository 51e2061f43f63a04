"""The images that spec files name, with their places, and the same text with other references in those places.

A file is a person's: everything but the reference stays as it was, comments and the order of keys included. A file that
breaks other rules of the format is read all the same, as far as it is YAML. Pure.
"""

from collections.abc import Mapping as Mapped
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Final

from reconciler.spec.marks import Problem, Source, Span
from reconciler.spec.yaml12 import Mapping, Node, Scalar, compose

_SECTIONS: Final = ("containers", "jobs")


@dataclass(frozen=True, slots=True)
class Use:
    """One `image:` of a file: the container or job that has it, as APP/NAME, and where the text stands."""

    who: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class File:
    """What one file names, in its order; `problems` where it can't be read as YAML, and then nothing is known."""

    source: Source
    uses: tuple[Use, ...]
    problems: tuple[Problem, ...] = ()


def read(path: str, data: bytes) -> File:
    """Find the images of the file `path`; one that stands behind an alias counts once, where it is written."""
    root, source, problems = compose(path, data)
    errors = tuple(problem for problem in problems if problem.severity == "error")
    if errors or not isinstance(root, Mapping):
        return File(source, (), errors)
    app = _text(root, "name") or "?"
    found: dict[Span, Use] = {}
    for section in _SECTIONS:
        entries = root.entries.get(section, (None, None))[1]
        for name, (_, container) in entries.entries.items() if isinstance(entries, Mapping) else ():
            image = (
                container.entries.get("image", (None, None))[1] if isinstance(container, Mapping) else None
            )
            if isinstance(image, Scalar):
                found.setdefault(image.span, Use(f"{app}/{name}", image.text, image.span))
    return File(source, tuple(found.values()))


def _text(root: Mapping, key: str) -> str:
    node: Node | None = root.entries.get(key, (None, None))[1]
    return node.text if isinstance(node, Scalar) else ""


def rewritten(file: File, changes: Mapped[Use, str]) -> tuple[str, tuple[Use, ...]]:
    """Return the file's text with other references in those places, and the uses that can't be changed in place.

    Those are written over several lines, or with escapes.
    """
    lines = file.source.text.split("\n")
    left: list[Use] = []
    for use in sorted(changes, key=lambda use: (use.span.line, use.span.column), reverse=True):
        line = lines[use.span.line - 1]
        start = use.span.column - 1
        written = line[start : start + use.span.width] if use.span.width else ""
        if written.count(use.text) != 1:
            left.append(use)
            continue
        start += written.index(use.text)
        lines[use.span.line - 1] = line[:start] + changes[use] + line[start + len(use.text) :]
    return "\n".join(lines), tuple(reversed(left))


def texts(files: Listed[File]) -> tuple[str, ...]:
    """The references of all files, each once, in order."""
    return tuple(dict.fromkeys(use.text for file in files for use in file.uses))
