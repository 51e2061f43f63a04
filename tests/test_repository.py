"""The rules of the house, as tests: formatting, lint, types, layers, names, and that what the documents say is there.

Linters run as programs, as `make check` runs them, over the whole repository.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LONGEST_MODULE = 440  # "a few hundred lines"; one that wants to grow further is split along a noun

# Names under which anything can be put, and everything ends up.
NOBODYS_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "core",
    "misc",
    "managers",
    "manager",
    "handlers",
    "handler",
}
COMMON_NAME_ALLOWED = {"reconciler/cli/common.py"}  # what several verbs need, and nothing else imports


def tracked() -> list[Path]:
    """Return the files of the repository: what git knows, or would know."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CLONE,
        capture_output=True,
        check=True,
    ).stdout
    paths = (CLONE / name for name in sorted(set(listing.decode().split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[str, str]]:
    """Return name and content of every file that is text and was written by hand."""
    found = []
    for path in tracked():
        name = str(path.relative_to(CLONE))
        if name.startswith(("examples/images/layout/", "LICENSE", "tests/schemas/", "tests/golden/")):
            continue
        try:
            found.append((name, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def modules() -> list[Path]:
    """Return the modules of the program."""
    return [path for path in tracked() if path.suffix == ".py" and path.is_relative_to(CLONE / "reconciler")]


def succeed(*command: str | Path) -> str:
    """Run a program in the clone and return what it printed; fail the test, with that, when it fails."""
    done = subprocess.run(
        command, cwd=CLONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- tools ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "format", "--check", "."), id="format"),
        pytest.param(("ruff", "check", "."), id="lint"),
        pytest.param(("mypy",), id="types"),
        pytest.param(("lint-imports",), id="layers"),
    ],
)
def test_linters_are_content(command: tuple[str, ...]) -> None:
    succeed(BIN / command[0], *command[1:])


@pytest.mark.parametrize(
    "script", [name for name, text in texts() if text.startswith(("#!/bin/sh", "#!/usr/bin/env bash"))]
)
def test_scripts_parse_and_can_be_run(script: str) -> None:
    path = CLONE / script
    shell = "sh" if path.read_text().startswith("#!/bin/sh") else "bash"
    succeed(shell, "-n", path)
    assert path.stat().st_mode & 0o111, f"{script} is not executable"


def test_prometheus_accepts_the_scrape_configuration_and_the_alerts_do_what_they_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (package prometheus) is not installed")
    succeed(promtool, "check", "config", "deploy/prometheus.yml")
    succeed(promtool, "test", "rules", "deploy/rules_test.yml")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze (package systemd) is not installed")
    unit = tmp_path / "reconciler.service"
    text = (CLONE / "deploy" / "reconciler.service").read_text()
    program = "/usr/local/bin/reconciler"
    assert f"\nExecStart={program} agent " in text
    unit.write_text(text.replace(program, "/bin/true"))  # systemd looks whether the program is there
    assert succeed(analyze, "verify", unit) == ""


def test_every_alert_is_tested_and_asks_for_metrics_that_are_documented() -> None:
    rules = (CLONE / "deploy" / "rules.yml").read_text()
    tests = (CLONE / "deploy" / "rules_test.yml").read_text()
    documented = (CLONE / "docs" / "operations.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    for alert in alerts:
        assert tests.count(f"alertname: {alert}") >= 2, f"{alert}: show it fire, and stay silent"
    for metric in re.findall(r"\breconciler_[a-z_]+", rules):
        assert metric in documented


# --- names and words ------------------------------------------------------------------------------------------------


def test_nothing_names_the_place_of_this_clone() -> None:
    place = str(CLONE)
    if len(CLONE.parts) > 2:  # a clone at /src would find its name everywhere
        assert [name for name, text in texts() if place in text] == []


def test_no_work_is_left_as_a_note() -> None:
    notes = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\bNotImplementedError\b")
    here = "tests/test_repository.py"
    assert [f"{name}: {m[0]}" for name, text in texts() if name != here for m in notes.finditer(text)] == []


def test_no_module_has_a_name_for_everything() -> None:
    names = [str(path.relative_to(CLONE)) for path in modules()]
    wrong = [name for name in names if NOBODYS_NAMES & set(Path(name).with_suffix("").parts)]
    assert set(wrong) <= COMMON_NAME_ALLOWED


def test_modules_are_of_a_few_hundred_lines_and_say_why_they_exist() -> None:
    wrong = []
    for path in modules():
        text = path.read_text()
        lines = text.count("\n")
        name = path.relative_to(CLONE)
        if lines > LONGEST_MODULE:
            wrong.append(f"{name}: {lines} lines")
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            wrong.append(f"{name}: no docstring")
    assert wrong == []


# --- documents ------------------------------------------------------------------------------------------------------


def test_the_layers_in_the_document_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((CLONE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    document = (CLONE / "docs" / "architecture.md").read_text()
    table = document.partition("| Layer | What it is |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines() if row.startswith("| `")]
    assert rows == [layer.split(" | ") for layer in layers]


def test_every_folder_of_the_program_has_a_paragraph_in_the_document() -> None:
    document = (CLONE / "docs" / "architecture.md").read_text()
    for path in (CLONE / "reconciler").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert re.search(rf"\*\*{path.name}\*\*|`{path.name}`", document), f"{path.name}: not described"


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CLONE / "Makefile").read_text(), re.MULTILINE))
    for name, text in texts():
        if name.endswith(".md"):
            for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE):
                assert target in targets, f"{name}: make {target}"


def test_every_verb_in_the_documents_exists() -> None:
    from reconciler.cli.options import VERBS

    verbs = {verb for verb, _, _ in VERBS} | {"shim", "zygote"}  # these two are titles of processes
    for name, text in texts():
        if name.endswith((".md", ".service", "rules.yml")):
            for verb in re.findall(r"(?:^|`|\$ |bin/)reconciler ([a-z]+)", text, re.MULTILINE):
                assert verb in verbs, f"{name}: reconciler {verb}"


def test_every_link_between_documents_leads_somewhere() -> None:
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
                assert (path.parent / target).exists(), f"{path.relative_to(CLONE)}: {target}"


def test_readme_is_two_screens_and_shows_the_two_commands() -> None:
    readme = (CLONE / "README.md").read_text()
    assert len(readme.splitlines()) <= 130
    for command in ("make run", "make test"):
        assert f"\n```\n{command}\n```\n" in readme


def read_nothing(path: str) -> bytes:
    """Stand for a repository without config files."""
    raise FileNotFoundError(path)


def test_the_example_in_readme_and_the_apps_in_specs_are_valid() -> None:
    from reconciler.spec.load import load

    (example,) = re.findall(r"```yaml\n(.*?)```", (CLONE / "README.md").read_text(), re.DOTALL)
    files = {path.name: path.read_bytes() for path in (CLONE / "specs").glob("*.yaml")}
    assert len(files) == 3
    loaded = load(files | {"readme.yaml": example.encode()}, read_nothing)
    assert [problem.render() for problem in loaded.problems] == []
    assert set(loaded.apps) == {"web", "counter", "pair", "shop"}


def test_the_device_file_in_deploy_spells_out_the_defaults() -> None:
    from reconciler.config import load_device

    written = CLONE / "deploy" / "device.yaml"
    assert load_device(str(written), written.read_bytes()) == load_device("", None)


def test_the_device_file_of_make_run_is_valid_and_names_the_committed_image() -> None:
    from reconciler.config import load_device

    written = (CLONE / "examples" / "device.yaml").read_text().replace("@CLONE@", str(CLONE))
    (bundle,) = load_device("examples/device.yaml", written.encode()).bundles
    assert (Path(bundle) / "oci-layout").exists()


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## \[([^]]+)\]", (CLONE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == version
