"""All that is reserved is at most what the device has, and nobody who runs pays for a newcomer."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.diff import plan
from reconciler.plan.steps import Blocked, CreateContainer, Plan, UpdateContainer
from reconciler.state.desired import Container, Limits, Settings
from reconciler.state.observed import Capacity
from tests import values
from tests.values import NOW

MIB = 1 << 20
DEVICE = Capacity(cpus=2000, memory=100 * MIB)


def keeping(app: str, *, memory: int = 0, cpus: int = 0) -> Container:
    limits = Limits(reserve_memory=memory * MIB, reserve_cpus=cpus)
    return values.container(app, "x", settings=Settings(limits=limits))


def blocked(made: Plan) -> list[str]:
    return [f"{item.app}/{item.container} {item.reason}" for item in made.blocked]


def test_what_does_not_fit_waits_and_says_who_has_the_rest() -> None:
    wanted = [keeping("a", memory=60), keeping("b", memory=60), keeping("c", memory=40, cpus=3000)]
    want = values.desired(*(values.app(one.app, one) for one in wanted))
    made = plan(want, values.world(capacity=DEVICE), NOW)
    assert blocked(made) == [
        "b/x reserve.memory: 60Mi is more than the 40Mi that are left of 100Mi: reserved are a/x 60Mi",
        "c/x reserve.cpus: 3 is more than the 2 that are left of 2",
    ]
    assert [step.app for step in made.steps if isinstance(step, CreateContainer)] == ["a"]


def test_who_runs_with_it_keeps_it_and_a_newcomer_waits() -> None:
    running = keeping("z", memory=80)
    want = values.desired(values.app("a", keeping("a", memory=30)), values.app("z", running))
    made = plan(want, values.world(values.found(running), capacity=DEVICE), NOW)
    assert blocked(made) == [
        "a/x reserve.memory: 30Mi is more than the 20Mi that are left of 100Mi: reserved are z/x 80Mi"
    ]
    assert [step for step in made.steps if step.app == "z"] == []


def test_a_change_in_place_that_does_not_fit_is_not_made() -> None:
    before = keeping("a", memory=50)
    other = keeping("b", memory=40)
    want = values.desired(values.app("a", keeping("a", memory=70)), values.app("b", other))
    world = values.world(values.found(before), values.found(other), capacity=DEVICE)
    made = plan(want, world, NOW)
    assert [step for step in made.steps if isinstance(step, UpdateContainer)] == []
    assert blocked(made) == [
        "a/x reserve.memory: 70Mi is more than the 60Mi that are left of 100Mi: reserved are b/x 40Mi"
    ]


def test_an_app_that_is_held_keeps_what_it_has() -> None:
    running = keeping("z", cpus=1500)
    want = replace(
        values.desired(values.app("a", keeping("a", cpus=600))), held={"z": "its file can't be read"}
    )
    made = plan(want, values.world(values.found(running), capacity=DEVICE), NOW)
    assert Blocked("z", "", "its file can't be read") in made.blocked
    assert any(
        "reserve.cpus: 600m is more than the 500m that are left of 2" in text for text in blocked(made)
    )


def test_a_device_that_does_not_say_what_it_has_refuses_nothing() -> None:
    want = values.desired(values.app("a", keeping("a", memory=10**6)))
    assert plan(want, values.world(), NOW).blocked == ()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1500), st.booleans()), max_size=6))
def test_what_is_given_never_exceeds_the_device(asked: list[tuple[int, int, bool]]) -> None:
    wanted = [keeping(f"app{i}", memory=memory, cpus=cpus) for i, (memory, cpus, _) in enumerate(asked)]
    fits_memory, fits_cpus, running = 0, 0, []
    for one, (memory, cpus, runs) in zip(wanted, asked, strict=True):
        if runs and fits_memory + memory <= 100 and fits_cpus + cpus <= 2000:
            fits_memory, fits_cpus = fits_memory + memory, fits_cpus + cpus
            running.append(one)
    world = values.world(*(values.found(one) for one in running), capacity=DEVICE)
    made = plan(values.desired(*(values.app(one.app, one) for one in wanted)), world, NOW)
    started = [step.desired for step in made.steps if isinstance(step, CreateContainer)]
    for limits in ([one.settings.limits for one in (*running, *started)],):
        assert sum(limit.reserve_memory for limit in limits) <= DEVICE.memory
        assert sum(limit.reserve_cpus for limit in limits) <= DEVICE.cpus
    assert {item.app for item in made.blocked}.isdisjoint(one.app for one in running)
