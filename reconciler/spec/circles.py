"""Circles in a graph of names: who depends on itself in the end, and the shortest way round. Pure.

Iterative and linear: a chain of dependencies may be longer than Python's stack is deep, and its length is chosen by
whoever writes the specs.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping


def knots(edges: Mapping[str, Collection[str]]) -> list[frozenset[str]]:
    """Return the strongly connected components that hold a circle (Tarjan 1972), by their smallest name."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    open_nodes: list[str] = []
    is_open: set[str] = set()
    found: list[frozenset[str]] = []
    for start in edges:
        if start in order:
            continue
        work: list[tuple[str, Iterator[str]]] = []
        _enter(start, edges, order, low, open_nodes, is_open, work)
        while work:
            node, rest = work[-1]
            for after in rest:
                if after not in edges:
                    continue
                if after not in order:
                    _enter(after, edges, order, low, open_nodes, is_open, work)
                    break
                if after in is_open:
                    low[node] = min(low[node], order[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    members = {open_nodes.pop()}
                    while node not in members:
                        members.add(open_nodes.pop())
                    is_open -= members
                    if len(members) > 1 or node in edges[node]:
                        found.append(frozenset(members))
    return sorted(found, key=min)


def _enter(
    node: str,
    edges: Mapping[str, Collection[str]],
    order: dict[str, int],
    low: dict[str, int],
    open_nodes: list[str],
    is_open: set[str],
    work: list[tuple[str, Iterator[str]]],
) -> None:
    order[node] = low[node] = len(order)
    open_nodes.append(node)
    is_open.add(node)
    work.append((node, iter(edges[node])))


def way_round(start: str, knot: frozenset[str], edges: Mapping[str, Collection[str]]) -> list[str]:
    """Return a shortest circle through `start`, a member of `knot`; it begins with `start`."""
    came_from: dict[str, str] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for after in sorted(edges[node]):
            if after == start:
                path = [node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if after in knot and after not in came_from:
                came_from[after] = node
                queue.append(after)
    raise ValueError(f"{start} is on no circle")
