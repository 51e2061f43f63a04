"""The model of the device: as strict as the planner needs it to be."""

from dataclasses import replace

import pytest
from hypothesis import given

from reconciler.plan.diff import plan
from reconciler.plan.simulate import ImpossibleStepError, simulate
from reconciler.plan.steps import (
    CollectGarbage,
    CreateContainer,
    Garbage,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.state.desired import Desired, Settings, VolumeMount
from reconciler.state.observed import Created, Exited, Lost, Networks, Observed, Running, StoredObject
from tests import strategies, values
from tests.values import IMAGES, NOW

SITE = values.container("web", "site")
RUNS = values.found(SITE)


@given(strategies.situations(foreign=True))
def test_every_step_may_be_repeated(situation: tuple[Desired, Observed]) -> None:
    want, have = situation
    for step in plan(want, have, NOW).steps:
        have = simulate(step, have, NOW)
        if not isinstance(step, CreateContainer):
            assert simulate(step, have, NOW) == have


def test_what_must_not_happen_is_refused() -> None:
    have = values.world(RUNS)
    created = values.found(SITE, Created(), id="second")
    mounted = values.container("web", "db", mounts=(VolumeMount("data", "/data"),))
    refused: list[tuple[Step, Observed, str]] = [
        (RemoveContainer("web", "site", RUNS.id), have, "it runs"),
        (CreateContainer(SITE), values.world(images=()), "not complete"),
        (CreateContainer(mounted), values.world(), "volume"),
        (StartContainer("web", "site"), values.world(), "does not exist"),
        (StartContainer("web", "site"), values.world(values.found(SITE, Lost("?"))), "Lost"),
        (StartContainer("web", "site"), values.world(RUNS, created), "one of its name runs"),
        (StartContainer("web", "site"), values.world(created, network=Networks()), "network"),
        (
            UpdateContainer("web", "site", RUNS.id, Settings(), ("network",), reattach=True),
            values.world(RUNS, network=Networks()),
            "network",
        ),
        (RemoveNetwork("web"), have, "web/site still there"),
        (CollectGarbage((Garbage("layer", RUNS.layers[0], 1, "?"),)), have, "in use"),
    ]
    for step, world, why in refused:
        with pytest.raises(ImpossibleStepError, match=why):
            simulate(step, world, NOW)


def test_a_stopped_program_leaves_a_record_and_a_mark() -> None:
    have = simulate(StopContainer("web", "site", RUNS.id, "SIGTERM", 10.0), values.world(RUNS), NOW)
    (stopped,) = have.containers["web/site"]
    assert isinstance(stopped.phase, Exited)
    assert (stopped.phase.record.signal, stopped.stopped) == (15, True)


def test_removal_keeps_the_record_of_a_predecessor_and_touches_its_layers() -> None:
    ended = values.found(SITE, Exited(values.record(3)), attempt=2, restarts=5)
    objects = tuple(StoredObject("layer", name, 1, 0.0) for name in sorted(values.chain_ids()))
    have = values.world(ended)
    have = replace(have, store=replace(have.store, objects=objects))
    after = simulate(RemoveContainer("web", "site", ended.id), have, NOW)
    previous = after.previous["web/site"]
    assert (previous.record, previous.attempt, previous.restarts) == (values.record(3), 2, 5)
    touched = {item.name for item in after.store.objects if item.last_used == NOW.wall}
    assert touched == values.chain_ids(IMAGES[:1])
    forgotten = simulate(RemoveContainer("web", "site", ended.id, keep_previous=False), have, NOW)
    assert forgotten.previous == {}


def test_a_start_runs_the_newest_and_gives_it_a_pid() -> None:
    have = values.world(values.found(SITE, Created()))
    (started,) = simulate(StartContainer("web", "site"), have, NOW).containers["web/site"]
    assert isinstance(started.phase, Running)
    assert started.phase.since == NOW.boottime
