"""The loop outlives whatever a device refuses: a turn that comes to nothing is told, waited for, and tried again."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from reconciler.agent.intent import Source
from reconciler.agent.loop import Agent
from reconciler.agent.parts import Parts
from reconciler.agent.turn import Turn
from reconciler.config import Device
from reconciler.engine.layout import Layout
from reconciler.errors import BlockedError, ReconcilerError
from reconciler.execute.executor import LaneEnd
from reconciler.plan.garbage import Retention
from reconciler.plan.steps import Outcome
from reconciler.source.snapshot import Snapshot
from reconciler.spec.load import ReadFailure
from reconciler.state.desired import Port
from reconciler.state.observed import Networks, Observed, Published
from tests.memory_engine import MemoryEngine

PORT = Published("web", "page", Port("0.0.0.0", 80, 80, "tcp"))
GONE = OSError(5, "Input/output error")


class Empty:
    """A source that can be read and holds nothing."""

    def snapshot(self) -> Snapshot:
        return Snapshot("", {})


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.broken: list[str] = []
        self.problems: list[str] = []

    def turn(self, turn: Turn) -> None:
        self.turns.append(turn)

    def outcome(self, outcome: Outcome) -> None:
        """Nothing is performed here."""

    def lane(self, end: LaneEnd) -> None:
        """Nothing is performed here."""

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def noted(self, kind: str, subject: str, text: str) -> None:
        pass

    def broken_turn(self, text: str) -> None:
        self.broken.append(text)


class Case:
    """An agent over a device in memory, whose parts fail as often as `failing` says, by their name."""

    def __init__(self, path: Path, failing: dict[str, list[Exception]], source: Source | None = None) -> None:
        self.heard = Heard()
        self.failing = failing
        layout = Layout(path / "state", path / "run")
        for directory in (layout.lastgood_root, layout.generations, layout.run, layout.resolved):
            directory.mkdir(parents=True)
        self.world = Observed(boot="boot")
        self.engine = MemoryEngine(self.world, lambda: self.heard.turns[-1].now)
        parts = SimpleNamespace(
            layout=layout,
            naming=SimpleNamespace(layout=layout),
            device=Device(name="test", interval=0.2),
            retention=Retention(),
            images=None,
            engine=self.engine,
            prepare_host=lambda: self.may_fail("prepare"),
            zygote=SimpleNamespace(start=lambda: None),
            containers=SimpleNamespace(sweep=lambda: self.may_fail("sweep"), remove=lambda *_, **__: None),
            store=SimpleNamespace(
                recover=lambda: None, has_trash=lambda: self.may_fail("trash"), resolved_digests=frozenset
            ),
            observer=SimpleNamespace(observe=self.observe, unreadable=(), shims=frozenset()),
        )
        self.agent = Agent(cast(Parts, parts), source or Empty(), self.heard)

    def observe(self, **_: object) -> Observed:
        self.may_fail("observe")
        return self.world

    def may_fail(self, name: str) -> None:
        if self.failing.get(name):
            raise self.failing[name].pop(0)

    def run_until_turns(self, count: int) -> None:
        thread = threading.Thread(target=self.agent.run)
        thread.start()
        assert self.agent.wait_for(lambda turn: len(self.heard.turns) >= count, 20) is not None
        self.agent.stop()
        thread.join(10)
        assert not thread.is_alive()
        self.agent.close()


@pytest.mark.parametrize(
    "error", [GONE, BlockedError("nftables: netlink: busy"), RuntimeError("can't start new thread")]
)
@pytest.mark.parametrize("part", ["prepare", "observe", "trash"])
def test_a_failure_of_any_part_is_told_and_tried_again(tmp_path: Path, part: str, error: Exception) -> None:
    case = Case(tmp_path, {part: [error, error]})
    case.run_until_turns(1)
    assert len(case.heard.broken) == 2
    assert str(error) in case.heard.broken[0]
    assert case.heard.turns[0].number == 3  # turns that came to nothing count


def test_a_failure_that_stays_is_never_a_hot_loop_whatever_wakes_it(tmp_path: Path) -> None:
    case = Case(tmp_path, {"observe": [GONE] * 1000})
    thread = threading.Thread(target=case.agent.run)
    thread.start()
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        case.agent.wake()
        threading.Event().wait(0.01)
    case.agent.stop()
    thread.join(10)
    case.agent.close()
    assert 2 <= len(case.heard.broken) <= 7  # an interval of 0.2 s


def test_a_network_that_never_gets_right_is_no_hot_loop(tmp_path: Path) -> None:
    case = Case(tmp_path, {})
    case.world = replace(case.world, network=Networks(published=(PORT,)))  # nobody wants it any more
    case.engine.configure_network = lambda *_: None  # type: ignore[method-assign]  # it succeeds, and nothing changes
    thread = threading.Thread(target=case.agent.run)
    thread.start()
    threading.Event().wait(1.0)
    case.agent.stop()
    thread.join(10)
    case.agent.close()
    assert 2 <= len(case.heard.turns) <= 5


def test_a_failed_clean_up_is_no_reason_to_wait(tmp_path: Path) -> None:
    case = Case(tmp_path, {"sweep": [GONE]})
    case.run_until_turns(1)
    assert case.heard.broken == []
    assert "clean-up" in case.heard.problems[0]


def test_who_waits_for_a_turn_is_told_why_it_came_to_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path, {"observe": [GONE] * 1000})
    thread = threading.Thread(target=case.agent.run)
    thread.start()
    with pytest.raises(ReconcilerError, match="Input/output error"):
        case.agent.wait_for(lambda turn: turn.number > 0, 20, after=0)
    assert case.agent.wait_for(lambda turn: turn.finished, 0.05) is None
    case.agent.stop()
    thread.join(10)
    case.agent.close()


def test_a_verb_that_ends_gets_the_error_itself(tmp_path: Path) -> None:
    case = Case(tmp_path, {"observe": [GONE]})
    with pytest.raises(OSError, match="Input/output error"):
        case.agent.run(lambda turn: turn.finished)
    case.agent.close()


class Asking:
    """A source with a file that can't be read; what is asked for during a turn is too late for it."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.before = -1

    def snapshot(self) -> Snapshot:
        if self.case is not None and self.before < 0:
            self.before = self.case.agent.reconcile(allow_empty=True)
        return Snapshot("", {"x.yaml": ReadFailure("can't be read")})


def test_a_request_during_a_turn_is_not_answered_by_that_turn(tmp_path: Path) -> None:
    source = Asking()
    source.case = case = Case(tmp_path, {}, source)
    first = case.agent.turn()
    assert not first.number > source.before
    assert first.intent.desired.hold_all != ""  # what was allowed during this turn is not its own
    second = case.agent.turn()
    assert second.number > source.before
    assert second.intent.desired.hold_all == ""
    assert case.agent.turn().intent.desired.hold_all != ""  # and it is allowed once
    case.agent.close()


class Unreadable:
    def snapshot(self) -> Snapshot:
        return Snapshot("", {}, problem="specs: no such directory")


def test_what_cannot_be_read_is_not_removed_whatever_was_allowed(tmp_path: Path) -> None:
    case = Case(tmp_path, {}, Unreadable())
    case.agent.reconcile(allow_empty=True)
    assert case.agent.turn().intent.desired.hold_all == "specs: no such directory"
    case.agent.close()
