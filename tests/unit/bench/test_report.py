"""What a row says of its targets: ratios by medians, the right rival, and verdicts only where one can be told."""

import json
from pathlib import Path

import pytest

from bench import report
from bench.measure import Figure
from bench.report import Row
from bench.targets import TARGETS, Against, AtMost, Best, Target


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Target, ...]]:
    """Targets of the test's own."""
    own: dict[str, tuple[Target, ...]] = {}
    monkeypatch.setattr(report, "TARGETS", own)
    return own


def row(ours: float, **peers: float) -> Row:
    labels = {f"{name} 1.0": Figure((value,)) for name, value in peers.items()}
    return Row("a/b", "a thing", "ms", Figure((ours,)), labels)


def test_the_best_peer_is_the_one_to_beat(targets: dict[str, tuple[Target, ...]]) -> None:
    targets["a/b"] = (Best(0.5),)
    assert row(5, slow=100, quick=10).rival(Best(0.5)) == "quick 1.0"
    assert row(5, slow=100, quick=10).verdict(Best(0.5)) is True
    assert row(6, slow=100, quick=10).verdict(Best(0.5)) is False


def test_a_named_peer_is_found_by_its_program_whatever_its_version() -> None:
    assert row(1, runc=4, crun=2).verdict(Against("runc", 0.3)) is True
    assert row(1, runc=4, crun=2).verdict(Against("crun", 0.3)) is False


@pytest.mark.parametrize("target", [Best(0.5), Against("docker", 0.5)])
def test_without_the_peer_there_is_no_verdict(target: Target, targets: dict[str, tuple[Target, ...]]) -> None:
    targets["a/b"] = (target,)
    assert row(1).verdict(target) is None
    assert "not here" in report.text([row(1)])


def test_a_yardstick_is_shown_and_never_a_rival(targets: dict[str, tuple[Target, ...]]) -> None:
    targets["a/b"] = (Best(0.5),)
    measured = Row(
        "a/b", "a thing", "ms", Figure((4.0,)), {"peer 1": Figure((10.0,))}, {"floor": Figure((1.0,))}
    )
    assert measured.verdict(Best(0.5)) is True
    assert "floor" in report.text([measured])


def test_ratios_are_those_of_medians() -> None:
    measured = Row("x", "x", "s", Figure((1.0, 2.0, 90.0)), {"peer 1": Figure((4.0, 4.0, 1.0))})
    assert measured.ratio(measured.peers["peer 1"]) == 0.5


def test_an_absolute_limit_stands_on_the_line_of_ours(targets: dict[str, tuple[Target, ...]]) -> None:
    targets["a/b"] = (AtMost(15),)
    (_, line) = report.text([row(20)]).splitlines()
    assert line.split() == ["a", "thing", "ours", "20.0", "ms", "<=", "15", "ms", "NO"]


def test_the_document_is_json_and_has_every_value() -> None:
    document = report.document([row(1, peer=2)], {"kernel": "x"})
    assert json.loads(json.dumps(document)) == document
    assert document["rows"][0]["ours"]["values"] == [1]
    assert document["rows"][0]["ratios"] == {"peer 1.0": 0.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12346")],
)
def test_numbers_have_three_digits_and_no_powers(value: float, text: str) -> None:
    assert report._number(value) == text


def test_every_target_is_of_a_row_that_exists() -> None:
    sources = [
        path.read_text() for path in Path(report.__file__).parent.glob("*.py") if path.name != "targets.py"
    ]
    assert [name for name in TARGETS if not any(f'"{name}"' in text for text in sources)] == []
