"""Dependencies: in which order containers start, and which of them would wait for each other for ever.

Names are plain strings and edges a mapping from a name to what it depends on. A cycle never deadlocks: the edge that
closes it is ignored, always the same one. Pure.
"""

from collections.abc import Callable, Iterable, Mapping


def start_order(depends_on: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return every key, each after those of its dependencies that are keys; alphabetical where there is a choice."""
    order: list[str] = []
    seen: set[str] = set()
    for root in sorted(depends_on):
        if root in seen:
            continue
        seen.add(root)
        pending = [(root, iter(sorted(depends_on[root])))]
        while pending:
            name, rest = pending[-1]
            for dependency in rest:
                if dependency in depends_on and dependency not in seen:
                    seen.add(dependency)
                    pending.append((dependency, iter(sorted(depends_on[dependency]))))
                    break
            else:
                order.append(name)
                pending.pop()
    return tuple(order)


def reaches(start: str, goal: str, depends_on: Callable[[str], Iterable[str]]) -> bool:
    """Return whether `start` is `goal` or depends on it, directly or through others."""
    seen = {start}
    pending = [start]
    while pending:
        name = pending.pop()
        if name == goal:
            return True
        for dependency in depends_on(name):
            if dependency not in seen:
                seen.add(dependency)
                pending.append(dependency)
    return False
