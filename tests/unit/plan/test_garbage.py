"""What the store may lose, and the reason that is given for every object."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.diff import plan
from reconciler.plan.garbage import Explained, Retention, explain, garbage
from reconciler.plan.steps import CollectGarbage
from reconciler.state.desired import App, Desired, UnresolvedImage
from reconciler.state.generation import Generation
from reconciler.state.image import Image, Unresolved
from reconciler.state.observed import Container, Networks, Store, StoredObject
from tests import values
from tests.values import IMAGES, NOW, generation, later

OLD = NOW.wall - 90_000.0
GIB = 1 << 30


def documents(image: Image, *, age: float = 90_000.0) -> list[StoredObject]:
    """Everything of an image that a store may hold."""
    used = NOW.wall - age
    digests = [str(image.index), str(image.manifest), str(image.config)]
    return [
        *(StoredObject(kind, digest, 1000, used) for kind in ("blob", "image") for digest in digests),
        *(StoredObject("blob", str(layer.digest), layer.size, used) for layer in image.layers),
        *(StoredObject("layer", layer.chain_id.hex, 3 * layer.size, used) for layer in image.layers),
    ]


def explained(
    objects: list[StoredObject],
    *,
    desired: Desired = Desired({}),  # noqa: B008 - frozen
    containers: tuple[Container, ...] = (),
    generations: tuple[Generation, ...] = (),
    retention: Retention = Retention(),  # noqa: B008 - frozen
    free: int = 0,
    size: int = 0,
) -> dict[tuple[str, str], Explained]:
    layers = frozenset(item.name for item in objects if item.kind == "layer")
    store = Store(layers, tuple(objects), free, size)
    found = {c.full_name: (c,) for c in containers}
    result = explain(store, desired, found, generations, retention, NOW)
    assert sorted((e.object.kind, e.object.name) for e in result) == sorted((o.kind, o.name) for o in objects)
    return {(e.object.kind, e.object.name): e for e in result}


def kept_kinds(result: dict[tuple[str, str], Explained], image: Image) -> set[str]:
    """The kinds of what stays of an image, its compressed layers as `packed`."""
    packed = {str(layer.digest) for layer in image.layers}
    return {
        "packed" if name in packed else kind
        for (kind, name), e in result.items()
        if e.kept and any(item.name == name and item.kind == kind for item in documents(image))
    }


WEB = values.app("web", values.container("web", "site"))


def test_a_wanted_image_keeps_its_documents_and_layers_but_not_what_it_was_unpacked_from() -> None:
    result = explained(documents(IMAGES[0]), desired=values.desired(WEB))
    assert kept_kinds(result, IMAGES[0]) == {"blob", "image", "layer"}
    assert {e.reason for e in result.values() if e.kept} == {"web/site should run it"}
    with_blobs = explained(
        documents(IMAGES[0]), desired=values.desired(WEB), retention=Retention(keep_blobs=True)
    )
    assert all(e.kept for e in with_blobs.values())


def test_a_packed_layer_that_is_not_unpacked_yet_is_kept() -> None:
    packed = StoredObject("blob", str(IMAGES[0].layers[0].digest), 1000, OLD)
    assert explained([packed], desired=values.desired(WEB))["blob", packed.name].kept


def test_a_container_keeps_what_it_was_made_from() -> None:
    one = values.found(values.container("web", "site"))
    result = explained(documents(IMAGES[0]), containers=(one,))
    assert result["layer", one.layers[0]].reason == f"container web/site ({one.id[:12]}) uses it"
    assert result["blob", one.image].kept
    assert not result["blob", str(IMAGES[0].manifest)].kept


def test_the_newest_generations_keep_their_images_for_the_way_back() -> None:
    apps = [values.app("web", values.container("web", "site", image=image)) for image in IMAGES]
    generations = tuple(generation(n, app) for n, app in enumerate(apps, 1))
    objects = [StoredObject("layer", i.layers[1].chain_id.hex, 1000, OLD) for i in IMAGES]
    result = explained(objects, generations=generations, retention=Retention(keep_generations=2))
    assert [result["layer", item.name].kept for item in objects] == [False, True, True]
    assert result["layer", objects[2].name].reason == "generation 3 needs it for web"
    assert result["layer", objects[0].name].reason == "nothing wants it, unused for 1 d"


def test_what_an_app_with_unknown_needs_wanted_last_is_kept_however_old() -> None:
    generations = tuple(
        generation(n, values.app("web", values.container("web", "site", image=IMAGES[n % 2])))
        for n in range(1, 10)
    )
    objects = [StoredObject("layer", i.layers[1].chain_id.hex, 1000, OLD) for i in IMAGES]
    unresolved = App(
        "web", "web.yaml", "spec-2", {}, unresolved=(UnresolvedImage("site", "x", Unresolved("down")),)
    )
    for desired in (
        Desired({"web": unresolved}),
        Desired({}, held={"web": "its file can't be read"}),
        Desired({}, hold_all="the directory is empty"),
    ):
        result = explained(
            objects, desired=desired, generations=generations, retention=Retention(keep_generations=0)
        )
        assert [result["layer", item.name].kept for item in objects] == [False, True, False]
    none = explained(objects, generations=generations, retention=Retention(keep_generations=0))
    assert not any(e.kept for e in none.values())


def test_the_document_of_an_image_that_is_being_resolved_is_kept() -> None:
    reference = f"registry.example/web@{IMAGES[2].index}"
    unresolved = App(
        "web", "web.yaml", "spec-2", {}, unresolved=(UnresolvedImage("site", reference, Unresolved("wait")),)
    )
    name = str(IMAGES[2].index)
    result = explained([StoredObject("blob", name, 1000, OLD)], desired=Desired({"web": unresolved}))
    assert result["blob", name].kept


def test_logs_of_the_run_before_go_with_their_container() -> None:
    objects = [StoredObject("previous", name, 1000, OLD) for name in ("web/site", "web/gone", "held/site")]
    held = values.found(values.container("held", "site"))
    desired = Desired({"web": WEB}, held={"held": "its file can't be read"})
    result = explained(objects, desired=desired, containers=(held,))
    assert [result["previous", item.name].kept for item in objects] == [True, False, True]


def test_age_protects_and_says_for_how_long() -> None:
    young = StoredObject("layer", "aa", 1000, NOW.wall - 600.0)
    kept = explained([young])["layer", "aa"]
    assert (kept.kept, kept.reason) == (True, "nothing wants it, kept for another 50 min")
    made = plan(Desired({}), values.world(store=Store(frozenset({"aa"}), (young,))), NOW)
    assert made.wake_at is not None
    assert abs(made.wake_at - later(3000.0).boottime) < 0.01


def test_a_clock_that_went_back_collects_nothing() -> None:
    assert explained([StoredObject("layer", "aa", 1000, NOW.wall + 10**9)])["layer", "aa"].kept


def test_a_full_disk_takes_unwanted_objects_oldest_first_until_there_is_room() -> None:
    objects = [
        StoredObject("layer", name, GIB, NOW.wall - age)
        for name, age in zip("abcd", (10, 40, 30, 20), strict=True)
    ]
    result = explained(objects, size=20 * GIB, free=GIB * 2)
    assert {name for (_, name), e in result.items() if not e.kept} == {"b", "c", "d"}
    assert result["layer", "b"].reason == "nothing wants it, 90 % of the disk is used, more than 85 %"
    fine = explained(objects, size=20 * GIB, free=GIB * 4)
    assert all(e.kept for e in fine.values())


def test_too_little_free_space_counts_on_a_small_disk_that_is_not_full() -> None:
    objects = [StoredObject("layer", "a", 100 << 20, NOW.wall)]
    result = explained(objects, size=GIB, free=400 << 20)
    assert not result["layer", "a"].kept
    assert "bytes are free, less than" in result["layer", "a"].reason


def test_old_objects_count_towards_the_room_that_is_needed() -> None:
    objects = [StoredObject("layer", "old", 10 * GIB, OLD), StoredObject("layer", "young", GIB, NOW.wall)]
    result = explained(objects, size=20 * GIB, free=GIB * 2)
    assert (result["layer", "old"].kept, result["layer", "young"].kept) == (False, True)


@given(st.sets(st.sampled_from(IMAGES)), st.booleans(), st.sampled_from([0, 20 * GIB]))
def test_under_any_pressure_only_the_unwanted_goes(wanted: set[Image], running: bool, size: int) -> None:
    objects = list({(o.kind, o.name): o for i in IMAGES for o in documents(i, age=10.0)}.values())
    containers = [values.container("web", f"c{n}", image=i) for n, i in enumerate(sorted(wanted, key=str))]
    app = values.app("web", *containers)
    result = explained(
        objects,
        desired=Desired({}) if running else values.desired(app),
        containers=tuple(values.found(c) for c in containers) if running else (),
        size=size,
    )
    layers = {layer.chain_id.hex for image in wanted for layer in image.layers}
    assert not layers & {g.name for g in garbage(result.values())}


def test_garbage_is_planned_last_and_a_collected_store_is_left_alone() -> None:
    one = values.container("web", "site", image=IMAGES[1])
    want = values.desired(values.app("web", one))
    store = Store(values.chain_ids(IMAGES[:1]), tuple(documents(IMAGES[0])))
    have = values.world(store=store, network=Networks())
    made = plan(want, have, NOW)
    assert isinstance(made.steps[-1], CollectGarbage)
    assert plan(want, values.turn(want, have), NOW).steps == ()


def test_gc_after_a_restart_of_the_agent_frees_exactly_the_unused() -> None:
    """nomad#26452, IoTEdge#6769, coolify#8765: everything the answer depends on is an argument read from disk."""
    want = values.desired(WEB)
    objects = [item for image in IMAGES for item in documents(image)]
    have = values.world(values.found(WEB.containers["site"]), store=Store(values.chain_ids(), tuple(objects)))
    generations = (generation(1, values.app("web", values.container("web", "site", image=IMAGES[1]))),)
    first = plan(want, have, NOW, generations=generations)
    assert first == plan(want, replace(have), NOW, generations=generations)
    (step,) = first.steps
    assert isinstance(step, CollectGarbage)
    unused = {layer.chain_id.hex for layer in IMAGES[2].layers} - values.chain_ids(IMAGES[:2])
    assert {item.name for item in step.objects if item.kind == "layer"} == unused


def test_a_name_given_by_hand_keeps_an_image_as_long_as_there_is_room() -> None:
    objects = documents(IMAGES[0]) + documents(IMAGES[1], age=60.0)
    names = (("localhost/mine:1", IMAGES[0]),)
    layers = frozenset(item.name for item in objects if item.kind == "layer")

    def look(free: int) -> tuple[Explained, ...]:
        store = Store(layers, tuple(objects), free, 100 * GIB, names)
        return explain(store, Desired({}), {}, (), Retention(), NOW)

    mine = {item.name for item in documents(IMAGES[0]) if item.kind != "blob"}
    calm = {e.object.name: e for e in look(90 * GIB)}
    assert all(calm[name].kept for name in mine)
    assert "localhost/mine:1" in calm[str(IMAGES[0].manifest)].reason
    full = {e.object.name: e for e in look(GIB)}
    assert not any(full[name].kept for name in mine)
    assert "of the disk is used" in full[str(IMAGES[0].manifest)].reason
