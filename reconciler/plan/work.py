"""What one container needs: its phase against its desired value, and nothing about its neighbours.

The result has a part that takes away (`down`) and a part that brings up (`up`), because a lane performs all of the
first, in reverse dependency order, before all of the second. Whether it may happen now is decided in `plan.lane`. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from reconciler.plan.restart import countdown, ending, next_attempt, next_start, ordinal, restart_delay
from reconciler.plan.steps import (
    Blocked,
    CreateContainer,
    RecordExit,
    RemoveContainer,
    StartContainer,
    Step,
    StopContainer,
    UpdateContainer,
)
from reconciler.state.desired import Container as Desired
from reconciler.state.desired import Limits, Settings
from reconciler.state.observed import Container, Created, Exited, Lost, Now, Previous, Running
from reconciler.state.process import ExitRecord

# Field names of Settings, in the order in which an update names them.
_CHANGES = tuple(Settings.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Work:
    """The steps for one container.

    `repair` says that they bring back what was there, by the same fingerprint: an app that may not change now (its
    last lane failed, an image is not resolved) is still repaired. `wait` is set where only time has to pass. `follows`
    is the name of the container in the same app that it comes up after, since that one's network is what it joins.
    """

    down: tuple[Step, ...] = ()
    up: tuple[Step, ...] = ()
    repair: bool = False
    wait: Blocked | None = None
    follows: str = ""

    @property
    def starts(self) -> bool:
        """Whether the program starts (again): what needs its ports and its dependencies."""
        return any(isinstance(step, StartContainer) for step in self.up)

    @property
    def creates(self) -> bool:
        """Whether the container is made (again): what needs its image and its volumes."""
        return any(isinstance(step, CreateContainer) for step in self.up)


def work(
    want: Desired, have: Sequence[Container], previous: Previous | None, now: Now, boot: str
) -> Work | None:
    """Return what takes the containers named `want.full_name`, oldest first in `have`, to `want`; None for nothing."""
    if len(have) == 1 and _unchanged(want, have[0]):
        return None
    if not have:
        return _absent(want, previous, now, boot)
    keep = _keep(want, have)
    others = [container for container in have if container is not keep]
    down = tuple(step for container in others for step in take_down(container, keep_previous=True))
    if keep is None:
        return Work(down, bring_up(want, 0, 0))
    own = converge(want, keep, now, boot)
    return Work(down + own.down, own.up, own.repair, own.wait) if down or own != Work() else None


def take_down(have: Container, *, keep_previous: bool, grace: float | None = None) -> tuple[Step, ...]:
    """Stop and remove one container; `grace` in place of its own."""
    return (*stop(have, grace), RemoveContainer(have.app, have.name, have.id, keep_previous))


def stop(have: Container, grace: float | None = None) -> tuple[Step, ...]:
    """Stop one container. What has no program to ask, or no time, is killed without a signal or a grace period."""
    match have.phase:
        case Running():
            settings = have.settings
            if grace == 0:
                return (StopContainer(have.app, have.name, have.id, "SIGKILL", 0.0),)
            seconds = settings.stop_grace if grace is None else grace
            return (StopContainer(have.app, have.name, have.id, settings.stop_signal, seconds),)
        case Created() | Lost():
            return (StopContainer(have.app, have.name, have.id, "SIGKILL", 0.0),)
        case Exited():
            return ()
        case _:
            assert_never(have.phase)


def clear(want: Desired, have: Container, grace: float | None = None) -> tuple[Step, ...]:
    """Get one container out of the way of the next: one that keeps its id is made again where it is."""
    if want.id == have.id:
        return stop(have, grace)
    return take_down(have, keep_previous=True, grace=grace)


def _unchanged(want: Desired, have: Container) -> bool:
    """Return whether `have` runs as wanted: the path of nearly every container in nearly every turn."""
    return (
        type(have.phase) is Running
        and want.wish is None
        and have.fingerprint == want.fingerprint
        and have.attached
        and have.intact
        and (have.limits is None or have.limits == want.settings.limits)
        and (have.settings is want.settings or have.settings == want.settings)
    )


def _keep(want: Desired, have: Sequence[Container]) -> Container | None:
    """Return the container to go on with, if any is the right one: the oldest that runs, else the newest."""
    same = [container for container in have if container.fingerprint == want.fingerprint]
    for container in same:
        if isinstance(container.phase, Running):
            return container
    return same[-1] if same else None


def bring_up(want: Desired, attempt: int, restarts: int) -> tuple[Step, ...]:
    """Make it and start it."""
    return CreateContainer(want, attempt, restarts), StartContainer(want.app, want.name)


def _again(want: Desired, have: Container, attempt: int) -> Work:
    """Make the same container once more."""
    return Work(clear(want, have), bring_up(want, attempt, have.restarts + 1), repair=True)


def _absent(want: Desired, previous: Previous | None, now: Now, boot: str) -> Work:
    """There is none: a new one, or one whose predecessor was removed just before the agent was interrupted.

    A predecessor that had ended for good does not count: a container is only removed to make room for another, or with
    its app, which has since come back.
    """
    if previous is None or previous.fingerprint != want.fingerprint:
        return Work(up=bring_up(want, 0, 0))
    record = previous.record
    if record is None or previous.stopped:
        return Work(up=bring_up(want, previous.attempt, previous.restarts + 1), repair=True)
    policy = want.settings.restart
    due = next_start(policy, previous.attempt, record, name=want.full_name, boot=boot)
    if due is None:
        return Work(up=bring_up(want, 0, 0))
    attempt = next_attempt(policy, previous.attempt, record, boot=boot)
    if due > now.boottime:
        return Work(wait=_back_off(want, attempt, record, due, now))
    return Work(up=bring_up(want, attempt, previous.restarts + 1), repair=True)


def converge(want: Desired, have: Container, now: Now, boot: str) -> Work:
    """Take a container of the right fingerprint to where it should be.

    A lost one is made again whatever its policy: we do not know that its program came to an end, and a program that is
    to run once is rather run again than never to its end. There is no record to count by, so it waits for its first
    delay only, from its creation on: a shim that dies at once must not become a busy loop.
    """
    match have.phase:
        case Running():
            if not have.intact or (want.joins and not have.attached):
                return _again(want, have, have.attempt)
            return _update(want, have)
        case Created():
            if have.intact and have.attached and have.settings == want.settings:
                return Work(up=(StartContainer(want.app, want.name),), repair=True)
            return Work(clear(want, have), bring_up(want, have.attempt, have.restarts), repair=True)
        case Exited(record):
            return _ended(want, have, record, now, boot)
        case Lost(reason):
            wait = have.created + restart_delay(want.settings.restart, 1, want.full_name) - now.wall
            if have.created <= now.wall and wait > 0:
                text = f"lost right after it was made ({reason}), next start in {countdown(wait, 0.0)}"
                hint = f"run: reconciler logs {want.full_name}"
                return Work(wait=Blocked(want.app, want.name, text, now.boottime + wait, hint=hint))
            return _again(want, have, have.attempt)
        case _:
            assert_never(have.phase)


def _ended(want: Desired, have: Container, record: ExitRecord, now: Now, boot: str) -> Work:
    """The program ended by itself, or because a plan stopped it that was interrupted or taken back."""
    if have.stopped:
        return _again(want, have, have.attempt)
    policy = want.settings.restart
    due = next_start(policy, have.attempt, record, name=want.full_name, boot=boot)
    if due is None:
        if have.settled:
            return Work()
        return Work(up=(RecordExit(have.app, have.name, have.id),), repair=True)
    attempt = next_attempt(policy, have.attempt, record, boot=boot)
    if due > now.boottime:
        return Work(wait=_back_off(want, attempt, record, due, now))
    return _again(want, have, attempt)


def _back_off(want: Desired, attempt: int, record: ExitRecord, due: float, now: Now) -> Blocked:
    reason = f"back-off, {ordinal(attempt)} restart in {countdown(due, now.boottime)}, {ending(record)}"
    return Blocked(want.app, want.name, reason, due, hint=f"run: reconciler logs {want.full_name}")


def _update(want: Desired, have: Container) -> Work:
    """Name what differs and change it in place; a repair if only the kernel's side does, not the spec's."""
    changes = [name for name in _CHANGES if getattr(have.settings, name) != getattr(want.settings, name)]
    drift = not changes
    if "limits" not in changes and _drifted(have.limits, want.settings.limits):
        changes.insert(0, "limits")
    if not have.attached:
        changes.append("network")
    if not changes:
        return Work()
    step = UpdateContainer(
        have.app, have.name, have.id, want.settings, tuple(changes), reattach=not have.attached
    )
    return Work(up=(step,), repair=drift)


def _drifted(have: Limits | None, want: Limits) -> bool:
    return have is not None and have != want
