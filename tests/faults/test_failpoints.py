"""R1: the agent is killed at every step boundary there is, and the next one finishes what it began.

The points are found in the sources, so that a new one is tested from the day it is written. One story takes several
deaths, of points from different parts of the program; after each the agent starts again by itself and must converge.
"""

import re
from pathlib import Path

import pytest

import reconciler
from tests.faults.story import Story

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

ROOT = Path(reconciler.__file__).parent
POINTS = sorted(
    {name for path in ROOT.rglob("*.py") for name in re.findall(r"failpoint\(\"(\S+?)\"\)", path.read_text())}
)
# What the story alone does not pass: a failure is written only after one.
BEFORE = {"failures.written": "create.made:1*error"}
# Passed before there is a loop: the first files of a new state directory.
START = ("durable.renamed", "durable.writing", "durable.written")
BATCHES = 8


def test_every_point_has_a_name_of_its_own() -> None:
    assert len(POINTS) > 40
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", name) for name in POINTS)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_kill_at_any_step_boundary_is_recovered_from(story: Story, batch: int) -> None:
    kill_at(story, POINTS[batch::BATCHES])


def kill_at(story: Story, points: list[str]) -> None:
    armed = {name: "1*kill" for name in points}

    def start() -> None:
        before = [BEFORE[name] for name in armed if name in BEFORE]
        story.start(";".join([*before, *(f"{name}:{terms}" for name, terms in armed.items())]))

    def died() -> None:
        assert story.device.ended() == -9, story.device.output[-4000:]
        name = story.device.output.rpartition("failpoint: ")[2].split()[0]
        del armed[name]
        start()

    start()
    story.tell(died)
    story.golden()
    story.nothing_left(died)
    assert not armed, f"never reached: {sorted(armed)}"


@pytest.mark.parametrize("kind", ["error", "enospc"])
@pytest.mark.parametrize("part", range(3))
def test_an_error_at_any_step_boundary_is_said_and_tried_again(story: Story, kind: str, part: int) -> None:
    """Every point fails once, in one go: each failure is named, none ends the agent, the end is the same."""
    points = [name for name in POINTS[part::3] if name not in START]
    terms = {"error": "1*error(on purpose)", "enospc": "1*enospc"}[kind]
    story.start(";".join([*BEFORE.values(), *(f"{name}:{terms}" for name in points)]))

    def died() -> None:
        raise AssertionError(f"the agent ended\n{story.device.output[-4000:]}")

    story.tell(died)
    story.golden()
    story.nothing_left(died)
    said = story.device.output
    assert ("on purpose" if kind == "error" else "No space left on device") in said
    assert "this is a defect of reconciler" not in said, said[-4000:]


@pytest.mark.parametrize("point", START)
def test_an_error_before_the_first_turn_ends_the_agent_with_one_line(story: Story, point: str) -> None:
    """The first files of an instance have nothing to fall back on: it is said, and the next start works."""
    story.begin()
    story.start(f"{point}:1*enospc")
    assert story.device.ended() == 1
    assert "No space left on device" in story.device.output
    story.start()
    story.converge(lambda: None)
    story.golden_at_first()
