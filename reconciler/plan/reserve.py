"""Who may reserve what: all together not more than the device has. Pure.

Those that run with what they reserved keep it; the others follow by name, and one that does not fit waits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final

from reconciler.spec.quantity import format_bytes, format_cpus
from reconciler.state.desired import Desired, Limits
from reconciler.state.observed import Container, Observed, Running

Found = Mapping[str, Mapping[str, Sequence[Container]]]

_NAMED: Final = 3


def refused(desired: Desired, observed: Observed, found: Found, untouched: Set[str]) -> dict[str, str]:
    """Return, by full name, why a container can't have what it reserves."""
    capacity = observed.capacity
    claims = sorted(_claims(desired, found, untouched), key=lambda claim: claim[:2])
    reasons: dict[str, str] = {}
    if capacity.memory:
        _share(claims, lambda limits: limits.reserve_memory, capacity.memory, "memory", format_bytes, reasons)
    if capacity.cpus:
        _share(claims, lambda limits: limits.reserve_cpus, capacity.cpus, "cpus", format_cpus, reasons)
    return reasons


def _share(
    claims: Iterable[tuple[bool, str, Limits]],
    amount: Callable[[Limits], int],
    total: int,
    kind: str,
    shown: Callable[[int], str],
    reasons: dict[str, str],
) -> None:
    left = total
    holders: list[str] = []
    for _, name, limits in claims:
        asked = amount(limits)
        if not asked:
            continue
        if asked <= left:
            left -= asked
            holders.append(f"{name} {shown(asked)}")
            continue
        others = ", ".join(holders[:_NAMED]) + (
            f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
        )
        taken = f": reserved are {others}" if others else ""
        reasons.setdefault(
            name,
            f"reserve.{kind}: {shown(asked)} is more than the {shown(left)} that are left of {shown(total)}{taken}",
        )


def _claims(desired: Desired, found: Found, untouched: Set[str]) -> Iterable[tuple[bool, str, Limits]]:
    """Yield who reserves something, and before it whether it has that yet: False sorts first."""
    for name in untouched:
        for same in found.get(name, {}).values():
            for have in same:
                if isinstance(have.phase, Running) and wanted(have.settings.limits):
                    yield False, have.full_name, have.settings.limits
    for app in desired.apps.values():
        if app.lane in untouched:
            continue
        for want in app.containers.values():
            limits = want.settings.limits
            if wanted(limits):
                same = found.get(app.lane, {}).get(want.name, ())
                yield not any(_has(have, limits) for have in same), want.full_name, limits


def wanted(limits: Limits) -> bool:
    """Say whether anything is reserved."""
    return bool(limits.reserve_cpus or limits.reserve_memory)


def _has(have: Container, limits: Limits) -> bool:
    own = have.settings.limits
    return (
        isinstance(have.phase, Running)
        and own.reserve_cpus >= limits.reserve_cpus
        and own.reserve_memory >= limits.reserve_memory
    )
