"""What a container needs of which people want something by hand: held stopped, started anew, or run ad hoc.

The same parts as in `plan.work`, for the wishes that no spec holds. A declared container that is held is stopped and
otherwise left as it is, also by a newer spec, until it is let go. An ad-hoc one keeps its id, and with it its files and
its log; nothing takes it away but its own end, where it is to be removed then, or the loss of its record. Pure.
"""

from collections.abc import Sequence
from typing import assert_never

from reconciler.plan.restart import next_start
from reconciler.plan.steps import Blocked, CreateContainer, ForgetContainer, RecordExit, RemoveContainer, Step
from reconciler.plan.work import Work, bring_up, clear, converge, stop, take_down, work
from reconciler.state.desired import Container as Desired
from reconciler.state.observed import Container, Created, Exited, Lost, Now, Previous, Running
from reconciler.state.wish import Goal, Wish


def wished(
    want: Desired, wish: Wish, have: Sequence[Container], previous: Previous | None, now: Now, boot: str
) -> Work | None:
    """Return what takes the containers named `want.full_name`, oldest first in `have`, to what is wished; or None."""
    todo = (
        _adhoc(want, wish, have, now, boot) if want.id else _declared(want, wish, have, previous, now, boot)
    )
    return todo if todo is not None and todo != Work() else None


def rests(want: Desired, have: Sequence[Container], boot: str) -> bool:
    """Return whether it is not to run, or came to its end: others may have its ports.

    One that is being stopped is sent nothing new from then on; what it has begun it may finish.
    """
    if want.wish is None:
        return False
    if want.wish.goal is not Goal.RUNNING:
        return True
    own = _own(want, have)
    return own is not None and _over(want, want.wish, own, boot)


def discard(have: Sequence[Container]) -> tuple[Step, ...]:
    """Return the steps that take away an ad-hoc container whose record is gone, with all that it wrote, at once."""
    return tuple(step for container in have for step in take_down(container, keep_previous=False, grace=0.0))


# --- declared ones --------------------------------------------------------------------------------------------------


def _declared(
    want: Desired, wish: Wish, have: Sequence[Container], previous: Previous | None, now: Now, boot: str
) -> Work | None:
    if wish.goal is not Goal.RUNNING:
        halted = _halt(have, wish.grace)
        return Work(halted.down, halted.up, True, Blocked(want.app, want.name, wish.reason))
    runs = any(isinstance(container.phase, Running) for container in have)
    fresh = [container for container in have if container.turn >= wish.turn]
    if not have or (runs and not wish.force) or len(fresh) == len(have):
        return work(want, have, previous, now, boot)
    down = tuple(
        step
        for container in have
        if container not in fresh
        for step in take_down(container, keep_previous=True, grace=wish.grace)
    )
    if (
        fresh
    ):  # one of an earlier turn beside it must not be the one that is kept: it would be replaced once more
        todo = work(want, fresh, previous, now, boot) or Work()
        return Work(down + todo.down, todo.up, todo.repair, todo.wait)
    same = any(container.fingerprint == want.fingerprint for container in have)
    return Work(down, bring_up(want, 0, have[-1].restarts), repair=same)


def _halt(have: Sequence[Container], grace: float | None) -> Work:
    """Stop what runs and keep how it ended. What was never started is left as it is."""
    down: list[Step] = []
    up: list[Step] = []
    for container in have:
        match container.phase:
            case Running():
                down += stop(container, grace)
                up.append(RecordExit(container.app, container.name, container.id))
            case Lost(_, True):
                down += stop(container)
            case Exited() if not container.settled:
                up.append(RecordExit(container.app, container.name, container.id))
            case Created() | Exited() | Lost():
                pass
            case _:
                assert_never(container.phase)
    return Work(tuple(down), tuple(up), repair=True)


# --- ad-hoc ones ----------------------------------------------------------------------------------------------------


def _own(want: Desired, have: Sequence[Container]) -> Container | None:
    return next((container for container in have if container.id == want.id), None)


def _adhoc(want: Desired, wish: Wish, have: Sequence[Container], now: Now, boot: str) -> Work:
    """One of the same name and another id is what is left of a predecessor that was removed."""
    own = _own(want, have)
    down = discard([container for container in have if container is not own])
    todo = _new(want, wish) if own is None else _on(want, wish, own, now, boot)
    return Work(down + todo.down, todo.up, todo.repair, todo.wait)


def _new(want: Desired, wish: Wish) -> Work:
    match wish.goal:
        case Goal.RUNNING:
            return Work(up=bring_up(want, 0, 0))
        case Goal.CREATED:
            return Work(up=(CreateContainer(want),))
        case Goal.STOPPED:
            return Work()
        case _:
            assert_never(wish.goal)


def _on(want: Desired, wish: Wish, own: Container, now: Now, boot: str) -> Work:
    """Go on with the container that is there."""
    ends = wish.goal is Goal.STOPPED and isinstance(own.phase, Running)
    if wish.auto_remove and not own.watched and (ends or _over(want, wish, own, boot)):
        # The record goes first: a container without one is removed, one with a record would be run a second time.
        return Work(
            (
                *stop(own, wish.grace),
                ForgetContainer(want.app, want.name),
                RemoveContainer(own.app, own.name, own.id, keep_previous=False),
            ),
            repair=True,
        )
    match wish.goal:
        case Goal.STOPPED:
            return _halt([own], wish.grace)
        case Goal.CREATED:
            if isinstance(own.phase, Lost) or (isinstance(own.phase, Created) and not own.attached):
                return Work(clear(want, own), (CreateContainer(want, 0, own.restarts),), repair=True)
            return Work()
        case Goal.RUNNING:
            return _run(want, wish, own, now, boot)
        case _:
            assert_never(wish.goal)


def _run(want: Desired, wish: Wish, own: Container, now: Now, boot: str) -> Work:
    if own.turn < wish.turn and (wish.force or not isinstance(own.phase, Running)):
        return Work(clear(want, own, wish.grace), bring_up(want, 0, own.restarts), repair=True)
    if isinstance(own.phase, Lost) and _over(want, wish, own, boot):
        return _halt([own], None)
    return converge(want, own, now, boot)


def _over(want: Desired, wish: Wish, own: Container, boot: str) -> bool:
    """Return whether it came to its end, and neither its restart policy nor anybody's wish starts it again.

    As with Docker, and unlike a declared one, what ran when the device went down does not come back without a policy.
    """
    if wish.goal is Goal.RUNNING and own.turn < wish.turn:
        return False
    match own.phase:
        case Running() | Created():
            return False
        case Lost():
            return wish.goal is Goal.STOPPED or (
                wish.goal is Goal.RUNNING and want.settings.restart.policy == "no"
            )
        case Exited(record):
            if wish.goal is not Goal.RUNNING:
                return True
            policy = want.settings.restart
            due = next_start(policy, own.attempt, record, name=want.full_name, boot=boot)
            return not own.stopped and due is None
        case _:
            assert_never(own.phase)
