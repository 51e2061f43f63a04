"""When containers start again, and failed lanes are tried again."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.diff import plan
from reconciler.plan.restart import (
    countdown,
    ending,
    failure_delay,
    next_attempt,
    next_start,
    ordinal,
    restart_delay,
)
from reconciler.plan.steps import CreateContainer
from reconciler.state.desired import RestartPolicy, Settings
from reconciler.state.observed import Container as Found
from reconciler.state.observed import Exited, Now, Running
from tests import values
from tests.values import BOOT, NOW, record

ALWAYS = RestartPolicy()
policies = st.builds(
    RestartPolicy,
    policy=st.sampled_from(["no", "on-failure", "always"]),
    max_attempts=st.integers(0, 9),
    delay=st.floats(0, 300),
    max_delay=st.floats(300, 100_000),
    factor=st.floats(1, 100),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(1, 1_000_000))
def test_a_delay_is_bounded_by_the_longest_one_and_its_jitter(policy: RestartPolicy, restart: int) -> None:
    delay = restart_delay(policy, restart, "web/site")
    assert policy.delay * (1 - policy.jitter) <= delay * 1.000001
    assert delay <= policy.max_delay * (1 + policy.jitter) * 1.000001


@given(policies, st.integers(1, 500))
def test_without_jitter_delays_never_shrink(policy: RestartPolicy, restart: int) -> None:
    steady = RestartPolicy(delay=policy.delay, max_delay=policy.max_delay, factor=policy.factor, jitter=0.0)
    assert restart_delay(steady, restart, "web/site") <= restart_delay(steady, restart + 1, "web/site")


def test_delays_double_up_to_five_minutes() -> None:
    steady = RestartPolicy(jitter=0.0)
    delays = [restart_delay(steady, n, "web/site") for n in range(1, 12)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert [round(failure_delay(n, "web")) for n in (1, 2, 3)] == [1, 2, 4]
    assert 270 <= failure_delay(1000, "web") <= 330


def test_jitter_tells_containers_apart_and_is_the_same_every_time() -> None:
    first = restart_delay(ALWAYS, 5, "web/site")
    assert first == restart_delay(ALWAYS, 5, "web/site")
    assert first != restart_delay(ALWAYS, 5, "web/db")


@given(policies, st.integers(0, 20), st.sampled_from([0, 1]), st.floats(0, 1000), st.floats(0, 1000))
def test_a_restart_is_never_due_before_the_end_that_causes_it(
    policy: RestartPolicy, attempt: int, code: int, ran: float, ago: float
) -> None:
    ended = record(code, ran=ran, ago=ago)
    due = next_start(policy, attempt, ended, name="web/site", boot=BOOT)
    assert due is None or due >= ended.finished_boot


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("no", 0, False),
        ("no", 1, False),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
        ("always", 0, True),
        ("always", 1, True),
    ],
)
@pytest.mark.parametrize("boot", [BOOT, "boot-0"])
def test_the_policy_decides_in_this_boot_and_after_a_reboot(
    policy: str, code: int, again: bool, boot: str
) -> None:
    due = next_start(RestartPolicy(policy), 0, record(code, boot=boot), name="web/site", boot=BOOT)
    assert (due is not None) is again


def test_a_signal_is_a_failure() -> None:
    ended = record(signal=15)
    assert next_start(RestartPolicy("on-failure"), 0, ended, name="web/site", boot=BOOT) is not None


def test_a_program_that_never_started_has_not_ended() -> None:
    never = record(0, ran=None)
    for policy in ("no", "on-failure", "always"):
        assert next_start(RestartPolicy(policy), 0, never, name="web/site", boot=BOOT) is not None
    limited = RestartPolicy("on-failure", max_attempts=3)
    assert next_start(limited, 3, never, name="web/site", boot=BOOT) is None


def test_a_record_of_another_boot_is_due_at_once_and_counts_for_nothing() -> None:
    old = record(1, boot="boot-0", ago=-5000.0)  # boottime began anew: the end seems to lie in the future
    assert next_start(ALWAYS, 7, old, name="web/site", boot=BOOT) == 0.0
    assert next_attempt(ALWAYS, 7, old, boot=BOOT) == 7


def test_a_long_run_counts_as_a_success() -> None:
    assert next_attempt(ALWAYS, 7, record(1, ran=599.0), boot=BOOT) == 8
    assert next_attempt(ALWAYS, 7, record(1, ran=600.0), boot=BOOT) == 1
    limited = RestartPolicy(max_attempts=7)
    assert next_start(limited, 7, record(1, ran=599.0), name="web/site", boot=BOOT) is None
    assert next_start(limited, 7, record(1, ran=600.0), name="web/site", boot=BOOT) is not None


def test_a_crash_loop_is_started_exactly_max_attempts_times_again() -> None:
    one = values.container(
        "web", "site", settings=Settings(restart=RestartPolicy("on-failure", max_attempts=4))
    )
    want, have, now = values.desired(values.app("web", one)), values.world(), NOW
    starts: list[float] = []
    for _ in range(50):
        made = plan(want, have, now)
        starts += [now.boottime for step in made.steps if isinstance(step, CreateContainer)]
        have = values.turn(want, have, now)

        def die(c: Found, phase: Running, now: Now = now) -> Exited:
            return Exited(record(1, ran=0.0, ago=NOW.boottime - now.boottime))

        have = values.ended(have, die)
        until = plan(want, have, now).wake_at
        now = values.later((until or now.boottime) - now.boottime + 0.001, now)
    waits = [after - before for before, after in pairwise(starts)]
    assert len(starts) == 1 + 4
    assert waits == pytest.approx([1, 2, 4, 8], rel=0.11)
    assert have.containers["web/site"][0].restarts == 4
    assert have.containers["web/site"][0].settled


def test_words() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th",
    ]  # fmt: skip
    assert countdown(100.0, 99.9) == "1 s"
    assert countdown(100.0, 200.0) == "0 s"
    assert countdown(300.0, 0.5) == "5 min"
    assert countdown(205.0, 0.0) == "3 min 25 s"
    assert ending(record(3)) == "exit 3"
    assert ending(record(1, oom=True)) == "exit 1 (OOM)"
    assert ending(record(signal=9, oom=True)) == "exit 137 (OOM)"
    assert ending(record(signal=15)) == "exit 143 (SIGTERM)"
    assert ending(record(signal=40)) == "exit 168 (signal 40)"
