"""The command line's own promises: exit codes of usage errors, help for every verb, a manual that is not stale."""

import argparse
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import build_parser, run
from reconciler.cli.manual import manual


def leaves(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                found |= leaves(inner, f"{name} {verb}".strip())
    return found or {name: parser}


LEAVES = {name: parser for name, parser in leaves(build_parser()).items() if not name.startswith("oci ")}


@pytest.mark.parametrize("verb", LEAVES)
def test_every_verb_has_a_function_that_exists(verb: str) -> None:
    module, _, name = LEAVES[verb].get_default("call").partition(":")
    function = getattr(importlib.import_module(f"reconciler.cli.{module}"), name)
    assert inspect.getdoc(function)


@pytest.mark.parametrize("verb", LEAVES)
def test_every_verb_prints_help_and_takes_the_places(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*verb.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--state", "--run", "--device"):
        assert option in text


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["plan", "--no-such-option"], ["pull"], ["gc", "x"]])
def test_a_wrong_command_line_exits_with_64_and_not_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 64


def test_the_manual_is_not_stale() -> None:
    page = Path(__file__).parents[3] / "docs" / "cli.md"
    assert page.read_text() == manual(), "run: make docs"


def test_verbs_that_look_wait_for_no_models_and_no_registry() -> None:
    """pydantic, yaml and httpx cost a third of a second of a slow device's time each."""
    modules = (
        "logs",
        "stats",
        "events",
        "inspection",
        "signed",
        "waiting",
        "processes",
        "changes",
        "ports",
        "completion",
        "names",
        "change",
        "pulling",
        "images",
        "volumes",
    )
    script = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module('reconciler.cli.' + name)\n"
        "print(*{'pydantic', 'yaml', 'httpx'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
