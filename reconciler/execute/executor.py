"""Perform a plan: lanes per app in parallel, each in order, each ending at its first failure.

Dispatching never waits. A lane that waits for a pull or for a program to end gives its worker back, so a slow
registry or a long grace period holds up nobody else. The executor decides nothing: every outcome goes back to
the loop, which plans again.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import assert_never

from reconciler.errors import ReconcilerError, VerificationError
from reconciler.execute.engine import Engine, Wake
from reconciler.execute.waiter import Waiter
from reconciler.plan.steps import (
    ChangeNetwork,
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    ForgetContainer,
    LimitVolume,
    Outcome,
    Plan,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)

_STARTS = (CreateContainer, StartContainer)


@dataclass(eq=False)
class Lane:
    """The rest of one lane's steps. `app` is the lane's name, which is the app's but for ad-hoc containers.

    `digest` is the version of what is wanted that they come from; a newer one cancels the lane.

    `pull` is the pull that its first step waits for, `asked_to_stop` the id of the container that it waits
    for, `doing` the step that it is in the middle of.
    """

    app: str
    digest: str
    steps: deque[Step]
    cancelled: bool = False
    began: float = 0.0
    pull: Future[None] | None = None
    asked_to_stop: str = ""
    performed: set[str] = field(default_factory=set)
    doing: Step | None = None


@dataclass(frozen=True, slots=True)
class LaneEnd:
    """A lane is over: `failed` is the outcome it stopped at, None if it ran to its end or was cancelled.

    `performed` are the steps that succeeded, as text.
    """

    app: str
    digest: str
    failed: Outcome | None
    cancelled: bool
    seconds: float = 0.0
    performed: frozenset[str] = frozenset()


Report = Callable[[Outcome | LaneEnd], None]


class Executor:
    """Runs lanes on a small pool. `report` gets every outcome and the end of every lane, from any thread."""

    def __init__(
        self, engine: Engine, report: Report, wake: Wake, *, workers: int = 8, pulls: int = 3
    ) -> None:
        self._engine = engine
        self._report = report
        self._wake = wake
        self._lanes: dict[str, Lane] = {}
        self._pulls: dict[str, Future[None]] = {}
        self._collecting = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="lane")
        self._pulls_each = pulls
        self._pull_pools: dict[str, ThreadPoolExecutor] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._waiter = Waiter()
        self._closed = False

    @property
    def busy(self) -> frozenset[str]:
        """The apps that have a lane running."""
        with self._lock:
            return frozenset(self._lanes)

    @property
    def doing(self) -> dict[str, Step]:
        """The step that each running lane is in the middle of, by app."""
        with self._lock:
            return {app: lane.doing for app, lane in self._lanes.items() if lane.doing is not None}

    @property
    def idle(self) -> bool:
        """No lane and no collection is running."""
        with self._lock:
            return not self._lanes and not self._collecting

    def cancel_older(self, digests: dict[str, str]) -> None:
        """End, at their next step boundary, the lanes whose app has another spec digest now ("" once
        removed).
        """
        with self._lock:
            for lane in self._lanes.values():
                if lane.digest != digests.get(lane.app, ""):
                    lane.cancelled = True

    def dispatch(self, plan: Plan, digests: dict[str, str]) -> None:
        """Start everything in `plan` and return; `digests` maps each lane to the version of what is wanted there.

        The network is configured here, in order, before any lane: no container may run its first instruction
        without the rules that isolate it, so where that fails only lanes that start nothing are begun.
        """
        lanes: dict[str, list[Step]] = {}
        network = True
        for step in plan.steps:
            match step:
                case ConfigureNetwork():
                    network = self._device(step)
                    self._wake()  # where no lane follows, nothing else would ask for the turn that sees it done
                case CollectGarbage():
                    self._collect(step)
                case _:
                    lanes.setdefault(step.lane, []).append(step)
        for app, steps in lanes.items():
            if not network and any(isinstance(step, _STARTS) for step in steps):
                continue
            self._begin(Lane(app, digests.get(app, ""), deque(steps), began=time.monotonic()))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False if `timeout` seconds were not enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.idle:
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Cancel every lane at its next step boundary and let go of the threads.

        What was begun stays as it is.
        """
        with self._lock:
            self._closed = True
            for lane in self._lanes.values():
                lane.cancelled = True
        for pool in [*self._pull_pools.values()]:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiter.close()
        self._background.shutdown(wait=True, cancel_futures=True)

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _begin(self, lane: Lane) -> None:
        with self._lock:
            if lane.app in self._lanes:
                return
            self._lanes[lane.app] = lane
        try:
            self._submit(lane)
        except RuntimeError:  # no thread can be started; the lane may be taken up by a thread that there is
            with self._lock:
                lane.cancelled = True
                self._lanes.pop(lane.app, None)
            raise

    def _submit(self, lane: Lane) -> None:
        with self._lock:  # `close` sets the mark under the same lock, before the pool refuses work
            if not self._closed:
                self._pool.submit(self._advance, lane)

    def _advance(self, lane: Lane) -> None:
        """Run steps until the lane ends or has to wait for something. It ends whatever happens, or its app would be
        left alone for ever.
        """
        step = lane.steps[0] if lane.steps else None
        try:
            self._run_steps(lane)
        except Exception as error:  # noqa: BLE001 - a part of the one broad catch, `_perform`
            if step is not None:
                self._end(lane, Outcome(step, f"{type(error).__name__}: {error}", _REPORT_BUG, False))

    def _run_steps(self, lane: Lane) -> None:
        while lane.steps and not lane.cancelled:
            step = lane.doing = lane.steps[0]
            match step:
                case PullImage():
                    if lane.pull is None:
                        lane.pull = self._pull(step)
                        lane.pull.add_done_callback(lambda _: self._submit(lane))
                        return
                    lane.steps.popleft()
                    outcome = self._perform(step, lane.pull.result)
                    lane.pull = None
                case StopContainer():
                    if self._begin_stop(lane, step):
                        return
                    lane.steps.popleft()
                    outcome = self._perform(step)
                case _:
                    lane.steps.popleft()
                    outcome = self._perform(step)
            if outcome.error:
                self._end(lane, outcome)
                return
            lane.performed.add(str(step))
        self._end(lane, None)

    def _begin_stop(self, lane: Lane, step: StopContainer) -> bool:
        """Ask the container to end; True if the lane has been parked until it has, or its grace is over.

        An error here is left to `finish_stop`, which kills whatever runs and reports what went wrong.
        """
        if lane.asked_to_stop == step.id:
            return False
        try:
            pidfd = self._engine.begin_stop(step.id, step.signal)
        except (ReconcilerError, OSError):
            return False
        if pidfd is None:
            return False
        lane.asked_to_stop = step.id
        self._waiter.wait(pidfd, time.monotonic() + step.grace, lambda: self._submit(lane))
        return True

    def _end(self, lane: Lane, failed: Outcome | None) -> None:
        with self._lock:
            if self._lanes.get(lane.app) is lane:
                del self._lanes[lane.app]
        cancelled, seconds = lane.cancelled and failed is None, time.monotonic() - lane.began
        self._report(LaneEnd(lane.app, lane.digest, failed, cancelled, seconds, frozenset(lane.performed)))
        self._wake()

    # --- pulls and garbage ---------------------------------------------------------------------------------------

    def _pull(self, step: PullImage) -> Future[None]:
        """Return the pull of the image, which every lane that needs it from there at the same time shares.

        Each registry has threads of its own: one that fails or hangs is no other one's delay, even for the same image.
        """
        registry = step.reference.partition("/")[0]
        with self._lock:
            future = self._pulls.get(step.reference)
            if future is None or future.done():
                pool = self._pull_pools.get(registry)
                if pool is None:
                    pool = ThreadPoolExecutor(self._pulls_each, thread_name_prefix="pull")
                    self._pull_pools[registry] = pool
                future = self._pulls[step.reference] = pool.submit(
                    self._engine.pull, step.reference, step.image
                )
            return future

    def _collect(self, step: CollectGarbage) -> None:
        with self._lock:
            if self._collecting:
                return
            self._collecting = True
        self._background.submit(self._collect_now, step)

    def _collect_now(self, step: CollectGarbage) -> None:
        self._device(step)
        with self._lock:
            self._collecting = False
        self._wake()

    def _device(self, step: ConfigureNetwork | CollectGarbage) -> bool:
        """Perform a step of the whole device, which is a lane of its own with the empty name; True on success."""
        outcome = self._perform(step)
        performed = frozenset() if outcome.error else frozenset((str(step),))
        self._report(LaneEnd("", "", outcome if outcome.error else None, False, outcome.seconds, performed))
        return not outcome.error

    # --- one step ------------------------------------------------------------------------------------------------

    def _perform(self, step: Step, verb: Callable[[], None] | None = None) -> Outcome:
        """Run one step and report what came of it. One of the three places that may catch everything."""
        began = time.monotonic()
        try:
            if verb is not None:
                verb()
            else:
                perform(self._engine, step)
            outcome = Outcome(step, seconds=time.monotonic() - began)
        except ReconcilerError as error:
            seconds, unverified = time.monotonic() - began, isinstance(error, VerificationError)
            outcome = Outcome(
                step, str(error), error.hint, error.transient, seconds, unverified, error.exit_code
            )
        except OSError as error:
            outcome = Outcome(step, str(error), "", True, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - a defect in one lane must not stop the others
            outcome = Outcome(
                step, f"{type(error).__name__}: {error}", _REPORT_BUG, False, time.monotonic() - began
            )
        self._report(outcome)
        return outcome


_REPORT_BUG = "this is a defect of reconciler; please report it with the output of `reconciler doctor`"


def perform(engine: Engine, step: Step) -> None:
    """Do what the step says, by the one verb of the engine that is for it."""
    match step:
        case ConfigureNetwork():
            engine.configure_network(step.networks, step.published)
        case PullImage():
            engine.pull(step.reference, step.image)
        case CreateVolume():
            engine.create_volume(step.app, step.volume, step.size_limit)
        case LimitVolume():
            engine.limit_volume(step.app, step.volume, step.size_limit)
        case StopContainer():
            engine.finish_stop(step.id)
        case RemoveContainer():
            engine.remove_container(step.id, keep_previous=step.keep_previous)
        case CreateContainer():
            engine.create_container(step.desired, attempt=step.attempt, restarts=step.restarts)
        case StartContainer():
            engine.start_container(step.app, step.container)
        case UpdateContainer():
            engine.update_container(step.id, step.settings, reattach=step.reattach)
        case RecordExit():
            engine.record_exit(step.id)
        case ForgetContainer():
            engine.forget_container(step.container)
        case ChangeNetwork():
            engine.change_network(step.network)
        case RemoveNetwork():
            engine.remove_network(step.network)
        case CollectGarbage():
            for item in step.objects:
                engine.collect(item.kind, item.name)
        case _:
            assert_never(step)
