"""Write the generated pages of docs/ again; with --check, say which are stale and exit 1. `make docs` runs it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the course is the test's own

from reconciler.cli.docker import table  # noqa: E402
from reconciler.cli.manual import manual  # noqa: E402
from reconciler.engine.seccomp import default  # noqa: E402
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
_BEGIN = "<!-- from reconciler/engine/seccomp/default.py: make docs -->"
_END = "<!-- end -->"
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


def security() -> str:
    """docs/security.md, which is written by hand but for the table of system calls."""
    page = (ROOT / "docs/security.md").read_text()
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin, "docs/security.md has lost the place of its table"
    return f"{before}{begin}\n{calls()}{end}{after}"


def calls() -> str:
    """The table of the default profile."""
    known = {name for tables in default.TABLES.values() for table in tables for name in table}
    added = {name for names in default.BY_CAPABILITY.values() for name in names}
    allowed = default.allowed_names(())
    rows = [(f"allowed: {purpose}", " ".join(sorted(names))) for purpose, names in default.ALLOWED.items()]
    rows += [
        (f"`{name}`", f"allowed for some arguments: {words}") for name, words in default.CONDITIONAL.items()
    ]
    rows += [
        (f"allowed with {capability.removeprefix('CAP_')}", " ".join(sorted(names)))
        for capability, names in default.BY_CAPABILITY.items()
    ]
    refused = known - allowed - added - default.ABSENT - default.CONDITIONAL.keys()
    rows.append(("refused, with EPERM, as those above without the capability", " ".join(sorted(refused))))
    rows.append(("as if the kernel had them not: ENOSYS", " ".join(sorted(default.ABSENT))))
    return (
        "\n| What | Calls |\n|---|---|\n" + "".join(f"| {what} | {names} |\n" for what, names in rows) + "\n"
    )


def main() -> int:
    """Write what is stale, or only name it."""
    pages = {
        "docs/cli.md": manual(),
        "docs/docker.md": docker(),
        "docs/security.md": security(),
        **generated(),
    }
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
