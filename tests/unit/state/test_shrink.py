"""The shrink guard."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.state.shrink import shrink_reason

NINE = frozenset(f"app{n}" for n in range(9))


def reason(
    known: frozenset[str],
    desired: frozenset[str],
    *,
    max_removed: float = 50,
    min_apps: int = 3,
    emptied: bool = False,
    allow: bool = False,
) -> str:
    return shrink_reason(
        known=known,
        desired=desired,
        max_removed=max_removed,
        min_apps=min_apps,
        emptied=emptied,
        allow=allow,
    )


def some(number: int) -> frozenset[str]:
    return frozenset(sorted(NINE)[:number])


def test_a_commit_that_deletes_everything_is_refused_with_the_remedy() -> None:
    assert reason(NINE, frozenset()) == (
        "refusing: the source removes 9 of 9 apps; if that is meant, run: reconciler apply --allow-empty"
    )


def test_more_than_the_allowed_part_is_refused_and_exactly_that_part_is_not() -> None:
    eight = some(8)
    assert reason(eight, some(4)) == ""
    assert reason(eight, some(3)).startswith("refusing: the source removes 5 of 8 apps")


def test_fewer_than_min_apps_never_trip_it() -> None:
    assert reason(some(3), some(1)) == ""
    assert reason(some(2), frozenset()) == ""
    assert reason(some(2), frozenset(), min_apps=0) != ""


def test_an_emptied_directory_always_trips_it() -> None:
    assert reason(some(1), frozenset(), emptied=True).startswith("refusing: the source removes 1 of 1 app;")
    assert reason(frozenset(), frozenset(), emptied=True) == ""


def test_the_operator_has_the_last_word() -> None:
    assert reason(NINE, frozenset(), emptied=True, allow=True) == ""


def test_apps_that_come_in_exchange_do_not_hide_those_that_go() -> None:
    assert reason(NINE, frozenset(f"new{n}" for n in range(9))) != ""


@given(st.sets(st.sampled_from(sorted(NINE))), st.sets(st.sampled_from(sorted(NINE))), st.integers(0, 100))
def test_adding_apps_is_never_refused(known: set[str], more: set[str], max_removed: int) -> None:
    assert reason(frozenset(known), frozenset(known | more), max_removed=max_removed, emptied=True) == ""
