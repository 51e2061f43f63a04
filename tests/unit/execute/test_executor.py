"""The executor: lanes beside each other, in order, ended by their first failure, holding no worker while waiting."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from reconciler.errors import ReconcilerError
from reconciler.execute.executor import Executor, LaneEnd
from reconciler.plan.steps import (
    CollectGarbage,
    ConfigureNetwork,
    CreateVolume,
    Garbage,
    Outcome,
    Plan,
    PullImage,
    RemoveContainer,
    StartContainer,
    Step,
    StopContainer,
)
from reconciler.spec.reference import Digest
from reconciler.state.desired import Container, Settings
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.observed import Published


def image(letter: str) -> Image:
    digest = Digest("sha256", letter * 64)
    return Image(digest, digest, digest, (), "linux/amd64")


@dataclass
class Recorder:
    """An engine that does nothing but remember, and that tests can make fail or wait."""

    calls: list[str] = field(default_factory=list)
    fail: dict[str, Exception] = field(default_factory=dict)
    gate: dict[str, threading.Event] = field(default_factory=dict)
    stopping: dict[str, int] = field(default_factory=dict)
    pulls: int = 0

    def _did(self, call: str) -> None:
        if call in self.gate:
            assert self.gate[call].wait(10)
        self.calls.append(call)
        if call in self.fail:
            raise self.fail[call]

    def configure_network(self, networks: Sequence[Network], published: Sequence[Published]) -> None:
        self._did("network")

    def pull(self, reference: str, image: Image) -> None:
        self.pulls += 1
        self._did(f"pull {reference}")

    def create_volume(self, app: str, volume: str, size_limit: int | None = None) -> None:
        self._did(f"volume {app}/{volume}")

    def limit_volume(self, app: str, volume: str, size_limit: int | None) -> None:
        self._did(f"limit {app}/{volume} {size_limit}")

    def begin_stop(self, container_id: str, signal: str) -> int | None:
        self._did(f"signal {container_id} {signal}")
        return self.stopping.get(container_id)

    def finish_stop(self, container_id: str) -> None:
        self._did(f"stop {container_id}")

    def remove_container(self, container_id: str, *, keep_previous: bool) -> None:
        self._did(f"remove {container_id}")

    def create_container(self, desired: Container, *, attempt: int, restarts: int) -> None:
        self._did(f"create {desired.full_name}")

    def start_container(self, app: str, container: str) -> None:
        self._did(f"start {app}/{container}")

    def update_container(self, container_id: str, settings: Settings, *, reattach: bool) -> None:
        self._did(f"update {container_id}")

    def record_exit(self, container_id: str) -> None:
        self._did(f"record {container_id}")

    def forget_container(self, name: str) -> None:
        self._did(f"forget {name}")

    def change_network(self, network: Network) -> None:
        self._did(f"change network {network.key}")

    def remove_network(self, network: str) -> None:
        self._did(f"unnetwork {network}")

    def collect(self, kind: str, name: str) -> bool:
        self._did(f"collect {kind} {name}")
        return True


class Bench:
    """An executor over a recorder, and what it reported."""

    def __init__(self, workers: int = 2) -> None:
        self.engine = Recorder()
        self.outcomes: list[Outcome] = []
        self.ends: list[LaneEnd] = []
        self.wakes = 0
        self.executor = Executor(self.engine, self._report, self._wake, workers=workers, pulls=2)

    def _wake(self) -> None:
        self.wakes += 1

    def _report(self, event: Outcome | LaneEnd) -> None:
        if isinstance(event, LaneEnd):
            self.ends.append(event)
        else:
            self.outcomes.append(event)

    def run(self, *steps: Step, digests: dict[str, str] | None = None) -> None:
        self.executor.dispatch(Plan(steps), digests or {})

    def finish(self) -> None:
        assert self.executor.drain(10)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.executor.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_lane_runs_in_order(bench: Bench) -> None:
    bench.run(
        CreateVolume("a", "data"),
        StopContainer("a", "web", "1", "SIGTERM", 1),
        RemoveContainer("a", "web", "1"),
    )
    bench.finish()
    assert bench.engine.calls == ["volume a/data", "signal 1 SIGTERM", "stop 1", "remove 1"]
    assert [(end.app, end.failed, end.cancelled) for end in bench.ends] == [("a", None, False)]


def test_a_lane_stops_at_its_first_failure_and_leaves_the_others_alone(bench: Bench) -> None:
    bench.engine.fail["volume a/data"] = ReconcilerError("volume a/data: no room", hint="make some")
    bench.run(CreateVolume("a", "data"), StartContainer("a", "web"), StartContainer("b", "web"))
    bench.finish()
    assert sorted(bench.engine.calls) == ["start b/web", "volume a/data"]
    failed = next(end for end in bench.ends if end.app == "a").failed
    assert failed is not None
    assert (failed.error, failed.hint) == ("volume a/data: no room", "make some")


def test_pull_fails_mid_update_and_the_old_container_is_not_stopped(bench: Bench) -> None:
    bench.engine.fail["pull r.example/a"] = ReconcilerError("404")
    bench.run(PullImage("a", "r.example/a", image("a")), StopContainer("a", "web", "1", "SIGTERM", 1))
    bench.finish()
    assert bench.engine.calls == ["pull r.example/a"]


def test_one_pull_serves_every_app_that_waits_for_it(bench: Bench) -> None:
    bench.engine.gate["pull r.example/a"] = threading.Event()
    steps: list[Step] = []
    for app in "abcdef":
        steps += [PullImage(app, "r.example/a", image("a")), StartContainer(app, "web")]
    bench.run(*steps)
    eventually(lambda: all(lane.pull for lane in bench.executor._lanes.values()))
    bench.engine.gate["pull r.example/a"].set()
    bench.finish()
    assert bench.engine.pulls == 1
    assert sum(call.startswith("start") for call in bench.engine.calls) == 6


def test_a_failed_pull_fails_every_lane_that_waited_for_it_once(bench: Bench) -> None:
    bench.engine.gate["pull r.example/a"] = threading.Event()
    bench.engine.fail["pull r.example/a"] = ReconcilerError("503", transient=True)
    bench.run(*(PullImage(app, "r.example/a", image("a")) for app in "abc"))
    eventually(lambda: all(lane.pull for lane in bench.executor._lanes.values()))
    bench.engine.gate["pull r.example/a"].set()
    bench.finish()
    assert bench.engine.pulls == 1
    assert all(end.failed is not None and end.failed.transient for end in bench.ends)
    assert len(bench.ends) == 3


def test_slow_pulls_hold_up_no_other_lane(bench: Bench) -> None:
    for name in "xyz":
        bench.engine.gate[f"pull r.example/{name}"] = threading.Event()
    bench.run(*(PullImage(name, f"r.example/{name}", image(c)) for name, c in zip("xyz", "abc", strict=True)))
    bench.run(StartContainer("quick", "web"))
    eventually(lambda: "start quick/web" in bench.engine.calls)
    for gate in bench.engine.gate.values():
        gate.set()
    bench.finish()


def test_long_grace_periods_hold_no_worker(bench: Bench) -> None:
    pipes = [os.pipe() for _ in range(8)]
    for number, (read, _) in enumerate(pipes):
        bench.engine.stopping[str(number)] = read
    bench.run(*(StopContainer(f"app{n}", "web", str(n), "SIGTERM", 60) for n in range(8)))
    bench.run(StartContainer("quick", "web"))
    eventually(lambda: "start quick/web" in bench.engine.calls)
    assert not any(call.startswith("stop") for call in bench.engine.calls)
    for _, write in pipes:
        os.close(write)
    bench.finish()
    assert sum(call.startswith("stop") for call in bench.engine.calls) == 8


def test_a_container_that_ignores_its_signal_is_killed_after_its_grace(bench: Bench) -> None:
    read, write = os.pipe()
    bench.engine.stopping["1"] = read
    bench.run(StopContainer("a", "web", "1", "SIGTERM", 0.05))
    bench.finish()
    os.close(write)
    assert bench.engine.calls == ["signal 1 SIGTERM", "stop 1"]


def test_a_newer_spec_ends_the_lane_at_the_next_step(bench: Bench) -> None:
    bench.engine.gate["volume a/data"] = threading.Event()
    bench.run(CreateVolume("a", "data"), StartContainer("a", "web"), digests={"a": "old"})
    bench.executor.cancel_older({"a": "new"})
    bench.engine.gate["volume a/data"].set()
    bench.finish()
    assert bench.engine.calls == ["volume a/data"]
    assert bench.ends[-1].cancelled


def test_an_app_with_a_running_lane_gets_no_second_one(bench: Bench) -> None:
    bench.engine.gate["volume a/data"] = threading.Event()
    bench.run(CreateVolume("a", "data"))
    bench.run(StartContainer("a", "web"))
    assert bench.executor.busy == {"a"}
    bench.engine.gate["volume a/data"].set()
    bench.finish()
    assert bench.engine.calls == ["volume a/data"]


def test_nothing_starts_without_the_rules_that_isolate_it(bench: Bench) -> None:
    bench.engine.fail["network"] = ReconcilerError("nft: not permitted")
    bench.run(
        ConfigureNetwork((Network("a"),), ()), StartContainer("a", "web"), RemoveContainer("b", "web", "1")
    )
    bench.finish()
    assert bench.engine.calls == ["network", "remove 1"]
    assert ("", bench.outcomes[0]) in [(end.app, end.failed) for end in bench.ends]


def test_a_network_step_that_nothing_follows_asks_for_the_next_turn(bench: Bench) -> None:
    bench.run(ConfigureNetwork((Network("a"),), ()))
    assert bench.wakes == 1


def test_garbage_is_collected_in_the_background(bench: Bench) -> None:
    bench.run(CollectGarbage((Garbage("layer", "aa", 1, "unused"), Garbage("blob", "bb", 1, "unused"))))
    bench.finish()
    assert bench.engine.calls == ["collect layer aa", "collect blob bb"]


def test_a_defect_in_one_lane_is_reported_and_does_not_stop_the_others(bench: Bench) -> None:
    bench.engine.fail["volume a/data"] = KeyError("oops")
    bench.run(CreateVolume("a", "data"), StartContainer("b", "web"))
    bench.finish()
    failed = next(end for end in bench.ends if end.app == "a").failed
    assert failed is not None
    assert "KeyError" in failed.error
    assert "start b/web" in bench.engine.calls


def test_a_defect_while_something_is_asked_to_end_ends_the_lane(bench: Bench) -> None:
    bench.engine.fail["signal 1 SIGTERM"] = KeyError("SIGTERM")
    bench.run(StopContainer("a", "web", "1", "SIGTERM", 1))
    bench.finish()
    assert [(end.app, end.failed is not None) for end in bench.ends] == [("a", True)]


def test_closing_leaves_waiting_lanes_where_they_are() -> None:
    made = Bench()
    read, write = os.pipe()
    made.engine.stopping["1"] = read
    made.run(StopContainer("a", "web", "1", "SIGTERM", 60), RemoveContainer("a", "web", "1"))
    eventually(lambda: "signal 1 SIGTERM" in made.engine.calls)
    made.executor.close()
    os.close(write)
    assert "remove 1" not in made.engine.calls
