"""The loop: observe, resolve, plan, dispatch, report, wait. One turn looks at everything and trusts nothing remembered.

Events (a file changed, a process ended, a step finished, a request came, a time is up) only wake it. Starting
the agent is an ordinary turn; there is no recovery mode. The main thread is the loop; it never waits for the
network or a process.
"""

import queue
import threading
import time
from collections.abc import Callable, Set
from dataclasses import replace
from functools import partial

from reconciler.agent.chores import Chores
from reconciler.agent.devices import DeviceWatch
from reconciler.agent.exits import ExitWatch
from reconciler.agent.history import (
    failure_of,
    read_failures,
    read_generations,
    write_failures,
    write_generation,
)
from reconciler.agent.intent import Intent, Reader, Source
from reconciler.agent.notify import watchdog_interval
from reconciler.agent.overfull import OverfullWatch
from reconciler.agent.parts import Parts
from reconciler.agent.resolver import Resolver
from reconciler.agent.sweeper import Sweeper
from reconciler.agent.turn import Listener, Turn
from reconciler.agent.wanted import Wanted, applied, left_alone
from reconciler.engine import downloads, leftovers, renaming, replaced
from reconciler.engine.mend import Mended, everything, mend
from reconciler.engine.process import boot_id
from reconciler.errors import ReconcilerError, TimedOutError
from reconciler.execute.executor import Executor, LaneEnd
from reconciler.linux import heap
from reconciler.plan.basis import Basis, basis
from reconciler.plan.diff import plan as make_plan
from reconciler.plan.steps import CollectGarbage, ConfigureNetwork, Outcome, Plan, Step
from reconciler.state.desire import references
from reconciler.state.desired import Desired
from reconciler.state.generation import Generation
from reconciler.state.observed import Now, Observed

_PAUSE_FIRST = 1.0  # seconds after a turn that came to nothing; doubled each time, up to the interval
_SETTLE = 0.03  # seconds in which wake-ups that belong together are gathered into one turn
_SETTLE_MOST = 0.2


class Agent:
    """The loop over one source and one state directory. The caller holds the state lock."""

    def __init__(
        self, parts: Parts, source: Source, listener: Listener, *, only: Callable[[str], bool] | None = None
    ) -> None:
        """`only` says which lanes are worked on; without it, all are, and garbage is collected too."""
        self._parts = parts
        self._only = only
        self._listener = listener
        self._awake = threading.Event()
        self._stop = False
        self._stopped = threading.Event()
        self._prepared = False
        self._allow_empty = False
        self._forget = False
        self._longest = min(parts.device.interval, watchdog_interval() or parts.device.interval)
        self._ended: queue.SimpleQueue[LaneEnd] = queue.SimpleQueue()
        self._boot = boot_id()
        self._retention = parts.retention
        self._failures = read_failures(parts.layout, self._boot)
        self._kept_failures = dict(self._failures)
        self._untidy = False
        self._generations = read_generations(parts.layout)
        self._resolver = Resolver(parts.images, parts.store, self.wake)
        self._reader = Reader(parts.layout, parts.device, source, self._resolver)
        self._chores = Chores()
        self._executor = Executor(parts.engine, self._report, self.wake)
        self._exits = ExitWatch(self.wake)
        self._overfull = OverfullWatch(parts.layout, partial(listener.noted, "limit"))
        self._devices = DeviceWatch(self.wake)
        self._sweeper = Sweeper(parts.store, listener.problem)
        self._wanted = Wanted.of(Desired({}))
        self._basis: Basis | None = None
        self._applied: Desired | None = None  # what the newest generation is known to hold
        self._rests = False
        self._turns = 0
        self._changed = threading.Condition()
        self._trouble: tuple[int, str] | None = None
        self.last: Turn | None = None

    # --- from any thread -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the next turn now."""
        self._awake.set()

    def stop(self) -> None:
        """Leave the loop after this turn; containers go on."""
        self._stop = True
        self._stopped.set()
        self._awake.set()

    def doing(self) -> dict[str, Step]:
        """The step that each app's lane is in the middle of."""
        return self._executor.doing

    def retries(self, turn: Turn) -> dict[str, float]:
        """Seconds until an image is looked up again, of each app that waits for one."""
        due = self._resolver.retries()
        waiting = {
            name: [due[reference] for reference in references(app) if reference in due]
            for name, app in (turn.intent.apps.items() if due else ())
        }
        return {name: min(times) for name, times in waiting.items() if times}

    def reconcile(self, *, allow_empty: bool = False) -> int:
        """Ask for a turn that tries everything again at once; return the number of the last turn before it.

        That may be one that is under way: it has read the source already, and is not the one that was asked for.
        """
        number = self._turns
        self._allow_empty = self._allow_empty or allow_empty
        self._resolver.forget_failures()
        self._forget = True
        self._awake.set()
        return number

    def between_turns(self, lanes: Set[str], act: Callable[[], None], timeout: float) -> None:
        """Have `act` done by the loop while none of `lanes` is at work; raise what it raises, or TimedOutError."""
        done = self._chores.add(lanes, act)
        self._awake.set()
        try:
            done.result(timeout)
        except TimeoutError as error:
            done.cancel()
            raise TimedOutError(f"{', '.join(sorted(lanes))}: still at work after {timeout:g} s") from error

    def noted(self, kind: str, subject: str, text: str) -> None:
        """Tell whoever listens of something that was done and is no step."""
        self._listener.noted(kind, subject, text)

    def nudge(self) -> int:
        """Have a turn now, as `wake` does; return the number of the last turn before it, as `reconcile` does."""
        number = self._turns
        self._awake.set()
        return number

    def wait_for(
        self, condition: Callable[[Turn], bool], timeout: float, *, after: int | None = None
    ) -> Turn | None:
        """Wait until a turn satisfies `condition`; None if none did in time.

        With `after`, raise ReconcilerError once a turn later than that number comes to nothing.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self.last is not None and condition(self.last):
                    return self.last
                if after is not None and self._trouble is not None and self._trouble[0] > after:
                    raise ReconcilerError(self._trouble[1], transient=True)
                left = deadline - time.monotonic()
                if left <= 0 or self._stop:
                    return None
                self._changed.wait(left)

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(
        self,
        until: Callable[[Turn], bool] | None = None,
        *,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Turn until `stop`, or until a turn satisfies `until`. `alive` is called once a turn (a watchdog).

        Without `until` no failure ends the loop: a turn that comes to nothing is reported and tried again, first soon
        and then less often. With it there is somebody to be told: the error is raised.
        """
        pause, network = _PAUSE_FIRST, False
        while not self._stop:
            self._awake.clear()
            began = time.monotonic()
            try:
                turn = self.turn()
            except (
                OSError,
                ReconcilerError,
                RuntimeError,
            ) as error:  # RuntimeError: no thread can be started
                if until is not None:
                    raise
                self._broken(error)
                alive()
                self._stopped.wait(min(pause, self._longest))  # whatever wakes it meanwhile: never a hot loop
                pause *= 2
                continue
            seconds = time.monotonic() - began
            pause = _PAUSE_FIRST
            alive()
            if until is not None and until(turn):
                return
            if self._awake.wait(self._patience(turn)):
                # A network that is configured again and again (somebody else undoes it) wakes us each time
                again, network = network and _configures(turn.plan), _configures(turn.plan)
                # While many lanes run, each end of one wakes us, and a turn takes from them the one interpreter
                settle = min(max(_SETTLE, 2 * seconds), _SETTLE_MOST) if turn.busy or turn.plan.steps else 0
                self._stopped.wait(_PAUSE_FIRST if again else settle)

    def _broken(self, error: Exception) -> None:
        """Say that a turn came to nothing, also to those who wait for it."""
        text = (
            str(error) if isinstance(error, OSError | ReconcilerError) else f"{type(error).__name__}: {error}"
        )
        self._listener.broken_turn(text)
        with self._changed:
            self._trouble = (self._turns, text)
            self._changed.notify_all()

    def _prepare(self) -> None:
        """What comes before the first turn that works: no container may be made without it."""
        if self._prepared:
            return
        self._parts.prepare_host()
        warm = threading.Thread(target=self._warm_up, name="warm-up")
        warm.start()  # the zygote takes a tenth of a second, which the first container need not wait for
        self._keep("clean-up", self._clean_up)
        self._prepared = True

    def _clean_up(self) -> None:
        """Clear away what an interrupted agent, or a step that failed, left half done. Only while no lane runs."""
        leftovers.sweep(self._parts.layout)
        renaming.finish(self._parts.naming)
        self._mend(everything(self._parts.layout))  # or the sweep would take what runs with a damaged record
        self._parts.containers.sweep()
        self._parts.store.recover()
        downloads.clear(self._parts.layout, idle_for=downloads.KEPT_FOR)
        replaced.release(self._parts.layout)

    def _warm_up(self) -> None:
        try:
            self._parts.zygote.start()
        except (ReconcilerError, OSError):
            pass  # the first container to be created tries again, and reports it

    def turn(self) -> Turn:
        """Observe, plan and dispatch once."""
        began = time.monotonic()
        self._turns += 1
        number, allow_empty = self._turns, self._allow_empty
        self._prepare()
        self._drain()
        self._chores.perform(self._executor.busy)
        if renaming.lanes(self._parts.layout):  # an error, or a crash, came between the two names
            self._keep("rename", partial(renaming.finish, self._parts.naming))
        if self._untidy and self._executor.idle:  # a sweep would take what a lane is just making
            self._untidy = not self._keep("clean-up", self._clean_up)
        intent = self._reader.read(allow_empty=allow_empty)
        read = time.monotonic()
        # A lane that ends while we look was seen half done: the next turn is its turn.
        busy = self._executor.busy
        observed = self._observe(intent)
        mended = self._mend(self._parts.observer.unreadable)
        if mended:
            observed = self._observe(intent)
        seen = time.monotonic()
        digests = self._wanted.digests
        self._executor.cancel_older(digests)
        busy |= self._executor.busy | renaming.lanes(self._parts.layout)
        now = Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
        self._basis = basis(intent.desired, self._generations, self._retention, self._basis)
        plan = make_plan(
            intent.desired,
            observed,
            now,
            retention=self._retention,
            generations=self._generations,
            busy=busy | left_alone(self._only, intent.desired, observed),
            known=self._basis,
        )
        if self._only is not None:
            plan = replace(plan, steps=tuple(s for s in plan.steps if not isinstance(s, CollectGarbage)))
        self._forget_healed(plan, busy)
        planned = time.monotonic()
        self._executor.dispatch(plan, digests)
        turn = Turn(
            number=number,
            now=now,
            intent=intent,
            observed=observed,
            plan=plan,
            busy=busy | self._executor.busy,
            generations=tuple(self._generations),
            mended=mended,
            seconds={"observe": seen - began, "read": read - began, "plan": planned - seen},
        )
        self._remember(turn)
        self._exits.watch(self._parts.observer.shims)
        self._overfull.watch(container for same in observed.containers.values() for container in same)
        if turn.finished and allow_empty:
            self._allow_empty = False
        self._sweeper.sweep()
        self._listener.turn(turn)
        if turn.finished and not self._rests:
            heap.trim()  # what lanes and pulls have used is not needed again soon
        self._rests = turn.finished
        with self._changed:
            self.last = turn
            self._trouble = None
            self._changed.notify_all()
        return turn

    def close(self) -> None:
        """Let go of threads and descriptors. Running containers are not touched."""
        self._stop = True
        self._executor.close()
        self._resolver.close()
        self._exits.close()
        self._overfull.close()
        self._devices.close()
        with self._changed:
            self._changed.notify_all()

    # --- inside a turn ---------------------------------------------------------------------------------------------

    def _observe(self, intent: Intent) -> Observed:
        if self._wanted.desired is not intent.desired:
            self._wanted = Wanted.of(intent.desired)
        wanted = self._wanted
        observed = self._parts.observer.observe(
            failures=self._failures,
            ports=wanted.ports,
            wanted_devices=wanted.devices,
            networks=wanted.networks,
        )
        self._devices.watch(wanted.devices - observed.devices)
        return observed

    def _mend(self, container_ids: tuple[str, ...]) -> tuple[Mended, ...]:
        """Put records right that were damaged: what runs without one would be made a second time."""
        remove = partial(self._parts.containers.remove, keep_previous=False)
        mended = mend(self._parts.layout, container_ids, time.time(), remove)
        for item in mended:
            self._listener.problem(item.text)
        return mended

    def _patience(self, turn: Turn) -> float:
        """Seconds until time alone asks for another turn."""
        patience = self._longest
        if turn.plan.wake_at is not None:
            patience = min(patience, turn.plan.wake_at - time.clock_gettime(time.CLOCK_BOOTTIME))
        retry = self._resolver.retry_at
        if retry is not None:
            patience = min(patience, retry - time.monotonic())
        return max(0.05, patience)

    def _report(self, event: Outcome | LaneEnd) -> None:
        if isinstance(event, LaneEnd):
            self._ended.put(event)
            self._listener.lane(event)
        else:
            self._listener.outcome(event)

    def _drain(self) -> None:
        """Take note of lanes that ended since the last turn."""
        if self._forget:
            self._forget = False
            self._failures.clear()
        while True:
            try:
                end = self._ended.get_nowait()
            except queue.Empty:
                break
            if end.failed is not None:
                self._untidy = True
                self._failures[end.app] = failure_of(end, end.failed, self._failures.get(end.app))
                continue
            failure = self._failures.get(end.app)
            if failure is not None and (failure.digest != end.digest or failure.step in end.performed):
                del self._failures[end.app]  # a repair beside it is no reason to try the failed step again
        self._keep_failures()

    def _keep_failures(self) -> None:
        if self._failures != self._kept_failures:
            failures = dict(self._failures)
            if self._keep("failures", lambda: write_failures(self._parts.layout, self._boot, failures)):
                self._kept_failures = failures

    def _keep(self, what: str, write: Callable[[], None]) -> bool:
        """Do what later turns go by; where the disk refuses, say so, and return whether it went well.

        What runs must not depend on it: a full or read-only disk never ends the loop.
        """
        try:
            write()
        except (OSError, ReconcilerError) as error:
            self._listener.problem(f"{what}: {error}")
            return False
        return True

    def _forget_healed(self, plan: Plan, busy: frozenset[str]) -> None:
        """Forget failures of apps that have nothing left to do: whatever was in the way has gone."""
        if not self._failures:
            return
        waiting = {step.lane or "" for step in plan.steps} | {item.lane for item in plan.blocked} | busy
        healed = self._failures.keys() - waiting
        if healed:
            for app in healed:
                del self._failures[app]
            self._keep_failures()

    def _remember(self, turn: Turn) -> None:
        """Write a generation once everything is as desired and differs from the last one."""
        if not turn.converged or turn.intent.source_problem:
            return
        desired = turn.intent.desired
        if desired is self._applied:
            return
        apps = tuple(applied(app) for _, app in sorted(desired.declared.items()))
        if self._generations[-1].apps == apps if self._generations else not apps:
            self._applied = desired
            return
        number = self._generations[-1].number + 1 if self._generations else 1
        generation = Generation(number, turn.intent.revision, turn.now.wall, apps)
        keep = self._parts.device.gc.keep_generations
        if not self._keep(
            f"generation {number}", lambda: write_generation(self._parts.layout, generation, keep)
        ):
            return
        self._generations = [*self._generations, generation][-max(1, keep) :]
        self._applied = desired
        self.wake()  # what only the oldest generation wanted may be garbage now


def _configures(plan: Plan) -> bool:
    return any(isinstance(step, ConfigureNetwork) for step in plan.steps)
