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
BATCHES = 12


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
