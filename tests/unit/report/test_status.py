"""The status document: what each situation is called, and that every situation has a name."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.progress import Pulling
from reconciler.engine.usage import Usage
from reconciler.plan.diff import plan as make_plan
from reconciler.plan.steps import Blocked, CreateContainer, Plan, PullImage, StartContainer
from reconciler.report import status
from reconciler.report.container import STATES
from reconciler.report.tables import listing
from reconciler.spec.marks import Mark, Problem
from reconciler.spec.reference import Digest
from reconciler.state.desired import (
    App,
    Container,
    Desired,
    Identity,
    Port,
    RestartPolicy,
    Settings,
    UnresolvedImage,
)
from reconciler.state.image import Image, Unresolved
from reconciler.state.observed import Container as Found
from reconciler.state.observed import (
    Created,
    Exited,
    Failure,
    Lost,
    Networks,
    Now,
    Observed,
    Phase,
    Previous,
    Published,
    Running,
)
from reconciler.state.process import ExitRecord

DIGEST = Digest("sha256", "a" * 64)
IMAGE = Image(DIGEST, DIGEST, DIGEST, (), "linux/amd64")
NOW = Now(1000.0, 1_790_000_000.0)
PORT = Port("0.0.0.0", 8080, 80)
WANT = Container(
    "web",
    "page",
    Identity(str(DIGEST), ("/page",)),
    Settings(ports=(PORT,)),
    IMAGE,
    f"r.example/page:1@{DIGEST}",
)
APP = App("web", "web.yaml", "d" * 64, {"page": WANT})
DESIRED = Desired({"web": APP})


def ended(
    code: int | None = 0, signal: int | None = None, *, oom: bool = False, ago: float = 120.0
) -> ExitRecord:
    return ExitRecord(code, signal, oom, 700.0, 1.0, NOW.boottime - ago, NOW.wall - ago, "boot")


def found(phase: Phase, *, attempt: int = 0, restarts: int = 0, fingerprint: str = WANT.fingerprint) -> Found:
    return Found(
        "0123456789abcdef0123456789abcdef",
        "web",
        "page",
        fingerprint,
        WANT.settings,
        phase,
        str(DIGEST),
        (),
        attempt=attempt,
        restarts=restarts,
        created=NOW.wall - 300,
    )


def world(*containers: Found, previous: Previous | None = None) -> Observed:
    return Observed(
        "boot",
        {"web/page": containers} if containers else {},
        previous={"web/page": previous} if previous is not None else {},
        network=Networks(frozenset({"web"}), (Published("web", "page", PORT),)),
    )


def shown(
    observed: Observed, desired: Desired = DESIRED, plan: Plan | None = None, **more: object
) -> dict[str, object]:
    plan = make_plan(desired, observed, NOW) if plan is None else plan
    document = status.document(desired, observed, plan, NOW, **more)  # type: ignore[arg-type]
    (item,) = document["items"]
    (container,) = item["containers"]
    return {**item, "converged": document["converged"], "container": container}


def test_what_runs_as_desired_is_synced_and_healthy() -> None:
    item = shown(world(found(Running(42, NOW.boottime - 180, NOW.wall - 180))))
    assert (item["sync"], item["health"], item["reason"], item["converged"]) == (
        "synced",
        "healthy",
        "",
        True,
    )
    container = item["container"]
    assert isinstance(container, dict)
    assert container["state"] == "running"
    assert container["status"] == "Up 3 minutes"
    assert container["pid"] == 42
    assert container["ports"] == ["0.0.0.0:8080->80/tcp"]
    assert container["ready"] is True


def test_a_crash_loop_is_in_sync_degraded_and_counts_down() -> None:
    record = ended(None, 9, oom=True, ago=1.0)
    item = shown(world(found(Exited(record), attempt=2, restarts=2)))
    container = item["container"]
    assert isinstance(container, dict)
    assert container["state"] == "backoff"
    assert container["status"] == "Backoff (3rd, next in 4s, exit 137 OOM)"
    assert container["exit_code"] == 137
    assert 2.0 < container["next_start_seconds"] < 4.0
    assert (item["sync"], item["health"]) == ("synced", "degraded")


@pytest.mark.parametrize(
    ("record", "phrase", "health"),
    [
        (ended(0), "Exited (0) 2 minutes ago", "healthy"),
        (ended(3), "Exited (3) 2 minutes ago", "degraded"),
        (ended(None, 9), "Exited (137) 2 minutes ago", "degraded"),
        (ended(None, 9, oom=True), "Exited (137) (OOM) 2 minutes ago", "degraded"),
    ],
)
def test_what_ended_for_good_says_how(record: ExitRecord, phrase: str, health: str) -> None:
    settings = replace(WANT.settings, restart=RestartPolicy("no"))
    want = replace(WANT, settings=settings)
    have = replace(found(Exited(record)), settings=settings, settled=True)
    item = shown(world(have), Desired({"web": replace(APP, containers={"page": want})}))
    container = item["container"]
    assert isinstance(container, dict)
    assert (container["state"], container["status"], item["health"]) == ("exited", phrase, health)
    assert item["sync"] == "synced"


def test_a_pull_is_progress() -> None:
    steps = (PullImage("web", WANT.reference, IMAGE), CreateContainer(WANT), StartContainer("web", "page"))
    item = shown(world(), plan=Plan(steps))
    assert (item["sync"], item["health"]) == ("out_of_sync", "progressing")
    assert item["reason"] == f"pull {WANT.reference}"


@pytest.mark.parametrize(
    ("pulling", "text"),
    [
        (None, "pulling r.example/page:1@aaaaaaaaaaaa"),
        (
            Pulling(34 << 20, 60 << 20, complete=1, layers=5),
            "pulling r.example/page:1@aaaaaaaaaaaa: 34.0MiB of 60.0MiB, layer 2 of 5",
        ),
        (
            Pulling(60, 60, complete=5, layers=5, until=NOW.boottime + 11.5, trouble="r.example: 503"),
            "pulling r.example/page:1@aaaaaaaaaaaa: 60B of 60B, layer 5 of 5; r.example: 503; next try in 12 s",
        ),
    ],
)
def test_a_pull_under_way_is_told_with_what_is_here_of_it(pulling: Pulling | None, text: str) -> None:
    said = status.pull_sentence(WANT.reference, pulling, NOW)
    assert said == text
    item = shown(world(), busy=frozenset({"web"}), live=status.Live(doing={"web": said}), plan=Plan())
    assert (item["sync"], item["health"], item["reason"]) == ("out_of_sync", "progressing", text)


def test_without_an_agent_nothing_is_said_to_be_under_way() -> None:
    lost = found(Lost("it has no shim: the device was restarted"))
    item = shown(world(lost), live=status.Live(agent=False))
    container = item["container"]
    assert isinstance(container, dict)
    assert (item["health"], container["state"]) != ("progressing", "starting")
    assert item["reason"] == "page: it has no shim: the device was restarted"
    assert item["hint"] == status.START
    assert shown(world(lost))["health"] == "progressing", "with one it is"


def test_what_is_in_the_way_says_what_to_do_about_it() -> None:
    crashed = shown(world(found(Exited(ended(3, ago=1.0)), attempt=2, restarts=2)))
    assert crashed["hint"] == "run: reconciler logs web/page"
    stale = Desired({"web": replace(APP, stale=f"{APP.path}:3:5: unknown key 'port'")})
    assert (
        shown(world(found(Running(42, NOW.boottime - 60, NOW.wall - 60))), stale)["hint"]
        == f"correct {APP.path}; `reconciler validate` checks it"
    )
    unresolved = UnresolvedImage("page", WANT.reference, Unresolved("registry answers 404", transient=False))
    waiting = Desired({"web": replace(APP, containers={}, unresolved=(unresolved,))})
    assert shown(world(), waiting)["hint"] == "to try now: reconciler apply"
    settings = replace(WANT.settings, restart=RestartPolicy("no"))
    over = replace(found(Exited(ended(3))), settings=settings, settled=True)
    gone = Desired({"web": replace(APP, containers={"page": replace(WANT, settings=settings)})})
    item = shown(world(over), gone)
    assert (item["reason"], item["hint"]) == ("page: exit 3", "run: reconciler logs web/page")
    text = listing("", [item], status.APP_COLUMNS)
    assert "page: exit 3; run: reconciler logs web/page" in text
    assert shown(world(found(Running(42, NOW.boottime - 60, NOW.wall - 60))))["hint"] == ""


def test_a_countdown_goes_on_between_two_turns() -> None:
    reason = "pull x: down; next try in 4 min 10 s"
    plan = Plan(
        (), (Blocked("web", "", reason, NOW.boottime + 250.0), Blocked("web", "page", "in 4 min 10 s"))
    )
    later = replace(NOW, boottime=NOW.boottime + 200.0)
    assert [item.reason for item in status.recounted(plan, NOW, later).blocked] == [
        "pull x: down; next try in 50 s",
        "in 4 min 10 s",
    ]
    assert status.recounted(plan, NOW, NOW) == plan


def test_an_image_that_is_looked_up_again_says_when() -> None:
    unresolved = UnresolvedImage("page", WANT.reference, Unresolved("registry answers 500"))
    desired = Desired({"web": replace(APP, containers={}, unresolved=(unresolved,))})
    item = shown(world(), desired, live=status.Live(retries={"web": 7.2}))
    assert str(item["reason"]).endswith("registry answers 500; next try in 8 s")


def test_what_a_container_uses_is_its_average_since_it_was_started() -> None:
    running = found(Running(42, NOW.boottime - 60, NOW.wall - 60))
    item = shown(
        world(running),
        live=status.Live(
            usage={"web/page": Usage(cpu_seconds=15.0, memory=3 << 20, memory_max=5 << 20)},
        ),
    )
    container = item["container"]
    assert isinstance(container, dict)
    assert container["usage"] == {"cpu": 0.25, "cpu_seconds": 15.0, "memory": 3 << 20}
    text = listing("", [container], status.ps_columns(now=NOW.wall), output="wide")
    assert text.splitlines()[1].split()[-3:] == ["25.0%", "3.00MiB", "5.00MiB"]
    assert container["memory_peak"] == 5 << 20
    assert shown(world(running))["container"]["usage"] is None  # type: ignore[index]


def test_a_taken_port_is_told_and_waits() -> None:
    plan = Plan((), (Blocked("web", "page", "port 0.0.0.0:8080/tcp is taken by nginx (pid 612)"),))
    item = shown(world(), plan=plan)
    assert (item["sync"], item["health"]) == ("out_of_sync", "missing")
    assert item["reason"] == "page: port 0.0.0.0:8080/tcp is taken by nginx (pid 612)"
    container = item["container"]
    assert isinstance(container, dict)
    assert (container["state"], container["status"]) == ("waiting", "Waiting")


def test_an_unresolved_image_waits_with_its_reason() -> None:
    unresolved = UnresolvedImage("page", WANT.reference, Unresolved("registry answers 404", transient=False))
    desired = Desired({"web": replace(APP, containers={}, unresolved=(unresolved,))})
    item = shown(world(), desired)
    assert item["sync"] == "out_of_sync"
    assert "404" in str(item["reason"])
    container = item["container"]
    assert isinstance(container, dict)
    assert container["image"] == WANT.reference
    assert container["state"] == "waiting"
    assert "404" in container["reason"]


def test_a_stale_spec_says_why_while_its_containers_run() -> None:
    desired = Desired({"web": replace(APP, stale="web.yaml:3:5: unknown key 'port'")})
    item = shown(world(found(Running(1, 900.0, 1.0))), desired)
    assert (item["sync"], item["health"]) == ("out_of_sync", "healthy")
    assert "web.yaml:3:5" in str(item["reason"])


def test_a_held_app_is_unknown() -> None:
    observed = world(found(Running(1, 900.0, 1.0)))
    assert shown(observed, Desired({}, held={"web": "web.yaml can't be read"}))["sync"] == "unknown"
    assert shown(observed, Desired({}, hold_all="no such directory"))["sync"] == "unknown"
    assert shown(observed, Desired({}))["sync"] == "out_of_sync"


def test_the_document_carries_problems_failures_and_notes() -> None:
    failure = Failure("pull x", "no route to host", "check the network", True, 3, 990.0, APP.digest)
    observed = replace(world(), failures={"web": failure})
    document = status.document(
        DESIRED,
        observed,
        make_plan(DESIRED, observed, NOW),
        NOW,
        problems=[Problem(Mark("b.yaml", 2, 1), "bad\x1b[2J", hint="fix it")],
        revision="abc",
        generation=4,
        notes=["an odd\x1b note"],
    )
    (problem,) = document["problems"]
    assert problem["where"] == "b.yaml:2:1"
    assert (problem["file"], problem["line"], problem["column"]) == ("b.yaml", 2, 1)
    assert (problem["severity"], problem["message"], problem["hint"]) == ("error", "bad\ufffd[2J", "fix it")
    assert document["items"][0]["failure"]["count"] == 3
    assert document["notes"] == ["an odd\ufffd note"]
    assert (document["revision"], document["generation"], document["converged"]) == ("abc", 4, False)
    json.dumps(document)


def test_ps_lists_what_should_run_and_with_all_what_ended() -> None:
    settings = replace(WANT.settings, restart=RestartPolicy("no"))
    want = replace(WANT, settings=settings)
    have = replace(found(Exited(ended(0))), settings=settings, settled=True)
    desired = Desired({"web": replace(APP, containers={"page": want})})
    document = status.document(desired, world(have), Plan(), NOW)
    assert status.containers(document) == []
    rows = status.containers(document, everything=True)
    text = listing("ContainerList", rows, status.ps_columns(now=NOW.wall))
    header, line = text.splitlines()
    assert header.split() == ["NAME", "STATUS", "HEALTH", "RESTARTS", "AGE", "PORTS", "IMAGE"]
    assert line.split("   ")[0].strip() == "web/page"
    assert "r.example/page:1@aaaaaaaaaaaa" in line
    wide = listing("ContainerList", rows, status.ps_columns(now=NOW.wall), output="wide")
    assert "0123456789ab" in wide
    assert str(DIGEST) in listing("", rows, status.ps_columns(now=NOW.wall, truncate=False))


FLOATS = st.floats(-1e12, 1e12)
RECORDS = st.builds(
    ExitRecord,
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
    st.booleans(),
    st.none() | FLOATS,
    st.none() | FLOATS,
    FLOATS,
    FLOATS,
    st.sampled_from(["boot", "other"]),
)
PHASES = st.one_of(
    st.just(Created()),
    st.builds(Running, st.integers(1, 2**22), FLOATS, FLOATS),
    st.builds(Exited, RECORDS),
    st.builds(Lost, st.text(max_size=5)),
)
FOUND = st.builds(
    lambda phase, attempt, fingerprint: found(phase, attempt=attempt, fingerprint=fingerprint),
    PHASES,
    st.integers(0, 1000),
    st.sampled_from([WANT.fingerprint, "other"]),
)
PREVIOUS = st.none() | st.builds(
    Previous, st.just(WANT.fingerprint), st.none() | RECORDS, st.integers(0, 9), st.integers(0, 9)
)
BLOCKED = st.builds(
    Blocked, st.just("web"), st.sampled_from(["", "page"]), st.text(max_size=9), st.none() | FLOATS
)
UNRESOLVED = UnresolvedImage("page", "r.example/x@y", Unresolved("later"))
DESIREDS = st.sampled_from(
    [
        DESIRED,
        Desired({}),
        Desired({}, held={"web": "why"}),
        Desired({}, hold_all="why"),
        Desired({"web": replace(APP, stale="why")}),
        Desired({"web": replace(APP, containers={}, unresolved=(UNRESOLVED,))}),
        Desired({"web": replace(APP, containers={})}),
    ]
)
STEPS = st.lists(
    st.sampled_from(
        [
            PullImage("web", "r", IMAGE),
            CreateContainer(WANT),
            StartContainer("web", "page"),
            StartContainer("b", "x"),
        ]
    ),
    max_size=3,
)


@given(
    DESIREDS,
    st.lists(FOUND, max_size=3),
    PREVIOUS,
    st.lists(BLOCKED, max_size=2),
    STEPS,
    st.booleans(),
    st.floats(0, 1e12),
)
def test_every_situation_has_a_row_and_only_known_words(
    desired: Desired,
    containers: list[Found],
    previous: Previous | None,
    blocked: list[Blocked],
    steps: list[PullImage | CreateContainer | StartContainer],
    busy: bool,
    wall: float,
) -> None:
    observed = world(*containers, previous=previous)
    plan = Plan(tuple(steps), tuple(blocked))
    now = Now(NOW.boottime, wall)
    document = status.document(desired, observed, plan, now, busy=frozenset({"web"} if busy else ()))
    json.dumps(document, allow_nan=False)
    for item in document["items"]:
        assert item["sync"] in status.SYNC
        assert item["health"] in status.HEALTH
        for container in item["containers"]:
            assert container["state"] in STATES
            assert container["status"]
    names = {item["name"] for item in document["items"]}
    assert ("web" in names) == bool(containers or desired.apps or desired.held)
    for output in ("", "wide", "json", "yaml", "name"):
        listing("AppList", document["items"], status.APP_COLUMNS, output=output)
        rows = status.containers(document, everything=True)
        listing("ContainerList", rows, status.ps_columns(now=wall), output=output)
