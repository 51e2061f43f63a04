"""Completion: what may stand at the end of a line, quickly and quietly, whatever is on disk."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli.completion import Asked, asked, complete
from reconciler.cli.main import build_parser, run

PARSER = build_parser()


def words(*line: str) -> set[str]:
    *before, last = line
    return {word for word, _ in asked(PARSER, before, last).words if word.startswith(last)}


def kinds(*line: str) -> tuple[str, ...]:
    *before, last = line
    return asked(PARSER, before, last).kinds


def test_verbs_options_and_choices_are_known() -> None:
    assert {"ps", "logs", "volume", "completion"} <= words("")
    assert words("vol") == {"volume"}
    assert {"ls", "rm"} <= words("volume", "")
    assert words("logs", "--fol") == {"--follow"}
    assert words("ps", "-o", "j") == {"json", "jsonl"}
    assert words("ps", "--output=ya") == {"--output=yaml"}
    assert words("wait", "--for", "h") == {"healthy"}
    assert words("completion", "") == {"bash", "zsh", "fish"}
    assert words("nonsense", "") == set()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (("logs", "w"), ("container", "app")),
        (("logs", "-f", "--tail", "3", "web/page", ""), ("container", "app")),
        (("logs", "--tail", ""), ()),
        (("exec", "-it", ""), ("container",)),
        (("exec", "-u", "0", "web/page", "l"), ()),
        (("status", ""), ("app",)),
        (("status", "web", ""), ()),
        (("volume", "rm", "web/data", ""), ("volume",)),
        (("pull", ""), ("image",)),
        (("inspect", ""), ("container", "image", "volume", "network")),
        (("ps", "--state", ""), ("directories",)),
        (("ps", "--device="), ("files",)),
        (("plan", ""), ("directories",)),
        (("logs", "--", "-x"), ("container", "app")),
        (("top", "--state=/x", ""), ("container",)),
    ],
)
def test_names_are_of_the_kind_that_the_argument_takes(
    line: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert kinds(*line) == expected


def test_names_come_from_the_directory_that_the_line_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "app": "web",
        "name": "page",
        "reference": "r.example/page:1@sha256:00",
        "manifest": "sha256:00",
    }
    for name, content in (
        ("containers/01/identity.json", json.dumps(record)),
        ("containers/02/identity.json", "{"),
        ("containers/03/identity.json", json.dumps({**record, "name": "evil\x1b[2J name"})),
        ("lastgood/other.json", ""),
        ("volumes/web/data/volume.json", ""),
        ("network/leases.json", json.dumps({"apps": {"web": {"subnet": "10.0.0.0/24"}}})),
        (
            "generations/7.json",
            json.dumps({"apps": [{"images": [["r.example/db:2@sha256:11", "sha256:11", ""]]}]}),
        ),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def said(*line: str) -> list[str]:
        assert run(["__complete", *line]) == 0
        out = capsys.readouterr()
        assert out.err == ""
        assert "\x1b" not in out.out
        return [entry.partition("\t")[0] for entry in out.out.splitlines()]

    state = f"--state={tmp_path}"
    assert said("logs", state, "w") == ["web/page", "web"]
    assert said("status", "--state", str(tmp_path), "") == ["other", "web"]
    assert said("volume", "rm", state, "") == ["web/data"]
    assert said("pull", state, "r.") == ["r.example/db:2", "r.example/page:1"]
    assert said("exec", "--state", str(tmp_path / "none"), "") == []
    assert said("plan", state, "") == [":directories"]


@given(
    st.lists(
        st.text(max_size=8) | st.sampled_from(["ps", "volume", "--", "-o", "--state", "-", "logs"]),
        max_size=6,
    )
)
def test_whatever_is_typed_nothing_is_said_aloud(line: list[str]) -> None:
    assert complete(["--state=/nonexistent", *line]) == 0
    *before, last = ["", *line]
    assert isinstance(asked(PARSER, before[1:], last), Asked)
