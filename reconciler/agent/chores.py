"""Work that must meet neither a plan nor a lane: the loop does it between two turns, once its lanes are idle."""

from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Chore:
    lanes: Set[str]
    act: Callable[[], None]
    done: Future[None]


class Chores:
    """What is to be done. `add` from any thread, `perform` from the loop's."""

    def __init__(self) -> None:
        self._waiting: list[_Chore] = []

    def add(self, lanes: Set[str], act: Callable[[], None]) -> Future[None]:
        """Have `act` called while none of `lanes` is at work; cancel the future to take that back."""
        chore = _Chore(lanes, act, Future())
        self._waiting.append(chore)
        return chore.done

    def perform(self, busy: Set[str]) -> None:
        """Do what can be done now. Whoever asked for it gets what it raises."""
        for chore in tuple(self._waiting):
            if chore.lanes & busy:
                continue
            self._waiting.remove(chore)
            if not chore.done.set_running_or_notify_cancel():
                continue
            try:
                chore.act()
            except Exception as error:  # noqa: BLE001 - it is raised where somebody waits for it
                chore.done.set_exception(error)
            else:
                chore.done.set_result(None)
