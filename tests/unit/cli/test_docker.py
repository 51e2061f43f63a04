"""Docker's commands: each has its line, what a line says is here is here, and the course takes in all of these."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import main
from reconciler.cli.docker import COMMANDS, instead
from tests.e2e.course import COURSE

ROOT = Path(__file__).resolve().parents[3]

# The reference of Docker's command line, version 28.
_COMMANDS = """
attach build builder buildx checkpoint commit compose config context cp create diff events exec export history images
import info inspect kill load login logout logs manifest node pause plugin port ps pull push rename restart rm rmi run
save search secret service stack start stats stop swarm tag top trust unpause update version wait
"""
_OF_NOUNS = {
    "builder": "build prune",
    "container": "attach commit cp create diff exec export inspect kill logs ls pause port prune rename restart rm run "
    "start stats stop top unpause update wait",
    "image": "build history import inspect load ls prune pull push rm save tag",
    "network": "connect create disconnect inspect ls prune rm",
    "system": "df dial-stdio events info prune",
    "volume": "create inspect ls prune rm update",
}
DOCKER = (
    *_COMMANDS.split(),
    *(f"{noun} {word}" for noun, words in _OF_NOUNS.items() for word in words.split()),
)


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def is_verb(text: str) -> bool:
    parser: argparse.ArgumentParser | None = main.build_parser()
    for word in text.split():
        parser = actions(parser).get(word) if parser is not None else None
    return parser is not None


@pytest.mark.parametrize("name", DOCKER)
def test_every_command_of_dockers_has_its_line(name: str) -> None:
    said = [c for c in COMMANDS if name in (c.name, c.noun)]
    if not said and (" " not in name):
        said = [c for c in COMMANDS if c.name.startswith(f"{name} ")]
    assert said, f"{name}: add it to reconciler/cli/docker.py"
    for command in said:
        assert command.ours or command.says


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_a_line_says_of_verbs_what_is_true(command: object) -> None:
    assert isinstance(command, type(COMMANDS[0]))
    if command.ours:
        assert is_verb(command.ours), f"{command.ours} is no verb of ours"
    if is_verb(command.name):
        assert command.ours == command.name, f"there is a verb {command.name} now"
    if command.noun and is_verb(command.noun):
        assert command.ours


def test_the_course_takes_in_every_command_that_is_the_same_here() -> None:
    lines = [line for line, _ in COURSE]
    same = [c for c in COMMANDS if c.ours and c.ours in (c.name, c.noun)]
    names = [(c.name, c.noun) for c in same]
    assert [
        n for n in names if not any(f"{line} ".startswith((f"{n[0]} ", f"{n[1]} ")) for line in lines)
    ] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("push", "x"), "a device only takes images"),
        (("swarm", "init"), "many devices that read one repository"),
        (("info",), "here: reconciler doctor ("),
        (("image", "build"), "images are built where there is a network"),
        (("compose", "up"), "here: reconciler apply ("),
    ],
)
def test_a_command_that_is_only_dockers_is_answered_with_its_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.build_parser().parse_args(words)
    assert ended.value.code == 64
    told = capsys.readouterr().err
    assert said in told
    assert f"{' '.join(words[:1])}" in told
    assert "choose from" not in told


def test_what_nobody_knows_is_not_explained() -> None:
    assert instead(("frobnicate",)) == ""
    assert instead(()) == ""


def test_the_page_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
