"""Write the generated pages of docs/ again; with --check, say which are stale and exit 1. `make docs` runs it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the course is the test's own

from reconciler.cli.docker import table  # noqa: E402
from reconciler.cli.manual import manual  # noqa: E402
from reconciler.spec.schema import generated  # noqa: E402
from tests.e2e.course import COURSE  # noqa: E402

_DOCKER = """\
# Docker's commands

Who knows Docker knows most of `reconciler`: the same words, options and exit codes, for containers that people run by
hand, and for those that specs declare as far as it makes sense. This page is generated (`make docs`).

What is different everywhere: a registry's host is never left out; a declared container is called APP/CONTAINER; what a
spec declares is changed in the spec, and comes back if it is removed by hand. A command of Docker's that is not here is
answered with its line of this table.

"""
_COURSE = """

## A course

These lines are a course in Docker's fundamentals, in our program's name. A test runs them from the first to the last,
with real images of a registry, which `registry.example` stands for, and checks after each that what is beside it came
true.

| `reconciler ...` | What the course says |
|---|---|
"""


def docker() -> str:
    """docs/docker.md: what each of Docker's commands is here, and the course that is run with them."""
    course = "".join(f"| `{line.replace('|', chr(92) + '|')}` | {promise} |\n" for line, promise in COURSE)
    return f"{_DOCKER}{table()}{_COURSE}{course}"


def main() -> int:
    """Write what is stale, or only name it."""
    pages = {"docs/cli.md": manual(), "docs/docker.md": docker(), **generated()}
    check = "--check" in sys.argv
    stale = [
        name
        for name, text in pages.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != text
    ]
    for name in stale:
        print(f"{name}: {'stale, run: make docs' if check else 'written'}")
        if not check:
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(pages[name])
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
