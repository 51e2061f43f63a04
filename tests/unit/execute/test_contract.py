"""The engine in memory keeps the contract of engines."""

import itertools
from dataclasses import replace

import pytest

from reconciler.state.desired import Container as Wanted
from reconciler.state.observed import Container, Now, Observed, Running, Store
from tests.contract import EngineContract, Subject, find
from tests.memory_engine import MemoryEngine
from tests.values import BOOT, NOW, container


class MemorySubject:
    """A world in memory, in which every step takes a second."""

    def __init__(self) -> None:
        ticks = itertools.count(1)
        self.engine = MemoryEngine(
            Observed(boot=BOOT, store=Store(size=1 << 40, free=1 << 40)),
            lambda: Now(NOW.boottime + next(ticks), NOW.wall),
        )

    def observe(self) -> Observed:
        return self.engine.world

    def wanted(self, app: str, name: str, *, ends: bool = False, stubborn: bool = False) -> Wanted:
        return container(app, name)

    def damage(self, container: Container, kind: str) -> None:
        if kind == "state":
            found = replace(find(self, container.id), intact=False)
            name = container.full_name
            self.engine.world = replace(
                self.engine.world, containers={**self.engine.world.containers, name: (found,)}
            )
        else:
            self.engine.lose(container.id)

    def wait_for_exit(self, container_id: str) -> None:
        if isinstance(find(self, container_id).phase, Running):
            self.engine.end(container_id, 3)


@pytest.fixture
def subject() -> Subject:
    return MemorySubject()


class TestMemoryEngine(EngineContract):
    """See `EngineContract`."""
