"""Pull progress: bars for a person, lines for a log, and nothing after the end."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.progress import Phase, Progress
from reconciler.report.progress import PullProgress, heard
from reconciler.spec.reference import Digest

A, B = Digest("sha256", "a" * 64), Digest("sha256", "b" * 64)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_one_line_per_layer() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PullProgress(stream, clock=clock)
    for done in range(0, 1000, 10):
        progress(Progress(A, done, 1000, Phase.DOWNLOADING))
        clock.now += 0.02
    progress(Progress(A, 1000, 1000, Phase.UNPACKING))
    progress(Progress(A, 1000, 1000, Phase.DONE))
    progress(Progress(A, 1000, 1000, Phase.DONE))
    progress(Progress(B, 2048, 2048, Phase.DONE))
    progress.close()
    assert stream.getvalue() == "aaaaaaaaaaaa: done, 1000B in 2.0 s\nbbbbbbbbbbbb: done, 2.00KiB in 0.0 s\n"


def test_a_line_says_where_a_layer_is_from_unless_it_is_its_registry() -> None:
    stream = io.StringIO()
    progress = PullProgress(stream, clock=lambda: 0.0)
    for layer, source in ((A, "origin"), (B, "mirror")):
        progress(Progress(layer, 1000, 1000, Phase.DONE, source=source))
    told = {"layer": str(A), "done": 1, "total": 2, "phase": "waiting", "resumed": 0, "source": "mirror"}
    assert heard(told) == Progress(A, 1, 2, Phase.WAITING, source="mirror")
    lines = ["aaaaaaaaaaaa: done, 1000B in 0.0 s", "bbbbbbbbbbbb: done, 1000B from mirror in 0.0 s"]
    assert stream.getvalue().splitlines() == lines


def test_bars_are_redrawn_in_place_and_not_too_often() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PullProgress(stream, bars=True, clock=clock, columns=lambda: 100)
    for done in range(1000):
        clock.now += 0.001
        progress(Progress(A, done, 1000, Phase.DOWNLOADING))
        progress(Progress(B, done, 1000, Phase.DOWNLOADING))
    assert stream.getvalue().count("aaaaaaaaaaaa") < 15
    assert stream.getvalue().count("\x1b[2A") > 5
    progress(Progress(A, 1000, 1000, Phase.DONE))
    progress.close()
    last = stream.getvalue().rpartition("\x1b[2A")[2]
    assert f"aaaaaaaaaaaa done        [{'#' * 30}] 100% 1000B/1000B" in last
    before = stream.getvalue()
    progress(Progress(B, 1000, 1000, Phase.DONE))
    progress.close()
    assert stream.getvalue() == before


@pytest.mark.parametrize("columns", [1, 20, 44, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    stream = io.StringIO()
    progress = PullProgress(stream, bars=True, columns=lambda: columns)
    progress(Progress(A, 10**15, 10**15, Phase.UNPACKING))
    progress.close()
    for line in stream.getvalue().split("\n"):
        assert len(re.sub(r"\x1b\[\d*[AK]|\r", "", line)) <= max(1, columns - 1)


@given(
    st.lists(
        st.builds(
            Progress,
            st.sampled_from([A, B]),
            st.integers(-5, 2**64),
            st.integers(-5, 2**64),
            st.sampled_from(list(Phase)),
        )
    ),
    st.booleans(),
)
def test_whatever_comes_it_is_shown_without_an_error(events: list[Progress], bars: bool) -> None:
    stream = io.StringIO()
    progress = PullProgress(stream, bars=bars)
    for event in events:
        progress(event)
    progress.close()
    if not bars:
        assert "\x1b" not in stream.getvalue()
