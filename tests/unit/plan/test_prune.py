"""What a prune takes: never anything that a root reaches, whatever is in the store."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan import garbage, prune
from reconciler.plan.garbage import Retention
from reconciler.state.desired import Desired
from reconciler.state.image import Image
from reconciler.state.observed import Store, StoredObject
from tests import values
from tests.values import NOW, generation

BASE = [
    values.image(f"i{number}", "base", *layers)
    for number, layers in enumerate((("a",), ("a", "b"), ("c",), ()))
]
DAY = 86_400.0


def everything(images: Sequence[Image], age: float = DAY) -> dict[prune.Key, StoredObject]:
    """A store that holds all of `images`, packed and unpacked."""
    return {
        key: StoredObject(*key, 1000, NOW.wall - age) for image in images for key in prune.objects_of(image)
    }


def store_of(objects: dict[prune.Key, StoredObject], tagged: dict[str, Image] | None = None) -> Store:
    layers = frozenset(name for kind, name in objects if kind == "layer")
    return Store(layers, tuple(objects.values()), tagged=tuple((tagged or {}).items()))


def marks(store: Store, desired: Desired, *generations: int) -> tuple[garbage.Wanted, garbage.Wanted]:
    made = tuple(
        generation(number, values.app("web", values.container("web", "old", image=BASE[number])))
        for number in generations
    )
    retention = Retention()
    return garbage.mark(store, desired, {}, made, retention), garbage.mark_named(store, retention)


ANY = prune.Filter()
SETS = st.sets(st.integers(0, 3))


@given(
    here=SETS,
    wanted=SETS,
    named=SETS,
    back=SETS,
    lost=st.sets(st.integers(0, 40)),
    all_of_them=st.booleans(),
    until=st.none() | st.floats(0, 3 * DAY),
)
def test_what_something_needs_is_never_taken(
    here: set[int],
    wanted: set[int],
    named: set[int],
    back: set[int],
    lost: set[int],
    all_of_them: bool,
    until: float | None,
) -> None:
    objects = everything(BASE)
    keys = list(objects)
    for position in lost:
        objects.pop(keys[position % len(keys)], None)
    tagged = {f"localhost/n{number}:1": BASE[number] for number in named & here}
    store = store_of(objects, tagged)
    desired = values.desired(
        values.app("web", *(values.container("web", f"c{n}", image=BASE[n]) for n in sorted(wanted)))
    )
    roots, by_name = marks(store, desired, *back)
    which = prune.Filter(until=None if until is None else NOW.wall - until)
    found = [BASE[number] for number in sorted(here | wanted)]
    going = prune.images(store, found, {}, roots, by_name, which, everything=all_of_them)
    taken = [key for item in going for key in item.objects]
    assert len(taken) == len(set(taken)), "nothing is counted twice"
    assert not set(taken) & roots.keys()
    if not all_of_them:
        assert not set(taken) & by_name.keys()
    if until is not None:
        assert all(objects[key].last_used < NOW.wall - until for key in taken)
    elif all_of_them:
        assert set(taken) == objects.keys() - roots.keys(), "and everything else is"
    # What remains of an image that stays is what a container of it needs
    for number in wanted:
        layers = {("layer", layer.chain_id.hex) for layer in BASE[number].layers}
        assert not layers & set(taken)


def test_an_image_that_a_filter_spares_keeps_the_layers_that_it_shares() -> None:
    objects = everything(BASE[:2])
    spared = replace(BASE[1], labels=(("keep", "yes"),))
    store = store_of(objects)
    roots, named = marks(store, Desired({}))
    which = prune.Filter(without=(("keep", None),))
    going = prune.images(store, [BASE[0], spared], {}, roots, named, which, everything=True)
    taken = {key for item in going for key in item.objects}
    assert taken
    assert not taken & set(prune.objects_of(spared))


def test_a_removed_image_leaves_what_others_share() -> None:
    store = store_of(everything(BASE))
    gone = prune.image_removal(BASE[1], BASE, store, {})
    shared = {key for other in (BASE[0], BASE[2], BASE[3]) for key in prune.objects_of(other)}
    assert set(gone) == set(prune.objects_of(BASE[1])) - shared
    assert ("layer", BASE[1].layers[-1].chain_id.hex) in gone


def test_labels_are_all_asked_for_and_none_may_be_there_that_is_not_wanted() -> None:
    labels = (("a", "1"), ("b", "2"))
    for which, lets in (
        (prune.Filter(labels=(("a", None), ("b", "2"))), True),
        (prune.Filter(labels=(("a", "2"),)), False),
        (prune.Filter(without=(("a", "2"),)), True),
        (prune.Filter(without=(("c", None), ("b", None))), False),
        (prune.Filter(until=5.0), False),
        (prune.Filter(until=11.0), True),
    ):
        assert which.lets(10.0, labels) is lets


def test_a_volume_goes_only_where_nothing_mounts_declares_or_may_come_back_to_it() -> None:
    free = prune.Volume("gone", "data", 10, 1.0)
    others = [
        prune.Volume("web", "mounted", 1, 1.0, users=("web/main",)),
        prune.Volume("web", "declared", 1, 1.0, declared=True),
        prune.Volume("old", "data", 1, 1.0),
    ]
    nameless = prune.Volume("adhoc", "0123456789abcdef", 5, 1.0, anonymous=True)
    back = [generation(1, values.app("old", values.container("old", "main")))]
    found = [free, nameless, *others]
    gentle = prune.volumes(found, back, ANY, everything=False)
    assert [item.name for item in gentle] == ["adhoc/0123456789abcdef"]
    assert [item.name for item in prune.volumes(found, back, ANY, everything=True)] == [
        "gone/data",
        "adhoc/0123456789abcdef",
    ]


def test_the_runs_of_containers_that_are_wanted_stay() -> None:
    objects = {("previous", name): StoredObject("previous", name, 10, 1.0) for name in ("web/main", "gone/x")}
    store = store_of(objects)
    roots, _ = marks(store, values.desired(values.app("web", values.container("web", "main"))))
    assert [item.name for item in prune.runs(store, roots, ANY)] == ["gone/x"]


def test_containers_go_by_age_and_label_of_their_own() -> None:
    found = [
        prune.Stopped("old", 1, 10.0, "it ended with 0", (("a", "1"),)),
        prune.Stopped("new", 2, 20.0, "it was never started"),
    ]
    assert [item.name for item in prune.containers(found, prune.Filter())] == ["old", "new"]
    assert [item.name for item in prune.containers(found, prune.Filter(until=20.0))] == ["old"]
    assert [item.name for item in prune.containers(found, prune.Filter(without=(("a", None),)))] == ["new"]
    [going] = prune.containers(found, prune.Filter(labels=(("a", "1"),)))
    assert (going.key, going.size, going.reason) == (("container", "old"), 1, "it ended with 0")
