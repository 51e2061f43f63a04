"""The order in which containers start."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.order import reaches, start_order

graphs = st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdefz")))


def test_dependencies_come_first_and_the_alphabet_decides_the_rest() -> None:
    assert start_order({"web": ["db", "cache"], "db": [], "cache": ["db"], "api": ["nowhere"]}) == (
        "api", "db", "cache", "web",
    )  # fmt: skip


@given(graphs)
def test_every_container_is_in_the_order_once(graph: dict[str, set[str]]) -> None:
    assert sorted(start_order(graph)) == sorted(graph)


@given(graphs)
def test_only_edges_of_a_cycle_are_ignored(graph: dict[str, set[str]]) -> None:
    order = start_order(graph)
    for name, dependencies in graph.items():
        for dependency in dependencies & graph.keys():
            if order.index(dependency) > order.index(name):
                assert reaches(dependency, name, lambda n: graph.get(n, ()))


def test_a_thousand_containers_in_a_row_are_not_too_deep() -> None:
    chain = {f"c{n:04}": [f"c{n + 1:04}"] for n in range(5000)}
    assert start_order(chain)[0] == "c4999"


def test_reaching_through_others_and_through_cycles() -> None:
    graph = {"a": ["b"], "b": ["c", "a"], "c": []}
    assert reaches("a", "c", lambda n: graph.get(n, []))
    assert not reaches("c", "a", lambda n: graph.get(n, []))
