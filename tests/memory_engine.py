"""An engine in memory: what the kernel does, as `plan.simulate` models it, behind the executor's own protocol.

It passes the same contract (tests/contract.py) as the engine of the device, so that what is tested with it is true.
Every verb is one or two steps of the model under one lock; where the model refuses, the verb raises, as the real one.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from reconciler.errors import NotFoundError
from reconciler.plan.simulate import ImpossibleStepError, simulate
from reconciler.plan.steps import (
    ChangeNetwork,
    CollectGarbage,
    ConfigureNetwork,
    CreateContainer,
    CreateVolume,
    ForgetContainer,
    Garbage,
    LimitVolume,
    PullImage,
    RecordExit,
    RemoveContainer,
    RemoveNetwork,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import Container as Wanted
from reconciler.state.desired import Settings
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.observed import Container, Created, Exited, Lost, Now, Observed, Published, Running
from reconciler.state.process import ExitRecord

_KINDS = ("layer", "blob", "image", "previous")


class MemoryEngine:
    """Satisfies `execute.engine.Engine` over a `world`. `clock` is asked for the time of every step.

    `before` is called with the name of each verb before it works: for faults.
    """

    def __init__(
        self, world: Observed, clock: Callable[[], Now], before: Callable[[str], None] = lambda _: None
    ) -> None:
        self.world = world
        self._clock = clock
        self._before = before
        self._lock = threading.Lock()
        self._signals: dict[str, str] = {}

    # --- the engine --------------------------------------------------------------------------------------------------

    def configure_network(self, networks: Sequence[Network], published: Sequence[Published]) -> None:
        self._before("configure_network")
        self._do(ConfigureNetwork(tuple(networks), tuple(published)))

    def pull(self, reference: str, image: Image) -> None:
        self._before("pull")
        self._do(PullImage("", reference, image))

    def create_volume(self, app: str, volume: str, size_limit: int | None = None) -> None:
        self._before("create_volume")
        self._do(CreateVolume(app, volume, size_limit=size_limit))

    def limit_volume(self, app: str, volume: str, size_limit: int | None) -> None:
        self._before("limit_volume")
        self._do(LimitVolume(app, volume, size_limit))

    def begin_stop(self, container_id: str, signal: str) -> int | None:
        self._before("begin_stop")
        with self._lock:
            found = self._find(container_id)
            if found is None or not isinstance(found.phase, Running):
                return None
            self._signals[container_id] = signal
        fd, other = os.pipe2(os.O_CLOEXEC)
        os.close(other)  # end of file: a program in memory obeys at once
        return fd

    def finish_stop(self, container_id: str) -> None:
        self._before("finish_stop")
        with self._lock:
            found = self._find(container_id)
            if found is not None:
                self._stop(found)

    def remove_container(self, container_id: str, *, keep_previous: bool) -> None:
        self._before("remove_container")
        with self._lock:
            found = self._find(container_id)
            if found is None:
                return
            self._stop(found)
            self._step(RemoveContainer(found.app, found.name, container_id, keep_previous))

    def create_container(self, desired: Wanted, *, attempt: int, restarts: int) -> None:
        self._before("create_container")
        self._do(CreateContainer(desired, attempt, restarts))

    def start_container(self, app: str, container: str) -> None:
        self._before("start_container")
        self._do(StartContainer(app, container))

    def update_container(self, container_id: str, settings: Settings, *, reattach: bool) -> None:
        self._before("update_container")
        with self._lock:
            found = self._find(container_id)
            if found is None:
                raise NotFoundError(f"container {container_id}: not found")
            self._step(UpdateContainer(found.app, found.name, container_id, settings, (), reattach))

    def record_exit(self, container_id: str) -> None:
        self._before("record_exit")
        with self._lock:
            found = self._find(container_id)
            if found is None or not isinstance(found.phase, Exited):
                raise NotFoundError(f"container {container_id}: no exit is on record")
            self._step(RecordExit(found.app, found.name, container_id))

    def forget_container(self, name: str) -> None:
        self._before("forget_container")
        self._do(ForgetContainer(ADHOC, name))

    def change_network(self, network: Network) -> None:
        self._before("change_network")
        self._do(ChangeNetwork(network))

    def remove_network(self, network: str) -> None:
        self._before("remove_network")
        self._do(RemoveNetwork(network))

    def collect(self, kind: str, name: str) -> bool:
        self._before("collect")
        if kind not in _KINDS:
            raise ValueError(f"unknown kind of garbage {kind!r}")
        try:
            self._do(CollectGarbage((Garbage(kind, name, 0, ""),)))
        except ImpossibleStepError:
            return False
        return True

    # --- what happens to a device by itself --------------------------------------------------------------------------

    def end(self, container_id: str, code: int) -> None:
        """Let the program of a running container end."""
        with self._lock:
            found = self._find(container_id)
            assert found is not None
            assert isinstance(found.phase, Running)
            now = self._clock()
            since, wall = found.phase.since, found.phase.since_wall
            record = ExitRecord(code, None, False, since, wall, now.boottime, now.wall, self.world.boot)
            self._put(replace(found, phase=Exited(record), limits=None, attached=True))

    def lose(self, container_id: str) -> None:
        """Let the container's shim, or its whole run directory, be gone."""
        with self._lock:
            found = self._find(container_id)
            assert found is not None
            self._put(replace(found, phase=Lost("its shim ended without a record"), limits=None))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        with self._lock:
            self._step(step)

    def _step(self, step: Step) -> None:
        self.world = simulate(step, self.world, self._clock())

    def _stop(self, found: Container) -> None:
        if isinstance(found.phase, Running | Created):
            number = self._signals.pop(found.id, "SIGKILL")
            self._step(StopContainer(found.app, found.name, found.id, number, 0.0))

    def _find(self, container_id: str) -> Container | None:
        every = (c for same in self.world.containers.values() for c in same)
        return next((c for c in every if c.id == container_id), None)

    def _put(self, changed: Container) -> None:
        name = changed.full_name
        same = tuple(changed if c.id == changed.id else c for c in self.world.containers[name])
        self.world = replace(self.world, containers={**self.world.containers, name: same})
