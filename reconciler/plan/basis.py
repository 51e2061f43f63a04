"""What of a plan follows from the desired state and the kept generations alone, and need not be found out every turn.

A basis knows which values it was made from: a plan takes it only for those very objects, so that an old one can cost
time but never change a plan. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconciler.plan import reserve
from reconciler.plan.garbage import Retention, Roots, roots
from reconciler.plan.ports import Claims, order
from reconciler.plan.steps import Blocked
from reconciler.state.desired import App, Container, Desired
from reconciler.state.generation import Generation
from reconciler.state.observed import Published


@dataclass(frozen=True, slots=True)
class Basis:
    """`rows` are the ports that are wanted, sorted; `undisputed` that no two of them exclude each other; `reserves`
    that somebody reserves something.

    `by_hand` are the containers with ports of which people want something by hand, by full name. `waiting` are the apps
    that have nothing that could run, since no image of theirs is known, with the sentences that say so; `roots` is what
    the store must keep for what should run, and for the generations.
    """

    desired: Desired
    generations: Sequence[Generation]
    retention: Retention
    rows: tuple[Published, ...]
    undisputed: bool
    reserves: bool
    by_hand: Mapping[str, Container]
    waiting: Mapping[str, tuple[Blocked, ...]]
    roots: Roots


def basis(
    desired: Desired,
    generations: Sequence[Generation],
    retention: Retention,
    known: Basis | None = None,
) -> Basis:
    """Return the basis for these values, which is `known` if that is made from the same objects."""
    if (
        known is not None
        and known.desired is desired
        and known.generations is generations
        and known.retention == retention
    ):
        return known
    rows = tuple(
        sorted(
            (
                Published(app.name, container.name, port)
                for app in desired.apps.values()
                for container in app.containers.values()
                for port in container.settings.ports
            ),
            key=order,
        )
    )
    claims = Claims.start((), ())
    return Basis(
        desired=desired,
        generations=generations,
        retention=retention,
        rows=rows,
        reserves=any(
            reserve.wanted(container.settings.limits)
            for app in desired.apps.values()
            for container in app.containers.values()
        ),
        undisputed=not any([claims.claim(row) for row in rows]),
        by_hand={
            want.full_name: want
            for app in desired.apps.values()
            for want in app.containers.values()
            if want.wish is not None and want.settings.ports
        },
        waiting={
            name: unresolved(app)
            for name, app in desired.apps.items()
            if app.unresolved and not app.containers
        },
        roots=roots(desired, generations, retention),
    )


TRY_NOW = "to try now: reconciler apply"


def unresolved(app: App) -> tuple[Blocked, ...]:
    """Return the sentences about the images that the app waits for."""
    return tuple(
        Blocked(app.name, item.container, f"{item.reference}: {item.unresolved.reason}", hint=TRY_NOW)
        for item in app.unresolved
    )
