"""What the documents say, compared with the program: commands, the disk, libraries, metrics, messages, named tests.

`test_repository.py` holds the rules that concern the repository as a whole; this file holds those of single documents.
"""

import ast
import fnmatch
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from reconciler.cli.main import build_parser
from reconciler.engine import bundle, layout
from reconciler.report.metrics import families
from tests.unit.report.test_metrics import full

CLONE = Path(__file__).resolve().parents[1]
PAGES = sorted([*CLONE.glob("*.md"), *(CLONE / "docs").glob("*.md")])


def page(name: str) -> str:
    return (CLONE / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table that begins with the line `heading`."""
    lines = text.partition(heading + "\n")[2].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line]


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Every call of the program that stands in a code block, with the page it is on."""
    found = []
    for path in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                for part in re.split(r"&& |; |=(?=/)", line):
                    call = re.match(
                        r"(?:[$#] )?(?:\S*/)?reconciler (?!\.|agent  |zygote|shim)(\S.*)", part.strip()
                    )
                    if call and not re.search(r"\w+\.(json|py)", part):
                        found.append((path.name, call[1]))
        for quoted in re.findall(r"`reconciler ([a-z][^`]*)`", path.read_text()):
            found.append((path.name, quoted))
    return sorted(set(found))


@pytest.mark.parametrize(("where", "call"), commands())
def test_a_command_in_the_documents_is_one_that_the_program_takes(where: str, call: str) -> None:
    words = [word for word in shlex.split(call) if word != "..."]
    if words == ["zygote"] or words[:1] == ["shim"]:
        return  # titles of processes
    if len(words) == 1 or (
        len(words) == 2 and words[0] in ("bundle", "container", "image", "network", "system", "volume")
    ):
        words += ["--help"]  # a verb that is only named
    code: object = 0
    try:
        build_parser().parse_args(words)
    except SystemExit as ended:
        code = ended.code
    assert code == 0, f"{where}: reconciler {call}"


def test_the_documents_show_commands() -> None:
    assert {"README.md", "garbage.md", "operations.md", "cli.md"} <= {where for where, _ in commands()}


# --- architecture -----------------------------------------------------------------------------------------------------


def test_the_disk_is_drawn_as_the_layout_draws_it() -> None:
    drawing = str(layout.__doc__).partition("STATE")[2].rstrip()
    assert "STATE" + drawing in page("docs/architecture.md"), "engine/layout.py was changed: copy its drawing"


def test_the_libraries_are_those_of_the_project() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    names = [re.split(r"[>=<\[ ]", requirement)[0] for requirement in project["dependencies"]]
    assert [row[0] for row in rows(page("docs/architecture.md"), "| Library | For |")] == names


def test_other_programs_are_started_where_the_document_says() -> None:
    users = {
        str(path.relative_to(CLONE / "reconciler"))
        for path in (CLONE / "reconciler").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "subprocess" for alias in node.names)
    }
    paragraph = page("docs/architecture.md").partition("Other programs are started")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+(?:/\w+)+\.py)`", paragraph)) == users


def test_every_module_of_the_agent_is_described() -> None:
    described = [
        row[0].strip("`") for row in rows(page("docs/architecture.md"), "| Module of `agent` | What it is |")
    ]
    assert sorted(described) == sorted(
        path.stem for path in (CLONE / "reconciler" / "agent").glob("[a-z]*.py")
    )


def test_every_module_of_the_engine_has_its_room() -> None:
    found = rows(page("docs/architecture.md"), "| Room of `engine` | Modules |")
    named = [name for row in found for name in re.findall(r"`(\w+)`", row[1])]
    engine = CLONE / "reconciler" / "engine"
    assert sorted(named) == sorted(path.stem for path in engine.rglob("[a-z]*.py"))


# --- operations -------------------------------------------------------------------------------------------------------


def test_every_metric_is_described_as_it_is_published() -> None:
    described = {
        row[0].strip("`"): row
        for row in rows(page("docs/operations.md"), "| Metric | Type | Labels | Meaning |")
    }
    published = {family.name: family for family in families(full())}
    assert described.keys() == published.keys()
    for name, family in published.items():
        _, kind, labels, meaning = described[name]
        assert kind == family.kind, name
        assert meaning.startswith(family.text), name
        if family.samples and name != "reconciler_device_info":  # whose labels are the device's own, too
            assert labels == ", ".join(label for label, _ in family.samples[0][0]), name


@cache
def said() -> str:
    """Every text in the program, what is put into it shown as `...`; one a line."""
    texts = []
    for path in (CLONE / "reconciler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values]
                texts.append("".join(parts))
    return "\n".join(text.replace("\n", " ") for text in texts)


# What registries answer and kernels say is theirs, and what stands for a place is no text at all.
THEIRS = re.compile(
    r"\.\.\.: (404|401|429|500) \.\.\.|\.\.\.: GET \.\.\.: \[Errno.*|FILE:LINE:COLUMN: error: \.\.\."
)


def test_every_message_in_the_table_is_one_of_the_programs() -> None:
    unknown = []
    for row in rows(page("docs/operations.md"), "| It says | Cause | Remedy |"):
        for quoted in re.findall(r"`([^`]+)`", row[0]):
            pieces = [piece.strip() for piece in quoted.split("...") if len(piece.strip()) > 3]
            if not THEIRS.fullmatch(quoted) and not all(piece in said() for piece in pieces):
                unknown.append(quoted)
    assert not unknown, unknown


# --- security ---------------------------------------------------------------------------------------------------------

CLASSES = "| Id | Class | Defence | Tests |"


@cache
def functions(path: Path) -> tuple[str, ...]:
    """The tests of a file, those in classes included."""
    tree = ast.parse(path.read_text())
    return tuple(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_test_that_is_named_as_a_defence_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::([\w*]+)`", page("docs/security.md"))
    assert len(named) > 50
    missing = [
        f"{file}::{pattern}"
        for file, pattern in named
        if not (CLONE / "tests" / file).is_file()
        or not fnmatch.filter(functions(CLONE / "tests" / file), pattern)
    ]
    assert missing == []


def test_no_class_that_has_tests_of_its_own_is_listed_without() -> None:
    listed = {row[0]: row[3] for row in rows(page("docs/security.md"), CLASSES)}
    without = set()
    for path in (CLONE / "tests").rglob("test_*.py"):
        for name in functions(path):
            ids = re.match(r"test_((?:[psgytar]\d+_)+)", name)
            for number in ids[1].upper().strip("_").split("_") if ids else []:
                if listed.get(number, "none yet") == "none yet":
                    without.add(f"{number}: {path.relative_to(CLONE / 'tests')}::{name}")
    assert without == set()


def test_the_capabilities_are_those_that_containers_get() -> None:
    table = rows(page("docs/security.md"), "| Capability | Why it is kept |")
    names = {f"CAP_{name}" for row in table for name in row[0].split(", ")}
    assert names == set(bundle.CAPABILITIES)
