"""The whole loop in memory: plan, executor and an engine that fails now and then. It converges whatever happens.

The loop here is the agent's own in small: observe, plan, dispatch, remember failures, wait. Between turns programs end,
shims are lost and the agent is forgotten; verbs fail at random. At no moment two of one name run.
"""

import random
import threading
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.errors import ReconcilerError
from reconciler.execute.executor import Executor, LaneEnd
from reconciler.plan.diff import plan
from reconciler.plan.steps import Outcome, Plan
from reconciler.state.desired import Desired
from reconciler.state.observed import Created, Exited, Failure, Lost, Now, Observed, Running
from tests import strategies
from tests.memory_engine import MemoryEngine
from tests.values import NOW


class TwoRunError(AssertionError):
    """Two containers of one name run."""


@dataclass
class Faults:
    """Makes verbs fail: each call with probability `rate`, until `stop`."""

    dice: random.Random
    rate: float
    over: bool = False
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, verb: str) -> None:
        with self.lock:
            unlucky = not self.over and self.dice.random() < self.rate
            self.count += unlucky
        if unlucky:
            raise ReconcilerError(f"{verb}: bad luck", transient=True)


class Watched(MemoryEngine):
    """Looks at the world after every step."""

    def _step(self, step: object) -> None:
        super()._step(step)  # type: ignore[arg-type]
        for name, same in self.world.containers.items():
            if sum(isinstance(c.phase, Running) for c in same) > 1:
                raise TwoRunError(f"{step}: two of {name} run")


class Loop:
    """An agent without a disk; `forget` is its death and its successor's start."""

    def __init__(self, want: Desired, world: Observed, faults: Faults) -> None:
        self.want = want
        self.now = NOW
        self.engine = Watched(world, self._clock, faults)
        self.bad: list[str] = []
        self._failures: dict[str, Failure] = {}
        self._ended: list[LaneEnd] = []
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self.forget()

    def _clock(self) -> Now:
        return self.now

    def forget(self) -> None:
        """Start anew, as an agent does after a reboot of the device: not even failures are remembered."""
        self._failures = {}
        self._executor = Executor(self.engine, self._report, self._woken.set, workers=2, pulls=1)

    def close(self) -> None:
        self._executor.close()

    def _report(self, event: Outcome | LaneEnd) -> None:
        with self._lock:
            if isinstance(event, LaneEnd):
                self._ended.append(event)
            elif "TwoRunError" in event.error or "this is a defect" in event.hint:
                self.bad.append(event.error)

    def turn(self) -> Plan:
        """One turn, with everything it dispatched brought to its end."""
        for end in self._ended:
            if end.failed is None:
                self._failures.pop(end.app, None)
                continue
            last = self._failures.get(end.app)
            count = last.count + 1 if last is not None and last.digest == end.digest else 1
            outcome = end.failed
            self._failures[end.app] = Failure(
                str(outcome.step), outcome.error, "", True, count, self.now.boottime, end.digest
            )
        self._ended.clear()
        observed = replace(self.engine.world, failures=dict(self._failures))
        made = plan(self.want, observed, self.now)
        digests = {lane: app.version for lane, app in self.want.apps.items()}
        self._executor.dispatch(made, digests)
        while not self._executor.idle:  # it wakes us whenever a lane has ended
            assert self._woken.wait(20)
            self._woken.clear()
        assert not self.bad, self.bad
        return made

    def wait(self, made: Plan) -> None:
        """Let the time pass until the plan changes by itself, or a second."""
        until = (
            self.now.boottime + 1.0 if made.wake_at is None else max(made.wake_at, self.now.boottime + 0.01)
        )
        self.now = Now(until, self.now.wall + until - self.now.boottime)

    def happen(self, dice: random.Random) -> None:
        """Something happens to a container by itself."""
        running = [
            c for same in self.engine.world.containers.values() for c in same if isinstance(c.phase, Running)
        ]
        if not running:
            return
        victim = dice.choice(running)
        if dice.random() < 0.5:
            self.engine.end(victim.id, dice.choice([0, 1]))
        else:
            self.engine.lose(victim.id)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(0, 1 << 32))
def test_the_loop_converges_through_failures_ends_losses_and_deaths(data: st.DataObject, seed: int) -> None:
    dice = random.Random(seed)  # of its own: lanes throw it on their threads, where nothing may be drawn
    want = data.draw(strategies.desires(unresolved=False, held=False, hand=False))
    world = data.draw(strategies.worlds(want))
    faults = Faults(dice, data.draw(st.sampled_from([0.0, 0.1, 0.4])))
    loop = Loop(want, world, faults)
    try:
        for _ in range(12):
            loop.wait(loop.turn())
            if dice.random() < 0.4:
                loop.happen(dice)
            if dice.random() < 0.2:
                loop.close()
                loop.forget()
        faults.over = True
        for _ in range(80):
            made = loop.turn()
            alone = left_alone(want, loop.engine.world)
            if not made.steps and {f"{item.app}/{item.container}" for item in made.blocked} <= alone:
                break
            loop.wait(made)
        else:
            raise AssertionError(f"not converged: {[str(s) for s in made.steps]} {made.blocked}")
        as_desired(want, loop.engine.world)
    finally:
        loop.close()


def left_alone(want: Desired, world: Observed) -> set[str]:
    """The containers that join one which has ended for good, and those that wait for them."""
    wanted = {c.full_name: c for app in want.apps.values() for c in app.containers.values()}
    alone = {
        name
        for name, one in wanted.items()
        if one.joins and not any(isinstance(c.phase, Running) for c in world.containers.get(one.joins, ()))
    }
    while more := {n for n, one in wanted.items() if alone.intersection(one.settings.depends_on)} - alone:
        alone |= more
    return alone


def as_desired(want: Desired, world: Observed) -> None:
    """One container for each that is wanted, of the right fingerprint, running or ended for good; no other.

    One that joins the network of another has ended with that, was never made, or is still what it was before it was to
    join; so are those that wait for it.
    """
    wanted = {c.full_name: c for app in want.apps.values() for c in app.containers.values()}
    alone = left_alone(want, world)
    assert set(world.containers) | alone == set(wanted)
    for name, (have, *others) in world.containers.items():
        if name in alone:
            assert not have.joins or not isinstance(have.phase, Running | Created)
            continue
        assert not others
        assert have.fingerprint == wanted[name].fingerprint
        assert not isinstance(have.phase, Created | Lost)
        if isinstance(have.phase, Exited):
            assert (
                wanted[name].settings.restart.policy != "always" or wanted[name].settings.restart.max_attempts
            )
