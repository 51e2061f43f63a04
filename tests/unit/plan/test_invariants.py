"""The invariants of docs/architecture.md, each over random desires, worlds, histories and crashes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.basis import basis
from reconciler.plan.diff import plan
from reconciler.plan.garbage import Retention
from reconciler.plan.joined import owner
from reconciler.plan.restart import failure_delay
from reconciler.plan.simulate import simulate
from reconciler.plan.steps import (
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    ForgetContainer,
    PullImage,
    RemoveContainer,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import App, Desired
from reconciler.state.desired import Container as Wanted
from reconciler.state.network import owner_of
from reconciler.state.observed import Container, Created, Exited, Failure, Observed, Phase, Running, Store
from reconciler.state.wish import Goal, Wish
from tests import strategies, values
from tests.values import NOW, later, settle, steps_of, turn, turn_without_pulls

Situation = tuple[Desired, Observed]
LAST = {
    "remove network adhoc",
    "remove network /lan",
}  # which belong to all of them, and so to the lane of none


def walk(want: Desired, have: Observed) -> Iterator[Observed]:
    """Every world on the way through one turn."""
    yield have
    for step in plan(want, have, NOW).steps:
        have = simulate(step, have, NOW)
        yield have


def running(have: Observed) -> dict[str, Container]:
    return {c.id: c for same in have.containers.values() for c in same if isinstance(c.phase, Running)}


def left(want: Desired, have: Observed) -> list[str]:
    """What there is still to do, in words that fit a screen."""
    return [str(step) for step in plan(want, have, NOW).steps]


def follows(want: Desired, have: Observed) -> list[str]:
    """What there is to do in the turn after this one, but for lanes in which this one stops something: the exit of what
    was never started, and what waits for that, comes only when it has been seen to have ended.
    """
    stopping = {step.lane for step in plan(want, have, NOW).steps if isinstance(step, StopContainer)}
    return [str(step) for step in plan(want, turn(want, have), NOW).steps if step.lane not in stopping]


@given(st.data())
def test_a_finished_plan_leaves_an_empty_plan(data: st.DataObject) -> None:
    want = data.draw(strategies.desires(unresolved=False))
    have = data.draw(strategies.worlds(want, local=True))
    forgets = any(isinstance(step, ForgetContainer) for step in plan(want, have, NOW).steps)
    # What only an ad-hoc container wanted that has just been forgotten goes in the turn after that.
    after = [step for step in follows(want, have) if not (forgets and step.startswith("collect garbage"))]
    assert LAST.issuperset(after)
    assert left(want, turn(want, turn(want, have))) == []


@given(strategies.situations(foreign=True))
def test_turns_come_to_an_end_whatever_waits_for_whatever(situation: Situation) -> None:
    want, have = situation
    settle(want, have)


@given(st.data())
def test_after_a_download_only_the_port_table_may_be_left_to_follow(data: st.DataObject) -> None:
    want = data.draw(strategies.desires(unresolved=False))
    have = data.draw(strategies.worlds(want))
    after = [step for step in follows(want, have) if not step.startswith("configure network")]
    assert LAST.issuperset(after)
    assert left(want, turn(want, turn(want, have))) == []


@given(strategies.situations(foreign=True), strategies.situations(foreign=True))
def test_what_is_kept_between_turns_never_changes_a_plan(one: Situation, other: Situation) -> None:
    retention, generations = Retention(), (values.generation(1, values.app("ant")),)
    kept = basis(one[0], generations, retention)
    assert basis(one[0], generations, retention, kept) is kept
    for want, have in (one, other):
        for world in (have, settle(want, have), values.world()):
            assert plan(want, world, NOW, generations=generations, known=kept) == plan(
                want, world, NOW, generations=generations
            )


@given(st.data(), st.integers(0, 25))
def test_a_crash_after_any_step_is_recovered_by_the_next_turns(data: st.DataObject, survived: int) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False))
    have = data.draw(strategies.worlds(want))
    whole = settle(want, have)
    have = settle(want, turn(want, have, survived=survived))
    assert {c.full_name for c in running(have).values()} == {c.full_name for c in running(whole).values()}
    assert have.network == whole.network


@given(st.data(), st.integers(0, 25))
def test_a_reboot_after_any_step_is_recovered(data: st.DataObject, survived: int) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False, hand=False))
    have = data.draw(strategies.worlds(want))
    have = values.reboot(turn(want, have, survived=survived))
    have = settle(want, have, later(5000.0))
    names = {c.full_name for c in running(have).values()}
    finished = {
        name for name, same in have.containers.items() if any(isinstance(c.phase, Exited) for c in same)
    }
    finished |= {f"{item.app}/{item.container}" for item in plan(want, have, NOW).blocked}
    assert names | finished == {c.full_name for app in want.apps.values() for c in app.containers.values()}


@given(st.data(), st.integers(0, 25))
def test_a_change_taken_back_halfway_leaves_everything_running(data: st.DataObject, survived: int) -> None:
    before = data.draw(strategies.desires(unresolved=False, held=False, hand=False))
    have = settle(before, values.world(), NOW)
    after = data.draw(strategies.desires(unresolved=False, held=False, hand=False))
    have = settle(before, turn(after, have, survived=survived))
    wanted = {c.full_name for app in before.apps.values() for c in app.containers.values()}
    waiting = {f"{item.app}/{item.container}" for item in plan(before, have, NOW).blocked}
    assert {c.full_name for c in running(have).values()} | waiting == wanted


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("turns", [(0, 1), (1, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("phases", list(product((Created(), Running(4711, 1.0, 1.0)), repeat=2)))
def test_a_restart_by_hand_is_made_once_whatever_an_interruption_left(
    phases: tuple[Phase, Phase], turns: tuple[int, int], force: bool
) -> None:
    want = replace(values.container("web", "main"), wish=Wish(turn=1, force=force))
    have = values.world(
        *(
            values.found(want, phase, id=f"{number}", turn=number_of_turn)
            for number, (phase, number_of_turn) in enumerate(zip(phases, turns, strict=True))
        ),
        images=(want.image,),
    )
    desired = values.desired(values.app("web", want))
    last = list(walk(desired, have))[-1]
    assert steps_of(plan(desired, last, NOW), "web") == []
    [left] = last.containers["web/main"]
    assert isinstance(left.phase, Running)


def wants_to_run(one: Wanted, have: Container) -> bool:
    return one.wish is None or (
        one.wish.goal is Goal.RUNNING and (have.turn >= one.wish.turn or not one.wish.force)
    )


@given(strategies.situations(foreign=True))
def test_an_unchanged_running_container_is_never_touched(situation: Situation) -> None:
    want, have = situation
    made = plan(want, have, NOW)
    touched = {
        step.id for step in made.steps if isinstance(step, StopContainer | RemoveContainer | UpdateContainer)
    }
    started = {f"{step.app}/{step.container}" for step in made.steps if isinstance(step, StartContainer)} | {
        step.desired.full_name for step in made.steps if isinstance(step, CreateContainer)
    }
    for app in want.apps.values():
        if app.only and app.only not in (have.adhoc or ()):
            continue
        for one in app.containers.values():
            same = have.containers.get(one.full_name, ())
            if [
                c
                for c in same
                if isinstance(c.phase, Running)
                and one.id in ("", c.id)
                and wants_to_run(one, c)
                and (c.fingerprint, c.settings) == (one.fingerprint, one.settings)
                and (c.limits, c.attached, c.intact) == (one.settings.limits, True, True)
            ]:
                kept = next(c for c in same if isinstance(c.phase, Running))
                owners = (
                    [c.id for c in owner(one.joins, have) if isinstance(c.phase, Running)]
                    if one.joins
                    else []
                )
                if one.joins and (not owners or touched.intersection(owners)):
                    continue  # it goes with the network that it is in
                assert kept.id not in touched
                assert one.full_name not in started


@given(strategies.situations(foreign=True))
def test_nothing_stops_for_a_change_before_all_that_its_app_needs_is_local(situation: Situation) -> None:
    want, have = situation
    before = running(have)
    have = turn_without_pulls(want, have)
    for app in want.declared.values():
        if any(isinstance(step, PullImage) for step in steps_of(plan(want, situation[1], NOW), app.name)):
            fingerprints = {c.full_name: c.fingerprint for c in app.containers.values() if c.wish is None}
            by_hand = {c.full_name for c in app.containers.values() if c.wish is not None}
            for c in before.values():
                if c.full_name in by_hand or c.joins:
                    continue  # who asks for a stop by hand gets it at once; who joined another one goes with that
                # What was damaged is made again from what is here; what would change keeps running.
                if c.app == app.name and fingerprints.get(c.full_name) != c.fingerprint:
                    extra = len(situation[1].containers[c.full_name]) > 1
                    assert extra or c.id in running(have)


@given(strategies.situations(foreign=True))
def test_every_step_of_a_plan_is_possible_when_its_turn_comes(situation: Situation) -> None:
    for _ in walk(*situation):
        pass  # `simulate` raises where an image, a volume or a network is missing


@given(strategies.situations(foreign=True))
def test_two_containers_of_one_name_never_run_at_once(situation: Situation) -> None:
    for have in walk(*situation):
        for same in have.containers.values():
            assert sum(isinstance(c.phase, Running) for c in same) <= 1


@given(strategies.situations(foreign=True))
def test_a_volume_is_never_deleted_by_a_plan(situation: Situation) -> None:
    want, have = situation
    after = turn(want, have)
    assert all(after.volumes[app] >= volumes for app, volumes in have.volumes.items())


def test_no_step_can_delete_a_volume() -> None:
    about_volumes = [kind.__name__ for kind in get_args(Step) if "Volume" in kind.__name__]
    assert about_volumes == ["CreateVolume", "LimitVolume"]


@given(st.data())
def test_garbage_is_never_reachable(data: st.DataObject) -> None:
    want, have = data.draw(strategies.situations())
    generations = [values.generation(n, data.draw(strategies.apps("ant"))) for n in range(5)]
    have = replace(
        have, store=replace(have.store, size=1 << 40, free=data.draw(st.sampled_from([0, 1 << 40])))
    )
    taken = {
        item.name
        for step in plan(want, have, NOW, generations=generations).steps
        if isinstance(step, CollectGarbage)
        for item in step.objects
    }
    wanted = {
        layer.chain_id.hex
        for app in want.apps.values()
        if not app.only or app.only in (have.adhoc or ())
        for c in app.containers.values()
        for layer in c.image.layers
    }
    used = {layer for same in have.containers.values() for c in same for layer in c.layers}
    kept = {layer for g in generations[-3:] for app in g.apps for layer in app.layers}
    assert not taken & (wanted | used | kept)


@given(st.data())
def test_one_broken_app_never_changes_the_steps_of_another(data: st.DataObject) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False))
    have = data.draw(strategies.worlds(want))
    broken = data.draw(st.sampled_from(strategies.APPS))
    without = Desired({name: app for name, app in want.apps.items() if name != broken})
    with_failure = data.draw(strategies.failures(want, have))
    variants = [
        (without, have),
        (replace(without, held={broken: "its file can't be read"}), have),
        (want, replace(have, failures={k: v for k, v in with_failure.failures.items() if k == broken})),
    ]
    if broken in want.apps:
        waiting = data.draw(strategies.apps(broken, unresolved=True))
        variants.append((replace(want, apps={**want.apps, broken: waiting}), have))
    made = plan(want, have, NOW)
    for other_want, other_have in variants:
        other = plan(other_want, other_have, NOW)
        for app in strategies.APPS:
            if app != broken:
                assert steps_of(other, app) == steps_of(made, app)


@given(st.data())
def test_an_unreadable_or_emptied_source_deletes_nothing(data: st.DataObject) -> None:
    have = replace(data.draw(strategies.worlds(Desired({}))), adhoc=None)
    for nothing in (
        Desired({}, hold_all="the directory is empty"),
        Desired({}, held=dict.fromkeys(strategies.APPS, "its file can't be read")),
    ):
        made = plan(nothing, replace(have, store=Store()), NOW)
        assert all(isinstance(step, ConfigureNetwork) for step in made.steps)
        after = turn(nothing, have)
        assert after.containers == have.containers
        assert after.network.apps >= have.network.apps


@given(strategies.situations(foreign=True), st.sets(st.sampled_from(strategies.APPS)))
def test_held_and_busy_apps_get_no_steps_and_keep_their_networks(
    situation: Situation, busy: set[str]
) -> None:
    want, have = situation
    made = plan(want, have, NOW, busy=frozenset(busy))
    for app in busy | set(want.held):
        assert steps_of(made, app) == []
    for step in made.steps:
        if isinstance(step, ConfigureNetwork):
            there = {key for same in have.containers.values() for c in same for key in c.networks}
            kept = {key for key in have.network.apps | there if owner_of(key) in busy | set(want.held)}
            assert kept <= {network.key for network in step.networks}


@given(st.data())
def test_the_same_input_gives_the_same_plan_whatever_order_it_comes_in(data: st.DataObject) -> None:
    want, have = data.draw(strategies.situations(foreign=True))

    def shuffled(app: App) -> App:
        names = data.draw(st.permutations(sorted(app.containers)))
        return replace(app, containers={name: app.containers[name] for name in names})

    apps = data.draw(st.permutations(sorted(want.apps)))
    names = data.draw(st.permutations(sorted(have.containers)))
    other_want = replace(want, apps={name: shuffled(want.apps[name]) for name in apps})
    other_have = replace(have, containers={name: have.containers[name] for name in names})
    assert plan(other_want, other_have, NOW) == plan(want, have, NOW)


@given(strategies.situations())
def test_until_wake_at_time_alone_changes_nothing(situation: Situation) -> None:
    want, have = situation
    have = settle(want, have)
    wake_at = plan(want, have, NOW).wake_at
    if wake_at is None:
        assert plan(want, have, later(10_000_000.0)).steps == ()
    else:
        assert wake_at > NOW.boottime
        assert plan(want, have, later((wake_at - NOW.boottime) * 0.99)).steps == ()
        assert plan(want, have, later(wake_at - NOW.boottime + 0.001)) != plan(want, have, NOW)


@given(st.data(), st.integers(1, 40))
def test_a_lane_that_failed_waits_but_a_newer_spec_is_tried_at_once(data: st.DataObject, count: int) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False))
    have = data.draw(strategies.worlds(want))
    made = plan(want, have, NOW)
    for app in want.apps.values():
        lane = steps_of(made, app.lane)
        if not lane or (app.only and app.only not in (have.adhoc or ())):
            continue
        step = str(data.draw(st.sampled_from(lane)))
        failure = Failure(step, "no space left on device", "", True, count, NOW.boottime, app.version)
        failed = replace(have, failures={app.lane: failure})
        waiting = plan(want, failed, NOW)
        assert step not in map(str, steps_of(waiting, app.lane))
        assert any(item.lane == app.lane and item.until is not None for item in waiting.blocked)
        newer = replace(want, apps={**want.apps, app.lane: replace(app, digest="newer")})
        assert steps_of(plan(newer, failed, NOW), app.lane) == lane
        in_time = later(failure_delay(count, app.name))
        assert step in map(str, steps_of(plan(want, failed, in_time), app.lane))


# --- by hand ----------------------------------------------------------------------------------------------------------


@given(strategies.situations())
def test_an_adhoc_container_goes_only_without_a_record_or_after_an_end_that_was_to_be_its_last(
    situation: Situation,
) -> None:
    want, have = situation
    after = turn(want, have)
    for name in strategies.BY_HAND:
        full_name = f"{ADHOC}/{name}"
        lane = want.apps.get(full_name)
        one = lane.containers.get(name) if lane is not None else None
        before = [c for c in have.containers.get(full_name, ()) if one is None or c.id == one.id]
        gone = {c.id for c in before} - {c.id for c in after.containers.get(full_name, ())}
        if gone and name in (have.adhoc or ()):
            assert one is not None
            assert one.wish is not None
            assert one.wish.auto_remove
            ran = any(isinstance(c.phase, Running) for c in before if c.id in gone)
            assert not ran or one.wish.goal is Goal.STOPPED
            assert not any(c.watched for c in before if c.id in gone)


@given(strategies.situations())
def test_what_is_held_stopped_does_not_run_once_the_plan_is_done(situation: Situation) -> None:
    want, have = situation
    have = turn(want, replace(have, failures={}))
    for app in want.apps.values():
        for one in app.containers.values():
            if one.wish is not None and one.wish.goal is Goal.STOPPED:
                same = have.containers.get(one.full_name, ())
                assert not any(isinstance(c.phase, Running) for c in same)


@given(st.data(), st.integers(0, 12))
def test_a_start_by_hand_happens_whatever_came_in_between(data: st.DataObject, survived: int) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False))
    have = data.draw(strategies.worlds(want, local=True))
    asked = {lane: replace(app, containers=started(app)) for lane, app in want.apps.items()}
    want = Desired(asked)
    have = replace(have, adhoc=frozenset(app.only for app in asked.values() if app.only))
    have = settle(want, turn(want, have, survived=survived))
    held_up = {f"{item.app}/{item.container}" for item in plan(want, have, NOW).blocked}
    for app in want.apps.values():
        for one in app.containers.values():
            same = have.containers.get(one.full_name, ())
            assert one.full_name in held_up or [c.turn for c in same if isinstance(c.phase, Running)] == [3]


def started(app: App) -> dict[str, Wanted]:
    return {name: replace(one, wish=Wish(turn=3, force=True)) for name, one in app.containers.items()}


@given(st.data())
def test_one_adhoc_container_never_changes_the_steps_of_another(data: st.DataObject) -> None:
    want = data.draw(strategies.desires(unresolved=False, held=False))
    first, second = (data.draw(strategies.adhoc(name, False)) for name in strategies.BY_HAND)
    want = Desired({**want.apps, first.lane: first, second.lane: second})
    have = data.draw(strategies.worlds(want))
    made = plan(want, have, NOW)
    for changed in (
        plan(Desired({lane: app for lane, app in want.apps.items() if lane != first.lane}), have, NOW),
        plan(want, have, NOW, busy=frozenset((first.lane,))),
        plan(want, replace(have, adhoc=(have.adhoc or frozenset()) - {first.only}), NOW),
    ):
        assert steps_of(changed, second.lane) == steps_of(made, second.lane)
