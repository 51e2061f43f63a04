"""A container in the network of another one never outlives the namespace that it joined, whoever ends that and when."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from reconciler.plan.diff import plan
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import App, Container, Desired, RestartPolicy, Settings
from reconciler.state.observed import Container as Found
from reconciler.state.observed import Created, Exited, Failure, Lost, Observed, Running
from reconciler.state.wish import Goal, Wish
from tests import values
from tests.values import NOW, found, later, record, settle, turn, world

WEB = values.container("web", "page", settings=Settings(restart=RestartPolicy(delay=5.0, jitter=0.0)))
LOG = values.container(
    "web", "log", settings=Settings(depends_on=("web/page",)), network_mode="container:web/page"
)
APP = values.app("web", WEB, LOG)
WANT = values.desired(APP)


def steps(want: Desired, have: Observed) -> list[str]:
    return [str(step).partition(" (")[0] for step in plan(want, have, NOW).steps]


def blocked(want: Desired, have: Observed) -> list[str]:
    return [f"{item.app}/{item.container}: {item.reason}" for item in plan(want, have, NOW).blocked]


def exited(ago: float = 0.0) -> Exited:
    return Exited(record(1, ago=ago))


def test_it_starts_after_the_one_that_it_joins_and_is_then_left_alone() -> None:
    made = settle(WANT, world())
    assert steps(WANT, world())[-4:] == [
        "create web/page",
        "start web/page",
        "create web/log",
        "start web/log",
    ]
    assert steps(WANT, made) == []
    assert made.containers["web/log"][0].joins == "web/page"


def test_in_a_namespace_that_is_not_its_owners_any_more_it_is_made_anew_alone() -> None:
    have = world(found(WEB), found(LOG, attached=False))
    assert steps(WANT, have) == ["stop web/log", "remove web/log", "create web/log", "start web/log"]
    assert steps(WANT, turn(WANT, have)) == []


def test_while_the_owner_waits_to_be_started_again_it_is_stopped_and_comes_after_it() -> None:
    have = world(found(WEB, exited()), found(LOG, attached=False))
    assert steps(WANT, have) == ["stop web/log"]
    after = turn(WANT, have)
    assert steps(WANT, after) == []
    assert "web/log: waits for web/page, whose network it joins" in blocked(WANT, after)
    up = settle(WANT, after, later(6.0))
    assert {name for name, same in up.containers.items() if isinstance(same[-1].phase, Running)} == {
        "web/page",
        "web/log",
    }
    assert all(same[-1].attached for same in up.containers.values())


@pytest.mark.parametrize(
    "broken",
    [
        lambda: found(WEB, exited(ago=100.0)),
        lambda: found(WEB, Lost("its shim is gone")),
        lambda: found(WEB, intact=False),
        lambda: found(replace(WEB, identity=replace(WEB.identity, arguments=("/bin/old",)))),
    ],
    ids=["ended", "lost", "damaged", "of an older spec"],
)
def test_it_leaves_before_the_owner_is_made_anew_and_comes_back_after(broken: Callable[[], Found]) -> None:
    owner = broken()
    runs = isinstance(owner.phase, Running)
    have = world(owner, found(LOG, attached=runs))
    made = steps(WANT, have)
    order = [made.index(f"{what} web/{name}") for what, name in (
        ("stop", "log"), ("remove", "page"), ("create", "page"), ("start", "page"), ("create", "log"), ("start", "log"),
    )]  # fmt: skip
    assert order == sorted(order)
    assert made.count("stop web/log") == 1
    assert not runs or made.index("stop web/log") < made.index("stop web/page")
    assert steps(WANT, turn(WANT, have)) == []


def test_an_update_of_the_owner_that_may_not_happen_now_touches_neither() -> None:
    old = replace(WEB, identity=replace(WEB.identity, arguments=("/bin/old",)))
    failed = Failure("create web/page", "no space left", "", True, 3, NOW.boottime, "spec-1")
    have = replace(world(found(old), found(LOG)), failures={"web": failed})
    assert steps(WANT, have) == []


def test_an_owner_that_people_hold_stopped_takes_it_along_until_it_is_let_go() -> None:
    held = replace(WEB, wish=Wish(Goal.STOPPED, reason="held"))
    want = values.desired(values.app("web", held, LOG))
    have = world(found(WEB), found(LOG))
    assert steps(want, have)[:2] == ["stop web/log", "stop web/page"]
    rests = settle(want, have)
    assert not any(isinstance(c.phase, Running) for same in rests.containers.values() for c in same)
    again = values.desired(values.app("web", replace(WEB, wish=Wish(turn=1)), LOG))
    runs = settle(again, rests)
    assert all(isinstance(same[-1].phase, Running) for same in runs.containers.values())


def test_one_that_people_hold_stopped_does_not_come_back_with_the_owner() -> None:
    held = replace(LOG, wish=Wish(Goal.STOPPED, reason="held"))
    want = values.desired(values.app("web", WEB, held))
    have = settle(want, world(found(WEB, intact=False), found(LOG)))
    assert isinstance(have.containers["web/page"][-1].phase, Running)
    assert isinstance(have.containers["web/log"][-1].phase, Exited)


def test_replicas_follow_the_one_of_their_number_one_after_another() -> None:
    old, new = (
        [replace(WEB, name=n, identity=replace(WEB.identity, arguments=(arg,))) for n in ("page", "page.2")]
        for arg in ("/old", "/new")
    )
    logs = [
        replace(
            LOG,
            name=f"log{n}",
            identity=replace(LOG.identity, network_mode=f"container:web/page{n}"),
            settings=replace(LOG.settings, depends_on=(f"web/page{n}",)),
        )
        for n in ("", ".2")
    ]
    have = world(*(found(one) for one in (*old, *logs)))
    made = steps(values.desired(values.app("web", *new, *logs)), have)
    assert made.index("start web/log") < made.index("stop web/log.2") < made.index("stop web/page.2")
    assert made.index("start web/page.2") < made.index("create web/log.2")
    for name in ("log", "log.2", "page", "page.2"):
        assert [made.count(f"{what} web/{name}") for what in ("stop", "create", "start")] == [1, 1, 1]


def test_a_replica_that_waits_for_its_sibling_to_listen_keeps_who_joined_it() -> None:
    first, old, new = (
        replace(WEB, name=name, identity=replace(WEB.identity, arguments=(arg,)))
        for name, arg in (("page", "/new"), ("page.2", "/old"), ("page.2", "/new"))
    )
    log = replace(
        LOG,
        name="log.2",
        identity=replace(LOG.identity, network_mode="container:web/page.2"),
        settings=replace(LOG.settings, depends_on=("web/page.2",)),
    )
    want = values.desired(values.app("web", first, new, log))
    have = world(found(first, listens=False), found(old), found(log))
    assert steps(want, have) == []
    assert blocked(want, have)[0] == "web/page.2: waits for web/page to listen"
    then = steps(want, world(found(first), found(old), found(log)))
    assert then[:2] == ["stop web/log.2", "stop web/page.2"]
    # One that does not listen is itself replaced at once: perhaps that is why
    wrong = replace(first, identity=replace(first.identity, arguments=("/wrong",)))
    assert "stop web/page" in steps(want, world(found(wrong, listens=False), found(old), found(log)))


# --- by hand ----------------------------------------------------------------------------------------------------------


def adhoc(name: str, joins: str = "", **changes: object) -> Container:
    mode = f"container:{joins}" if joins else "bridge"
    one = values.container(ADHOC, name, network_mode=mode)
    policy = Settings(restart=RestartPolicy(policy="no"))
    return replace(one, id=f"id-of-{name}", wish=Wish(), settings=policy, **changes)  # type: ignore[arg-type]


def lanes(*containers: Container, apps: tuple[App, ...] = ()) -> Desired:
    made = [App(ADHOC, "", "record-1", {one.name: one}, only=one.name) for one in containers]
    return Desired({app.lane: app for app in (*apps, *made)})


def by_hand(*containers: Found) -> Observed:
    return replace(world(*containers), adhoc=frozenset(c.name for c in containers if c.app == ADHOC))


@pytest.mark.parametrize("joins", ["web/page", f"{ADHOC}/id-of-owner"])
def test_by_hand_it_follows_what_it_finds_of_the_one_that_it_joined(joins: str) -> None:
    owner = adhoc("owner") if joins.startswith(ADHOC) else WEB
    guest = adhoc("guest", joins)
    want = lanes(guest, *([owner] if owner.id else []), apps=() if owner.id else (values.app("web", WEB),))
    have = by_hand(found(owner, id=owner.id or "1"), found(guest, id=guest.id))
    assert steps(want, have) == []
    moved = by_hand(found(owner, id=owner.id or "2"), found(guest, id=guest.id, attached=False))
    assert steps(want, moved) == ["stop adhoc/guest", "create adhoc/guest", "start adhoc/guest"]
    alone = by_hand(found(owner, exited(), id=owner.id or "1"), found(guest, id=guest.id, attached=False))
    assert "stop adhoc/guest" in steps(want, alone)
    assert "create adhoc/guest" not in steps(want, alone)
    rests = turn(want, alone)
    shown = "owner" if owner.id else "web/page"
    assert f"adhoc/guest: waits for {shown}, whose network it joins" in blocked(want, rests)


def test_by_hand_without_an_owner_it_waits_for_nobody_and_says_what_to_do() -> None:
    guest = adhoc("guest", f"{ADHOC}/id-of-owner")
    have = turn(lanes(guest), by_hand(found(guest, id=guest.id, attached=False)))
    (item,) = plan(lanes(guest), have, NOW).blocked
    assert item.reason == "the container id-of-owner, whose network it joins, is gone"
    assert item.hint == "run: reconciler rm guest"


def test_one_that_was_only_created_is_made_anew_too() -> None:
    owner, guest = (
        adhoc("owner"),
        adhoc(
            "guest",
            f"{ADHOC}/id-of-owner",
        ),
    )
    guest = replace(guest, wish=Wish(Goal.CREATED))
    have = by_hand(found(owner, id=owner.id), found(guest, Created(), id=guest.id, attached=False))
    assert steps(lanes(owner, guest), have) == ["stop adhoc/guest", "create adhoc/guest"]
