"""Containers in the network of another one: they come up after it, and never live on in a namespace that it has left.

A network namespace is its container's own, and new with each of its processes. So who has joined one is stopped before
that is made anew, made anew after it, and stopped as well where the other one does not come back for now: what it says
would go out by an address that is about to be somebody else's. Within a lane both happen in one go; an ad-hoc container
follows the one that it joined by what it finds. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reconciler.plan.needs import Found
from reconciler.plan.steps import Blocked, Step, StopContainer
from reconciler.plan.work import Work, bring_up, clear, stop
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import App, called
from reconciler.state.desired import Container as Wanted
from reconciler.state.observed import Container, Created, Observed, Running
from reconciler.state.wish import Goal


def owner(joins: str, observed: Observed) -> Sequence[Container]:
    """Return the containers that are meant by `joins`, oldest first."""
    if not joins.startswith(f"{ADHOC}/"):
        return observed.containers.get(joins, ())
    return [have for same in observed.containers.values() for have in same if have.joined_as == joins]


def _runs(found: Iterable[Container]) -> bool:
    return any(isinstance(have.phase, Running) for have in found)


def _in_it(have: Container) -> bool:
    """Whether something of it is in the namespace, or keeps it."""
    return isinstance(have.phase, Running | Created)


def follow(
    want: Wanted, todo: Work, found: Sequence[Container], allowed: Mapping[str, Work], app: App, there: Found
) -> Work:
    """Return the work for a container that joins another one, given what happens to that one in the same lane."""
    name = _within(want, app)
    other = allowed.get(name)
    if other is None or not _ends(other, there.get(name, ())):
        return todo
    if todo.creates or (want.wish is not None and want.wish.goal is not Goal.RUNNING):
        return replace(todo, follows=name)
    same = [have for have in found if have.fingerprint == want.fingerprint and _in_it(have)]
    if not same:
        return todo
    have = same[-1]
    down = tuple(step for step in todo.down if step not in stop(have))
    up = bring_up(want, have.attempt, have.restarts + 1)
    return Work(down + clear(want, have), up, repair=True, follows=name)


def _within(want: Wanted, app: App) -> str:
    """The name of the one that it joins, where that is of the same lane; "" for none."""
    prefix = f"{app.name}/"
    return want.joins[len(prefix) :] if want.joins.startswith(prefix) and not app.only else ""


def _ends(todo: Work, found: Sequence[Container]) -> bool:
    """Whether the namespace of the container that runs, or of the last one, is not there any more after this."""
    running = {have.id for have in found if isinstance(have.phase, Running)}
    if not running:
        return todo.creates
    return any(isinstance(step, StopContainer) and step.id in running for step in todo.down)


def waits(
    want: Wanted, todo: Work, allowed: Mapping[str, Work], app: App, observed: Observed
) -> Blocked | None:
    """Return what says that it can't come up, as the container whose network it joins does not before in this lane."""
    if not want.joins or not (todo.starts or todo.creates):
        return None
    name, found = _within(want, app), owner(want.joins, observed)
    other = allowed.get(name, Work())
    if other.starts or (_runs(found) and not _ends(other, found)):
        return None
    owner_app, _, plain = want.joins.partition("/")
    shown = called(owner_app, plain)
    reason, hint = f"waits for {shown}, whose network it joins", f"reconciler status {owner_app}"
    if owner_app == ADHOC and found:
        shown = found[-1].name
        reason, hint = f"waits for {shown}, whose network it joins", f"reconciler start {shown}"
    elif owner_app == ADHOC:
        reason = f"the container {plain[:12]}, whose network it joins, is gone"
        hint = f"reconciler rm {want.name}"
    return Blocked(app.name, want.name, reason, hint=f"run: {hint}")


def leave(allowed: Mapping[str, Work], app: App, found: Found, observed: Observed) -> dict[str, Work]:
    """Return the same work, with what has to leave a namespace first: before that ends, and where it has already."""
    result = dict(allowed)
    for name, want in app.containers.items():
        if name in result or not want.joins:
            continue
        lost = [
            have
            for have in found.get(name, ())
            if _in_it(have) and have.joins and not (have.attached and _runs(owner(have.joins, observed)))
        ]
        if lost:
            result[name] = Work(tuple(step for have in lost for step in stop(have)), repair=True)
    inside: dict[str, list[Container]] = {}
    for same in found.values():
        for have in same:
            if have.joins and _in_it(have):
                inside.setdefault(have.joins, []).append(have)
    for name, todo in allowed.items():
        full_name = f"{app.name}/{name}"
        if full_name in inside and _ends(todo, found.get(name, ())):
            first = tuple(step for have in inside[full_name] for step in stop(have))
            result[name] = replace(todo, down=first + todo.down)
    return result


def once(steps: Sequence[Step], more: Iterable[Step]) -> list[Step]:
    """Return what of `more` is still to do after `steps`: what is stopped need not be stopped again."""
    stopped = {step.id for step in steps if isinstance(step, StopContainer)}
    return [step for step in more if not (isinstance(step, StopContainer) and step.id in stopped)]
