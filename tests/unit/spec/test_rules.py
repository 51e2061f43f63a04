"""Circles and ports against their definitions, and rules that a hostile file must not make slow."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec.circles import knots, way_round
from reconciler.spec.load import load
from reconciler.spec.rules import inside

NODES = st.sampled_from("abcdefg")
GRAPHS = st.dictionaries(NODES, st.lists(NODES, max_size=4), max_size=7)
IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64


def reachable(start: str, edges: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(edges.get(start, ()))
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += edges.get(node, ())
    return found


@given(GRAPHS)
def test_who_is_in_a_knot_reaches_itself_and_everybody_else_in_it(edges: dict[str, list[str]]) -> None:
    found = knots(edges)
    assert {node for knot in found for node in knot} == {
        node for node in edges if node in reachable(node, edges)
    }
    for knot in found:
        for node in knot:
            assert knot <= reachable(node, edges)
    assert sum(map(len, found)) == len(frozenset[str]().union(*found))
    assert found == sorted(found, key=min)


@given(GRAPHS)
def test_the_way_round_is_a_way_and_there_is_no_shorter_one(edges: dict[str, list[str]]) -> None:
    for knot in knots(edges):
        for start in knot:
            way = way_round(start, knot, edges)
            assert way[0] == start
            assert len(set(way)) == len(way)
            for node, after in zip(way, [*way[1:], start], strict=True):
                assert after in edges[node]
            frontier, steps = {start}, 0
            while True:
                frontier, steps = {after for node in frontier for after in edges.get(node, ())}, steps + 1
                if start in frontier:
                    break
            assert len(way) == steps


def test_somebody_on_no_circle_has_no_way_round() -> None:
    with pytest.raises(ValueError, match="a is on no circle"):
        way_round("a", frozenset("a"), {"a": ["b"], "b": []})


ADDRESSES = st.sampled_from(["0.0.0.0", "127.0.0.1", "10.0.0.1"])


@given(
    st.lists(st.lists(st.tuples(ADDRESSES, st.sampled_from([80, 81])), max_size=3), min_size=1, max_size=5)
)
def test_a_port_is_refused_exactly_where_another_overlaps(apps: list[list[tuple[str, int]]]) -> None:
    files = {}
    for number, ports in enumerate(apps):
        shown = ", ".join(f"'{address}:{port}:80'" for address, port in ports)
        files[f"{number}.yaml"] = spec(f"app-{number}", f"    ports: [{shown}]\n").encode()
    wrong = {
        (f"{number}.yaml", index)
        for number, ports in enumerate(apps)
        for index, (address, port) in enumerate(ports)
        for other, others in enumerate(apps)
        for place, (its, same) in enumerate(others)
        if (other, place) != (number, index)
        and port == same
        and (address == its or "0.0.0.0" in (address, its))
    }
    loaded = load(files, read)
    assert len(loaded.problems) == len(wrong)
    assert set(loaded.failed) == {path for path, _ in wrong}
    for problem in loaded.problems:
        assert "is published" in problem.message
        assert problem.message.count("app-") >= (1 if "twice" in problem.message else 2)


def test_many_rivals_are_counted_not_listed() -> None:
    files = {f"{i}.yaml": spec(f"app-{i}", "    ports: ['80:80']\n").encode() for i in range(10)}
    first = load(files, read).problems[0].message
    assert first == "port 80/tcp of app-0/a is published by app-1/a, app-2/a, app-3/a and 6 more too"


def test_a_long_way_round_is_shortened() -> None:
    text = "containers:\n" + "".join(
        f"  c{i}: {{image: '{IMAGE}', limits: {{memory: 64Mi}}, depends_on: [c{(i + 1) % 30}]}}\n"
        for i in range(30)
    )
    (problem,) = load(
        {"a.yaml": f"apiVersion: reconciler/v1\nkind: App\nname: a\n{text}".encode()}, read
    ).problems
    assert problem.message.endswith(
        "a/c0 -> a/c1 -> a/c2 -> a/c3 -> a/c4 -> a/c5 -> (23 more) -> a/c29 -> a/c0"
    )


@pytest.mark.parametrize(
    ("path", "allowed", "expected"),
    [
        ("/srv", ["/srv"], True),
        ("/srv/x", ["/srv"], True),
        ("/srv-private", ["/srv"], False),
        ("/", ["/srv"], False),
        ("/etc", ["/"], True),
        ("/srv", [], False),
    ],
)
def test_a_path_is_inside_component_by_component(path: str, allowed: list[str], expected: bool) -> None:
    assert inside(path, allowed) == expected


def read(name: str) -> bytes:
    raise FileNotFoundError(name)


def spec(name: str, extra: str = "") -> str:
    return (
        f"apiVersion: reconciler/v1\nkind: App\nname: {name}\ncontainers:\n  a:\n    image: {IMAGE}\n"
        f"    limits: {{memory: 64Mi}}\n{extra}"
    )


def listed(pattern: str, count: int) -> str:
    return "[" + ", ".join(pattern.replace("#", str(i)) for i in range(count)) + "]"


def dense(count: int, width: int) -> str:
    body = "".join(
        f"  c{i}: {{<<: *a, depends_on: [{', '.join(f'c{(i + j) % count}' for j in range(1, width))}]}}\n"
        for i in range(count)
    )
    return f"apiVersion: reconciler/v1\nkind: App\nname: a\nx-a: &a {{image: '{IMAGE}'}}\ncontainers:\n{body}"


@pytest.mark.parametrize(
    "text",
    [
        spec("a", "".join(f"    enviromint{i}: 1\n" for i in range(4900))),
        spec("a", f"    ports: {listed('x', 9000)}\n"),
        spec("a", f"    ports: {listed(repr('80:80'), 9000)}\n"),
        spec(
            "a",
            f"    ports: {listed(repr('127.0.0.1:80:80'), 4500)[:-1]}, {listed(repr('80:80'), 4400)[1:]}\n",
        ),
        spec("a", f"    volumes: {listed(repr('/a:/b'), 9000)}\n"),
        spec("a", f"    volumes: {listed(repr('a#:/b#'), 9000)}\n"),
        spec("a", f"    depends_on: {listed('x#', 9000)}\n"),
        spec("a", f"    environment: {listed('x', 9000)}\n"),
        spec("a", f"    command: {listed('1', 9000)}\n"),
        dense(120, 60),
        spec("a", "    " + "y" * 900_000 + ": 1\n"),
    ],
    ids=[
        "keys",
        "bad-ports",
        "same-ports",
        "overlapping",
        "binds",
        "volumes",
        "dependencies",
        "env",
        "command",
        "knot",
        "key",
    ],
)
def test_y1_a_flood_of_mistakes_is_cut_short(text: str, patience: float) -> None:
    started = time.process_time()
    loaded = load({"a.yaml": text.encode()}, read)
    shown = [str(problem) for problem in loaded.problems]
    assert time.process_time() - started < 1.0 * patience
    assert list(loaded.failed) == ["a.yaml"]
    assert len(shown) <= 202
    assert max(map(len, shown)) < 1000


def test_a_flood_across_files_is_cut_short_too(patience: float) -> None:
    files = {
        f"{i}.yaml": spec(
            f"app-{i}",
            f"    ports: ['80:80', '10.0.{i // 250}.{i % 250}:80:81']\n    depends_on: [app-{(i + 1) % 1000}/a]\n",
        ).encode()
        for i in range(1000)
    }
    cache: dict[object, object] = {}
    load({}, read, cache=cache)
    started = time.process_time()
    loaded = load(files, read, cache=cache)
    assert time.process_time() - started < 3.0 * patience
    assert len(loaded.failed) == 1000
